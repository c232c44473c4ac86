"""All of result.json as records; `result_file` writes and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import nan
from typing import Any, ClassVar, Literal

from workbench.experiment.result.claim_account import ClaimAccount
from workbench.experiment.result.finding_rows import (
    Card,
    ClockRow,
    Comparison,
    DecisionRow,
    EnergyRow,
    LinkRow,
    LoadRow,
    PointRow,
    SearchRow,
    SizeRow,
    SummaryRow,
    TargetRow,
    TierRow,
    TokenRow,
)
from workbench.experiment.result.predicted import FitRow, HeldOutRow, OwnErrorRow, PredictedRow
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_effects import failed_gates
from workbench.metrics.ledger.ledger import Account
from workbench.metrics.statistics import Number

SCHEMA = 2
Status = Literal["started", "success", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended, in the words of page, index and terminal."""

    word: str
    """`gates passed`, `gates failed`, `gates undecided`, `not valid`, `run failed`, ..."""
    severity: Literal["ok", "unsure", "bad"]
    why: str = ""
    """One sentence; empty if every gate passed."""

    @property
    def mark(self) -> str:
        """The shape that stands before the word, for readers who cannot tell colours."""
        return {"ok": "●", "unsure": "◆", "bad": "▲"}[self.severity]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """When a pass sent its requests, in Unix time."""

    arm: str
    round: int
    pass_name: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFacts:
    """One arm as it was launched."""

    label: str
    topology: str = ""
    connector: str = ""
    role: str = "subject"
    """`subject`, `opponent` or `attached`."""
    gpus: int = 0
    instances: int = 0
    model: str = ""
    """The model name in requests."""
    short_model: str = ""
    """Of a run over several models, the one with which the label begins; else empty."""
    passes: tuple[str, ...] = ()
    command_lines: tuple[str, ...] = ()
    """Of the first launch."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """The host of each instance, by its name; empty if all ran on this machine."""
    decode_kv_tokens: tuple[Number, ...] = ()
    """KV space that each decoding instance reports, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """A host of a run with `place ray`, as it was before the run."""

    host: str
    address: str
    cpu: str
    cores: int
    memory_free_gb: Number
    shm_free_gb: Number
    gpus: str
    python: str
    versions: Mapping[str, str]
    """Engine packages of the interpreter that ran the servers."""
    model: bool
    """Whether the model's folder was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFacts:
    """How many launches (an arm in a round) a run has measured of those planned."""

    planned: int
    measured: int
    """Launches of which every pass was measured."""
    planned_rounds: int
    rounds: int
    """Rounds in the result; fewer than planned if `time_budget_s` left out the last."""
    took_s: Mapping[str, tuple[Number, ...]] = field(default_factory=dict)
    """The duration of the launches of each arm, start and stop of its servers included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """One session of a run that was interrupted and resumed; the only one of any other run."""

    number: int
    """From 1."""
    started_at: str
    ended_at: str = ""
    """When its last launch ended, or the last sign of life in one that was interrupted."""
    launches: tuple[str, ...] = ()
    """The launches that it measured, such as `1p4d lmcache, round 2`."""
    repeated: str = ""
    """The launch of an earlier session that it repeated first, to detect drift."""
    drift: Mapping[str, Number] = field(default_factory=dict)
    """By pass: median TTFT of the repeated launch / the median of that arm's earlier launches.
    """

    @property
    def duration_s(self) -> float:
        """Until `ended_at`; 0 if that is unknown."""
        if not self.ended_at:
            return 0.0
        ended, began = map(datetime.fromisoformat, (self.ended_at, self.started_at))
        return (ended - began).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """Model and number format of servers started here; empty for attached ones."""

    model: str = ""
    layers: int | None = None
    dtype: str = ""
    kv_bytes_per_token: float | None = None
    machine_speed: str | None = None
    chosen: str = ""
    """What was chosen for this machine."""
    lacks: tuple[str, ...] = ()
    """What this version of vLLM does not have, e.g. per-request metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One model of a run over several."""

    model: str
    """Its short name, with which the labels of its arms begin."""
    name: str
    """Folder or hub name."""
    layers: int | None
    dtype: str
    kv_bytes_per_token: float | None
    prompt_tokens: int
    """Of the longest prompt."""
    workload_hash: str
    """Of the prompts in its tokens, without the salt."""
    machine_speed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFacts:
    """What was sent."""

    name: str
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    arrivals: str = ""
    hash: str = ""
    """Without the salt."""
    seed: int = 0
    ideal_reuse: Number = nan
    """Fraction of the planned prompt tokens that an infinite cache would hold."""
    ideal_reuse_sent: Number = nan
    """The same of what was sent cold: conversations contain real responses."""


