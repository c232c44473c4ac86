"""What a published claim is made of: its effects, conditions, evidence and fairness checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BUILT_IN",
    "CHECKS",
    "CONFIRMATIONS",
    "EVIDENCE",
    "LEVELS",
    "LIMITS",
    "PHASES",
    "QUANTIFIERS",
    "STATES",
    "UNITS",
    "UNSTATED",
    "VERDICTS",
    "Bound",
    "Check",
    "Claim",
    "Effect",
    "Evidence",
    "Source",
]

UNSTATED = "unstated"
"""Written as a comparator that the source leaves out: the claim is then underspecified."""

QUANTIFIERS = (
    "typical", "exact", "range", "up_to", "at_least", "at_most", "higher", "lower", "unchanged",
)  # fmt: skip
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

LEVELS = ("op", "layer", "model", "server", "cluster", "provisioning", "document")
PHASES = ("prefill", "decode", "mixed", "training", "none")
EVIDENCE = ("measurement", "simulation", "model", "target", "configuration", "constant", "test",
            "documentation", "none")  # fmt: skip
CONFIRMATIONS = ("primary", "secondary", "memory")
STATES = ("pass", "fail", "unknown")
BUILT_IN = "built_in"
"""A check of ours that no run can fail, since our code is written so: settled, and no evidence."""
VERDICTS = ("confirmed", "not_confirmed", "not_comparable")
LIMITS = (
    "prefill_throughput", "decode_throughput", "memory_fit", "memory_bandwidth", "matrix_rate",
)  # fmt: skip

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One number, or yes or no, that a claim says; a claim of several parts has several."""

    name: str
    quantifier: str
    type: str
    unit: str
    value: float | bool
    """For a range its lower end; for higher and lower the value that is passed, such as 1 x."""
    high: float | None = None
    margin: float | None = None
    """For unchanged: the relative difference that still counts as none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a reading of the source found about one of CHECKS."""

    state: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What stands behind the claim in its source."""

    kind: str
    contradicted_by: str = ""
    """What in the source's own text, log or code speaks against it; empty if nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A physical limit that a number of the claim must respect."""

    limit: str
    gpu: str
    gpus: int = 1
    model: str = ""
    value: float = 0.0
    """In the limit's unit: tokens/s, TB/s or TFLOP/s; a memory fit needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a claim was read, and how surely."""

    group: str
    title: str
    ref: str
    location: str
    confirmation: str
    how: str
    withdrawn: str = ""
    """When and how its authors took it back; empty if they did not."""
    own: bool = False
    """True for definitions and results of our own, which nobody has published as a claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One entry of the registry."""

    id: str
    statement: str
    metric: str
    effects: tuple[Effect, ...]
    subject: str
    comparator: str | None
    level: str
    phase: str
    hardware: str | None
    model: str | None
    """None if the source does not say; `any` for a statement about all models."""
    workload: dict[str, Any]
    software: Any
    evidence: Evidence
    checks: dict[str, Check]
    source: Source
    bounds: tuple[Bound, ...] = ()
    figures: Any = None
    """The numbers as published."""
    note: str = ""
    test: dict[str, str] = field(default_factory=dict)
    """How to test it: gpu, cpu_shape, analytic."""
    arithmetic: tuple[dict[str, Any], ...] = ()
    """Sums that its own numbers must agree with, see workbench.claims.sums."""
    expected_verdict: str | None = None
    """For claims whose verdict follows from their sources alone: a test of the rules."""
