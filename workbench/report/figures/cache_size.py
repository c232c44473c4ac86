"""The figure of what a cache of each size could serve of a workload, before anything is run."""

from __future__ import annotations

from math import isfinite, nan

import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures.chart import Chart, draw, log_ticks
from workbench.report.figures.looks import BLACK, BLUE, GREY
from workbench.report.numbers import number

__all__ = ["cache_size"]

_NEAR = 0.95


def cache_size(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> Chart | None:
    """Hit rate against cache size; None for a workload that shares nothing.

    Takes the frame of `experiment.plan.cache_size`. Dashed: what an infinite cache of single tokens
    would have. Upright: the KV space of one instance.
    """
    if frame.empty:
        return None
    ideal, space = frame.attrs["ideal_reuse"], float(frame.attrs.get("kv_space_tokens", nan))
    most = float(frame["hit_rate"].max())
    enough = frame[frame["hit_rate"] >= _NEAR * most].iloc[0]
    size = int(enough["cache_tokens"])
    top = min(102.0, max(10.0, 125 * ideal))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            frame["cache_tokens"], 100 * frame["hit_rate"], color=BLUE, marker="o", markersize=5,
            drawstyle="steps-post", clip_on=False, zorder=3,
        )  # fmt: skip
        axes.axhline(100 * ideal, color=GREY, linestyle=(0, (5, 3)), linewidth=1.4)
        ends = [*frame["cache_tokens"], *([space] if isfinite(space) else [])]
        log_ticks(axes, min(ends), max(ends))
        if isfinite(space):
            axes.axvline(space, color=BLACK, linewidth=1.4)
            axes.annotate(
                "KV space of an instance", (space, top), xytext=(-6, -4),
                textcoords="offset points", ha="right", va="top", color=BLACK, size=12,
            )  # fmt: skip
        axes.set(ylim=(0, top), ylabel="hit rate, % of prompt tokens")
        axes.set_xlabel("cache size, tokens (log scale)")

    found = (
        f"One cache of {number(size)} tokens could serve {enough['hit_rate']:.0%} of the prompt"
        f" tokens of {frame.attrs['workload']}"
    )
    if frame["hit_rate"].iloc[-1] < 0.5 * ideal:
        found += f", where single tokens would give {ideal:.0%}"
    spoken = ", ".join(
        f"{number(int(row['cache_tokens']))} tokens {row['hit_rate']:.1%}"
        for _, row in frame.iloc[:: max(1, len(frame) // 6)].iterrows()
    )
    return draw(
        paint,
        title=title or found,
        body_px=300,
        alt=f"Ideal hit rate against cache size: {spoken}. {found}.",
        caption=caption
        or f"Computed from {frame.attrs['requests']} requests in blocks of"
        f" {frame.attrs['block_tokens']} tokens, one after the other, least recently used first"
        " out. Dashed: an infinite cache of single tokens.",
        marks=frame.attrs,
    )
