"""The headline number of equal runs over time, as a small drawing of the list of all runs.

It is written as SVG by hand and takes its colours from the page: 500 runs must stay a light page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import isfinite
from pathlib import Path

from workbench.experiment.between.differences import settings_key
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.finding_rows import Card
from workbench.report.numbers import interval, moment, quantity

WIDTH_PX, HEIGHT_PX = 640, 120
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 8, 96, 14, 24
_FEWEST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Runs that differ in nothing but date or version."""

    title: str
    """What is constant, and the number."""
    told: str
    """How many runs, the first and last value, and what differs."""
    simulated: bool
    svg: str
    topologies: tuple[str, ...]
    models: tuple[str, ...]


def histories(runs: Iterable[Sequence[RunFacts]]) -> list[History]:
    """A history for each set of settings with at least two valid results of one number."""
    by_settings: dict[tuple[str, str], dict[str, RunFacts]] = {}
    for run in (run for results in runs for run in results):
        if run.status == "success" and run.started_at and _number(run) is not None:
            alike = by_settings.setdefault((settings_key(run), run.numbers[0].label), {})
            alike.setdefault(run.started_at, run)  # a copied folder is no second run
    return [
        _history([alike[at] for at in sorted(alike)])
        for alike in by_settings.values()
        if len(alike) >= _FEWEST
    ]


def topologies_of(run: RunFacts) -> tuple[str, ...]:
    """The topologies that a run is about, without those of its baselines."""
    about = (arm.topology for arm in run.arms if arm.role != "opponent" and arm.topology)
    return tuple(dict.fromkeys(about))


def models_of(run: RunFacts) -> tuple[str, ...]:
    """The short names of a run's models."""
    names = [row.name for row in run.models] or [run.engine.model]
    return tuple(Path(name).name for name in names if name)


def _number(run: RunFacts) -> Card | None:
    """The first number of a run, if it may be used."""
    card = run.numbers[0] if run.numbers else None
    usable = card is not None and card.spoilt != "struck" and isfinite(card.value)
    return card if usable else None


def _history(runs: Sequence[RunFacts]) -> History:
    newest, cards = runs[-1], [run.numbers[0] for run in runs]
    changed = [_changed(one, other) for one, other in pairwise(runs)]
    versions = "; ".join(dict.fromkeys(filter(None, changed)))
    connectors = (arm.connector for arm in newest.arms if arm.role != "opponent")
    parts = (
        ", ".join(topologies_of(newest)),
        ", ".join(dict.fromkeys(name for name in connectors if name not in ("", "none"))),
        ", ".join(models_of(newest)),
        str(newest.machine.get("cpu") or ""),
    )
    first, last, least, most = (
        quantity(value, cards[-1].unit)
        for value in (cards[0].value, cards[-1].value, *_range(cards))
    )
    return History(
        title=f"{', '.join(filter(None, parts))}: {cards[-1].label}",
        told=(
            f"{len(runs)} runs with the same parameters, machine and workload: {first} to {last}"
            f" (scale: {least} to {most}). "
            + (f"Versions differ: {versions}." if versions else "Only the date differs.")
        ),
        simulated=newest.simulated,
        svg=_svg(runs, cards, ["", *changed]),
        topologies=topologies_of(newest),
        models=models_of(newest),
    )


def _range(cards: Sequence[Card]) -> tuple[float, float]:
    """The lowest and the highest end of all intervals."""
    ends = [end for card in cards for end in (card.value, card.low, card.high) if isfinite(end)]
    return min(ends), max(ends)


def _changed(one: RunFacts, other: RunFacts) -> str:
    """`vllm 0.31.0 to 0.32.0` for each package whose version differs."""
    ours, theirs = (_versions(run) for run in (one, other))
    return ", ".join(
        f"{name} {ours.get(name, 'absent')} to {theirs.get(name, 'absent')}"
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    )


def _versions(run: RunFacts) -> dict[str, str]:
    commit = str(run.machine.get("git_commit") or "")[:7]
    told = dict(run.machine.get("versions") or {}, workbench=commit)
    return {name: str(found) for name, found in told.items() if found}


def _svg(runs: Sequence[RunFacts], cards: Sequence[Card], changed: Sequence[str]) -> str:
    """Points with their intervals in the order of their dates; a dotted line is a new version."""
    least, most = _range(cards)
    span = (most - least) or abs(most) or 1.0
    height_px = HEIGHT_PX - _TOP_PX - _BOTTOM_PX
    step_px = (WIDTH_PX - _LEFT_PX - _RIGHT_PX) / max(1, len(runs) - 1)

    def x(n: int) -> float:
        return round(_LEFT_PX + 4 + n * step_px, 1)

    def y(value: float) -> float:
        return round(_TOP_PX + height_px * (most - value) / span, 1)

    parts = []
    for n, (run, card, new) in enumerate(zip(runs, cards, changed, strict=True)):
        bounds = interval(card.low, card.high, card.unit, card.value)
        words = (moment(run.started_at), quantity(card.value, card.unit), bounds, new)
        told = escape(" ".join(filter(None, words)))
        if new:
            at = x(n) - step_px / 2
            parts.append(f'<path class="new" d="M{at:.1f} {_TOP_PX}v{height_px}"/>')
        parts.append(f"<g><title>{told}</title>")
        if bounds:
            parts.append(f'<path class="ci" d="M{x(n)} {y(card.low)}V{y(card.high)}"/>')
        hollow = "" if bounds else ' class="bare"'
        parts.append(f'<circle cx="{x(n)}" cy="{y(card.value)}" r="4"{hollow}/></g>')
    line = " ".join(f"{x(n)},{y(card.value)}" for n, card in enumerate(cards))
    base, right = HEIGHT_PX - 6, WIDTH_PX - _RIGHT_PX + 8
    dates = [moment(run.started_at)[:10] for run in (runs[0], runs[-1])]
    ends_said = (
        f'<text x="{_LEFT_PX}" y="{base}">{escape(dates[0])}</text>'
        f'<text x="{right}" y="{base}" text-anchor="end">{escape(dates[1])}</text>'
        f'<text class="last" x="{right + 6}" y="{y(cards[-1].value) + 5}">'
        f"{escape(quantity(cards[-1].value, cards[-1].unit))}</text>"
    )
    return (
        f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="Values in the order of'
        f' their dates"><path class="axis" d="M{_LEFT_PX} {HEIGHT_PX - _BOTTOM_PX + 4}'
        f'H{right}"/><polyline points="{line}"/>{"".join(parts)}{ends_said}</svg>'
    )
