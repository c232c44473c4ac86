"""The figure of predicted highest rates by P:D ratio, and of the best split by GPU count."""

from __future__ import annotations

from math import isfinite

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw

_OF_AGGREGATED = "aggregated instances"
_MOST_NAMED = 10
"""With more splits than this, their names are rotated."""


def splits(frame: pd.DataFrame, title: str) -> Chart:
    """Left: highest rate of each split of all GPUs. Right: the best split for each number of GPUs.

    Takes the frame of `whatif.highest_rates`. All markers are hollow, because nothing was measured.
    A topology without a prediction has a cross and its reason, never a number.
    """
    unit, most = frame.attrs["unit"], frame.attrs["gpus"]
    rows = marks.records(frame.assign(one=1), ("one", "rate_per_s", "low", "high", "cost"))
    mine = [row for row in rows if row["gpus"] == most and row["split"]]
    plain = [row for row in rows if not row["split"]]
    kinds = list(dict.fromkeys(row["limited_by"] for row in mine if row["rate_per_s"] > 0))
    look = marks.predicted(marks.looks(kinds, "point"))
    keys: dict[str, marks.Key] = {f"limit: {name}": look[name] for name in kinds}
    if any(row["rate_per_s"] > 0 for row in plain):
        keys[_OF_AGGREGATED] = marks.REFERENCE

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _ratios(left, mine, look)
        for row in plain:
            if row["gpus"] == most and row["rate_per_s"] > 0:
                middle = (len(mine) - 1) / 2
                known = row | {"high": row["high"] if isfinite(row["high"]) else row["rate_per_s"]}
                marks.reference(left, middle, known, "rate_per_s", width=len(mine))
        left.set_title(f"{most} {unit}s, by split")
        left.set_ylabel("highest rate within limits, req/s")
        _counts(right, rows, frame)

    spoken = "; ".join(f"{row['topology']} {_said(row)}" for row in rows if row["gpus"] == most)
    return draw(
        paint,
        title=title,
        body_px=330,
        alt=f"{title}. {spoken}.",
        caption=f"Predicted from a profile of 1p1d, not measured. Limits: {frame.attrs['limits']}."
        f" Bars: {frame.attrs['interval']}."
        + ' "At least": higher rates are not predicted; the bar ends where a part saturates.'
        * any(row["open_end"] and isfinite(row["high"]) for row in rows)
        + " Arrow: higher rates are outside the profiled range."
        * any(row["open_end"] and not isfinite(row["high"]) for row in mine)
        + " Cross: not predicted, or the limits are missed at every rate."
        * any(not row["rate_per_s"] > 0 for row in rows),
        keys=keys,
        attrs=frame.attrs,
    )


def _said(row: marks.Row) -> str:
    if not row["rate_per_s"] > 0:
        return str(row["refused"])
    least = "at least " if row["open_end"] else ""
    return f"{least}{row['rate_per_s']:.3g} req/s, limit {row['limited_by']}"


def _ratios(axes: Axes, rows: list[marks.Row], look: dict[str, marks.Look]) -> None:
    for x, row in enumerate(rows):
        if row["rate_per_s"] > 0:
            _hollow(axes, x, row, look[row["limited_by"]])
        else:
            _cross(axes, x, "limit missed" if row["missed"] else "not predicted")
    names = [row["topology"] for row in rows]
    turned = 90 if len(names) > _MOST_NAMED else 0
    axes.set_xticks(range(len(names)), names, rotation=turned)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("P:D ratio")


def _hollow(axes: Axes, x: float, row: marks.Row, look: marks.Look) -> None:
    """A predicted value with its interval; an arrow where it may be higher."""
    value = row["rate_per_s"]
    marks.mark(axes, x, value, (row["low"], row["high"]), look, upright=True)
    if row["open_end"] and not isfinite(row["high"]):
        axes.annotate(
            "", (x, value), xytext=(0, 16), textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": look.colour, "linewidth": 1.6},
        )  # fmt: skip


def _cross(axes: Axes, x: float, why: str) -> None:
    axes.plot(x, 0, marker="x", markersize=9, color=marks.RED, markeredgewidth=2, clip_on=False)
    axes.annotate(
        why, (x, 0), xytext=(0, 10), textcoords="offset points", rotation=90, size=11,
        color=marks.GREY, ha="center", va="bottom",
    )  # fmt: skip


def _counts(axes: Axes, rows: list[marks.Row], frame: pd.DataFrame) -> None:
    """Rate per GPU, or cost, of the best split and of aggregated instances, by number of GPUs."""
    unit, currency = frame.attrs["unit"], frame.attrs["currency"]
    counts = sorted({row["gpus"] for row in rows})
    best: dict[bool, dict[int, tuple[float, str]]] = {True: {}, False: {}}
    for row in sorted(rows, key=lambda row: row["rate_per_s"]):  # the best of each kind is last
        if row["rate_per_s"] > 0:
            y = row["cost"] if currency else row["rate_per_s"] / row["gpus"]
            best[row["split"]][row["gpus"]] = y, row["topology"]
    tops = [y for one in best.values() for y, _ in one.values()]
    for split, colour, marker in ((True, marks.BLUE, "o"), (False, marks.BLACK, "s")):
        mine, others = (dict(sorted(best[kind].items())) for kind in (split, not split))
        axes.plot(list(mine), [y for y, _ in mine.values()], color=colour, marker=marker,
                  markerfacecolor="white", markersize=7, markeredgewidth=1.8,
                  linewidth=1.4)  # fmt: skip
        for x, (y, name) in mine.items():
            below = x in others and (y, split) < (others[x][0], not split)
            axes.annotate(name, (x, y), xytext=(0, -8 if below else 8), textcoords="offset points",
                          size=10, ha="center", va="top" if below else "bottom", color=colour,
                          rotation=90 if len(counts) > _MOST_NAMED else 0)  # fmt: skip
    axes.set_title("best split, and aggregated")
    axes.set_xticks(counts)
    axes.set_xlim(counts[0] - 0.6, counts[-1] + 0.6)
    axes.set_ylim(0, 1.15 * max(tops, default=1.0))
    axes.set_xlabel(f"number of {unit}s")
    axes.set_ylabel(
        f"{currency} per million output tokens" if currency else f"highest rate per {unit}, req/s"
    )
