"""Figures of medians: one row per arm, one dot per cache state.

They take `result.summary` as a frame; its `attrs` mark what is simulated or not proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.figures.dots import (
    Row,
    column_at_right,
    dot,
    has_interval,
    log_span,
    pick,
    ratio_text,
    row_axis,
    span,
    undecided,
    unique,
)
from workbench.report.figures.looks import NAMES, looks
from workbench.report.numbers import number, quantity, time_scale

__all__ = ["tps_by_topology", "ttft_by_topology"]

_WARM = ("store-warm", "cross-instance", "engine-warm", "warm")
_ROW_PX, _AXIS_PX = 42, 84


def ttft_by_topology(
    summary: pd.DataFrame, comparisons: pd.DataFrame, *, title: str = "", caption: str = ""
) -> Chart:
    """Median TTFT of each arm and cache state with its interval, and the speed-up that it is.

    The speed-up at the right compares cold with one warm state: store-warm if there is one.
    """
    rows = pick(summary, "ttft_s", "median")
    if not rows:
        return no_data("TTFT by topology", "no arm has a median TTFT; no request succeeded.")
    gains = [row for row in pick(comparisons, "ttft_s", "ratio") if row["kind"] == "cache-state"]
    warm = next((state for state in _WARM if any(row["pass"] == state for row in gains)), "")
    gains = [row for row in gains if row["pass"] == warm]
    texts = {row["arm"]: (ratio_text(row), undecided(row)) for row in gains}
    factor, unit = time_scale(max(row["median"] for row in rows))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _medians(axes, rows, factor)
        log_span(axes, (row[key] * factor for row in rows for key in ("low", "median", "high")))
        axes.set_xlabel(f"TTFT, {unit} (log scale)")
        if texts:
            beside = [texts.get(arm, ("-", True)) for arm in unique(rows, "arm")]
            column_at_right(axes, f"{warm} speed-up", beside)

    grey = any(flag for _, flag in texts.values())
    note = " Grey: the interval of the speed-up holds 1, or there is none." if grey else ""
    return draw(
        paint,
        title=title or _gain(gains, warm) or "TTFT by topology and cache state",
        alt=f"Median TTFT by arm and cache state. {_spoken(rows, 's')}",
        caption=caption or _sample(rows) + note,
        **_board(summary, rows),
    )


def tps_by_topology(
    summary: pd.DataFrame, *, metric: str = "request_tps", title: str = "", caption: str = ""
) -> Chart:
    """Median tokens per second of each arm and cache state: `request_tps` or `system_tps`."""
    name = NAMES.get(metric, metric)
    rows = pick(summary, metric, "median")
    if not rows:
        return no_data(f"{name} by topology", f"no arm has a median {name}.")
    low, high = (extreme(rows, key=lambda row: float(row["median"])) for extreme in (min, max))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _medians(axes, rows, 1.0)
        ends = [row[key] for row in rows for key in ("median", "high") if isfinite(row[key])]
        axes.set_xlim(0, 1.06 * max(ends))
        per = "of one request (1 / TPOT)" if metric == "request_tps" else "of all requests together"
        axes.set_xlabel(f"output tokens per second {per}")

    found = f"{name} is {quantity(high['median'], 'tok/s')}"
    if len(rows) > 1:
        found = (
            f"{name} is from {number(low['median'])} ({low['arm']}, {low['pass']})"
            f" to {quantity(high['median'], 'tok/s')} ({high['arm']}, {high['pass']})"
        )
    return draw(
        paint,
        title=title or found,
        alt=f"Median {name} by arm and cache state. {_spoken(rows, 'tok/s')}",
        caption=caption or _sample(rows),
        **_board(summary, rows),
    )


def _board(summary: pd.DataFrame, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "body_px": _ROW_PX * len(unique(rows, "arm")) + _AXIS_PX,
        "keys": looks(unique(rows, "pass")),
        "shows": ("times",),
        "marks": summary.attrs,
    }


def _medians(axes: Axes, rows: Sequence[Row], factor: float) -> None:
    """The dots of an arm's cache states are set apart, so that none hides another."""
    arms, passes = unique(rows, "arm"), unique(rows, "pass")
    look = looks(passes)
    for row in rows:
        apart = 0.22 * (passes.index(row["pass"]) - (len(passes) - 1) / 2)
        y = arms.index(row["arm"]) + apart
        dot(axes, row, look[row["pass"]], y=y, key="median", factor=factor)
    row_axis(axes, arms)


def _gain(gains: Sequence[Row], warm: str) -> str:
    """The finding in a sentence; empty where the arms do not agree on one."""
    clear = [row["ratio"] for row in gains if not undecided(row)]
    if not gains or any(ratio < 1 for ratio in clear):
        return ""
    if not clear and not any(has_interval(row) for row in gains):
        return f"TTFT cold and {warm}: too few rounds to judge a difference"
    if not clear:
        return f"TTFT: no difference detectable between cold and {warm}"
    low, high = number(min(clear)), number(max(clear))
    times = high if low == high else f"{low} to {high}"
    where = f" in {len(clear)} of {len(gains)} arms" if len(clear) < len(gains) else ""
    return f"TTFT is {times} times lower {warm} than cold{where}"


def _spoken(rows: Sequence[Row], unit: str) -> str:
    parts = [f"{row['arm']} {row['pass']} {quantity(row['median'], unit)}" for row in rows]
    return "; ".join(parts) + "."


def _sample(rows: Sequence[Row]) -> str:
    """What the medians rest on; the system's TPS is one number a round."""
    unit = "round" if any(row["metric"] == "system_tps" for row in rows) else "request"
    hollow = any(isnan(row["low"]) or isnan(row["high"]) for row in rows)
    rounds = span(rows, "n_rounds", "round")
    sample = rounds if unit == "round" else f"{span(rows, 'n_requests', 'request')} in {rounds}"
    return f"Median and 95 % interval of {sample} per arm and cache state." + (
        f" Hollow: too few {unit}s for an interval." if hollow else ""
    )
