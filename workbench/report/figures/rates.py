"""The figure of a sweep over rates: latency, and what was achieved of what was offered."""

from __future__ import annotations

from math import isfinite

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.report.figures.chart import Chart, draw, log_ticks
from workbench.report.figures.looks import BLACK, GREY, Look, looks
from workbench.report.numbers import quantity, time_scale

__all__ = ["rates"]

_KEPT_UP = 0.95
"""Answers that end at this share of the offered rate kept up with it."""


def rates(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> Chart | None:
    """TTFT, and achieved rate and goodput, against the offered rate; None without rates.

    Takes `result.rates`. Goodput, with open markers, is that within the limits, where there are
    any (`attrs["limited"]`).
    """
    if frame.empty:
        return None
    arms = [str(arm) for arm in frame["arm"].unique()]
    look = looks(arms)
    limited = bool(frame.attrs.get("limited", True))
    top = frame[["ttft_s", "ttft_high_s"]].max().max()
    factor, unit = time_scale(top)

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for arm in arms:
            rows = frame[frame["arm"] == arm].sort_values("offered_per_s")
            _latency(left, rows, look[arm], factor)
            _achieved(right, rows, look[arm], limited)
        _axes(left, frame, ("ttft_s", "ttft_low_s", "ttft_high_s"), factor)
        left.set_ylabel(f"median TTFT, {unit} (log scale)")
        _axes(right, frame, ("achieved_per_s", "goodput_per_s", "offered_per_s"), 1.0)
        right.set_ylabel("answers per second (log scale)")
        ends = right.get_xlim()
        right.plot(ends, ends, color=GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        for axes in (left, right):
            axes.set_xlabel("offered requests per second (log scale)")

    known = frame[frame["achieved_per_s"].notna()]
    best = known.sort_values("achieved_per_s").iloc[-1] if len(known) else None
    found = "TTFT and achieved rate against the offered rate"
    if best is not None:
        arm, offered = best["arm"], f"{best['offered_per_s']:.3g}"
        found = f"Answers end at {best['achieved_per_s']:.3g} a second at most"
        found += f" ({arm}, with {offered} offered)"
        if best["achieved_per_s"] >= _KEPT_UP * best["offered_per_s"]:
            found = f"Answers keep up with {offered} requests a second ({arm})"
    spoken = "; ".join(
        f"{row['arm']} at {row['offered_per_s']:.3g}/s: TTFT {quantity(row['ttft_s'], 's')},"
        f" {row['achieved_per_s']:.3g} achieved"
        + (f", {row['share']:.0%} within the limits" if limited else "")
        for _, row in frame.iterrows()
    )
    return draw(
        paint,
        title=title or found,
        body_px=330,
        alt=f"{found}. {spoken}.",
        caption=caption
        or "Left: median and 95 % interval over requests. Right: filled, answers ended per second,"
        " from the first end to the last; "
        + ("open, goodput: those of requests that met the limits; " if limited else "")
        + "dotted, all that was offered.",
        keys=look,
        shows=("times",),
        marks=frame.attrs,
    )


def _latency(axes: Axes, rows: pd.DataFrame, look: Look, factor: float) -> None:
    known = rows[rows["ttft_s"].notna()]
    axes.plot(known["offered_per_s"], known["ttft_s"] * factor, color=look.colour, linewidth=1.2)
    for _, row in known.iterrows():
        whole = isfinite(row["ttft_low_s"]) and isfinite(row["ttft_high_s"])
        if whole:
            axes.vlines(
                row["offered_per_s"], row["ttft_low_s"] * factor, row["ttft_high_s"] * factor,
                color=look.colour, linewidth=3,
            )  # fmt: skip
        axes.plot(
            row["offered_per_s"], row["ttft_s"] * factor, color=look.colour, marker=look.marker,
            markersize=8, markerfacecolor=look.colour if whole else "white", markeredgewidth=1.6,
        )  # fmt: skip


def _achieved(axes: Axes, rows: pd.DataFrame, look: Look, limited: bool) -> None:
    drawn = [("goodput_per_s", False)] * limited + [("achieved_per_s", True)]
    for column, filled in drawn:
        known = rows[rows[column].gt(0)]
        axes.plot(
            known["offered_per_s"], known[column], color=look.colour, marker=look.marker,
            markersize=8, linewidth=1.2, markeredgewidth=1.6,
            markerfacecolor=look.colour if filled else "white",
            linestyle="-" if filled else (0, (4, 2)),
        )  # fmt: skip


def _axes(axes: Axes, frame: pd.DataFrame, columns: tuple[str, ...], factor: float) -> None:
    values = [v * factor for column in columns for v in frame[column] if isfinite(v) and v > 0]
    if values:
        log_ticks(axes, min(values), max(values), axis="y", most=7)
    log_ticks(axes, frame["offered_per_s"].min(), frame["offered_per_s"].max(), axis="x", most=6)
    axes.grid(color=BLACK, alpha=0.08)
