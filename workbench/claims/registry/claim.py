"""What a published claim is made of: its effects, conditions, evidence and fairness checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

FAIRNESS = {
    "subject_is_measured": (
        "the system named in the claim was measured",
        "The system named in the claim was not measured",
        "measures the system named in the claim",
    ),
    "same_model_and_weights": (
        "the stated model and weights ran on both sides",
        "The models or weights do not match",
        "runs the same model and weights on both sides",
    ),
    "same_layer_scope": (
        "claim and measurement have the same scope (operation, layer, model or server)",
        "Claim and measurement differ in scope (operation, layer, model or server)",
        "measures the claimed scope on both sides",
    ),
    "same_phase_prefill_vs_decode": (
        "both sides count tokens of the same phase",
        "Tokens of different phases are compared (prefill, decode)",
        "counts tokens of the same phase on both sides",
    ),
    "same_batch_and_concurrency": (
        "both sides have the same batch size and concurrency",
        "The sides differ in batch size or concurrency",
        "uses the same batch size and concurrency on both sides",
    ),
    "same_dtype": (
        "both sides use the same number formats for weights, activations and KV",
        "The sides use different number formats for weights, activations or KV",
        "uses the same number formats on both sides",
    ),
    "same_token_lengths_ignore_eos": (
        "prompt and output lengths were counted and are the same",
        "Prompt or output lengths differ or were not counted",
        "counts prompt and output tokens and keeps them equal",
    ),
    "warm_up_excluded": (
        "the measurement excludes warm-up, compilation and the first batch",
        "The measurement includes warm-up, compilation or the first batch",
        "excludes warm-up, compilation and the first batch",
    ),
    "cache_state_controlled": (
        "counters confirm the state of all caches",
        "The state of the caches was not controlled",
        "confirms the state of all caches with counters",
    ),
    "same_gpu_count_or_per_gpu": (
        "both sides have the same GPU count or report numbers per GPU",
        "The sides have different GPU counts and do not report numbers per GPU",
        "uses the same GPU count on both sides",
    ),
    "same_engine_knobs": (
        "both sides use the same engine settings (batch limits, memory fraction, CUDA graphs, block"
        " size)",
        "The engine settings differ (batch limits, memory fraction, CUDA graphs or block size)",
        "uses the same engine settings on both sides",
    ),
    "strong_tuned_baseline": (
        "the baseline is tuned, current and has a stated version",
        "The baseline is untuned, outdated or has no stated version",
        "uses a tuned, current baseline with a stated version",
    ),
    "replicated_runs_with_ci": (
        "each side was launched five times and the ratio has a CI",
        "A side has fewer than five launches, or the ratio has no CI",
        "launches each side five times and reports a CI",
    ),
    "interleaved_run_order": (
        "the sides alternate on one machine",
        "The sides do not alternate on one machine",
        "alternates the sides on one machine",
    ),
    "output_quality_checked": (
        "the outputs are identical or their quality was measured with a CI",
        "The outputs are not identical, and their quality was not measured with a CI",
        "compares the outputs, or measures their quality with a CI",
    ),
    "same_metric_definition": (
        "both sides use the same definition of the metric",
        "The metric is not defined, or not in the same way on both sides",
        "uses the same definition of the metric on both sides",
    ),
    "aa_noise_floor": (
        "two identical arms were compared to measure the noise",
        "The noise was not measured with two identical arms",
        "compares two identical arms to measure the noise",
    ),
    "same_slo_and_arrivals": (
        "both sides have the same arrivals, latency limits and required attainment",
        "The sides differ in arrivals, latency limits or required attainment",
        "uses the same arrivals, latency limits and required attainment on both sides",
    ),
    "below_physical_ceiling": (
        "the value is below the limit of the hardware",
        "The value is above the limit of the hardware",
        "stays below the limit of the hardware",
    ),
    "provenance_raw_log": (
        "a raw log or script produces the number",
        "No raw log or script produces the number",
        "has a raw log or script that produces the number",
    ),
    "unit_and_iteration_accounting": (
        "units, labels, iteration counts and rounding are consistent",
        "Units, labels, iteration counts or rounding are inconsistent",
        "uses consistent units, labels, iteration counts and rounding",
    ),
    "one_factor_changed": (
        "exactly one factor differs between the sides",
        "The sides differ in more than one factor, or in none",
        "changes only one factor between the sides",
    ),
}
"""What makes a comparison fair: that it holds (a clause for "unknown whether ..."), that it fails
(a sentence), and what a fair comparison does ("a comparison that ...").
"""

CHECKS = {name: holds for name, (holds, _, _) in FAIRNESS.items()}


def failed_check(name: str) -> str:
    """A sentence, without its full stop, that this check fails."""
    return FAIRNESS[name][1] if name in FAIRNESS else f"The check {name} fails"


def fair_comparison(names: Sequence[str]) -> str:
    """What a comparison must do that passes these checks."""
    *most, last = [FAIRNESS[name][2] if name in FAIRNESS else f"passes {name}" for name in names]
    wanted = f"{', '.join(most)} and {last}" if most else last
    return f"A comparison that {wanted}."


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
        """What it claims: `2x to 4x`, `below 1x`, `at most 4 %`."""
        if self.type == "boolean":
            return "yes" if self.value else "no"
        if self.quantifier == "unchanged":
            return f"unchanged within {100 * (self.margin or 0):.3g} %"
        words = {"higher": "above ", "lower": "below "}.get(self.quantifier, "")
        if self.quantifier in ("up_to", "at_least", "at_most"):
            words = f"{self.quantifier.replace('_', ' ')} "
        until = f" to {self.high:,.6g}" if self.quantifier == "range" else ""
        if until and self.unit == "x":
            until = f"x{until}"
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
