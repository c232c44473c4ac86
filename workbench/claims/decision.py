"""Gate G4: does an interval confirm, contradict, or leave open what one effect says?

Rules of the claim notes, section 6. Tolerances are shares of the claimed value, in its own unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.claims.claim import Effect

__all__ = ["Decision", "Interval", "decide", "difference"]

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
    few = Decision(
        code="too_few_runs",
        reason=f"{runs} launch{'' if runs == 1 else 'es'} an arm, and a verdict takes {MIN_RUNS}.",
        cells=kept,
    )
    if not all(math.isfinite(cell.low) and math.isfinite(cell.high) for cell in kept):
        if 0 < runs < MIN_RUNS and effect.quantifier != "exact":
            return few
        return Decision(code="inconclusive", reason="The run gave no interval.", cells=kept)
    if effect.quantifier == "exact":
        code = _exact(effect, kept)
    else:
        if runs < MIN_RUNS and not counted:
            return few
        code = _interval(effect, kept, tolerance, noise_floor)
    if effect.quantifier == "exact" and all(cell.low == cell.high for cell in kept):
        return Decision(code=code, reason=_counted(effect, kept), cells=kept)
    shown, which = _shown(effect, kept)
    reason = (
        f"{shown.estimate:.4g} ({shown.low:.4g} to {shown.high:.4g}) {effect.unit}{which}"
        f" against {_claimed(effect)}"
    )
    if noise_floor != 0 and effect.quantifier in ("higher", "lower"):
        reason += f", and equal sides differ by {difference(noise_floor)}"
    if code == "inconclusive":
        width = max(shown.high - shown.estimate, shown.estimate - shown.low)
        reason += f"; {_detectable(width, shown)} is the least effect that this run can tell"
    return Decision(code=code, reason=f"{reason}.", cells=kept)


def difference(noise_floor: float) -> str:
    """A noise floor in words: `1.2%`."""
    return "an unknown share" if math.isnan(noise_floor) else f"{noise_floor:.1%}"


def _counted(effect: Effect, cells: tuple[Interval, ...]) -> str:
    if effect.type == "boolean":
        found = " and ".join(dict.fromkeys("yes" if cell.estimate else "no" for cell in cells))
        return f"Found {found}, claimed {_claimed(effect)}."
    found = " and ".join(dict.fromkeys(f"{cell.estimate:,.6g}" for cell in cells))
    unit = "" if effect.unit == "count" else f" {effect.unit}"
    return f"Counted {found}{unit}, claimed {effect.value:,.6g}{unit}."


def _shown(effect: Effect, cells: tuple[Interval, ...]) -> tuple[Interval, str]:
    """The cell that decides: the weakest where all have to hold, else the one in the middle."""
    if len(cells) == 1:
        return cells[0], ""
    if effect.quantifier in ("higher", "at_least"):
        weakest = min(cells, key=lambda cell: cell.low)
        return weakest, f" in the weakest of {len(cells)} cells{_named(weakest)}"
    if effect.quantifier in ("lower", "at_most"):
        weakest = max(cells, key=lambda cell: cell.high)
        return weakest, f" in the weakest of {len(cells)} cells{_named(weakest)}"
    return cells[(len(cells) - 1) // 2], " in the median cell"


def _named(cell: Interval) -> str:
    return f" ({cell.cell})" if cell.cell else ""


def _exact(effect: Effect, cells: tuple[Interval, ...]) -> str:
    value = float(effect.value)
    if all(cell.low == value == cell.high for cell in cells):
        return "confirmed"
    inside = all(cell.low <= value <= cell.high for cell in cells)
    return "inconclusive" if inside else "contradicted"


def _interval(
    effect: Effect, cells: tuple[Interval, ...], tolerance: float, noise_floor: float
) -> str:
    value = float(effect.value)
    low, high = value - tolerance * abs(value), value + tolerance * abs(value)
    middle = cells[(len(cells) - 1) // 2]
    floor = noise_floor * abs(value)
    # Half as fast is as far away as twice as fast.
    below = value / (1 + noise_floor) if effect.type == "ratio" else value - floor
    match effect.quantifier:
        case "up_to":
            yes = any(cell.low >= low for cell in cells)
            no = all(cell.high < low for cell in cells)
        case "at_least":
            yes = all(cell.low >= low for cell in cells)
            no = any(cell.high < low for cell in cells)
        case "at_most":
            yes = all(cell.high <= high for cell in cells)
            no = any(cell.low > high for cell in cells)
        case "higher":
            yes = all(cell.low > value + floor for cell in cells)
            no = any(cell.high < below for cell in cells)
        case "lower":
            yes = all(cell.high < below for cell in cells)
            no = any(cell.low > value + floor for cell in cells)
        case "unchanged":
            band = (effect.margin or 0) * abs(value)
            yes = all(value - band <= cell.low and cell.high <= value + band for cell in cells)
            no = any(cell.high < value - band or cell.low > value + band for cell in cells)
        case "range":
            end = float(effect.high or value)
            top = end + tolerance * abs(end)
            meeting = sum(cell.high >= low and cell.low <= top for cell in cells)
            no = middle.high < value or middle.low > end
            yes = not no and meeting >= CELLS_THAT_MEET * len(cells)
        case _:  # typical
            yes = low <= middle.low and middle.high <= high
            no = middle.high < low or middle.low > high
    return "contradicted" if no else "confirmed" if yes else "inconclusive"


def _detectable(width: float, cell: Interval) -> str:
    return f"{width / abs(cell.estimate):.2g} of the value" if cell.estimate else f"{width:.2g}"


def _claimed(effect: Effect) -> str:
    if effect.type == "boolean":
        return "yes" if effect.value else "no"
    if effect.quantifier in ("exact", "typical"):
        return f"{effect.value:.6g} {effect.unit}"
    word = effect.quantifier.replace("_", " ")
    if effect.quantifier in ("higher", "lower"):
        word += " than"
    if effect.quantifier == "range":
        return f"a range of {effect.value:.6g} to {effect.high:.6g} {effect.unit}"
    if effect.quantifier == "unchanged":
        return f"no change beyond {effect.margin:.0%}"
    return f"{word} {effect.value:.6g} {effect.unit}"
