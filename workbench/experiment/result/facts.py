"""All of result.json as records, written and read only here.

`python -m workbench.experiment.result.facts` prints its JSON schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from math import nan
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from workbench.errors import ResultError
from workbench.experiment.result.claim_account import ClaimAccount
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_table import GRADES, Effect, Kind, failed_names, spoil
from workbench.metrics.ledger.ledger import Account
from workbench.metrics.statistics import Estimate, Number, Ratio

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 2
Status = Literal["started", "success", "failed", "cancelled"]


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
    spoilt: Effect | Literal[""] = ""
    """What failed gates do to it."""
    kind: str = ""
    """Of claims: the kind of verdict that is counted."""


def spoilt_note(effect: str, note: str) -> str:
    """A card's note with what failed gates do to its number: `rough; 24 requests`."""
    return "; ".join(filter(None, (GRADES.get(effect), note)))  # type: ignore[call-overload]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRow:
    """What one offered rate gave for one arm."""

    arm: str
    rate_per_s: Number
    """The requested rate."""
    n_requests: int
    n_rounds: int
    share: Number
    """Fraction of requests that met the limits."""
    share_low: Number
    share_high: Number
    offered_per_s: Number
    """The rate of the arrival times drawn for it."""
    achieved_per_s: Number
    """Throughput: responses per second, from the first to the last end of a round."""
    goodput_per_s: Number
    """`achieved_per_s` times `share`."""
    ttft_s: Number
    ttft_low_s: Number
    ttft_high_s: Number
    ttft_p90_s: Number
    tpot_s: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRow:
    """What a search for the highest rate within the limits found for one arm."""

    arm: str
    met_per_s: Number
    missed_per_s: Number
    resolved: bool
    reason: str


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
    passes: tuple[str, ...] = ()
    command_lines: tuple[str, ...] = ()
    """Of the first launch."""


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


def _name_in_file(name: str) -> str:
    return "pass" if name == "pass_name" else name


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """The content of result.json; docs/result.md explains it."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "strict": True,
        "alias_generator": _name_in_file,
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
    numbers: tuple[Card, ...] = ()
    gates: tuple[Gate, ...] = ()
    token_sources: tuple[TokenRow, ...] = ()
    store_tiers: tuple[TierRow, ...] = ()
    ledger: tuple[Account, ...] = ()
    doubts: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    rates: tuple[RateRow, ...] = ()
    searches: tuple[SearchRow, ...] = ()
    sizes: tuple[SizeRow, ...] = ()
    sentences: tuple[str, ...] = ()
    break_even: str = ""
    arms: tuple[ArmFacts, ...] = ()
    summary: tuple[SummaryRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    client: Mapping[str, Number] = field(default_factory=dict)
    """The worst of each reading of the client's health."""
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
    def failed_gates(self) -> list[str]:
        """Names of the gates that failed."""
        return failed_names(self.gates)


def to_plain(facts: RunFacts) -> dict[str, Any]:
    """The facts as in result.json: dictionaries and lists, null for what is unknown."""
    plain: dict[str, Any] = jsonable(facts)
    return plain


def jsonable(value: Any) -> Any:
    """`value` with records as mappings, NaN and infinity as null, and paths and tuples as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value, dict_factory=_named))
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, bool | int | str | type(None)):
        return value
    if hasattr(value, "item"):
        return jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _named(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {_name_in_file(name): value for name, value in pairs}


def read_facts(path: Path) -> RunFacts:
    """Read a result.json. Raises ResultError with the name of an invalid field."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise ResultError(
            f"{path} does not exist, so no run has succeeded in this folder"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} cannot be read: {error}") from error
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultError(
            f"{path} is not valid JSON ({error}); the file may be cut off or edited"
        ) from error
    return from_plain(plain, str(path))


