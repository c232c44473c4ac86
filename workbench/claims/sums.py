"""A claim's own numbers held against one another: arithmetic, rounding, equal cells, order.

Numbers are texts as they were published, since their digits say how far they were rounded: `1.90`
stands for 1.895 to 1.905 (interval arithmetic, Moore 1966). Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any

from workbench.claims.claim import Claim

__all__ = ["KINDS", "Sum", "inconsistent", "own_sums", "rounding", "unreadable"]

KINDS: dict[str, tuple[str, ...]] = {
    # kind: what it takes
    "ratio": ("of", "over", "said"),
    "product": ("of", "said"),
    "increase": ("from", "to", "said"),
    "difference": ("of", "less", "said"),
    "rows": ("of", "over", "said"),
    "cells": ("of", "over", "by", "value", "said"),
    "grows": ("by", "value"),
    "listed": ("value", "in"),
}
"""Kinds of sums; `rows`, `cells`, `grows` and `listed` read the published figures of claims."""

_WIDE = 0.05
"""A rounding interval wider than this share carries fewer digits than are printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What came out of one sum."""

    kind: str
    sentence: str
    holds: bool
    """False where the numbers contradict one another, or a better comparison corrects them."""
    low: float | None = None
    high: float | None = None
    unit: str = ""
    rows: tuple[Mapping[str, Any], ...] = field(default=())
    """The corrected comparison, a row for each cell."""


Span = tuple[float, float]


def rounding(text: Any) -> Span:
    """The least and greatest value that is rounded to `text`; a count stays exact.

    Raises ValueError for what is no number.
    """
    try:
        value = Decimal(str(text))
        exponent = value.as_tuple().exponent
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is no number") from error
    if not isinstance(exponent, int):
        raise ValueError(f"{text!r} is no finite number")
    half = Decimal(10) ** exponent / 2
    return float(value - half), float(value + half)


def unreadable(entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fields of a sum that should be numbers and are none, with what they hold."""
    if entry["kind"] not in ("ratio", "product", "increase", "difference"):
        return []
    odd = []
    for name in KINDS[entry["kind"]]:
        for value in entry[name] if isinstance(entry[name], list) else [entry[name]]:
            try:
                rounding(value)
            except ValueError:
                odd.append((name, value))
    return odd


def own_sums(claim: Claim, claims: Mapping[str, Claim]) -> tuple[Sum, ...]:
    """Every sum that the registry asks of a claim; `claims` are those that it may refer to."""
    return tuple(_one(entry, claim, claims) for entry in claim.arithmetic)


def inconsistent(claim: Claim) -> str:
    """A sentence where a claim's own numbers do not agree; empty where they do."""
    alone = ("ratio", "product", "increase", "difference", "rows")
    for entry in claim.arithmetic:
        if entry["kind"] in alone:
            found = _one(entry, claim, {})
            if not found.holds:
                return found.sentence
    return ""


def _one(entry: Mapping[str, Any], claim: Claim, claims: Mapping[str, Claim]) -> Sum:
    try:
        return _worked_out(entry, claim, claims)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        sentence = f"A sum ({entry['kind']}) cannot be worked out from its figures ({reason})."
        return Sum(kind=str(entry["kind"]), sentence=sentence, holds=True)


def _worked_out(entry: Mapping[str, Any], claim: Claim, claims: Mapping[str, Claim]) -> Sum:
    match entry["kind"]:
        case "rows":
            return _rows(entry, claim)
        case "cells":
            return _cells(entry, claims)
        case "grows":
            return _grows(entry, claim)
        case "listed":
            return _listed(entry, claims)
    return _scalar(entry)


def _scalar(entry: Mapping[str, Any]) -> Sum:
    unit = str(entry.get("unit", ""))
    match entry["kind"]:
        case "ratio":
            span, text = _over(entry["of"], entry["over"]), f"{entry['of']} / {entry['over']}"
        case "product":
            span = (1.0, 1.0)
            for factor in entry["of"]:
                low, high = rounding(factor)
                span = (span[0] * low, span[1] * high)
            text = " x ".join(map(str, entry["of"]))
        case "increase":
            low, high = _over(entry["to"], entry["from"])
            span, text = (100 * (low - 1), 100 * (high - 1)), f"{entry['from']} to {entry['to']}"
            unit = "%"
        case _:
            (a, b), (c, d) = (_exact(entry[name]) for name in ("of", "less"))
            span, text = (a - d, b - c), f"{entry['of']} - {entry['less']}"
    said = rounding(entry["said"])
    holds = said[0] <= span[1] and span[0] <= said[1]
    shown = " to ".join(dict.fromkeys(f"{end:,.6g}" for end in span))
    sentence = f"{text} is {shown} {unit}".strip()
    if not holds:
        sentence += f", and not the {entry['said']} that is said."
    elif span[1] - span[0] > _WIDE * abs(span[1] + span[0]) / 2:
        sentence += f" as far as it was rounded, so that {entry['said']} has digits to spare."
    else:
        sentence += f", which agrees with {entry['said']}."
    return Sum(kind=entry["kind"], sentence=sentence, holds=holds, low=span[0], high=span[1],
               unit=unit)  # fmt: skip


