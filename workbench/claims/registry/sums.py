"""Whether a claim's own numbers agree: arithmetic with rounding, equal cells, order.

Numbers are texts as published, since their digits show how they were rounded: `1.90` stands for
1.895 to 1.905 (interval arithmetic, Moore 1966).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from workbench.claims.registry.entry import Entry

_WIDE = 0.05
"""If rounding leaves more than this fraction open, the published number is too precise."""

Span = tuple[float, float]
Tables = Mapping[str, Any]
"""The published figures of claims, by id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """The result of one sum."""

    sentence: str
    holds: bool
    """False if the numbers contradict each other, or a fair comparison corrects them."""
    low: float | None = None
    high: float | None = None
    unit: str = ""
    rows: tuple[Mapping[str, Any], ...] = ()
    """The corrected comparison, a row for each cell."""


def rounding(text: Any) -> Span:
    """The smallest and largest value that rounds to `text`; ValueError if it is no number."""
    try:
        value = Decimal(str(text))
    except InvalidOperation:
        value = Decimal("nan")
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"must be a number, quoted as published, got {text!r} (example: '1.90')")
    half = Decimal(10) ** exponent / 2
    return float(value - half), float(value + half)


def _published(text: Any) -> Any:
    rounding(text)
    return text


Published = Annotated[Any, AfterValidator(_published)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class _Equation(Entry):
    """A number that follows from others, and must agree with the published one."""

    said: Published
    unit: str = ""

    def result(self) -> tuple[Span, float, str]:
        """The range that follows, the value without rounding, and the formula as text."""
        raise NotImplementedError

    def worked_out(self, figures: Any, tables: Tables) -> Sum:
        (low, high), exact, text = self.result()
        least, most = rounding(self.said)
        holds = least <= high and low <= most
        unit = self.unit if self.unit in ("x", "") else f" {self.unit}"
        digits = _digits(low, high)
        sentence = f"{text} = {_rounded(exact, digits)}{unit}"
        if low < high:
            ends = f"{_rounded(low, digits)} to {_rounded(high, digits)}"
            sentence += f" ({ends} with rounding)"
        if not holds:
            sentence += f", not {_grouped(self.said)} as published."
        elif high - low > _WIDE * abs(high + low) / 2:
            said = _grouped(self.said)
            sentence += f". The published {said} is more precise than its inputs allow."
        else:
            sentence += f", which agrees with the published {_grouped(self.said)}."
        return Sum(sentence=sentence, holds=holds, low=low, high=high, unit=self.unit)


class Ratio(_Equation):
    """`of / over`."""

    kind: Literal["ratio"]
    of: Published
    over: Published

    def result(self) -> tuple[Span, float, str]:
        exact = float(self.of) / float(self.over)
        return _over(self.of, self.over), exact, f"{_grouped(self.of)} / {_grouped(self.over)}"


class Product(_Equation):
    """All of `of`, multiplied."""

    kind: Literal["product"]
    of: Annotated[tuple[Published, ...], Field(strict=False)]

    def result(self) -> tuple[Span, float, str]:
        lows, highs = zip(*map(rounding, self.of), strict=True)
        exact = prod(map(float, self.of))
        return (prod(lows), prod(highs)), exact, " x ".join(map(_grouped, self.of))


class Increase(_Equation):
    """The increase from `from` to `to`, in %."""

    kind: Literal["increase"]
    before: Published = Field(alias="from")
    to: Published
    unit: str = "%"

    def result(self) -> tuple[Span, float, str]:
        low, high = _over(self.to, self.before)
        exact = 100 * (float(self.to) / float(self.before) - 1)
        text = f"{_grouped(self.to)} / {_grouped(self.before)} - 1"
        return (100 * (low - 1), 100 * (high - 1)), exact, text


class Difference(_Equation):
    """`of - less`."""

    kind: Literal["difference"]
    of: Published
    less: Published

    def result(self) -> tuple[Span, float, str]:
        (low, high), (least, most) = _count(self.of), _count(self.less)
        exact = float(self.of) - float(self.less)
        return (low - most, high - least), exact, f"{_grouped(self.of)} - {_grouped(self.less)}"


class Rows(Entry):
    """In each row of the figures, the product of columns over another column gives a third."""

    kind: Literal["rows"]
    of: Names
    over: str
    said: str
    factor: float = 1.0
    words: dict[str, str] = Field(default_factory=dict)
    """Column -> what the page calls it."""

    def worked_out(self, figures: Any, tables: Tables) -> Sum:
        odd = []
        for row in figures:
            low = high = self.factor
            for name in self.of:
                span = _count(row[name]) if isinstance(row[name], int) else rounding(row[name])
                low, high = low * span[0], high * span[1]
            least, most = rounding(row[self.over])
            low, high = low / most, high / least
            said = rounding(row[self.said])
            if not (said[0] <= high and low <= said[1]):
                odd.append(f"{row[self.said]} instead of {low:,.4g} to {high:,.4g}")
        names = [self.words.get(name, name) for name in (self.said, *self.of, self.over)]
        formula = f"{names[0]} = {' x '.join(names[1:-1])} / {names[-1]}"
        if odd:
            sentence = f"Not {formula} in {len(odd)} of {len(figures)} rows ({odd[0]})."
        else:
            sentence = f"In all {len(figures)} rows, {formula} (within rounding)."
        return Sum(sentence=sentence, holds=not odd)


class Cells(Entry):
    """Two tables at equal cells, compared with what was published."""

    kind: Literal["cells"]
    of: str
    over: str
    by: str
    value: str
    said: Any
    words: dict[str, str] = Field(default_factory=dict)
    """Claim -> what the page calls its column."""

    def worked_out(self, figures: Any, tables: Tables) -> Sum:
        for name in (self.of, self.over):
            if name not in tables:
                return Sum(holds=True, sentence=f"{name} is not in the registry.")
        one, other = (
            {row[self.by]: row[self.value] for row in tables[name]}
            for name in (self.of, self.over)
        )  # fmt: skip
        rows = tuple(
            {self.by: cell, "ratio": round(one[cell] / other[cell], 3),
             self.words.get(self.over, self.over): other[cell],
             self.words.get(self.of, self.of): one[cell]}
            for cell in one
            if cell in other
        )  # fmt: skip
        low, high = (end(row["ratio"] for row in rows) for end in (min, max))
        best, rival = max(one, key=one.__getitem__), max(other, key=other.__getitem__)
        sentence = f"At equal {self.by}, the ratio is {low:.2f}x to {high:.2f}x."
        if best != rival:
            sentence += f" The published {self.said} compares {self.by} {best} with {rival}."
        return Sum(sentence=sentence, holds=best == rival, low=low, high=high, unit="x", rows=rows)


class Grows(Entry):
    """Time must not fall when work grows; if it does, the first shape includes warm-up."""

    kind: Literal["grows"]
    by: str
    value: str
    unit: str = ""
    words: dict[str, str] = Field(default_factory=dict)
    """Column -> what the page calls it."""

    def worked_out(self, figures: Any, tables: Tables) -> Sum:
        by, value = self.by, self.value
        x, y = (self.words.get(name, name) for name in (by, value))
        unit = f" {self.unit}" if self.unit else ""
        for less, more in pairwise(sorted(figures, key=lambda row: row[by])):
            if more[value] < less[value]:
                sentence = (
                    f"The {y} falls from {less[value]}{unit} at {x} {less[by]} to"
                    f" {more[value]}{unit} at {x} {more[by]}, although the work grows. So the"
                    " first value includes warm-up."
                )
                return Sum(sentence=sentence, holds=False)
        return Sum(sentence=f"The {y} grows with {x} in all {len(figures)} rows.", holds=True)


class Listed(Entry):
    """A headline number must be in a table of its source."""

    kind: Literal["listed"]
    value: Any
    within: Names = Field(alias="in")

    def worked_out(self, figures: Any, tables: Tables) -> Sum:
        value, names = float(str(self.value)), ", ".join(self.within)
        seen = [number for name in self.within for number in _numbers(tables.get(name))]
        if value in seen:
            return Sum(sentence=f"{value:,.10g} is in {names}.", holds=True)
        sentence = (
            f"{value:,.10g} is in no table of its source ({names}). The largest number there is"
            f" {max(seen, default=0):,.10g}."
        )
        return Sum(sentence=sentence, holds=False)


Arithmetic = Annotated[
    Ratio | Product | Increase | Difference | Rows | Cells | Grows | Listed,
    Field(discriminator="kind"),
]


def needs_no_other(entry: Arithmetic) -> bool:
    """Whether a sum uses only the claim's own numbers."""
    return isinstance(entry, _Equation | Rows)


def worked_out(entry: Arithmetic, figures: Any, tables: Tables) -> Sum:
    """The result of a sum; `tables` are the figures of all claims that it may refer to."""
    try:
        return entry.worked_out(figures, tables)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        sentence = f"The sum {entry.kind!r} does not fit the claim's figures ({reason})."
        return Sum(sentence=sentence, holds=True)


def _grouped(text: Any) -> str:
    """A published number with commas: `699,517`; its digits stay."""
    whole, point, rest = str(text).partition(".")
    return f"{int(whole):,}{point}{rest}" if whole.lstrip("-").isdecimal() else str(text)


def _digits(low: float, high: float) -> int:
    """The significant digits, at least four, that tell two numbers apart."""
    return next((n for n in range(4, 12) if _rounded(low, n) != _rounded(high, n)), 4)


def _rounded(value: float, digits: int) -> str:
    return f"{float(f'{value:.{digits}g}'):,.12g}"


def _count(text: Any) -> Span:
    """Whole numbers are exact counts."""
    return (float(text), float(text)) if str(text).lstrip("-").isdecimal() else rounding(text)


def _over(of: Any, over: Any) -> Span:
    (low, high), (least, most) = rounding(of), rounding(over)
    return low / most, high / least


def _numbers(figures: Any) -> list[float]:
    if isinstance(figures, Mapping):
        figures = list(figures.values())
    if isinstance(figures, list | tuple):
        return [number for value in figures for number in _numbers(value)]
    plain = isinstance(figures, int | float) and not isinstance(figures, bool)
    return [float(figures)] if plain else []
