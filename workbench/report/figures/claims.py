"""Figures of a claim's panel: measured and claimed values, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw
from workbench.report.numbers import exactly, number

_BAND = "#cfe3f1"
_DOT = marks.Look(colour=marks.BLUE, marker="o")
_HEAD_PX, _DOT_PX = 54, 22
"""Height of an axis without its dots, and of each dot."""


def claim_intervals(claim: Mapping[str, Any]) -> Chart:
    """Each effect of a claim as dots with intervals, over the band that confirms it.

    `claim` is one of result.facts["claims"]. Each effect has its own unit, so its own axis, with
    its cells below one another.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for effect in claim["effects"]:
        if effect["estimate"] is not None:
            groups.setdefault(effect["name"], []).append(effect)
    heights = [_HEAD_PX + _DOT_PX * len(group) for group in groups.values()]

    def paint(figure: Figure) -> None:
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, group in zip(panels, groups.values(), strict=True):
            _effect(axes, group)

    spoken = "; ".join(
        f"{name}: {_range(effect)}, claimed {effect['claimed']}"
        for name, group in groups.items()
        for effect in group
    )
    return draw(
        paint,
        title=f"{claim['id']}: {claim['verdict']}",
        body_px=sum(heights) + 8,
        alt=f"{claim['id']}, {claim['verdict']}. {spoken}.",
        caption="Dot and bar: our number and its CI (95 %; 90 % where no change is claimed)."
        " The claim is confirmed where the whole CI lies in the shaded band.",
    )


def claim_curve(curve: Mapping[str, Any]) -> Chart:
    """The lines of a curve with intervals; words on the x axis are evenly spaced."""
    points: Sequence[Mapping[str, Any]] = [p for p in curve["points"] if p["value"] is not None]
    words = list(dict.fromkeys(p["x"] for p in curve["points"] if isinstance(p["x"], str)))

    def place(point: Mapping[str, Any]) -> float:
        return float(words.index(point["x"]) if words else point["x"])

    look = marks.looks(list(dict.fromkeys(str(point["series"]) for point in curve["points"])))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, mine in look.items():
            line = sorted((p for p in points if str(p["series"]) == name), key=place)
            xs = [place(p) for p in line]
            axes.plot(
                xs, [p["value"] for p in line], color=mine.colour, marker=mine.marker, markersize=6,
                linewidth=1.6,
            )  # fmt: skip
            for x, p in zip(xs, line, strict=True):
                if marks.has_interval(p["low"], p["high"]):
                    axes.vlines(x, p["low"], p["high"], color=mine.colour, linewidth=1.4)
        values = [float(p["value"]) for p in points]
        xs = [place(p) for p in curve["points"]]
        if words:
            axes.set_xticks(range(len(words)), words)
        elif _geometric(xs):
            marks.log_axis(axes, xs)
        if values and 0 < 20 * min(values) < max(values):
            marks.log_axis(axes, values, axis="y")
        elif values:
            axes.set_ylim(min(0.0, *values), None)
        axes.set(xlabel=curve["x"], ylabel=curve["y"])

    return draw(
        paint,
        title=curve["title"],
        body_px=300,
        keys=look,
        alt=f"{curve['title']}: {curve['y']} over {curve['x']}, {len(look)}"
        f" line{'s' * (len(look) != 1)}.",
    )


def _geometric(xs: Sequence[float]) -> bool:
    """Whether the values grow by factors, as 128, 256, 512: a log axis spaces them evenly."""
    places = sorted(set(xs))
    if len(places) < 3 or places[0] <= 0 or places[-1] / places[0] < 8:
        return False
    return median(b / a for a, b in pairwise(places)) >= 1.5


def _range(effect: Mapping[str, Any]) -> str:
    """`0.213x [0.20, 0.22]`; a count has no interval."""
    unit = effect["unit"]
    text = number(effect["estimate"])
    tail = unit if unit in ("x", "") else f" {unit}"
    if effect["exact"] and effect["low"] == effect["high"]:
        return f"{exactly(effect['estimate'])}{tail}"
    if not marks.has_interval(effect["low"], effect["high"]):
        return f"{text}{tail}, no CI"
    return f"{text}{tail} [{number(effect['low'])}, {number(effect['high'])}]"


def _effect(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    """One axis: the band, the claimed value, and a dot with its interval for each cell."""
    first = cells[0]
    ends = [cell[key] for cell in cells for key in ("estimate", "low", "high")]
    ends += [first["value"], first["confirms_from"], first["confirms_to"]]
    known = [float(end) for end in ends if end is not None and isfinite(end)]
    low, high = min(known), max(known)
    pad = 0.12 * (high - low) or 0.12 * abs(high) or 1.0
    low, high = low - pad, high + pad
    axes.set_xlim(low, high)
    axes.set_ylim(len(cells), 0)
    places = [at + 0.5 for at in range(len(cells))] if len(cells) > 1 else []
    axes.set_yticks(places, [str(cell.get("cell", "")) for cell in cells[: len(places)]])
    axes.grid(visible=False, axis="y")
    start = low if first["confirms_from"] is None else first["confirms_from"]
    end = high if first["confirms_to"] is None else first["confirms_to"]
    if end > start:
        axes.axvspan(start, end, color=_BAND, zorder=0, linewidth=0)
    axes.axvline(first["value"], color=marks.BLACK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    for at, cell in enumerate(cells, 1):
        marks.mark(axes, cell["estimate"], at - 0.5, (cell["low"], cell["high"]), _DOT)
    unit = {"x": "", "%": ", %"}.get(first["unit"], f", {first['unit']}")
    shown = _range(first) if len(cells) == 1 else f"{len(cells)} cases"
    axes.set_title(f"{first['name']}{unit}: {shown}", size=13, weight="normal", loc="left")
    axes.set_title(f"claimed: {first['claimed']}", size=12, color=marks.GREY, loc="right",
                   weight="normal")  # fmt: skip
    axes.tick_params(labelsize=11)