def name_in_file(name: str) -> str:
    """The name of a field in result.json: `pass` is a word of Python."""
    return "pass" if name == "pass_name" else name


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """The content of result.json; docs/result.md explains it."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "strict": True,
        "alias_generator": name_in_file,
        "use_attribute_docstrings": True,
    }

    schema: int = SCHEMA
    notebook: str
    run_id: str
    status: Status
    simulated: bool = False
    started_at: str = ""
    finished_at: str = ""
    duration_s: Number = 0.0
    measuring_s: Number = nan
    launches_s: tuple[Number, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    finding: str = ""
    unproven: str = ""
    """The finding without the failed gates; empty if none takes it away."""
    scope: str = ""
    outcome: RunOutcome | None = None
    """Own words of a result in place of `gates passed` and the like."""
    engine: EngineFacts = EngineFacts()
    """With several models, only what they have in common."""
    models: tuple[ModelRow, ...] = ()
    """Of a run over several models; empty for one."""
    numbers: tuple[Card, ...] = ()
    gates: tuple[Gate, ...] = ()
    token_sources: tuple[TokenRow, ...] = ()
    store_tiers: tuple[TierRow, ...] = ()
    ledger: tuple[Account, ...] = ()
    doubts: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    rates: tuple[LoadRow, ...] = ()
    """The loads of a sweep or search: rates, or users."""
    searches: tuple[SearchRow, ...] = ()
    points: tuple[PointRow, ...] = ()
    decisions: tuple[DecisionRow, ...] = ()
    decision: str = ""
    """The highest load of each arm within the limits, or which parameters are missing."""
    energy: tuple[EnergyRow, ...] = ()
    power: str = ""
    """How power was measured, or why it was not."""
    sizes: tuple[SizeRow, ...] = ()
    clocks: tuple[ClockRow, ...] = ()
    links: tuple[LinkRow, ...] = ()
    """Of this run, and of those in `link_runs`."""
    sentences: tuple[str, ...] = ()
    break_even: str = ""
    arms: tuple[ArmFacts, ...] = ()
    pass_times: tuple[PassTime, ...] = ()
    hosts: tuple[HostRow, ...] = ()
    summary: tuple[SummaryRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    targets: tuple[TargetRow, ...] = ()
    profile: str = ""
    """Of a run with predictions: which run was profiled, or why nothing is predicted."""
    fits: tuple[FitRow, ...] = ()
    """Of that profile."""
    own_errors: tuple[OwnErrorRow, ...] = ()
    """Of that profile, on the 1a of its own run."""
    held_out: tuple[HeldOutRow, ...] = ()
    predictions: tuple[PredictedRow, ...] = ()
    client: Mapping[str, Number] = field(default_factory=dict)
    """The worst of each reading of the client's health."""
    launches: LaunchFacts | None = None
    """None where nothing is launched in rounds."""
    sessions: tuple[SessionFacts, ...] = ()
    """Empty if the run was not interrupted."""
    repeat: str = ""
    workload: WorkloadFacts | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    # Of single notebooks:
    explained: tuple[str, ...] = ()
    tiers: tuple[Mapping[str, Any], ...] = ()
    ratios: tuple[Mapping[str, Any], ...] = ()
    claims: tuple[ClaimAccount, ...] = ()
    time_spent: tuple[Mapping[str, Any], ...] = ()
    platforms: tuple[Mapping[str, Any], ...] = ()
    ready: bool | None = None
    quiet: str = ""
    questions: tuple[Mapping[str, Any], ...] = ()
    next_step: str = ""

    @property
    def failed_gates(self) -> dict[str, tuple[str, ...]]:
        """The gates that failed, with the arms that each concerns; empty: the whole run."""
        return failed_gates(self.gates)
