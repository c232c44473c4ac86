"""What a published claim is made of: its effects, conditions, evidence and fairness checks."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from workbench.claims.registry.entry import Entry
from workbench.claims.registry.sums import Arithmetic, Sum, needs_no_other, worked_out
from workbench.errors import nearest

UNSTATED = "unstated"
"""Written as a comparator that the source leaves out: the claim is then underspecified."""

UNITS = {
    "ratio": ("x",),
    "percent_change": ("%",),
    "absolute": (
        "%", "GB", "GB/s", "TB/s", "TFLOP/s", "bits", "count", "fraction", "ms", "perplexity",
        "requests/s", "s", "tokens", "tokens/s",
    ),
    "boolean": ("bool",),
}  # fmt: skip
"""The units that each type of effect may have: a % change, an x and a speed never mix."""

BUILT_IN = "built_in"
"""A check of ours that no run can fail, since our code is written so: settled, and no evidence."""

CHECKS = {
    "subject_is_measured": "the system that gets the credit is the one that was measured",
    "same_model_and_weights": "both sides run one checkpoint, and its label is that of the command",
    "same_layer_scope": "both sides measure the same part: an op, a layer, a model, a server",
    "same_phase_prefill_vs_decode": "both sides count the same tokens of the same phase",
    "same_batch_and_concurrency": "both sides are compared at equal batch and concurrency",
    "same_dtype": "weights, activations and KV have the same number formats",
    "same_token_lengths_ignore_eos": "input and output lengths are equal and counted",
    "warm_up_excluded": "warm-up, compilation and the first wave are left out",
    "cache_state_controlled": "the state of every cache is declared and proven by counters",
    "same_gpu_count_or_per_gpu": "both sides have as many GPUs, or figures are per GPU",
    "same_engine_knobs": "limits, memory share, graphs and block size are equal",
    "strong_tuned_baseline": "the baseline is tuned, of its time, and has a version",
    "replicated_runs_with_ci": "at least five launches a side, with an interval of the ratio",
    "interleaved_run_order": "the sides alternate on one machine",
    "output_quality_checked": "outputs are identical, or a quality measure has an interval",
    "same_metric_definition": "the metric is written out and is the same on both sides",
    "aa_noise_floor": "two equal sides were compared to know the noise",
    "same_slo_and_arrivals": "arrivals, latency limits and attainment are equal",
    "below_physical_ceiling": "the value is below what the hardware can do",
    "provenance_raw_log": "a raw log or script yields the number",
    "unit_and_iteration_accounting": "units, iterations and rounding are carried through",
    "one_factor_changed": "one factor differs between the sides",
}


def _known_check(name: str) -> str:
    if name not in CHECKS:
        raise ValueError(f"{name!r} is no check: {nearest(name, CHECKS)}")
    return name


T = TypeVar("T")
Many = Annotated[tuple[T, ...], Field(strict=False)]


class Effect(Entry):
    """One number, or yes or no, that a claim says; a claim of several parts has several."""

    name: str
    quantifier: Literal[
        "typical", "exact", "range", "up_to", "at_least", "at_most", "higher", "lower", "unchanged"
    ]
    type: Literal["ratio", "percent_change", "absolute", "boolean"]
    unit: str
    value: bool | float
    """For a range its lower end; for higher and lower the value that is passed, such as 1 x."""
    high: float | None = None
    margin: float | None = None
    """For unchanged: the relative difference that still counts as none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        units = UNITS[self.type]
        if self.unit not in units:
            raise ValueError(
                f"unit is {self.unit!r}; an effect of type {self.type} is written in one of"
                f" {', '.join(units)}"
            )
        yes_or_no = self.type == "boolean"
        if yes_or_no != isinstance(self.value, bool):
            allowed = "a boolean is true or false" if yes_or_no else "it is a number"
            raise ValueError(f"value is {self.value!r}; {allowed}")
        if yes_or_no and self.quantifier != "exact":
            raise ValueError(f"quantifier is {self.quantifier!r}; yes or no is exact")
        if self.quantifier == "range" and (self.high is None or self.high < self.value):
            raise ValueError(f"high is {self.high}; for a range it is at least value (example: 4)")
        if self.quantifier == "unchanged" and not 0 < (self.margin or 0) < 1:
            raise ValueError(f"margin is {self.margin}; it is between 0 and 1 (example: 0.01)")
        return self

    def __str__(self) -> str:
        """What it says, in words and numbers: `2 to 4 x`."""
        if self.type == "boolean":
            return "yes" if self.value else "no"
        number = f"{self.value:,.6g}"
        unit = "" if self.unit == "count" else self.unit
        match self.quantifier:
            case "range":
                return f"{number} to {self.high:,.6g} {unit}"
            case "unchanged":
                return f"unchanged within {self.margin:.0%}"
            case "up_to" | "at_least" | "at_most":
                return f"{self.quantifier.replace('_', ' ')} {number} {unit}"
            case "higher" | "lower":
                return f"{self.quantifier} than {number} {unit}"
        return f"{number} {unit}".strip()


