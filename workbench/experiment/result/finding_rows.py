"""Rows of result.json: findings, and the values that they are based on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Literal

from workbench.experiment.load_unit import RATE, USERS, LoadUnit
from workbench.metrics.gates.gate_table import GRADES, Effect, Kind
from workbench.metrics.statistics import Estimate, Number, Ratio, three_digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A key number of the first screen."""

    label: str
    value: Number
    unit: str = ""
    low: Number = nan
    high: Number = nan
    note: str = ""
    """Its sample, and a word on what failed gates do to it."""
    rests_on: Kind | Literal[""] = ""
    """The kind of number; empty if no gate touches it."""
    passes: tuple[str, ...] = ()
    """The passes that it comes from; empty for all."""
    arms: tuple[str, ...] = ()
    """The arms that it comes from; empty for all."""
    spoilt: Effect | Literal[""] = ""
    """What failed gates do to it."""
    kind: str = ""
    """Of claims: the kind of verdict that is counted."""


def spoilt_note(effect: str, note: str) -> str:
    """A card's note with what failed gates do to its number: `rough; 24 requests`."""
    return "; ".join(filter(None, (GRADES.get(effect), note)))  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """The median of one metric of one arm and pass."""

    arm: str
    topology: str
    connector: str
    pass_name: str
    n_requests: int
    n_failed: int
    n_rounds: int
    metric: str
    """`ttft_s`, `tpot_s`, `e2e_s`, `request_tps` over requests; `system_tps` over rounds."""
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A speed-up: above 1 the arm is better than its baseline."""

    kind: Literal["cache-state", "opponent", "cache-off", "no-offload"]
    metric: str
    arm: str
    pass_name: str
    baseline_arm: str
    baseline_pass: str
    ratio: Ratio
    sentence: str

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes that are compared."""
        return tuple(dict.fromkeys((self.pass_name, self.baseline_pass)))

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that are compared."""
        return tuple(dict.fromkeys((self.arm, self.baseline_arm)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRow:
    """A target, and the comparison that decides it: the worst if there are several."""

    target: str
    outcome: Literal["met", "not met", "undecided"]
    value: Number = nan
    """The measured value in percent: a cut, a gain, or the metric relative to its reference
    (minus 100 for `within`)."""
    low: Number = nan
    high: Number = nan
    arm: str = ""
    pass_name: str = ""
    baseline_arm: str = ""
    baseline_pass: str = ""
    comparisons: int = 0
    """Number of comparisons that the target names."""
    why: str = ""
    """Why it is undecided, or what makes it doubtful."""

    @property
    def measured(self) -> str:
        """`72.1 % [68.0, 75.3]`, or that it is not known."""
        if isnan(self.value):
            return "not known"
        value, *ends = (
            f"{'-' if each < 0 else ''}{three_digits(abs(each))}"
            for each in (self.value, self.low, self.high)
        )
        return f"{value} %" + ("" if isnan(self.low) else f" [{', '.join(ends)}]")

    @property
    def where(self) -> str:
        """`1p1d nixl, store-warm vs cold`; empty if nothing was measured."""
        if not self.arm:
            return ""
        against = self.baseline_pass if self.arm == self.baseline_arm else self.baseline_arm
        return f"{self.arm}, {self.pass_name} vs {against}"

    @property
    def mark(self) -> str:
        """The symbol in front of the outcome."""
        return {"met": "●", "undecided": "◆", "not met": "▲"}[self.outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRow:
    """What one load of a sweep gave for one arm: an arrival rate, or users of a closed loop."""

    arm: str
    rate_per_s: Number
    """The requested rate; null in a closed loop."""
    n_requests: int
    n_rounds: int
    share: Number
    """Fraction of requests that met the limits."""
    share_low: Number
    share_high: Number
    offered_per_s: Number
    """The rate of the arrival times drawn for it; null in a closed loop."""
    achieved_per_s: Number
    """Throughput: responses per second, from the first to the last end of a round."""
    goodput_per_s: Number
    """`achieved_per_s` times `share`."""
    ttft_s: Number
    ttft_low_s: Number
    ttft_high_s: Number
    ttft_p90_s: Number
    tpot_s: Number
    users: Number = nan
    """Requests in flight of a closed loop; null at an arrival rate."""

    @property
    def unit(self) -> LoadUnit:
        """What its load counts."""
        return RATE if isnan(self.users) else USERS

    @property
    def requested(self) -> float:
        """The load that was asked for."""
        return self.rate_per_s if isnan(self.users) else self.users


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRow:
    """What a search for the highest load within the limits found for one arm."""

    arm: str
    met_per_s: Number
    """The requested rate, as `rate_per_s` of `rates`; null in a closed loop."""
    missed_per_s: Number
    resolved: bool
    reason: str
    met_users: Number = nan
    """Requests in flight of a closed loop; null at an arrival rate."""
    missed_users: Number = nan


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """An operating point of an arm: a cold pass at one rate, or at one number of users."""

    arm: str
    pass_name: str
    gpus: int
    """GPUs of the arm; on a CPU its instances. 0 if unknown (attached servers)."""
    rate_per_s: Number
    """The requested arrival rate; null in a closed loop."""
    users: Number
    """Requests in flight of a closed loop; null at an arrival rate."""
    n_requests: int
    n_rounds: int
    user_tps: Estimate
    """Output tokens per second of one user: 1 / median TPOT, over requests."""
    system_tps: Estimate
    """Output tokens per second of the arm: geometric mean over rounds, t interval."""
    gpu_tps: Estimate
    """`system_tps` per GPU."""
    output_cost: Estimate
    """Cost of a million output tokens, in the currency of `gpu_hour_price`."""
    total_cost: Estimate
    """Cost of a million tokens, prompts and output together."""
    energy: Estimate
    """Joules per output token of the devices that were metered: mean over rounds, t interval."""
    energy_above_idle: Estimate
    """The same without their idle power."""
    power_w: Number
    """Mean power of these devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRow:
    """What one device used in one pass."""

    arm: str
    round: int
    pass_name: str
    meter: str
    """`GPU 0`, or `CPU package-0`."""
    source: Literal["NVML", "amdsmi", "RAPL"]
    joules: Number
    seconds: Number
    idle_w: Number
    """Its power before the passes of the launch, while the servers waited for requests."""
    samples: int
    counted: bool
    """True for its own energy counter; otherwise its power was sampled and integrated."""
    problem: str = ""
    """Why `joules` is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """The highest load of one arm within the TTFT and TPOT limits."""

    arm: str
    gpus: int
    load: Literal["rate", "users"]
    """What `met` counts: requests per second, or requests in flight."""
    met: Number
    """The highest load within the limits, a rate as it was sent; null if none was."""
    missed: Number
    """The lowest measured load that missed them; null if none did."""
    pass_name: str
    """The pass at `met`, or at the lowest load if none met them; `points` has its cost."""
    settled: bool
    """Neither interval of the two loads contains the wanted fraction."""
    note: str
    """Why it is not settled, or what else limits it."""
    share: Number
    """Fraction of requests within the limits, in that pass."""
    share_low: Number
    share_high: Number
    throughput_per_s: Number
    """Responses per second in that pass; null without a sweep."""
    kv_tokens: Number
    """KV space that the decoding instances report, in tokens."""
    request_tokens: int
    """The longest prompt with its output."""
    running: Number
    """Largest number of requests that decoded at the same time in that pass."""
    head_room: Number
    """Further requests of that length whose KV fits: hand-offs that decode can hold at once."""
    hand_offs: Number
    """Largest number of requests that waited for their KV at the same time; null without a PD
    split."""
    gate: str
    """The gate that makes this not valid or rough, or that would if it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRow:
    """What host memory did for one working set, in the pass `cold` or `again`."""

    arm: str
    baseline_arm: str
    """The same instances without host memory."""
    asked: str
    """`cold`, or `again` for the same prompts sent a second time."""
    times: Number
    """The working set, as a multiple of an instance's KV space."""
    host_times: Number
    """What host memory holds, likewise."""
    prompts: int
    """Requests of a pass."""
    hit_share: Number
    """Fraction of prompt tokens that a cache served, with host memory."""
    baseline_hit_share: Number
    ttft_s: Number
    """Median."""
    baseline_ttft_s: Number
    ratio: Ratio
    """TTFT without / with host memory."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that are compared."""
        return self.arm, self.baseline_arm


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """Where a role's prompt tokens of one pass came from."""

    arm: str
    round: int
    pass_name: str
    role: str
    sent: int
    computed: Number
    engine_hit: Number
    external_hit: Number
    loaded: Mapping[str, Number] = field(default_factory=dict)
    """Of external_hit, what each tier of the store served; empty without tiers, or if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRow:
    """One tier of the store below its memory, after one pass. Counts are of chunks.

    All but `loads` are since the tier was last emptied.
    """

    arm: str
    round: int
    pass_name: str
    tier: str
    loads: Number
    """Loads that LMCache finished from it in this pass; one can have many chunks."""
    sent: Number
    """What LMCache began to write to it."""
    written: Number
    """What LMCache says it wrote."""
    held: Number
    """What the tier itself has."""
    evicted: Number
    """What the tier says it dropped."""
    problem: str = ""
    """Why it did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockRow:
    """The clock of another host compared with ours, in one pass."""

    arm: str
    round: int
    pass_name: str
    host: str
    """Its address."""
    wall_offset_s: Number
    """Its time of day minus ours."""
    bound_s: Number
    """The largest error of an offset, or of a duration of this pass."""
    rate: Number
    """Seconds of its clock in a second of ours."""
    rate_bound: Number
    factor: Number
    """Converts its seconds to ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRow:
    """A metric of an arm's cold pass, over the links between hosts of one run."""

    run_id: str
    arm: str
    baseline_arm: str
    """Aggregated instances on the same hosts, which move no KV; empty without opponents."""
    metric: str
    """`ttft_s` or `e2e_s`."""
    gbit_s: Number
    """Payload of one TCP connection from prefill to decode hosts, before each launch's passes:
    the median."""
    gbit_low: Number
    """The slowest and the fastest, of both directions."""
    gbit_high: Number
    kv_bytes: Number
    """KV that a request moved from host to host."""
    transfer: Estimate
    """The part of TTFT that includes the transfer: `KV transfer + decode queue`."""
    value: Estimate
    baseline: Estimate
    ratio: Ratio
    """Paired, baseline / arm: above 1 the arm is faster."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that are compared."""
        return tuple(filter(None, (self.arm, self.baseline_arm)))
