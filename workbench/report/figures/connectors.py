"""The figure of a sweep over connectors: each cache state, connector by connector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import isfinite

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, for_each_model
from workbench.report.numbers import quantity, time_scale

_PANELS = (
    ("ttft_s", "TTFT", "lower is better"),
    ("system_tps", "Throughput", "higher is better"),
    ("kv_bytes_per_token", "KV loaded", "per prompt token"),
)
_UNITS = {"ttft_s": "s", "system_tps": "tok/s", "kv_bytes_per_token": "B"}
_ROW_PX, _HEAD_PX = 25, 34
_LOOKS = (
    marks.Look(colour=marks.BLUE, marker="o"), marks.Look(colour=marks.GREY, marker="s"),
    marks.Look(colour=marks.PURPLE, marker="D"), marks.Look(colour=marks.GREEN, marker="^"),
)  # fmt: skip


@for_each_model
def connectors(found: pd.DataFrame) -> Chart | None:
    """TTFT, throughput and loaded KV of each connector in each cache state, on equal GPUs.

    Takes `result.connectors`; None for a run with one connector, whose figure is
    `topology_overview`.
    """
    if found.empty:
        return None
    rows = marks.records(found.assign(known=1.0), ("known", "value", "low", "high"))
    states = marks.unique(rows, "pass")
    blocks = {
        state: marks.unique([row for row in rows if row["pass"] == state], "arm")
        for state in states
    }
    look = dict(zip(marks.unique(rows, "topology"), cycle(_LOOKS), strict=False))
    rivals = {row["topology"] for row in rows if row["role"] == "opponent"}
    title = _best(rows)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(
            len(states), len(_PANELS), squeeze=False, sharex="col",
            height_ratios=[len(arms) + 0.8 for arms in blocks.values()],
        )  # fmt: skip
        for column, (metric, name, best) in enumerate(_PANELS):
            shown = [row for row in rows if row["metric"] == metric]
            for axes, (state, arms) in zip(grid[:, column], blocks.items(), strict=True):
                here = {row["arm"]: row for row in shown if row["pass"] == state}
                _block(axes, [here.get(arm) for arm in arms], metric, look)
                marks.row_axis(axes, arms if not column else [""] * len(arms))
                if not column:
                    axes.set_title(state, x=0, pad=6)
            unit = _scale(grid[-1, column], shown, metric)
            grid[-1, column].set_xlabel(f"{name}, {unit}")
            grid[0, column].set_title(
                best, size=12, weight="normal", loc="right", color=marks.GREY, pad=6
            )

    return draw(
        paint,
        title=title,
        body_px=sum(_ROW_PX * len(arms) + _HEAD_PX for arms in blocks.values()) + 24,
        alt=f"{title}. {' '.join(_spoken(rows, state) for state in states)}",
        caption=_explained(rows),
        keys={f"{n}, aggregated baseline" if n in rivals else n: one for n, one in look.items()},
        shows=("times", "counts"),
        intervals=any(marks.has_interval(row["low"], row["high"]) for row in rows),
        attrs=found.attrs,
    )


def _block(
    axes: Axes, rows: Sequence[marks.Row | None], metric: str, look: Mapping[str, marks.Look]
) -> None:
    """The connectors of one state, each with its number."""
    for y, row in enumerate(rows):
        if row is None or not isfinite(row["value"]):
            continue
        marks.mark(axes, row["value"], y, (row["low"], row["high"]), look[row["topology"]])
        ends = [end for end in (row["value"], row["high"]) if isfinite(end)]
        axes.annotate(
            quantity(row["value"], _UNITS[metric]), (max(ends), y), xytext=(8, 0),
            textcoords="offset points", va="center", size=12,
        )  # fmt: skip


def _scale(axes: Axes, rows: Sequence[marks.Row], metric: str) -> str:
    """One scale for all states, with room for the numbers at the right; returns its unit."""
    values = [value for value in marks.ends(rows, "value") if isfinite(value)]
    if not values:
        axes.set_xticks([])
        return _UNITS[metric]
    if metric == "ttft_s":
        marks.log_axis(axes, values, most=4)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.5)
        factor, unit = time_scale(max(values))
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick * factor:g}")
        return unit
    most = max(values) or 1
    axes.set_xlim(-0.04 * most, 1.6 * most)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(marks.NUMBERS)
    return _UNITS[metric]


def _best(rows: Sequence[marks.Row]) -> str:
    """The connectors whose cold and warmest TTFT no other one's interval beats."""
    subjects = [row for row in rows if row["metric"] == "ttft_s" and row["role"] == "subject"]
    where = " and ".join(marks.unique(subjects, "topology"))
    said = []
    for state in dict.fromkeys(("cold", *[row["pass"] for row in subjects][-1:])):
        here = [row for row in subjects if row["pass"] == state and isfinite(row["value"])]
        judged = [row for row in here if marks.has_interval(row["low"], row["high"])]
        if len(judged) < 2:
            continue
        best = min(judged, key=lambda row: row["value"])
        alike = [row["connector"] for row in judged if row["low"] <= best["high"]]
        if len(alike) == 1:
            said.append(f"{state} TTFT is lowest with {alike[0]}")
        elif len(alike) < len(judged):
            said.append(f"{state} TTFT is lowest with {' or '.join(alike)}")
        else:
            said.append(f"no connector has a clearly lower {state} TTFT")
    return f"{where}: {'; '.join(said)}" if said else f"TTFT and throughput by connector, {where}"


def _spoken(rows: Sequence[marks.Row], state: str) -> str:
    said = (
        f"{row['arm']} {name} {quantity(row['value'], _UNITS[metric])}"
        for metric, name, _ in _PANELS
        for row in rows
        if row["pass"] == state and row["metric"] == metric and isfinite(row["value"])
    )
    return f"{state}: {'; '.join(said)}."


def _explained(rows: Sequence[marks.Row]) -> str:
    """What the marks are, and what they rest on."""
    requests, rounds = (
        marks.span(rows, "n_requests", "request"),
        marks.span(rows, "n_rounds", "round"),
    )
    said = (
        f"TTFT: median of {requests}. Throughput and KV loaded: mean of {rounds}. Lines: 95 % CI."
        " KV loaded: bytes that all instances took from the connector, per prompt token sent."
        f" Each arm has {marks.span(rows, 'gpus', 'GPU')} (on a CPU: instances)."
    )
    if not all(marks.has_interval(row["low"], row["high"]) for row in rows):
        said += " Hollow marker: no CI (too few requests or rounds)."
    return said
