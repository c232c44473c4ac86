"""The figure of the expected hit rate of a workload by cache size, before anything is run."""

from __future__ import annotations

from math import isfinite, nan

import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw
from workbench.report.numbers import number

_NEAR = 0.95
"""A cache is large enough where it reaches this fraction of the best hit rate."""


def cache_size(frame: pd.DataFrame) -> Chart | None:
    """Expected hit rate by cache size; None for a workload whose prompts share nothing.

    Takes the frame of `experiment.plan.cache_size`. Dashed line: infinite cache without blocks.
    Vertical: what the KV space and the host memory of one instance hold.
    """
    if frame.empty:
        return None
    ideal = frame.attrs["ideal_reuse"]
    holds = {
        name: float(frame.attrs.get(key, nan))
        for name, key in (("KV space", "kv_space_tokens"), ("host memory", "host_tokens"))
    }
    limits = {name: tokens for name, tokens in holds.items() if isfinite(tokens)}
    enough = frame[frame["hit_rate"] >= _NEAR * frame["hit_rate"].max()].iloc[0]
    top = min(102.0, max(10.0, 125 * ideal))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            frame["cache_tokens"], 100 * frame["hit_rate"], color=marks.BLUE, marker="o",
            markersize=5, drawstyle="steps-post", clip_on=False, zorder=3,
        )  # fmt: skip
        axes.axhline(100 * ideal, color=marks.GREY, linestyle=(0, (5, 3)), linewidth=1.4)
        marks.log_axis(axes, [*frame["cache_tokens"], *limits.values()])
        for row, (name, tokens) in enumerate(limits.items()):
            axes.axvline(tokens, color=marks.BLACK, linewidth=1.4)
            axes.annotate(
                f"{name} of one instance", (tokens, top), xytext=(-6, -4 - 18 * row),
                textcoords="offset points", ha="right", va="top", size=12,
            )  # fmt: skip
        axes.set(ylim=(0, top), ylabel="expected hit rate, % of prompt tokens")
        axes.set_xlabel("cache size, tokens (log scale)")

    found = (
        f"A cache of {number(int(enough['cache_tokens']))} tokens reaches a hit rate of"
        f" {100 * enough['hit_rate']:.3g} % (ideal: {100 * ideal:.3g} %)"
    )
    spoken = ", ".join(
        f"{number(int(row['cache_tokens']))} tokens {100 * row['hit_rate']:.3g} %"
        for _, row in frame.iloc[:: max(1, len(frame) // 6)].iterrows()
    )
    return draw(
        paint,
        title=found,
        body_px=300,
        alt=f"Expected hit rate by cache size: {spoken}. {found}.",
        caption=f"Simulated LRU cache with blocks of {frame.attrs['block_tokens']} tokens. It gets"
        f" the {frame.attrs['requests']:,} requests of workload {frame.attrs['workload']} one after"
        " another. Dashed line: infinite cache without blocks (ideal).",
        attrs=frame.attrs,
    )
