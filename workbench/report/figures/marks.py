"""What all figures are drawn with: colours, looks, marks with intervals, bars, axes, texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from math import isfinite, log10
from typing import Any, Literal

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from workbench.metrics.statistics import verdict_of
from workbench.report.numbers import interval, number, quantity

BLACK, GREY, RULE, SHADE = "#1b2430", "#5c6773", "#e6ebf0", "#cfd6dd"
RED, AMBER = "#b3261e", "#8a5a00"
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

NUMBERS = FuncFormatter(lambda tick, _: number(round(tick)))
"""Ticks that are counts."""

_UNSEEN = 1 / 5000
"""A bar that is a smaller part of the axis cannot be seen, and is not drawn."""

Row = dict[str, Any]
"""One row of a frame; a missing bound is NaN."""

Dash = Literal["-", " "] | tuple[float, Sequence[float]]
"""A line style as matplotlib reads it: solid, none, or (offset, on and off lengths)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Colour, and the marker and dash that say the same to a reader who cannot tell colours."""

    colour: str
    marker: str
    dash: Dash = "-"
    hollow: bool = False
    """True for a prediction: a hollow marker, and thin whiskers for its interval."""

    def handle(self) -> Artist:
        """What stands before the name in a key."""
        return Line2D(
            [0, 1, 2], [0, 0, 0], color=self.colour, linestyle=self.dash, marker=self.marker,
            markevery=[1], markersize=7, linewidth=1.2 if self.hollow else 2,
            markerfacecolor="white" if self.hollow else self.colour,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """How a part of a bar is filled; a hatch has the colour of the edge."""

    colour: str
    edge: str = "white"
    hatch: str = ""

    def style(self) -> dict[str, Any]:
        """What matplotlib takes to fill a bar so."""
        line = 0.4 if self.edge == "white" else 0.0
        return {"color": self.colour, "edgecolor": self.edge, "hatch": self.hatch,
                "linewidth": line}  # fmt: skip

    def handle(self) -> Artist:
        """What stands before the name in a key."""
        return Patch(**self.style() | {"color": None, "facecolor": self.colour})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What others are compared with: a black line at its value, in a grey box, its interval."""

    def handle(self) -> Artist:
        """What stands before the name in a key."""
        return Line2D(
            [0, 1, 2], [0, 0, 0], color=SHADE, linewidth=11, marker="_", markevery=[1],
            markersize=15, markeredgecolor=BLACK, markeredgewidth=2,
        )  # fmt: skip


REFERENCE = Reference()
Key = Look | Area | Reference

PREDICTED = "cold, predicted"
_KNOWN = {
    "cold": Look(colour=VERMILION, marker="o"),
    "store-warm": Look(colour=BLUE, marker="s", dash=(0, (5, 2))),
    "offload-warm": Look(colour=BLUE, marker="<", dash=(0, (4, 2))),
    "engine-warm": Look(colour=GREEN, marker="D", dash=(0, (2, 2))),
    "warm": Look(colour=GREEN, marker="D", dash=(0, (2, 2))),
    "cross-instance": Look(colour=PURPLE, marker="^", dash=(0, (6, 2, 1, 2))),
    "disk-warm": Look(colour=PURPLE, marker="v", dash=(0, (6, 2, 1, 2))),
    "remote-warm": Look(colour=BLACK, marker="<", dash=(0, (4, 2))),
    "off": Look(colour=BLACK, marker="v", dash=(0, (1, 1))),
    PREDICTED: Look(colour=BLACK, marker="o", hollow=True),
}
_SPARE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, BLACK, "#7f8c99")
_SPARE_CUES: tuple[tuple[str, Dash], ...] = (  # shapes that show when they are hollow come first
    ("p", "-"), ("<", (0, (4, 2))), ("h", (0, (1, 2))), (">", (0, (5, 2, 1, 2))),
    ("P", "-"), ("X", (0, (2, 2))), ("*", (0, (5, 1))),
)  # fmt: skip


def looks(
    names: Sequence[str], shape: Literal["interval", "line", "point"] = "interval"
) -> dict[str, Look]:
    """The look of each name: cache states keep theirs in every figure, others take spare ones.

    `shape` drops the cue that a figure does not draw: an interval is a marker on a solid line, a
    line has no marker, a point no line.
    """
    # seven cues beside at most six colours: no pair comes twice within twenty names
    used = {_KNOWN[name].colour for name in names if name in _KNOWN}
    free = [colour for colour in _SPARE_COLOURS if colour not in used]
    spare = zip(cycle(free), cycle(_SPARE_CUES), strict=False)
    changes: dict[str, Any] = {
        "interval": {"dash": "-"},
        "line": {"marker": ""},
        "point": {"dash": " "},
    }[shape]
    found = {}
    for name in names:
        if (look := _KNOWN.get(name)) is None:
            colour, (marker, dash) = next(spare)
            look = Look(colour=colour, marker=marker, dash=dash)
        found[name] = replace(look, **changes)
    return found


