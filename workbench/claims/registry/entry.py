"""An entry of a claims file: strict and frozen, with its mistakes in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import nearest

_MOST = 3
"""Mistakes of one entry that are named."""


class Entry(BaseModel):
    """Data as written: texts do not become numbers, and unknown names are mistakes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_min_length=1
    )


def sentence_of(error: ValidationError, given: Any, *, example: Any, known: Iterable[str]) -> str:
    """What is wrong with `given`: field, what is allowed, what was found, an example.

    `example` is an entry without a mistake, `known` are the names of all fields.
    """
    missing, others = [], []
    for each in error.errors():
        kind, message = each["type"], each["msg"]
        where = _where(each["loc"], given)
        name = _written(where)
        if kind in ("missing", "union_tag_not_found"):
            missing.append(where if kind == "missing" else [*where, "kind"])
        elif kind == "extra_forbidden":
            hint = nearest(str(where[-1]), known)
            close = hint if hint.startswith("did you mean") else "see docs/claims.md"
            others.append(f"{name} is not a known field; {close}")
        elif kind == "value_error":
            text = message.removeprefix("Value error, ")
            others.append(f"{name}{' ' if text.startswith('must') else ': '}{text}".strip(": "))
        else:
            got = repr(each["input"])
            if kind == "union_tag_invalid":
                where, got = [*where, "kind"], repr(each["ctx"]["tag"])
                message = f"must be one of {each['ctx']['expected_tags']}"
            said = message.removeprefix("Input ").replace("should be", "must be")
            got = f"{got[:60]}..." if len(got) > 60 else got
            others.append(f"{_written(where) or 'it'} {said}, got {got}{_example(where, example)}")
    found = list(dict.fromkeys(others))
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = ", ".join(map(_written, missing))
        found.insert(0, f"{names} {verb} missing{_example(missing[0], example)}")
    more = len(found) - _MOST
    return "; ".join(found[:_MOST]) + (f"; and {more} more" if more > 0 else "")


def _where(loc: Sequence[int | str], given: Any) -> list[int | str]:
    """The path to a value, without the names that pydantic gives to members of a union."""
    way: list[int | str] = []
    for place, part in enumerate(loc):
        inside = isinstance(given, list) if isinstance(part, int) else isinstance(given, dict)
        if inside and (isinstance(part, int) or part in given):
            given = given[part]
        elif not (inside and place == len(loc) - 1 and part != "[key]"):
            continue
        way.append(part)
    return way


def _written(way: Sequence[int | str]) -> str:
    """The path as a reader counts: `effects[1].unit`."""
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in way)
    return text.removeprefix(".")


def _example(way: Sequence[int | str], example: Any) -> str:
    for part in way:
        try:
            example = example[0 if isinstance(part, int) else part]
        except (LookupError, TypeError):
            return ""
    return f" (example: {way[-1]}: {example})" if way and isinstance(way[-1], str) else ""
