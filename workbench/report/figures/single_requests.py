"""Figures of single requests: their latencies, over time, and their cached tokens.

The `requests` frame has one row per request, with latencies in seconds. A failed request has no
latency: the caption counts it, and it is not drawn.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from workbench.report.figures import marks
from workbench.report.figures.chart import WIDTH_PX, Chart, draw, for_each_model, no_data, wrapped
from workbench.report.numbers import quantity, time_scale

_FIRST, _ENOUGH, _WARMING = 5, 20, 1.5
"""Warm-up: the first 5 of at least 20 requests take 1.5 times as long as the rest."""
_WIDE = 30
"""A rate or length that spans more than this factor gets a log scale."""
_AT_ONCE = 20
"""A response this many times faster than the median arrived in one read."""
_MOST_POINTS = 1500
"""Most points of a figure: more become one dark patch and megabytes of SVG."""
_MOST_NAMES = 8
"""With more groups than this, points are coloured by cache state alone."""
_GRID_LINES = 25
_NOT_REPORTED = "the server did not report cached prompt tokens."


@for_each_model
def latency_panels(requests: pd.DataFrame, *, note: str = "") -> Chart:
    """Cumulative distributions of TTFT, throughput per request, E2E and output length.

    `note` stands before the title: what a reader must know first, such as that a line is drawn
    from some of its requests only.
    """
    rows = _with(requests, "e2e_s")
    if rows.empty:
        return no_data("Latency distributions", _why_none(requests))
    look = _line_looks(rows)
    panels = {"ttft_s": "TTFT", "request_tps": "throughput per request",
              "e2e_s": "end-to-end latency", "output_tokens": "output length"}  # fmt: skip

    def paint(figure: Figure) -> None:
        for axes, (column, name) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            _ecdf(axes, _with(rows, column), column, name, look)
        figure.supylabel("requests at or below, %", color=marks.BLACK)

    found = _median_ttft(rows)
    caption = _counted(rows, requests)
    if at_once := int(_in_one_read(rows).sum()):
        caption += (
            f" Throughput leaves out responses that arrived in one socket read ({at_once:,})."
        )
    if rows["pass"].nunique() > 1:
        caption += " A speed-up is the paired ratio, not the ratio of these medians."
    return draw(
        paint,
        title=f"{note} {found}".lstrip(),
        body_px=500,
        alt="Cumulative distributions of TTFT, throughput per request, end-to-end latency and"
        f" output length, one line per cache state. {found}. {note}".rstrip(),
        caption=f"{caption} {note}".rstrip(),
        keys=look,
        shows=("times",),
        attrs=requests.attrs,
    )


def _line_looks(rows: pd.DataFrame) -> dict[str, marks.Look]:
    """One look per line; with several arms and cache states, colour is the state, dash the arm."""
    both = rows.drop_duplicates("series")
    if "arm" not in rows or min(both["arm"].nunique(), both["pass"].nunique()) < 2:
        return marks.looks(list(both["series"]), "line")
    colours = marks.looks(list(both["pass"].unique()), "line")
    dashes: list[marks.Dash] = ["-", (0, (5, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (1, 1))]
    arms = list(both["arm"].unique())
    return {
        line: replace(colours[state], dash=dashes[arms.index(arm) % len(dashes)])
        for line, arm, state in zip(both["series"], both["arm"], both["pass"], strict=True)
    }


def _ecdf(
    axes: Axes, rows: pd.DataFrame, column: str, name: str, look: dict[str, marks.Look]
) -> None:
    timed = column.endswith("_s")
    factor, unit = time_scale(rows[column].max()) if timed else (1.0, "tokens")
    if column == "request_tps":
        unit = "tok/s"
    values = rows[column].astype(float) * factor
    if column == "request_tps":
        values = values[~_in_one_read(rows)]
    log = timed or 0 < _WIDE * values.min() < values.max()
    if log:
        marks.log_axis(axes, values, most=6)
    for line, group in values.groupby(rows["series"], sort=False):
        style = look[str(line)]
        sns.ecdfplot(x=group, ax=axes, color=style.colour, linestyle=style.dash, linewidth=2.2)
    if values.empty:
        axes.text(0.5, 0.5, "not measured", color=marks.GREY, ha="center", transform=axes.transAxes)
    elif not log:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set(xlabel=f"{name}, {unit}{' (log scale)' if log else ''}", ylabel="", ylim=(-0.02, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))


def _in_one_read(rows: pd.DataFrame) -> pd.Series[bool]:
    """Responses that arrived at once: their rate says nothing, and would hide all others."""
    return rows["request_tps"] > _AT_ONCE * rows["request_tps"].median()


def _median_ttft(rows: pd.DataFrame) -> str:
    found = _with(rows, "ttft_s").groupby("series", sort=False)["ttft_s"].median()
    if len(found) > 2:
        lowest, highest = found.idxmin(), found.idxmax()
        return (
            f"Median TTFT: {quantity(found.min(), 's')} ({lowest})"
            f" to {quantity(found.max(), 's')} ({highest})"
        )
    parts = [f"{name} {quantity(value, 's')}" for name, value in found.items()]
    return f"Median TTFT: {', '.join(parts) or 'not measured'}"


@for_each_model
def requests_over_time(requests: pd.DataFrame) -> Chart:
    """TTFT of every request by the time it was sent, a panel per cache state (and arm)."""
    rows = _with(requests, "ttft_s")
    if rows.empty:
        return no_data("TTFT over time", _why_none(requests))
    factor, unit = time_scale(rows["ttft_s"].max())
    rows["y"] = rows["ttft_s"] * factor
    rows["since_s"] = rows["sent_s"] - rows.groupby(_pass_keys(rows))["sent_s"].transform("min")
    panels, states = list(rows["series"].unique()), list(rows["pass"].unique())
    look = marks.looks(states, "point")
    drawn, reduced = _sampled(rows, "y")
    columns = min(3, len(states) if len(states) > 1 else len(panels))
    lines = -(-len(panels) // columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            shown = drawn[drawn["series"] == panel]
            _points(axes, shown["since_s"], shown["y"], look[shown["pass"].iloc[0]])
            axes.set_title(wrapped(panel, 0.88 * WIDTH_PX / columns, weight="bold"))
            axes.tick_params(labelbottom=i + columns >= len(panels))
        for axes in grid[:, 0]:
            _time_axis(axes, rows["y"], f"TTFT, {unit}")
        end = max(float(rows["since_s"].max()), 0.1)
        grid[0, 0].set_xlim(-0.04 * end, 1.04 * end)
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        figure.supxlabel("time since the pass began, s", color=marks.BLACK)

    found = _warm_up(rows)
    return draw(
        paint,
        title=found,
        body_px=40 + 250 * lines,
        alt=f"TTFT of every request over the time of its pass. {found}.",
        caption=f"One point per request, all rounds overlaid. {_counted(rows, requests)}{reduced}",
        shows=("times",),
        attrs=requests.attrs,
    )


def _pass_keys(rows: pd.DataFrame) -> list[str]:
    return [key for key in ("arm", "pass", "round") if key in rows]


def _warm_up(rows: pd.DataFrame) -> str:
    """Whether the first requests of a pass were slower than its rest, in the worst panel."""
    ratios: dict[str, list[float]] = {}
    for _, group in rows.sort_values("sent_s").groupby(_pass_keys(rows), sort=False):
        if len(group) >= _ENOUGH:
            first, rest = group["ttft_s"].iloc[:_FIRST], group["ttft_s"].iloc[_FIRST:]
            ratios.setdefault(group["series"].iloc[0], []).append(first.median() / rest.median())
    if not ratios:
        return "TTFT over time: passes are too short to show a warm-up"
    worst = max(ratios, key=lambda panel: median(ratios[panel]))
    times = quantity(median(ratios[worst]), "x")
    if median(ratios[worst]) > _WARMING:
        return (
            f"Warm-up in {worst}: TTFT of the first {_FIRST} requests is {times} that of the rest"
        )
    return f"No warm-up: TTFT of the first {_FIRST} requests is at most {times} that of the rest"


def ttft_against_cached_share(requests: pd.DataFrame) -> Chart:
    """TTFT of each request by the cached fraction of its prompt."""
    heading = "TTFT by cached fraction of the prompt"
    rows = _with(requests, "ttft_s")
    if rows.empty:
        return no_data(heading, _why_none(requests))
    rows = rows[(rows["cached_tokens"] >= 0) & (rows["prompt_tokens"] > 0)]
    if rows.empty:
        return no_data(heading, _NOT_REPORTED)
    factor, unit = time_scale(rows["ttft_s"].max())
    caption = _counted(rows, requests)
    rows = rows.assign(
        series=rows["series" if rows["series"].nunique() <= _MOST_NAMES else "pass"],
        share=100.0 * rows["cached_tokens"] / rows["prompt_tokens"],
        sideways=np.random.default_rng(0).uniform(-0.8, 0.8, len(rows)),
        y=rows["ttft_s"] * factor,
    )
    drawn, reduced = _sampled(rows, "y")
    look = marks.looks(list(rows["series"].unique()), "point")
    tenths = rows.groupby((rows["share"] // 10).clip(upper=9))[["share", "y"]].median()
    with_line = len(tenths) > 2

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, group in drawn.groupby("series", sort=False):
            _points(axes, group["share"] + group["sideways"], group["y"], look[str(name)])
        if with_line:
            axes.plot(tenths["share"], tenths["y"], color=marks.BLACK, linewidth=1.6, zorder=4)
        axes.set(xlim=(-3, 103), xlabel="cached fraction of the prompt, %")
        _time_axis(axes, rows["y"], f"TTFT, {unit}")

    few, most = (rows["ttft_s"][rows["share"] <= 20], rows["ttft_s"][rows["share"] >= 80])
    found = heading
    if len(few) and len(most):
        found = (
            f"Median TTFT: {quantity(few.median(), 's')} with at most 20 % cached,"
            f" {quantity(most.median(), 's')} with at least 80 %"
        )
    return draw(
        paint,
        title=found,
        body_px=350,
        alt=f"{heading}, one point per request. {found}.",
        caption="One point per request, with horizontal jitter."
        f"{' Line: median of each 10 % range.' * with_line} {caption}{reduced}",
        keys=look,
        shows=("times",),
        attrs=requests.attrs,
    )


def hit_against_ideal(frame: pd.DataFrame) -> Chart:
    """Cached tokens of each request by those that an infinite cache would serve.

    Takes the columns `prompt_tokens`, `cached_tokens`, `ideal_tokens`, `pass`. Requests at the same
    point are drawn as one larger point.
    """
    heading = "Cached tokens and ideal reuse"
    if frame.empty:
        return no_data(heading, "no request was measured.")
    rows = _with(frame[frame["cached_tokens"] >= 0], "ideal_tokens")
    if rows.empty:
        return no_data(heading, _NOT_REPORTED)
    look = marks.looks(list(rows["series"].unique()), "point")
    spots, reduced = _spots(rows)
    hit, ideal = int(rows["cached_tokens"].sum()), int(rows["ideal_tokens"].sum())
    found = f"{hit:,} cached tokens, although no prompt repeats another"
    if ideal:
        share = quantity(100.0 * hit / ideal, "%")
        found = f"The cache served {share} of the ideal reuse ({hit:,} of {ideal:,} tokens)"

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        limit = 1.05 * max(float(spots[["cached_tokens", "ideal_tokens"]].max().max()), 1.0)
        axes.plot([0, limit], [0, limit], color=marks.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            "infinite cache", (0.87 * limit, 0.87 * limit), xytext=(-8, 8),
            textcoords="offset points", ha="right", color=marks.GREY, fontsize=13,
        )  # fmt: skip
        # the largest first, so that a single request is not hidden under many
        for name, group in spots.sort_values("requests", ascending=False).groupby("series"):
            sizes = 36 + 160 * (group["requests"] - 1) / spots["requests"].max()
            _points(axes, group["ideal_tokens"], group["cached_tokens"], look[str(name)], sizes)
        ends = (-0.03 * limit, limit)
        axes.set(xlim=ends, xlabel="ideal reuse, tokens per request")
        axes.set(ylim=ends, ylabel="cached, tokens per request")
        axes.xaxis.set_major_formatter(marks.NUMBERS)
        axes.yaxis.set_major_formatter(marks.NUMBERS)

    return draw(
        paint,
        title=found,
        body_px=390,
        alt=f"{heading}, one point per request. {found}.",
        caption=f"{_counted(rows, frame)} Point size: number of requests (up to"
        f" {spots['requests'].max():,}).{reduced} Dashed line: infinite cache (ideal). Points below"
        " it: block rounding, or missed hits.",
        keys=look,
        shows=("counts",),
        attrs=frame.attrs,
    )


def _spots(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The number of requests at each point; the caption's sentence where points were merged."""
    keys = ["ideal_tokens", "cached_tokens"]
    spots = rows.value_counts(["series", *keys], sort=False)
    reduced = ""
    if len(spots) > _MOST_POINTS:
        grid = max(1, -(-int(rows[keys].max().max()) // _GRID_LINES))
        coarse = (rows[keys] / grid).round() * grid
        spots = coarse.assign(series=rows["series"]).value_counts(["series", *keys], sort=False)
        reduced = f" Token counts are rounded to {grid:,}."
    return spots.rename("requests").reset_index(), reduced


def _with(requests: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows that have the value: not failed, not NaN, and not -1 (not reported).

    `series` names the line of each row: the cache state, with the arm where there are several.
    """
    if requests.empty or column not in requests:
        return requests.iloc[:0]
    rows = requests[pd.to_numeric(requests[column], errors="coerce") >= 0].reset_index(drop=True)
    if "series" in rows:
        return rows
    series = rows["pass"].astype(str)
    if "arm" in rows and rows["arm"].nunique() > 1:
        arms = rows["arm"].astype(str)
        series = arms if series.nunique() == 1 else arms + ", " + series
    return rows.assign(series=series)


def _counted(rows: pd.DataFrame, requests: pd.DataFrame) -> str:
    """`Requests: 30 cold; 29 store-warm. 1 failed (not drawn).`"""
    counts = rows["series"].value_counts(sort=False)
    text = "Requests: " + "; ".join(f"{count:,} {name}" for name, count in counts.items())
    if len(counts) > 1 and counts.nunique() == 1:
        text = f"{counts.iloc[0]:,} requests in each of {len(counts)} {_series_are(rows)}"
    elif len(counts) > 4:
        text = f"{len(rows):,} requests in {len(counts)} {_series_are(rows)}"
    failed = int((requests["error"] != "").sum()) if "error" in requests else 0
    return f"{text}.{f' {failed:,} failed (not drawn).' if failed else ''}"


def _series_are(rows: pd.DataFrame) -> str:
    """What tells the series apart: their arm, their pass, or both."""
    arms = rows["arm"].nunique() if "arm" in rows else 1
    if arms == 1:
        return "passes"
    return "arms" if rows["pass"].nunique() == 1 else "combinations of arm and pass"


def _why_none(requests: pd.DataFrame) -> str:
    """The reason why no row of the frame can be drawn."""
    if requests.empty:
        return "no request was measured."
    errors = requests.get("error", pd.Series(dtype=str)).loc[lambda error: error != ""]
    most = f" Most frequent error: {errors.mode().iloc[0]}." if len(errors) else ""
    return f"none of {len(requests)} requests has this value.{most}"


def _sampled(rows: pd.DataFrame, column: str) -> tuple[pd.DataFrame, str]:
    """The rows to draw as points, and the caption's sentence where they are a sample.

    Every `series` gets the same number of points, so that a small one stays visible, and always
    its smallest and largest value of `column`. The same rows give the same sample.
    """
    if len(rows) <= _MOST_POINTS:
        return rows, ""
    groups = rows.groupby("series", sort=False)
    share = max(3, _MOST_POINTS // groups.ngroups)
    picked = rows.sample(frac=1, random_state=0).groupby("series", sort=False).head(share).index
    shown = rows.loc[sorted({*picked, *groups[column].idxmin(), *groups[column].idxmax()})]
    return (
        shown,
        f" Drawn: a sample of {len(shown):,} of {len(rows):,} requests, with the extremes.",
    )


def _points(
    axes: Axes,
    x: pd.Series[float],
    y: pd.Series[float],
    look: marks.Look,
    sizes: pd.Series[float] | float = 26,
) -> None:
    axes.scatter(
        x, y, s=sizes, color=look.colour, marker=look.marker, alpha=0.6, linewidths=0, zorder=3,
        clip_on=False, rasterized=len(x) > _MOST_POINTS // 2,
    )  # fmt: skip


def _time_axis(axes: Axes, values: pd.Series[float], label: str) -> None:
    """Make y logarithmic where values spread over a factor of 20, otherwise linear from zero."""
    if values.max() > 20 * values.min() > 0:
        marks.log_axis(axes, values, axis="y", most=7)
        axes.set_ylabel(f"{label} (log scale)")
    else:
        axes.set(ylim=(0, 1.08 * values.max() or 1), ylabel=label)