def predicted(looks: dict[str, Look]) -> dict[str, Look]:
    """The same looks, for predictions."""
    return {name: replace(look, hollow=True) for name, look in looks.items()}


def records(frame: pd.DataFrame, numbers: Sequence[str], **chosen: str) -> list[Row]:
    """The rows whose columns have the values that are `chosen`, and whose first number is positive.

    `numbers` become floats: a frame of results has None where nothing is known.
    """
    if frame.empty:
        return []
    clean = frame.assign(**{key: pd.to_numeric(frame[key], errors="coerce") for key in numbers})
    wanted = clean[numbers[0]] > 0
    for column, value in chosen.items():
        wanted &= clean[column] == value
    return [{str(key): cell for key, cell in row.items()}
            for row in clean[wanted].to_dict("records")]  # fmt: skip


def ratio_rows(frame: pd.DataFrame, **chosen: str) -> list[Row]:
    """The rows of ratios that have what is `chosen`, each with its `verdict`."""
    rows = records(frame, ("ratio", "low", "high"), **chosen)
    return [row | {"verdict": verdict_of(row["ratio"], row["low"], row["high"])} for row in rows]


def undecided(row: Row) -> bool:
    """Whether a ratio shows no difference: its interval holds 1, or there is none."""
    return row["verdict"] in ("undecided", "no_interval")


def has_interval(low: float | None, high: float | None) -> bool:
    """Whether both ends are known; there may have been too few rounds or requests for one."""
    return low is not None and high is not None and isfinite(low) and isfinite(high)


def mark(
    axes: Axes,
    x: float,
    y: float,
    ends: tuple[float | None, float | None],
    look: Look,
    *,
    upright: bool = False,
) -> None:
    """A marker with its interval, along y where it is `upright`; hollow where there is none.

    A prediction is hollow too, between thin whiskers with ends.
    """
    known = has_interval(*ends)
    if known:
        line, at = (axes.vlines, x) if upright else (axes.hlines, y)
        line(at, *ends, color=look.colour, linewidth=1.2 if look.hollow else 3)  # type: ignore[arg-type]
        if look.hollow:
            caps = {"color": look.colour, "linestyle": " ", "marker": "_" if upright else "|"}
            axes.plot([x, x] if upright else ends, ends if upright else [y, y], **caps)  # type: ignore[arg-type]
    filled = known and not look.hollow
    axes.plot(
        x, y, marker=look.marker, markersize=8.5, color=look.colour, zorder=3,
        markerfacecolor=look.colour if filled else "white",
        markeredgewidth=0 if filled else 1.6 if look.hollow else 2,
    )  # fmt: skip


def reference(axes: Axes, x: float, row: Row, key: str, *, width: float) -> None:
    """The value that others are compared with, around `x`: a line in the box of its interval."""
    left, right = x - width / 2, x + width / 2
    if has_interval(row["low"], row["high"]):
        axes.fill_between([left, right], row["low"], row["high"], color=SHADE, linewidth=0)
    axes.hlines(row[key], left, right, color=BLACK, linewidth=2, zorder=2)


def interval_rows(
    axes: Axes,
    rows: Sequence[Row],
    key: str,
    styles: Sequence[Look],
    *,
    labels: Sequence[str],
    texts: Sequence[str],
    at: float,
    heading: str,
) -> None:
    """A marker at `row[key]` with its interval for each row, its text in a column at the right.

    A line stands `at` the value of no difference; the text of a row that shows none is grey.
    """
    for y, (row, look) in enumerate(zip(rows, styles, strict=True)):
        mark(axes, row[key], y, (row["low"], row["high"]), look)
    row_axis(axes, labels)
    axes.axvline(at, color=BLACK, linewidth=1.2, zorder=1)
    column_at_right(axes, heading, texts, grey=[undecided(row) for row in rows])


def ends(rows: Iterable[Row], key: str) -> list[float]:
    """All that an axis must hold: `key` and both ends of its interval, where they are known."""
    return [x for row in rows for name in ("low", key, "high") if isfinite(x := row[name])]


