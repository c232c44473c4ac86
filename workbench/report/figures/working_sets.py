"""The figure of a working-set sweep: where offloading KV to host memory pays."""

from __future__ import annotations

from math import isfinite

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, for_each_model
from workbench.report.numbers import times

_LOOKS = {
    "TTFT, sent again": marks.Look(colour=marks.BLUE, marker="s", dash="-"),
    "TTFT, cold": marks.Look(colour=marks.VERMILION, marker="o", dash="-"),
}
_HITS = {
    "hits with offloading": marks.Look(colour=marks.GREEN, marker="D", dash="-"),
    "hits without": marks.Look(colour=marks.BLACK, marker="v", dash=(0, (4, 2))),
}


@for_each_model
def working_sets(frame: pd.DataFrame) -> Chart | None:
    """TTFT without / with offloading by working set, and the hit rates behind it; None without.

    Takes `result.sizes`. Vertical lines: what the KV space and what host memory hold.
    """
    if frame.empty:
        return None
    rows = frame[frame["arm"] == frame["arm"].iloc[0]].sort_values("times")
    again, cold = rows[rows["asked"] == "again"], rows[rows["asked"] == "cold"]
    host = float(rows["host_times"].iloc[0])

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for part, look in ((cold, _LOOKS["TTFT, cold"]), (again, _LOOKS["TTFT, sent again"])):
            left.plot(part["times"], part["ratio"], color=look.colour, linewidth=1.2, zorder=2)
            for _, row in part.iterrows():
                marks.mark(
                    left, row["times"], row["ratio"], (row["low"], row["high"]), look, upright=True
                )
        ends = rows[["ratio", "low", "high"]].to_numpy(float).ravel()
        marks.log_axis(left, [*ends, 1.0], axis="y", most=7)
        left.axhline(1.0, color=marks.GREY, linewidth=1.2, zorder=1)
        left.set_ylabel("TTFT without / with offloading (log scale)")
        for column, look in zip(("hit_share", "baseline_hit_share"), _HITS.values(), strict=True):
            right.plot(
                again["times"], 100 * again[column], color=look.colour, marker=look.marker,
                linestyle=look.dash, markersize=7, linewidth=1.4, clip_on=False, zorder=3,
            )  # fmt: skip
        right.set(ylim=(0, 100), ylabel="hits when sent again, % of prompt tokens")
        for axes in (left, right):
            sizes = [float(size) for size in again["times"]]
            marks.log_axis(axes, [*sizes, 1.0, host], most=6, ticks=sizes)
            axes.set_xlabel("working set, x KV space (log scale)")
            _limits(axes, host)

    found = _found(again)
    spoken = "; ".join(
        f"{row['asked']} at {row['times']:g}x: {times(row['ratio'])}" for _, row in rows.iterrows()
    )
    holds = f" and host memory ({host:.3g}x)" if isfinite(host) else ""
    return draw(
        paint,
        title=found,
        body_px=320,
        alt=f"{found}. TTFT without / with offloading, {spoken}.",
        caption=f"{rows['arm'].iloc[0]} against {rows['baseline_arm'].iloc[0]}, paired, with 95 %"
        " CI; above 1x offloading is faster. Each working set is sent cold, then again in the same"
        " order, which an LRU cache that is too small misses completely. Vertical lines: what the"
        f" KV space (1x){holds} hold.",
        keys=_LOOKS | _HITS,
        shows=("ratios", "counts"),
        intervals=bool(rows["low"].notna().any()),
        attrs=frame.attrs,
    )


def _limits(axes: Axes, host: float) -> None:
    """What the two caches hold, in multiples of the KV space."""
    for row, (x, name) in enumerate(((1.0, "KV space"), (host, "host memory"))):
        if not isfinite(x):
            continue
        axes.axvline(x, color=marks.GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
        # Above the plot, where no line runs; the later one in a row of its own.
        axes.annotate(
            name, (x, 1.0), xycoords=axes.get_xaxis_transform(), xytext=(0, 4 + 15 * row),
            textcoords="offset points", ha="center", va="bottom", size=11,
        )  # fmt: skip


def _found(again: pd.DataFrame) -> str:
    """At which working sets offloading is faster, as far as the intervals say."""
    faster, slower = (again[again["verdict"] == verdict] for verdict in ("faster", "slower"))
    if len(faster):
        ends = dict.fromkeys(
            f"{size:g}x" for size in (faster["times"].min(), faster["times"].max())
        )
        return (
            f"Offloading: TTFT up to {times(faster['ratio'].max())} faster, at working sets of"
            f" {' to '.join(ends)} KV space"
        )
    if len(slower):
        return (
            f"Offloading: TTFT slower at {', '.join(f'{t:g}x' for t in slower['times'])} KV space"
        )
    if (again["verdict"] == "no_interval").all():
        return "TTFT without and with offloading: too few rounds to compare"
    return "Offloading: no significant effect on TTFT"
