"""result.json as a file: written from the records of `facts`, and read, of an earlier schema too.

`python -m workbench.experiment.result.result_file` prints its JSON schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any, get_args

from workbench.errors import ResultError
from workbench.experiment.result.facts import SCHEMA, RunFacts, name_in_file
from workbench.experiment.result.finding_rows import spoilt_note
from workbench.metrics.gates.gate_effects import spoil
from workbench.metrics.gates.gate_table import Kind

if TYPE_CHECKING:
    from pydantic import TypeAdapter


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
    return {name_in_file(name): value for name, value in pairs}


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
        found: RunFacts = _adapter().validate_json(_json_of(current))
        return found
    except ValidationError as error:
        names = " (fields as schema 2 names them)" if schema < SCHEMA else ""
        raise ResultError(f"{source}: {mistake_of(error)}{names}") from error


def _json_of(plain: Any) -> str:
    """JSON of plain values; what a file holds is plain, which saves 3/4 of the time."""
    try:
        return json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(jsonable(plain))


@cache
def _adapter() -> TypeAdapter[RunFacts]:
    from pydantic import TypeAdapter

    return TypeAdapter(RunFacts)


def mistake_of(error: Any) -> str:
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
