"""Dots with intervals, one row per arm or comparison, and a column of texts at the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from workbench.report.figures.chart import log_ticks
from workbench.report.figures.looks import BLACK, GREY, RULE, Look
from workbench.report.numbers import interval, quantity

__all__ = [
    "Row",
    "column_at_right",
    "dot",
    "has_interval",
    "log_span",
    "pick",
    "ratio_text",
    "row_axis",
    "span",
    "undecided",
    "unique",
]

Row = dict[str, Any]
"""One row of `result.summary` or `result.comparisons`."""


def pick(frame: pd.DataFrame, metric: str, value: str) -> list[Row]:
    """The rows of one metric whose `value` is a positive number; a missing bound is NaN."""
    if frame.empty:
        return []
    numbers = {key: pd.to_numeric(frame[key], errors="coerce") for key in (value, "low", "high")}
    clean = frame.assign(**numbers)
    chosen = clean[(clean["metric"] == metric) & (clean[value] > 0)]
    return [{str(key): cell for key, cell in row.items()} for row in chosen.to_dict("records")]


def dot(axes: Axes, row: Row, look: Look, *, y: float, key: str, factor: float = 1.0) -> None:
    """A marker at `row[key]` with its interval; hollow where there is no interval."""
    known = isfinite(row["low"]) and isfinite(row["high"])
    if known:
        axes.hlines(y, row["low"] * factor, row["high"] * factor, color=look.colour, linewidth=3)
    axes.plot(
        row[key] * factor,
        y,
        marker=look.marker,
        markersize=8.5,
        color=look.colour,
        markerfacecolor=look.colour if known else "white",
        markeredgewidth=0 if known else 2,
        zorder=3,
    )


def row_axis(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows at the left, the first one on top; a second line of a label is grey."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for y in range(len(labels)):
        axes.axhline(y, color=RULE, linewidth=1, zorder=0)
    _tick_texts(axes, [line for y, label in enumerate(labels) for line in _stacked(y, label)])


def column_at_right(axes: Axes, heading: str, texts: Sequence[tuple[str, bool]]) -> None:
    """A text per row, grey where the flag says so.

    They are the labels of a second axis, so the layout keeps their room free.
    """
    axes.set_ylim(len(texts) - 0.5, -0.95)
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.grid(visible=False)
    lines = [(-0.75, heading, False)]
    for y, (text, grey) in enumerate(texts):
        lines += [(place, line, grey or second) for place, line, second in _stacked(y, text)]
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


def log_span(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic x axis that holds all positive values."""
    positive = [value for value in values if isfinite(value) and value > 0]
    log_ticks(axes, min(positive), max(positive))


def ratio_text(row: Row) -> str:
    """`18.1x [16.9, 19.4]`"""
    bounds = interval(row["low"], row["high"], "x", row["ratio"])
    return f"{quantity(row['ratio'], 'x')} {bounds}".strip()


def has_interval(row: Row) -> bool:
    """Whether there were enough rounds for one."""
    return isfinite(row["low"]) and isfinite(row["high"])


def undecided(row: Row) -> bool:
    """True where the interval holds 1, and where there is none: neither shows a difference."""
    return not (row["low"] > 1 or row["high"] < 1)


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