def _exact(text: Any) -> Span:
    """Whole numbers of a difference are counts."""
    return (float(text), float(text)) if str(text).lstrip("-").isdecimal() else rounding(text)


def _over(of: Any, over: Any) -> Span:
    (low, high), (least, most) = rounding(of), rounding(over)
    return low / most, high / least


def _rows(entry: Mapping[str, Any], claim: Claim) -> Sum:
    """In each row of the figures, the product of some columns over another is a third."""
    factor = float(entry.get("factor", 1))
    odd = []
    for row in claim.figures:
        top = (factor, factor)
        for name in entry["of"]:
            low, high = _exact(row[name]) if isinstance(row[name], int) else rounding(row[name])
            top = (top[0] * low, top[1] * high)
        least, most = rounding(row[entry["over"]])
        low, high = top[0] / most, top[1] / least
        said = rounding(row[entry["said"]])
        if not (said[0] <= high and low <= said[1]):
            odd.append(f"{row[entry['said']]} where {low:,.4g} to {high:,.4g} follows")
    many = len(claim.figures)
    of = f"{' x '.join(entry['of'])} / {entry['over']}"
    if odd:
        return Sum(kind="rows", holds=False,
                   sentence=f"{entry['said']} is not {of} in {len(odd)} of {many} rows:"
                   f" {odd[0]}.")  # fmt: skip
    return Sum(
        kind="rows", holds=True,
        sentence=f"{entry['said']} is {of} in all {many} rows, as far as they were rounded.",
    )  # fmt: skip


def _cells(entry: Mapping[str, Any], claims: Mapping[str, Claim]) -> Sum:
    """Two tables on their common grid, beside the comparison that was published."""
    by, value = entry["by"], entry["value"]
    sides = []
    for name in (entry["of"], entry["over"]):
        if name not in claims:
            return Sum(kind="cells", holds=True, sentence=f"{name} is not in the registry.")
        sides.append({row[by]: row[value] for row in claims[name].figures})
    common = [cell for cell in sides[0] if cell in sides[1]]
    rows = tuple(
        {by: cell, entry["of"]: sides[0][cell], entry["over"]: sides[1][cell],
         "ratio": round(sides[0][cell] / sides[1][cell], 3)}
        for cell in common
    )  # fmt: skip
    low, high = min(row["ratio"] for row in rows), max(row["ratio"] for row in rows)
    best = [max(side, key=lambda cell: side[cell]) for side in sides]
    apart = best[0] != best[1]
    sentence = f"At equal {by} the ratio is {low:.2f} to {high:.2f} x"
    if apart:
        sentence += (
            f"; {entry['said']} compares {by} {best[0]} on one side with {by} {best[1]} on the"
            " other"
        )
    return Sum(kind="cells", sentence=f"{sentence}.", holds=not apart, low=low, high=high,
               unit="x", rows=rows)  # fmt: skip


def _grows(entry: Mapping[str, Any], claim: Claim) -> Sum:
    """Time must not fall when work grows; where it does, the first shape was a warm-up."""
    by, value = entry["by"], entry["value"]
    rows = sorted(claim.figures, key=lambda row: row[by])
    for less, more in pairwise(rows):
        if more[value] < less[value]:
            return Sum(
                kind="grows", holds=False,
                sentence=f"{value} falls from {less[value]} at {by} {less[by]} to {more[value]} at"
                f" {by} {more[by]}, although work grows: the first is a warm-up, not a result.",
            )  # fmt: skip
    return Sum(
        kind="grows", holds=True, sentence=f"{value} grows with {by} in all {len(rows)} rows."
    )


def _listed(entry: Mapping[str, Any], claims: Mapping[str, Claim]) -> Sum:
    """A headline must be a number of some table of its source."""
    value = float(str(entry["value"]))
    names: Sequence[str] = entry["in"]
    seen = [number for name in names if name in claims for number in _numbers(claims[name].figures)]
    if value in seen:
        return Sum(kind="listed", holds=True, sentence=f"{value:,.10g} is in {', '.join(names)}.")
    return Sum(
        kind="listed", holds=False,
        sentence=f"{value:,.10g} is in none of its source's tables ({', '.join(names)}); the"
        f" largest number there is {max(seen, default=0):,.10g}.",
    )  # fmt: skip


def _numbers(figures: Any) -> list[float]:
    if isinstance(figures, Mapping):
        return [n for value in figures.values() for n in _numbers(value)]
    if isinstance(figures, list | tuple):
        return [n for value in figures for n in _numbers(value)]
    plain = isinstance(figures, int | float) and not isinstance(figures, bool)
    return [float(figures)] if plain else []
