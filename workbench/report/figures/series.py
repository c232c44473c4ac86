"""Which line of a figure a request belongs to, and what a caption says about the requests.

The `requests` frame has one row per request with its arm, round, pass, facts and latencies in
seconds. A failed request has no latency: it is counted in the caption, never drawn as 0.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from workbench.report.figures.chart import log_ticks
from workbench.report.figures.looks import Look

__all__ = [
    "MOST_POINTS",
    "counted",
    "labels",
    "names",
    "points",
    "sampled",
    "successes",
    "time_axis",
    "why_none",
]

MOST_POINTS = 1500
"""A figure draws at most about so many points: more are one dark patch, and a page of megabytes."""


def successes(requests: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows that have the value: not failed, not NaN, and no -1 for a count never told."""
    if requests.empty or column not in requests:
        return requests.iloc[:0]
    values = pd.to_numeric(requests[column], errors="coerce")
    return requests[values.notna() & (values >= 0)].reset_index(drop=True)


def labels(rows: pd.DataFrame) -> pd.Series[str]:
    """What tells the lines apart: the cache state, with the arm where there are several."""
    passes = rows["pass"].astype(str)
    if "arm" not in rows or rows["arm"].nunique() <= 1:
        return passes
    arms = rows["arm"].astype(str)
    return arms if passes.nunique() == 1 else arms + ", " + passes


def names(rows: pd.DataFrame) -> list[str]:
    """The labels of a frame, each once, in the order of the rows."""
    return list(dict.fromkeys(labels(rows)))


def counted(rows: pd.DataFrame, requests: pd.DataFrame) -> str:
    """`Requests: 30 cold, 29 store-warm. 1 failed, not drawn.`"""
    counts = labels(rows).value_counts(sort=False)
    text = "Requests: " + ", ".join(f"{count:,} {name}" for name, count in counts.items())
    if len(counts) > 4:
        text = f"{len(rows):,} requests in {len(counts)} groups"
    failed = int((requests["error"] != "").sum()) if "error" in requests else 0
    return f"{text}.{f' {failed:,} failed, not drawn.' if failed else ''}"


def why_none(requests: pd.DataFrame) -> str:
    """The reason why no row of the frame can be drawn."""
    if requests.empty:
        return "no request was measured."
    errors = requests.get("error", pd.Series(dtype=str)).loc[lambda error: error != ""]
    most = f"; the most frequent error is {errors.mode().iloc[0]}" if len(errors) else ""
    return f"none of {len(requests)} requests has this value{most}."


def sampled(rows: pd.DataFrame, column: str) -> tuple[pd.DataFrame, str]:
    """The rows to draw as points, and a sentence for the caption where that is not all of them.

    Every line gets an equal share of MOST_POINTS, so that a small one stays visible; its smallest
    and largest value of `column` are always drawn. The same rows give the same sample.
    """
    if len(rows) <= MOST_POINTS:
        return rows, ""
    draw = np.random.default_rng(0)
    groups = rows.groupby(labels(rows), sort=False)
    share = max(3, MOST_POINTS // groups.ngroups)
    chosen: set[int] = set()
    for _, group in groups:
        picked = draw.choice(len(group), min(share, len(group)), replace=False)
        values = group[column].to_numpy(float)
        chosen.update(group.index[np.r_[picked, values.argmin(), values.argmax()]].tolist())
    shown = rows.loc[sorted(chosen)]
    return shown, f" Drawn: a sample of {len(shown):,} of {len(rows):,} requests, the extremes in."


def points(axes: Axes, x: pd.Series[float], y: pd.Series[float], look: Look) -> None:
    """One point per request."""
    axes.scatter(
        x,
        y,
        s=26,
        color=look.colour,
        marker=look.marker,
        alpha=0.6,
        linewidths=0,
        rasterized=len(x) > MOST_POINTS // 2,
        zorder=3,
    )


def time_axis(axes: Axes, values: pd.Series[float], label: str) -> None:
    """Make y logarithmic where values spread over a factor of 20, otherwise linear from zero."""
    if values.max() > 20 * values.min() > 0:
        log_ticks(axes, values.min(), values.max(), axis="y", most=7)
        axes.set_ylabel(f"{label} (log scale)")
    else:
        axes.set_ylim(0, 1.08 * values.max() or 1)
        axes.set_ylabel(label)
