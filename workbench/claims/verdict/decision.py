"""Gate G4: does an interval confirm, contradict, or leave open what one effect says?

Rules of the claim notes, section 6. Tolerances are shares of the claimed value, in its own unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, nan
from typing import Self

from workbench.claims.registry.claim import Effect

MIN_RUNS = 5
"""Engine launches an arm; a number of fewer has no interval worth a verdict."""
CELLS_THAT_MEET = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval, in the effect's unit; `runs` are engine launches an arm."""

    estimate: float
    low: float
    high: float
    runs: int = MIN_RUNS
    cell: str = ""
    """Which of several cells, such as `batch 8`."""

    @classmethod
    def counted(cls, values: Iterable[float]) -> Self:
        """Counts have no noise: from the least to the greatest, shown by the furthest from 0.

        NaN where nothing was counted, or something is not known. Yes or no is a count of one.
        """
        known = [float(value) for value in values]
        if not known or any(map(isnan, known)):
            return cls(estimate=nan, low=nan, high=nan, runs=0)
        low, high = min(known), max(known)
        return cls(estimate=max(low, high, key=abs), low=low, high=high, runs=len(known))

    def scaled(self, factor: float, *, plus: float = 0.0) -> Self:
        """In another unit; a factor below 0 turns it round."""
        low, high = (end * factor + plus for end in (self.low, self.high))
        if factor < 0:
            low, high = high, low
        return replace(self, estimate=self.estimate * factor + plus, low=low, high=high)

    @property
    def gained_percent(self) -> Self:
        """How much more, in %, a ratio says; below 1 it is less than 0."""
        return self.scaled(100, plus=-100)

    @property
    def saved_percent(self) -> Self:
        """How much less, in %, a ratio says."""
        return self.scaled(-100, plus=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What became of one effect: confirmed, contradicted, inconclusive, ... and why."""

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
    """`effect` against the intervals of its cells; what is counted or exact needs no runs.

    `noise_floor` is how far equal sides differ, as a ratio - 1: 0.25 is a factor of 1.25, either
    way. A direction has to exceed it, and with NaN, where nobody knows, none is confirmed.
    """
    if not cells:
        return Decision(code="not_measured", reason="It was not measured.")
    kept = tuple(sorted(cells, key=lambda cell: cell.estimate))
    runs = min(cell.runs for cell in kept)
    exact = effect.quantifier == "exact"
    known = all(isfinite(cell.low) and isfinite(cell.high) for cell in kept)
    if runs < MIN_RUNS and not exact and not (counted if known else runs == 0):
        launches = f"{runs} launch{'' if runs == 1 else 'es'} an arm"
        reason = f"{launches}, and a verdict takes {MIN_RUNS}."
        return Decision(code="too_few_runs", reason=reason, cells=kept)
    if not known:
        return Decision(code="inconclusive", reason="The run gave no interval.", cells=kept)
    code = _code(effect, kept, tolerance, noise_floor)
    if exact and all(cell.low == cell.high for cell in kept):
        return Decision(code=code, reason=_counted(effect, kept), cells=kept)
    shown, which = _shown(effect, kept)
    reason = (
        f"{shown.estimate:.4g} ({shown.low:.4g} to {shown.high:.4g}) {effect.unit}{which}, claimed"
        f" {effect}"
    )
    if noise_floor != 0 and effect.quantifier in ("higher", "lower"):
        reason += f"; equal sides differ by {difference(noise_floor)}"
    if code == "inconclusive":
        width = max(shown.high - shown.estimate, shown.estimate - shown.low)
        told = (
            f"{width / abs(shown.estimate):.2g} of the value" if shown.estimate else f"{width:.2g}"
        )
        reason += f"; {told} is the least effect that this run can tell"
    return Decision(code=code, reason=f"{reason}.", cells=kept)


def band(effect: Effect, tolerance: float) -> tuple[float, float]:
    """From where to where a value would confirm the effect; an open end is infinite."""
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
    """A noise floor in words: `1.2%`."""
    return "an unknown share" if isnan(noise_floor) else f"{noise_floor:.1%}"


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


def _counted(effect: Effect, cells: Sequence[Interval]) -> str:
    if effect.type == "boolean":
        found = " and ".join(dict.fromkeys("yes" if cell.estimate else "no" for cell in cells))
        return f"Found {found}, claimed {effect}."
    found = " and ".join(dict.fromkeys(f"{cell.estimate:,.6g}" for cell in cells))
    unit = "" if effect.unit == "count" else f" {effect.unit}"
    return f"Counted {found}{unit}, claimed {effect}."


def _shown(effect: Effect, cells: Sequence[Interval]) -> tuple[Interval, str]:
    """The cell that decides: the weakest where all have to hold, else the one in the middle."""
    if len(cells) == 1:
        return cells[0], ""
    if effect.quantifier in ("higher", "at_least"):
        weakest = min(cells, key=lambda cell: cell.low)
    elif effect.quantifier in ("lower", "at_most"):
        weakest = max(cells, key=lambda cell: cell.high)
    else:
        return cells[(len(cells) - 1) // 2], " in the median cell"
    name = f" ({weakest.cell})" if weakest.cell else ""
    return weakest, f" in the weakest of {len(cells)} cells{name}"