def stacked_rows(
    axes: Axes,
    parts: pd.DataFrame,
    areas: Mapping[str, Area],
    *,
    labels: Sequence[str],
    texts: Sequence[str],
    heading: str,
) -> None:
    """A bar for each row of `parts`, in the order of `areas`, and its text in a column at right."""
    widths = parts[list(areas)].clip(lower=0).fillna(0).to_numpy(float)
    lefts = widths.cumsum(axis=1) - widths
    seen = widths > _UNSEEN * widths.sum(axis=1).max(initial=0)
    for nth, area in enumerate(areas.values()):  # bars of one look together: a shorter SVG
        (at,) = seen[:, nth].nonzero()
        axes.barh(
            at, widths[at, nth], left=lefts[at, nth], height=0.7, clip_on=False, **area.style()
        )
    row_axis(axes, labels)
    column_at_right(axes, heading, texts)


def row_axis(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows at the left, the first one on top; a second line of a label is grey."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for y in range(len(labels)):
        axes.axhline(y, color=RULE, linewidth=1, zorder=0)
    _tick_texts(axes, [line for y, label in enumerate(labels) for line in _stacked(y, label)])


def column_at_right(
    axes: Axes, heading: str, texts: Sequence[str], *, grey: Sequence[bool] = ()
) -> None:
    """A text per row, grey where the flag says so.

    They are the labels of a second axis, so the layout keeps their room free.
    """
    axes.set_ylim(len(texts) - 0.5, -0.95)
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.grid(visible=False)
    lines = [(-0.75, heading, False)]
    for y, (text, pale) in enumerate(zip(texts, grey or [False] * len(texts), strict=True)):
        lines += [(place, line, pale or second) for place, line, second in _stacked(y, text)]
    _tick_texts(right, lines)
    right.get_yticklabels()[0].set_fontweight("bold")


def _stacked(y: int, text: str) -> list[tuple[float, str, bool]]:
    """Place, text and whether it is a second one, of the lines that stand around a row."""
    lines = text.split("\n")
    return [(y + 0.36 * (i - (len(lines) - 1) / 2), line, i > 0) for i, line in enumerate(lines)]


def _tick_texts(axes: Axes, lines: Sequence[tuple[float, str, bool]]) -> None:
    # one label a line: SVG aligns single lines in the reader's font, but not several
    axes.set_yticks([place for place, _, _ in lines], [text for _, text, _ in lines])
    for label, (_, _, grey) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set(color=GREY if grey else BLACK, fontsize=13)


def log_axis(
    axes: Axes,
    values: Iterable[float],
    *,
    axis: Literal["x", "y"] = "x",
    most: int = 9,
    ticks: Sequence[float] = (),
) -> None:
    """Make an axis logarithmic over all positive values, with at most `most` plain numbers.

    They stand at 1, 2 and 5, or at the `ticks` given.
    """
    positive = [value for value in values if isfinite(value) and value > 0]
    if not positive:
        return
    low, high = min(positive), max(positive)
    if high / low < 1.6:
        low, high = low / 1.3, high * 1.3
    low, high = low / (high / low) ** 0.04, high * (high / low) ** 0.04
    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low, high)})
    line = axes.xaxis if axis == "x" else axes.yaxis
    fitting = [steps for steps in ((1, 2, 5), (1, 3)) if len(steps) * log10(high / low) <= most]
    locator: Locator = LogLocator(subs=(*fitting, (1,))[0], numticks=most)
    if ticks:
        locator = FixedLocator(ticks)
    elif high / low < 8:
        locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    line.set_major_locator(locator)
    line.set_minor_locator(NullLocator())
    line.set_major_formatter(lambda tick, _: number(round(tick)) if tick >= 100 else f"{tick:g}")


def ratio_text(row: Row) -> str:
    """`18.1x [16.9, 19.4]`"""
    bounds = interval(row["low"], row["high"], "x", row["ratio"])
    return f"{quantity(row['ratio'], 'x')} {bounds}".strip()


def span(rows: Iterable[Row], key: str, noun: str) -> str:
    """`30 requests`, `1 round`, or `28 to 30 requests` where rows differ."""
    counts = sorted({int(row[key]) for row in rows if not pd.isna(row[key])})
    if not counts:
        return f"an unknown number of {noun}s"
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{many} {noun}{'' if counts == [1] else 's'}"


def unique(rows: Iterable[Row], key: str) -> list[str]:
    """The values of a column, each once, in the order of the rows."""
    return list(dict.fromkeys(str(row[key]) for row in rows))