class Check(Entry):
    """What a reading of the source found about one of CHECKS."""

    state: Literal["pass", "fail", "unknown"]
    why: str


class Evidence(Entry):
    """What stands behind the claim in its source."""

    kind: Literal[
        "measurement", "simulation", "model", "target", "configuration", "constant", "test",
        "documentation", "none",
    ]  # fmt: skip
    contradicted_by: str = ""
    """What in the source's own text, log or code speaks against it; empty if nothing does."""


class Bound(Entry):
    """A physical limit that a number of the claim must respect."""

    limit: Literal[
        "prefill_throughput", "decode_throughput", "memory_fit", "memory_bandwidth", "matrix_rate"
    ]
    gpu: str
    gpus: int = Field(1, ge=1)
    model: str = ""
    value: float = Field(0.0, allow_inf_nan=True)
    """In the limit's unit: tokens/s, TB/s or TFLOP/s; a memory fit needs none. NaN of ours is a
    number that could not be measured."""


class Origin(Entry):
    """What all claims of a file have in common."""

    title: str
    ref: str
    withdrawn: str = ""
    """When and how its authors took it back; empty if they did not."""
    own: bool = False
    """True for definitions and results of our own, which nobody has published as a claim."""


class Source(Origin):
    """Where a claim was read, and how surely."""

    group: str
    """The name of its file."""
    location: str
    confirmation: Literal["primary", "secondary", "memory"]
    how: str


class Claim(Entry):
    """One entry of the registry."""

    id: str
    statement: str
    metric: str
    effects: Many[Effect]
    subject: str
    comparator: str | None
    level: Literal["op", "layer", "model", "server", "cluster", "provisioning", "document"]
    phase: Literal["prefill", "decode", "mixed", "training", "none"]
    hardware: str | None
    model: str | None
    """None if the source does not say; `any` for a statement about all models."""
    workload: Annotated[
        dict[str, Any], BeforeValidator(lambda given: {} if given is None else given)
    ]
    software: Any = None
    evidence: Evidence
    checks: dict[Annotated[str, AfterValidator(_known_check)], Check]
    source: Source
    bounds: Many[Bound] = ()
    figures: Any = None
    """The numbers as published."""
    note: str = ""
    test: dict[str, str] = Field(default_factory=dict)
    """How to test it: gpu, cpu_shape, analytic."""
    arithmetic: Many[Arithmetic] = ()
    """Sums that its own numbers must agree with."""
    expected_verdict: Literal["confirmed", "not_confirmed", "not_comparable"] | None = None
    """For claims whose verdict follows from their sources alone: a test of the rules."""

    def sums(self, claims: Mapping[str, Claim]) -> tuple[Sum, ...]:
        """Every sum that the registry asks of it; `claims` are those that it may refer to."""
        tables = {name: other.figures for name, other in claims.items()}
        return tuple(worked_out(entry, self.figures, tables) for entry in self.arithmetic)

    @property
    def inconsistent(self) -> str:
        """A sentence where its own numbers do not agree; empty where they do."""
        alone = filter(needs_no_other, self.arithmetic)
        sums = (worked_out(entry, self.figures, {}) for entry in alone)
        return next((each.sentence for each in sums if not each.holds), "")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [effect.name for effect in self.effects]
        if not names:
            raise ValueError("effects is empty; a claim says at least one number, or yes or no")
        if len(set(names)) < len(names):
            raise ValueError("effects have one name twice; each part has a name of its own")
        for effect in self.effects:
            if effect.type in ("ratio", "percent_change") and self.comparator is None:
                raise ValueError(
                    f"comparator is missing: effect {effect.name!r} is a {effect.type}; name what"
                    " it is compared with, or write unstated if the source does not say"
                )
        for name, value in self.workload.items():
            if value is None:
                raise ValueError(f"workload.{name} has no value; quote a text that holds a comma")
        for bound in self.bounds:
            if bound.limit != "memory_fit" and not (isfinite(bound.value) and bound.value > 0):
                raise ValueError(
                    f"bounds: the value of {bound.limit} is {bound.value}; it is a number above 0"
                )
        return self
