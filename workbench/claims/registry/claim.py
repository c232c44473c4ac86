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
"""The comparator of a claim whose source names no baseline: the claim is underspecified."""

UNITS = {
    "ratio": ("x",),
    "percent_change": ("%",),
    "absolute": (
        "%", "GB", "GB/s", "TB/s", "TFLOP/s", "bits", "count", "fraction", "ms", "perplexity",
        "requests/s", "s", "tokens", "tokens/s",
    ),
    "boolean": ("bool",),
}  # fmt: skip
"""The units of each type of effect: a % change, an x and a speed never mix."""

BUILT_IN = "built_in"
"""A check that no run of ours can fail, because of how our code is written: no evidence."""

CHECKS = {
    "subject_is_measured": "the system that gets the credit was measured",
    "same_model_and_weights": "both sides run the same checkpoint",
    "same_layer_scope": "both sides measure the same scope: an op, a layer, a model or a server",
    "same_phase_prefill_vs_decode": "both sides count tokens of the same phase",
    "same_batch_and_concurrency": "both sides have the same batch size and concurrency",
    "same_dtype": "weights, activations and KV have the same number formats",
    "same_token_lengths_ignore_eos": "input and output lengths are counted and the same",
    "warm_up_excluded": "warm-up, compilation and the first wave are excluded",
    "cache_state_controlled": "counters confirm the state of every cache",
    "same_gpu_count_or_per_gpu": "both sides have the same number of GPUs, or numbers are per GPU",
    "same_engine_knobs": "limits, memory fraction, graphs and block size are the same",
    "strong_tuned_baseline": "the baseline is tuned, current and has a version",
    "replicated_runs_with_ci": "each side has five launches, and the ratio has an interval",
    "interleaved_run_order": "the sides alternate on one machine",
    "output_quality_checked": "outputs are identical, or their quality has an interval",
    "same_metric_definition": "both sides use the same definition of the metric",
    "aa_noise_floor": "two identical arms were compared to measure the noise",
    "same_slo_and_arrivals": "arrivals, latency limits and attainment are the same",
    "below_physical_ceiling": "the value is below the limit of the hardware",
    "provenance_raw_log": "a raw log or script produces the number",
    "unit_and_iteration_accounting": "units, iterations and rounding are consistent",
    "one_factor_changed": "only one factor differs between the sides",
}
"""What makes a comparison fair; each text is a clause, for "unknown whether ..."."""


def _known_check(name: str) -> str:
    if name not in CHECKS:
        raise ValueError(f"check {name!r} is not known: {nearest(name, CHECKS)}")
    return name


T = TypeVar("T")
Many = Annotated[tuple[T, ...], Field(strict=False)]


class Effect(Entry):
    """One number, or yes or no, that a claim states."""

    name: str
    quantifier: Literal[
        "typical", "exact", "range", "up_to", "at_least", "at_most", "higher", "lower", "unchanged"
    ]
    type: Literal["ratio", "percent_change", "absolute", "boolean"]
    unit: str
    value: bool | float
    """The lower end of a range; for higher and lower the limit, such as 1 x."""
    high: float | None = None
    margin: float | None = None
    """For unchanged: the relative difference that still counts as no change."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        units, boolean = UNITS[self.type], self.type == "boolean"
        if self.unit not in units:
            raise ValueError(
                f"unit must be {' or '.join(units)} for type {self.type}, got {self.unit!r}"
            )
        if boolean != isinstance(self.value, bool):
            allowed = "true or false" if boolean else "a number"
            raise ValueError(f"value must be {allowed}, got {self.value!r}")
        if boolean and self.quantifier != "exact":
            raise ValueError(f"quantifier must be exact for a boolean, got {self.quantifier!r}")
        if self.quantifier == "range" and (self.high is None or self.high < self.value):
            raise ValueError(f"high must be at least value for a range, got {self.high}")
        if self.quantifier == "unchanged" and not 0 < (self.margin or 0) < 1:
            raise ValueError(
                f"margin must be between 0 and 1, got {self.margin} (example: margin: 0.01)"
            )
        return self

    def __str__(self) -> str:
        """What it claims: `2 to 4x`, `below 1x`, `at most 4 %`."""
        if self.type == "boolean":
            return "yes" if self.value else "no"
        if self.quantifier == "unchanged":
            return f"unchanged within {100 * (self.margin or 0):.3g} %"
        words = {"higher": "above ", "lower": "below "}.get(self.quantifier, "")
        if self.quantifier in ("up_to", "at_least", "at_most"):
            words = f"{self.quantifier.replace('_', ' ')} "
        until = f" to {self.high:,.6g}" if self.quantifier == "range" else ""
        return f"{words}{self.value:,.6g}{until}{unit_suffix(self.unit)}"


def unit_suffix(unit: str) -> str:
    """A unit as it follows its number: `x`, ` %`, ` tokens/s`, and nothing for a count."""
    return {"x": "x", "count": ""}.get(unit, f" {unit}")


class Check(Entry):
    """What the source says about one of CHECKS."""

    state: Literal["pass", "fail", "unknown"]
    why: str


class Evidence(Entry):
    """What the source has to support the claim."""

    kind: Literal[
        "measurement", "simulation", "model", "target", "configuration", "constant", "test",
        "documentation", "none",
    ]  # fmt: skip
    contradicted_by: str = ""
    """What in the source's own text, log or code contradicts the claim; empty if nothing does."""


