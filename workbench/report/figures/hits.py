"""Figures of cached tokens: what they do to TTFT, and how many there are beside the ideal."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.figures.looks import BLACK, GREY, Look, looks
from workbench.report.figures.series import (
    MOST_POINTS,
    counted,
    labels,
    names,
    points,
    sampled,
    successes,
    time_axis,
    why_none,
)
from workbench.report.numbers import number, quantity, time_scale

__all__ = ["hit_against_ideal", "ttft_against_cached_share"]

_GRID_LINES = 25
_NEVER_TOLD = "the server did not say how many prompt tokens came from a cache."


def ttft_against_cached_share(
    requests: pd.DataFrame, *, title: str = "", caption: str = ""
) -> Chart:
    """TTFT of each request against the share of its prompt that came from a cache."""
    heading = "TTFT against the cached share of the prompt"
    rows = successes(requests, "ttft_s")
    if rows.empty:
        return no_data(heading, why_none(requests))
    rows = rows[(rows["cached_tokens"] >= 0) & (rows["prompt_tokens"] > 0)]
    if rows.empty:
        return no_data(heading, _NEVER_TOLD)
    factor, unit = time_scale(rows["ttft_s"].max())
    rows = rows.assign(
        share=100.0 * rows["cached_tokens"] / rows["prompt_tokens"],
        sideways=np.random.default_rng(0).uniform(-0.8, 0.8, len(rows)),
        y=rows["ttft_s"] * factor,
    )
    drawn, reduced = sampled(rows, "y")
    look = looks(names(rows), "point")
    tenths = rows.groupby((rows["share"] // 10).clip(upper=9))[["share", "y"]].median()

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, group in drawn.groupby(labels(rows).loc[drawn.index], sort=False):
            points(axes, group["share"] + group["sideways"], group["y"], look[str(name)])
        if len(tenths) > 2:
            axes.plot(tenths["share"], tenths["y"], color=BLACK, linewidth=1.6, zorder=4)
        axes.set(xlim=(-3, 103), xlabel="cached share of the prompt, %")
        time_axis(axes, rows["y"], f"TTFT, {unit}")

    few, most = (rows["ttft_s"][rows["share"] <= 20], rows["ttft_s"][rows["share"] >= 80])
    found = heading
    if len(few) and len(most):
        found = (
            f"Median TTFT: {quantity(few.median(), 's')} with at most 20 % of the prompt cached,"
            f" {quantity(most.median(), 's')} with at least 80 %"
        )
    line = " Black: median of each tenth." if len(tenths) > 2 else ""
    return draw(
        paint,
        title=title or found,
        body_px=350,
        alt=f"{heading}, one point per request. {found}.",
        caption=caption
        or f"One point per request, spread sideways a little.{line}"
        f" {counted(rows, requests)}{reduced}",
        keys=look,
        shows=("times",),
        marks=requests.attrs,
    )


def hit_against_ideal(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> Chart:
    """Cached tokens of each request against what an infinite cache would have had.

    Takes the columns `prompt_tokens`, `cached_tokens`, `ideal_tokens`, `pass`. Requests that fall
    on one point are drawn as one larger point.
    """
    heading = "Cached tokens against ideal reuse"
    if frame.empty:
        return no_data(heading, "no request was measured.")
    rows = frame[(frame["cached_tokens"] >= 0) & (frame["ideal_tokens"] >= 0)]
    if rows.empty:
        return no_data(heading, _NEVER_TOLD)
    look = looks(names(rows), "point")
    spots, reduced = _spots(rows)
    hit, ideal = int(rows["cached_tokens"].sum()), int(rows["ideal_tokens"].sum())
    found = f"{hit:,} tokens came from a cache, where no prompt repeats another"
    if ideal:
        share = quantity(100.0 * hit / ideal, "%")
        found = f"Hits are {share} of the ideal reuse: {hit:,} of {ideal:,} tokens"

    def paint(figure: Figure) -> None:
        _against_ideal(figure, spots, look)

    return draw(
        paint,
        title=title or found,
        body_px=390,
        alt=f"{heading}, one point per request. {found}.",
        caption=caption
        or f"{counted(rows, frame)} Larger points are several requests, up to"
        f" {spots['requests'].max():,}.{reduced}"
        " On the dashed line a request got all that an infinite cache would have had.",
        keys=look,
        shows=("counts",),
        marks=frame.attrs,
    )


def _spots(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """How many requests fall on each point, and what the caption says where points were joined."""
    keys = ["ideal_tokens", "cached_tokens"]
    spots = rows[keys].assign(series=labels(rows)).value_counts(["series", *keys], sort=False)
    reduced = ""
    if len(spots) > MOST_POINTS:
        grid = max(1, -(-int(rows[keys].max().max()) // _GRID_LINES))
        coarse = (rows[keys] / grid).round() * grid
        spots = coarse.assign(series=labels(rows)).value_counts(["series", *keys], sort=False)
        reduced = f" Drawn: token counts rounded to {grid:,}."
    return spots.rename("requests").reset_index(), reduced


def _against_ideal(figure: Figure, spots: pd.DataFrame, look: dict[str, Look]) -> None:
    axes = figure.subplots()
    limit = 1.05 * max(float(spots[["cached_tokens", "ideal_tokens"]].max().max()), 1.0)
    axes.plot([0, limit], [0, limit], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        "ideal",
        (0.87 * limit, 0.87 * limit),
        xytext=(-8, 8),
        textcoords="offset points",
        ha="right",
        color=GREY,
        fontsize=13,
    )
    most = spots["requests"].max()
    # the largest first, so that a single request is not hidden under many
    for name, group in spots.sort_values("requests", ascending=False).groupby("series"):
        axes.scatter(
            group["ideal_tokens"],
            group["cached_tokens"],
            s=36 + 160 * (group["requests"] - 1) / most,
            color=look[str(name)].colour,
            marker=look[str(name)].marker,
            alpha=0.7,
            linewidths=0,
            rasterized=len(group) > MOST_POINTS // 2,
            zorder=3,
            clip_on=False,
        )
    axes.set(xlim=(-0.03 * limit, limit), ylim=(-0.03 * limit, limit))
    axes.set(xlabel="ideal reuse, tokens of a request", ylabel="cached, tokens of a request")
    for line in (axes.xaxis, axes.yaxis):
        line.set_major_formatter(lambda tick, _: number(round(tick)))
