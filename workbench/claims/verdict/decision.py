"""Gate G4: does our interval confirm, contradict or leave open what one effect claims?

Tolerances are fractions of the claimed value, in its own unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, nan
from typing import Self

from workbench.claims.registry.claim import Effect, unit_suffix

MIN_RUNS = 5
"""Launches of each arm that a verdict needs."""
CELLS_THAT_MEET = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval, in the effect's unit; `runs` are launches of each arm."""

    estimate: float
    low: float
    high: float
    runs: int = MIN_RUNS
    cell: str = ""
    """Which of several cells, such as `batch 8`."""

    @classmethod
    def counted(cls, values: Iterable[float]) -> Self:
        """The range of exact counts, with the one furthest from 0 as estimate.

        NaN if nothing was counted or a count is unknown. Yes and no are 1 and 0.
        """
        known = [float(value) for value in values]
        if not known or any(map(isnan, known)):
            return cls(estimate=nan, low=nan, high=nan, runs=0)
        low, high = min(known), max(known)
        return cls(estimate=max(low, high, key=abs), low=low, high=high, runs=len(known))

    def scaled(self, factor: float, *, plus: float = 0.0) -> Self:
        """In another unit; a negative factor swaps the ends."""
        low, high = (end * factor + plus for end in (self.low, self.high))
        if factor < 0:
            low, high = high, low
        return replace(self, estimate=self.estimate * factor + plus, low=low, high=high)

    @property
    def gained_percent(self) -> Self:
        """A ratio as an increase in %."""
        return self.scaled(100, plus=-100)

    @property
    def saved_percent(self) -> Self:
        """A ratio as a decrease in %."""
        return self.scaled(-100, plus=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The result for one effect: confirmed, contradicted, inconclusive, ... and why."""

    code: str
    reason: str
    cells: tuple[Interval, ...] = ()


def decide(
    effect: Effect,
    cells: Sequence[Interval],
    *,
    tolerance: float = 0.1,
    noise_floor: float = 0.0,
    counted: bool = False,
) -> Decision:
    """`effect` compared with the intervals of its cells; exact counts need only one run.

    `noise_floor` is how much identical arms differ, as a ratio - 1: 0.25 is a factor of 1.25,
    either way. A direction must exceed it; if it is unknown (NaN), no direction is confirmed.
    """
    if not cells:
        return Decision(code="not_measured", reason="Not measured.")
    kept = tuple(sorted(cells, key=lambda cell: cell.estimate))
    runs = min(cell.runs for cell in kept)
    exact = effect.quantifier == "exact"
    known = all(isfinite(cell.low) and isfinite(cell.high) for cell in kept)
    if runs < MIN_RUNS and not exact and not (counted if known else runs == 0):
        launches = f"Only {runs} launch{'' if runs == 1 else 'es'} of each arm"
        reason = f"{launches}; a verdict needs {MIN_RUNS}."
        return Decision(code="too_few_runs", reason=reason, cells=kept)
    if not known:
        return Decision(code="inconclusive", reason="The run gave no interval.", cells=kept)
    code = _code(effect, kept, tolerance, noise_floor)
    if all(cell.low == cell.high for cell in kept) and (exact or counted):
        return Decision(code=code, reason=_counted(effect, kept), cells=kept)
    meaning = {
        "confirmed": "The whole interval agrees with the claim.",
        "contradicted": "The whole interval contradicts the claim.",
        "inconclusive": "The interval is too wide to decide.",
    }[code]
    shown, which = _shown(effect, kept)
    unit = unit_suffix(effect.unit)
    note = ""
    if code == "inconclusive":
        width = max(shown.high - shown.estimate, shown.estimate - shown.low)
        least = f"{_rounded(100 * width / abs(shown.estimate))} %" if shown.estimate else width
        note = f" This run cannot resolve effects below {least}."
    if noise_floor != 0 and effect.quantifier in ("higher", "lower"):
        if code == "inconclusive" and _code(effect, kept, tolerance, 0.0) == "confirmed":
            meaning, note = "The effect is no larger than the noise between identical arms.", ""
        note += f" Identical arms differ by {difference(noise_floor)}."
    reason = (
        f"{meaning} Measured {_rounded(shown.estimate)}{unit} ({_rounded(shown.low)} to"
        f" {_rounded(shown.high)}){which}; claimed {effect}.{note}"
    )
    return Decision(code=code, reason=reason, cells=kept)


def band(effect: Effect, tolerance: float) -> tuple[float, float]:
    """The range of values that confirm the effect; an open end is infinite."""
    value = float(effect.value)
    slack = tolerance * abs(value)
    match effect.quantifier:
        case "higher":
            return value, inf
        case "lower":
            return -inf, value
        case "at_least" | "up_to":
            return value - slack, inf
        case "at_most":
            return -inf, value + slack
        case "unchanged":
            width = (effect.margin or 0) * abs(value)
            return value - width, value + width
        case "range":
            high = float(effect.high or value)
            return value - slack, high + tolerance * abs(high)
        case "exact":
            return value, value
    return value - slack, value + slack


def difference(noise_floor: float) -> str:
    """A noise floor in words: `1.2 %`."""
    return "an unknown amount" if isnan(noise_floor) else f"{100 * noise_floor:.3g} %"


def _code(effect: Effect, cells: Sequence[Interval], tolerance: float, noise_floor: float) -> str:
    value = float(effect.value)
    low, high = band(effect, tolerance)
    # An interval that lies across an end of the band is neither, and leaves the claim open.
    inside = [low <= cell.low and cell.high <= high for cell in cells]
    outside = [cell.high < low or cell.low > high for cell in cells]
    middle = (len(cells) - 1) // 2
    match effect.quantifier:
        case "up_to":
            yes, no = any(inside), all(outside)
        case "at_least" | "at_most" | "unchanged" | "exact":
            yes, no = all(inside), any(outside)
        case "higher" | "lower":
            floor = noise_floor * abs(value)
            # Half as fast is as far away as twice as fast.
            below = value / (1 + noise_floor) if effect.type == "ratio" else value - floor
            above = [cell.low > value + floor for cell in cells]
            under = [cell.high < below for cell in cells]
            up = effect.quantifier == "higher"
            yes, no = (all(above), any(under)) if up else (all(under), any(above))
        case "range":
            # The band has slack; the median cell must not lie outside the range itself.
            no = cells[middle].high < value or cells[middle].low > float(effect.high or value)
            yes = len(cells) - sum(outside) >= CELLS_THAT_MEET * len(cells)
        case _:
            yes, no = inside[middle], outside[middle]
    return "contradicted" if no else "confirmed" if yes else "inconclusive"


def _rounded(value: float) -> str:
    """Three significant digits, without an exponent below a million."""
    return f"{float(f'{value:.3g}'):,.6g}"


def _counted(effect: Effect, cells: Sequence[Interval]) -> str:
    boolean, unit = effect.type == "boolean", unit_suffix(effect.unit)
    words = (
        ("yes" if cell.estimate else "no") if boolean else f"{cell.estimate:,.6g}{unit}"
        for cell in cells
    )
    found = " and ".join(dict.fromkeys(words))
    claimed = "as claimed" if found == str(effect) else f"claimed {effect}"
    return f"{'Found' if boolean else 'Counted'} {found}, {claimed}."


def _shown(effect: Effect, cells: Sequence[Interval]) -> tuple[Interval, str]:
    """The cell that decides: the weakest if all must hold, else the median."""
    if len(cells) == 1:
        return cells[0], ""
    if effect.quantifier in ("higher", "at_least"):
        weakest = min(cells, key=lambda cell: cell.low)
    elif effect.quantifier in ("lower", "at_most"):
        weakest = max(cells, key=lambda cell: cell.high)
    else:
        return cells[(len(cells) - 1) // 2], " in the median case"
    name = f" ({weakest.cell})" if weakest.cell else ""
    return weakest, f" in the weakest of {len(cells)} cases{name}"