def from_plain(plain: Any, source: str) -> RunFacts:
    """The facts in parsed JSON of this schema or an earlier one; errors name `source`."""
    from pydantic import ValidationError

    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema is None:
        raise ResultError(f"{source} has no field schema, so the workbench did not write it")
    if type(schema) is not int or schema < 1:
        raise ResultError(f"{source}: schema must be an integer of at least 1, got {schema!r}")
    if schema > SCHEMA:
        raise ResultError(
            f"{source} has schema {schema}, but this workbench reads at most {SCHEMA}; update the"
            " workbench"
        )
    try:
        current = plain if schema == SCHEMA else _from_schema_1(plain)
        found: RunFacts = _adapter().validate_json(json.dumps(jsonable(current)))
        return found
    except ValidationError as error:
        names = " (fields as schema 2 names them)" if schema < SCHEMA else ""
        raise ResultError(f"{source}: {_mistake(error)}{names}") from error


@cache
def _adapter() -> TypeAdapter[RunFacts]:
    from pydantic import TypeAdapter

    return TypeAdapter(RunFacts)


def _mistake(error: Any) -> str:
    """The first invalid field: what was found, and what is allowed."""
    first, *others = error.errors()
    where = ".".join(map(str, first["loc"]))
    more = f" (and {len(others)} more mistake{'s' * (len(others) > 1)})" if others else ""
    if first["type"] == "missing":
        return f"{where} is missing{more}"
    allowed = first["msg"].replace("Input should be", "it must be")
    return f"{where} is {Repr().repr(first['input'])}, but {allowed}{more}"


def json_schema() -> dict[str, Any]:
    """The JSON schema of result.json, as docs/result.schema.json has it."""
    made = _adapter().json_schema(by_alias=True)
    plain: dict[str, Any] = jsonable(made)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | plain


def _from_schema_1(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of schema 2, which nests estimates of medians and ratios of comparisons."""
    gates = plain.get("gates")
    failed = [
        str(gate.get("name"))
        for gate in (gates if isinstance(gates, list) else ())
        if isinstance(gate, dict) and gate.get("outcome") == "FAIL"
    ]
    estimate = {"median": "value", "low": "low", "high": "high", "note": "note"}
    ratio = {"ratio": "value", "low": "low", "high": "high", "note": "note"}
    ratio |= {"n_rounds": "rounds", "n_pairs": "pairs"}
    changed: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "numbers": lambda card: _card_of_schema_1(card, failed),
        "summary": lambda row: _nested(row, "estimate", estimate),
        "comparisons": lambda row: _nested(row, "ratio", ratio),
        "ledger": lambda row: dict(row) | _moved(row, {"pass_name": "pass"}),
    }
    return {
        "unproven": plain.get("finding", "") if spoil(failed, "ratios").struck else "",
        **{name: value for name, value in plain.items() if value is not None},
        "schema": SCHEMA,
        **{name: _each(plain[name], change) for name, change in changed.items() if plain.get(name)},
    }


def _each(rows: Any, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    """The rows, changed; anything else stays as it is and fails the schema."""
    if not isinstance(rows, list):
        return rows
    return [change(row) if isinstance(row, dict) else row for row in rows]


def _nested(row: Mapping[str, Any], into: str, moved: Mapping[str, str]) -> dict[str, Any]:
    """A row with its `moved` columns nested in the column `into`, under other names."""
    kept = {name: value for name, value in row.items() if name not in moved}
    return kept | {into: _moved(row, moved)}


def _moved(row: Mapping[str, Any], moved: Mapping[str, str]) -> dict[str, Any]:
    return {name: row[old] for old, name in moved.items() if old in row}


def _card_of_schema_1(card: Mapping[str, Any], failed: list[str]) -> dict[str, Any]:
    """A card with what failed gates do to it, which earlier cards lack."""
    if "spoilt" in card:
        return dict(card)
    of_unit: dict[Any, Kind] = {"x": "ratios", "tokens": "counts"}
    kind = card.get("rests_on") or of_unit.get(str(card.get("unit")), "times")
    if kind not in get_args(Kind) or not isinstance(card.get("note") or "", str):
        return dict(card)  # the schema rejects it
    effect = spoil(failed, kind).effect
    note = (card.get("note") or "").removeprefix("not proven: a gate failed; ")
    return {**card, "spoilt": effect, "note": spoilt_note(effect, note)}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
