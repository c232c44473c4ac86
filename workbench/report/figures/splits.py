"""The figure of predicted highest rates by P:D ratio, and of the best split by GPU count."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw

_OF_AGGREGATED = "aggregated instances"
_MOST_NAMED = 10
"""With more splits than this, their names are rotated."""
_ARROW_PX = 16


def splits(frame: pd.DataFrame, title: str) -> Chart:
    """Left: highest rate of each split of all GPUs. Right: the best split for each number of GPUs.

    Takes the frame of `whatif.highest_rates`. All markers are hollow, because nothing was measured.
    A topology without a prediction has a cross and its reason, never a number.
    """
    unit, most = frame.attrs["unit"], frame.attrs["gpus"]
    numbers = ("one", "rate_per_s", "low", "high", "cost", "cost_low", "cost_high")
    rows = marks.records(frame.assign(one=1), numbers)
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
                high = row["high"] if isfinite(row["high"]) else row["rate_per_s"]
                marks.reference(left, middle, row | {"high": high}, "rate_per_s", width=len(mine))
                if not isfinite(row["high"]):
                    _arrow(left, len(mine) - 0.55, row["rate_per_s"], marks.BLACK)
        left.set_ylim(bottom=0)
        left.set_title(f"{most} {unit}s, by split")
        left.set_ylabel("highest rate within limits, req/s")
        _counts(right, rows, frame)

    spoken = "; ".join(f"{row['topology']} {_said(row)}" for row in rows if row["gpus"] == most)
    return draw(
        paint,
        title=title,
        body_px=330,
        alt=f"{title}. {spoken}.",
        caption=_caption(rows, frame),
        keys=keys,
        attrs=frame.attrs,
    )


def _caption(rows: Sequence[marks.Row], frame: pd.DataFrame) -> str:
    """What was predicted, and each kind of mark that is there."""
    priced = bool(frame.attrs["currency"])
    most, lower = ' (cost: at the high end, "at most")' * priced, ", so lower costs," * priced
    unsure = any(_unsure(rows, gpus, split=True) for gpus in {row["gpus"] for row in rows})
    return (
        f"Predicted from a profile of 1p1d, not measured. Limits: {frame.attrs['limits']}."
        f" Bars: {frame.attrs['interval']}."
        + (
            f' Mark at the low end of its bar: "at least"{most}; the bar reaches the rate at which'
            " a part saturates."
        )
        * any(row["at_least"] and isfinite(row["high"]) for row in rows)
        + f" Arrow: higher rates{lower} are outside the profiled range."
        * any(row["rate_per_s"] > 0 and not isfinite(row["high"]) for row in rows)
        + " Not joined: a split of this size that has no rate, or is partly outside the profiled"
        " range, may be better."
        * unsure
        + " Cross: no rate, or the limits are missed at every rate."
        * any(not row["rate_per_s"] > 0 for row in rows)
    )


def _unsure(rows: Sequence[marks.Row], gpus: int, *, split: bool) -> bool:
    """Whether a topology that the profile covers in part or not at all may be the best one."""
    return any(
        not row["missed"] and not isfinite(row["high"])
        for row in rows
        if row["gpus"] == gpus and row["split"] == split
    )


def _said(row: marks.Row) -> str:
    if not row["rate_per_s"] > 0:
        return str(row["refused"])
    least = "at least " * row["at_least"]
    return f"{least}{row['rate_per_s']:.3g} req/s, limit {row['limited_by']}"


def _ratios(axes: Axes, rows: list[marks.Row], look: dict[str, marks.Look]) -> None:
    for x, row in enumerate(rows):
        if row["rate_per_s"] > 0:
            _hollow(axes, x, row, "rate_per_s", ("low", "high"), look[row["limited_by"]])
        else:
            _cross(axes, x, "limit missed" if row["missed"] else "not predicted")
    names = [row["topology"] for row in rows]
    turned = 90 if len(names) > _MOST_NAMED else 0
    axes.set_xticks(range(len(names)), names, rotation=turned)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel("P:D ratio")


def _hollow(
    axes: Axes, x: float, row: marks.Row, key: str, ends: tuple[str, str], look: marks.Look
) -> None:
    """A predicted value with its interval; an arrow instead of an end that is not known."""
    value = row[key]
    low, high = (row[end] if isfinite(row[end]) else value for end in ends)
    marks.mark(axes, x, value, (low, high), look, upright=True)
    for end, up in zip(ends, (False, True), strict=True):
        if not isfinite(row[end]):
            _arrow(axes, x, value, look.colour, up=up)


def _arrow(axes: Axes, x: float, y: float, colour: str, *, up: bool = True) -> None:
    axes.annotate(
        "", (x, y), xytext=(0, _ARROW_PX if up else -_ARROW_PX), textcoords="offset points",
        arrowprops={"arrowstyle": "<-", "color": colour, "linewidth": 1.6},
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
    key, ends = ("cost", ("cost_low", "cost_high")) if currency else ("rate", ("low", "high"))
    best: dict[bool, dict[int, marks.Row]] = {True: {}, False: {}}
    for row in sorted(rows, key=lambda row: row["rate_per_s"]):  # the best of each kind is last
        if row["rate_per_s"] > 0:
            per_gpu = {name: row[name] / row["gpus"] for name in ("low", "high")}
            each = {"rate": row["rate_per_s"] / row["gpus"], **per_gpu}
            best[row["split"]][row["gpus"]] = row | each
    for split, look, aside in (
        (True, marks.Look(colour=marks.BLUE, marker="o", hollow=True), -0.1),
        (False, marks.Look(colour=marks.BLACK, marker="s", hollow=True), 0.1),
    ):
        mine, others = best[split], best[not split]
        joined = [
            nan if x not in mine or _unsure(rows, x, split=split) else mine[x][key] for x in counts
        ]
        axes.plot([x + aside for x in counts], joined, color=look.colour, linewidth=1.4)
        for x, row in mine.items():
            _hollow(axes, x + aside, row, key, ends, look)
            below = x in others and (row[key], split) < (others[x][key], not split)
            known = [row[name] for name in (key, *ends) if isfinite(row[name])]
            free_px = 8 + _ARROW_PX * (not isfinite(row[ends[0] if below else ends[1]]))
            axes.annotate(
                row["topology"], (x + aside, min(known) if below else max(known)),
                xytext=(0, -free_px if below else free_px), textcoords="offset points", size=10,
                ha="center",
                va="top" if below else "bottom", color=look.colour,
                rotation=90 if len(counts) > _MOST_NAMED else 0,
            )  # fmt: skip
    axes.set_title("best split, and aggregated")
    axes.set_xticks(counts)
    axes.set_xlim(counts[0] - 0.6, counts[-1] + 0.6)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"number of {unit}s")
    axes.set_ylabel(
        f"{currency} per million output tokens" if currency else f"highest rate per {unit}, req/s"
    )