class Bound(Entry):
    """A physical limit that a number of the claim must respect."""

    limit: Literal[
        "prefill_throughput", "decode_throughput", "memory_fit", "memory_bandwidth", "matrix_rate"
    ]
    gpu: str
    gpus: int = Field(1, ge=1)
    model: str = ""
    value: float = Field(0.0, allow_inf_nan=True)
    """In tokens/s, TB/s or TFLOP/s; a memory fit needs none. NaN in ours: not measured."""


class Origin(Entry):
    """What all claims of a file share."""

    title: str
    ref: str
    withdrawn: str = ""
    """When and how its authors withdrew it; empty if they did not."""
    own: bool = False
    """True for our own definitions and controls, which nobody has published."""


class Source(Origin):
    """Where a claim was read, and how it was confirmed."""

    group: str
    """The name of its file."""
    location: str
    confirmation: Literal["primary", "secondary", "memory"]
    how: str

    @property
    def cited(self) -> str:
        """The reference with its place, or the file's title if the reference adds nothing."""
        place = "" if self.location in ("no page noted", "not stated") else f"; {self.location}"
        own = self.ref != self.title and not self.ref.startswith("each claim")
        return f"{self.ref if own else self.title}{place}"


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
    test: dict[Literal["gpu", "cpu_shape", "analytic"], str] = Field(default_factory=dict)
    """How to test it on a GPU, on a CPU, or by calculation."""
    arithmetic: Many[Arithmetic] = ()
    """Arithmetic that its own numbers must satisfy."""
    expected_verdict: Literal["confirmed", "not_confirmed", "not_comparable"] | None = None
    """For claims that their source alone decides: a test of the rules."""

    def sums(self, claims: Mapping[str, Claim]) -> tuple[Sum, ...]:
        """The result of each of its sums; `claims` are those that it may refer to."""
        tables = {name: other.figures for name, other in claims.items()}
        return tuple(worked_out(entry, self.figures, tables) for entry in self.arithmetic)

    @property
    def inconsistent(self) -> str:
        """A sentence if its own numbers contradict each other, else empty."""
        alone = filter(needs_no_other, self.arithmetic)
        sums = (worked_out(entry, self.figures, {}) for entry in alone)
        return next((each.sentence for each in sums if not each.holds), "")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [effect.name for effect in self.effects]
        if not names:
            raise ValueError("effects is empty; a claim states at least one number, or yes or no")
        if len(set(names)) < len(names):
            raise ValueError("effects must have different names")
        for effect in self.effects:
            if effect.type in ("ratio", "percent_change") and self.comparator is None:
                raise ValueError(
                    f"comparator is missing for the {effect.type} {effect.name!r}; name the"
                    " baseline, or write unstated if the source does not"
                )
        for name, value in self.workload.items():
            if value is None:
                raise ValueError(f"workload.{name} has no value; quote a text with a comma")
        for bound in self.bounds:
            if bound.limit != "memory_fit" and not (isfinite(bound.value) and bound.value > 0):
                raise ValueError(f"bounds: {bound.limit} must be above 0, got {bound.value}")
        return self
