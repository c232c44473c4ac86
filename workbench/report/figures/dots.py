"""Dots with intervals, one row per arm or comparison, and a column of texts at the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from workbench.report.figures.chart import log_ticks
from workbench.report.figures.looks import BLACK, GREY, Look
from workbench.report.numbers import interval, quantity

__all__ = [
    "Row",
    "column_at_right",
    "dot",
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
    """Name the rows at the left, the first one on top."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels, color=BLACK, fontsize=13)
    axes.grid(axis="y", visible=len(labels) > 1)


def column_at_right(axes: Axes, heading: str, texts: Sequence[tuple[str, bool]]) -> None:
    """A text per row, grey where the flag says so.

    They are the labels of a second axis, so the layout keeps their room free.
    """
    axes.set_ylim(len(texts) - 0.5, -0.95)
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks([-0.75, *range(len(texts))], [heading, *(text for text, _ in texts)])
    right.grid(visible=False)
    head, *others = right.get_yticklabels()
    head.set(color=BLACK, fontsize=13, fontweight="bold")
    for label, (_, grey) in zip(others, texts, strict=True):
        label.set(color=GREY if grey else BLACK, fontsize=13)


def log_span(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic x axis that holds all positive values."""
    positive = [value for value in values if isfinite(value) and value > 0]
    log_ticks(axes, min(positive), max(positive))


def ratio_text(row: Row) -> str:
    """`18.1x [16.9, 19.4]`"""
    bounds = interval(row["low"], row["high"], "x", row["ratio"])
    return f"{quantity(row['ratio'], 'x')} {bounds}".strip()


def undecided(row: Row) -> bool:
    """True where the interval holds 1, and where there is none: neither shows a difference."""
    return not (row["low"] > 1 or row["high"] < 1)


def span(rows: Iterable[Row], key: str) -> str:
    """`30`, or `28 to 30` where rows differ."""
    counts = sorted({int(row[key]) for row in rows if not pd.isna(row[key])})
    if not counts:
        return "an unknown number of"
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def unique(rows: Iterable[Row], key: str) -> list[str]:
    """The values of a column, each once, in the order of the rows."""
    return list(dict.fromkeys(str(row[key]) for row in rows))
