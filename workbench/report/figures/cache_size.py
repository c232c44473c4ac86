"""The figure of what a cache of each size could serve of a workload, before anything is run."""

from __future__ import annotations

from math import isfinite, nan

import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw
from workbench.report.numbers import number

_NEAR = 0.95
"""A cache that gives this share of the best hit rate is big enough."""


def cache_size(frame: pd.DataFrame) -> Chart | None:
    """Hit rate against cache size; None for a workload that shares nothing.

    Takes the frame of `experiment.plan.cache_size`. Dashed: what an infinite cache of single tokens
    would have. Upright: the KV space of one instance.
    """
    if frame.empty:
        return None
    ideal, space = frame.attrs["ideal_reuse"], float(frame.attrs.get("kv_space_tokens", nan))
    enough = frame[frame["hit_rate"] >= _NEAR * frame["hit_rate"].max()].iloc[0]
    top = min(102.0, max(10.0, 125 * ideal))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            frame["cache_tokens"], 100 * frame["hit_rate"], color=marks.BLUE, marker="o",
            markersize=5, drawstyle="steps-post", clip_on=False, zorder=3,
        )  # fmt: skip
        axes.axhline(100 * ideal, color=marks.GREY, linestyle=(0, (5, 3)), linewidth=1.4)
        marks.log_axis(axes, [*frame["cache_tokens"], space])
        if isfinite(space):
            axes.axvline(space, color=marks.BLACK, linewidth=1.4)
            axes.annotate(
                "KV space of an instance", (space, top), xytext=(-6, -4),
                textcoords="offset points", ha="right", va="top", size=12,
            )  # fmt: skip
        axes.set(ylim=(0, top), ylabel="hit rate, % of prompt tokens")
        axes.set_xlabel("cache size, tokens (log scale)")

    found = (
        f"One cache of {number(int(enough['cache_tokens']))} tokens could serve"
        f" {enough['hit_rate']:.0%} of the prompt tokens of {frame.attrs['workload']}"
    )
    if frame["hit_rate"].iloc[-1] < 0.5 * ideal:
        found += f", where single tokens would give {ideal:.0%}"
    spoken = ", ".join(
        f"{number(int(row['cache_tokens']))} tokens {row['hit_rate']:.1%}"
        for _, row in frame.iloc[:: max(1, len(frame) // 6)].iterrows()
    )
    return draw(
        paint,
        title=found,
        body_px=300,
        alt=f"Ideal hit rate against cache size: {spoken}. {found}.",
        caption=f"Computed from {frame.attrs['requests']} requests in blocks of"
        f" {frame.attrs['block_tokens']} tokens, one after the other, least recently used first"
        " out. Dashed: an infinite cache of single tokens.",
        attrs=frame.attrs,
    )
