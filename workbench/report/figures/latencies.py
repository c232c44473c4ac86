"""Figures of single requests: distributions of their latencies, and their order in time."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.report.figures.chart import Chart, draw, log_ticks, no_data, wrapped
from workbench.report.figures.looks import BLACK, GREY, NAMES, Dash, Look, looks
from workbench.report.figures.series import (
    counted,
    labels,
    names,
    points,
    sampled,
    successes,
    time_axis,
    why_none,
)
from workbench.report.numbers import quantity, time_scale

__all__ = ["latency_panels", "requests_over_time"]

_FIRST, _ENOUGH, _WARMING = 5, 20, 1.5
"""A warm-up is seen where the first 5 of at least 20 requests take 1.5 times the rest."""
_WIDE = 30
"""A rate or length whose values differ by more than this factor is drawn on a log scale."""
_STEPS = 250
"""Steps of a distribution that are drawn at most; beyond, they are finer than a pixel."""


def latency_panels(
    requests: pd.DataFrame, *, title: str = "", caption: str = "", note: str = ""
) -> Chart:
    """Distributions of TTFT, TPS, E2E and output length: the share of requests at or below.

    `note` stands in the figure, before the title: what a reader must know to read it at all, such
    as that a line is drawn from a part of its requests.
    """
    rows = successes(requests, "e2e_s")
    if rows.empty:
        return no_data("Latency distributions", why_none(requests))
    look = _line_looks(rows)
    panels = [
        ("ttft_s", "TTFT"),
        ("request_tps", "TPS"),
        ("e2e_s", "E2E"),
        ("output_tokens", "output length"),
    ]

    def paint(figure: Figure) -> None:
        for axes, (column, name) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            _ecdf(axes, successes(rows, column), column, name, look)
        figure.supylabel("share of requests at or below", fontsize=13, color=BLACK)

    found = _median_ttft(rows)
    heading = f"{note} {title or found}".lstrip()
    most = labels(rows).value_counts().max()
    reduced = f" Each line goes through {_STEPS} of its requests." if most > _STEPS else ""
    return draw(
        paint,
        title=heading,
        body_px=560,
        alt="Distributions of TTFT, TPS, E2E and output length, one line per cache state."
        f" {found}. {note}".rstrip(),
        caption=caption or f"{counted(rows, requests)}{reduced} {note}".rstrip(),
        keys=look,
        shows=("times",),
        marks=requests.attrs,
    )


def requests_over_time(
    requests: pd.DataFrame, *, metric: str = "ttft_s", title: str = "", caption: str = ""
) -> Chart:
    """A latency of every request at the time it was sent, a panel per cache state (and arm)."""
    name = NAMES.get(metric, metric)
    rows = successes(requests, metric)
    if rows.empty:
        return no_data(f"{name} over time", why_none(requests))
    factor, unit = time_scale(rows[metric].max())
    rows = rows.assign(series=labels(rows), y=rows[metric] * factor)
    rows["since_s"] = rows["sent_s"] - rows.groupby(_pass_keys(rows))["sent_s"].transform("min")
    panels = names(rows)
    states = list(dict.fromkeys(rows["pass"]))
    look = looks(states, "point")
    drawn, reduced = sampled(rows, "y")
    columns = min(3, len(states) if len(states) > 1 else len(panels))
    lines = -(-len(panels) // columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            shown = drawn[drawn["series"] == panel]
            points(axes, shown["since_s"], shown["y"], look[shown["pass"].iloc[0]])
            axes.set_title("\n".join(wrapped(panel, 690 / columns, weight="bold")))
            axes.tick_params(labelbottom=i + columns >= len(panels))
        for axes in grid[:, 0]:
            time_axis(axes, rows["y"], f"{name}, {unit}")
        end = max(float(rows["since_s"].max()), 0.1)
        grid[0, 0].set_xlim(-0.04 * end, 1.04 * end)
        grid[0, 0].xaxis.set_major_locator(_few_ticks())
        figure.supxlabel("sent, seconds after the pass began", fontsize=13, color=BLACK)

    found = _warm_up(rows, metric, name)
    return draw(
        paint,
        title=title or found,
        body_px=40 + 250 * lines,
        alt=f"{name} of every request over the time of its pass. {found}.",
        caption=caption
        or f"One point per request, all rounds over one another."
        f" {counted(rows, requests)}{reduced}",
        shows=("times",),
        marks=requests.attrs,
    )


def _line_looks(rows: pd.DataFrame) -> dict[str, Look]:
    """One look per line; with several arms and cache states, colour is the state, dash the arm."""
    both = rows.assign(label=labels(rows)).drop_duplicates("label")
    lines = [str(label) for label in both["label"]]
    if "arm" not in rows or min(both["arm"].nunique(), both["pass"].nunique()) < 2:
        return looks(lines, "line")
    colours = looks(list(dict.fromkeys(both["pass"])), "line")
    dashes: list[Dash] = ["-", (0, (5, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (1, 1))]
    arms = list(dict.fromkeys(both["arm"]))
    return {
        line: replace(colours[state], dash=dashes[arms.index(arm) % len(dashes)])
        for line, arm, state in zip(lines, both["arm"], both["pass"], strict=True)
    }


def _ecdf(axes: Axes, rows: pd.DataFrame, column: str, name: str, look: dict[str, Look]) -> None:
    timed = column.endswith("_s")
    factor, unit = time_scale(rows[column].max()) if timed else (1.0, "tokens")
    if column == "request_tps":
        unit = "tokens per second of a request"
    values = rows[column].astype(float) * factor
    # Answers that arrived in one read have a rate that hides all others on a plain axis.
    log = len(values) > 0 and (timed or 0 < _WIDE * values.min() < values.max())
    if log:
        log_ticks(axes, values.min(), values.max(), most=6)
    for line, group in values.groupby(labels(rows), sort=False):
        style = look[str(line)]
        shown = np.sort(group)[np.unique(np.linspace(0, len(group) - 1, _STEPS).astype(int))]
        sns.ecdfplot(x=shown, ax=axes, color=style.colour, linestyle=style.dash, linewidth=2.2)
    if values.empty:
        axes.text(0.5, 0.5, "not known", color=GREY, ha="center", transform=axes.transAxes)
    elif not log:
        axes.xaxis.set_major_locator(_few_ticks())
    axes.set(xlabel=f"{name}, {unit}" + (" (log scale)" if log else ""), ylabel="")
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")


def _few_ticks() -> MaxNLocator:
    return MaxNLocator(5, steps=[1, 2, 5, 10])


def _median_ttft(rows: pd.DataFrame) -> str:
    timed = successes(rows, "ttft_s")
    found = timed.groupby(labels(timed), sort=False)["ttft_s"].median()
    if len(found) > 4:
        lowest, highest = found.idxmin(), found.idxmax()
        return (
            f"Median TTFT is from {quantity(found.min(), 's')} ({lowest})"
            f" to {quantity(found.max(), 's')} ({highest})"
        )
    parts = [f"{name} {quantity(value, 's')}" for name, value in found.items()]
    return f"Median TTFT: {', '.join(parts) or 'not known'}"


def _pass_keys(rows: pd.DataFrame) -> list[str]:
    return [key for key in ("arm", "pass", "round") if key in rows]


def _warm_up(rows: pd.DataFrame, metric: str, name: str) -> str:
    """Whether the first requests of a pass were slower than its rest; the worst panel counts."""
    ratios: dict[str, list[float]] = {}
    for _, group in rows.sort_values("sent_s").groupby(_pass_keys(rows), sort=False):
        if len(group) >= _ENOUGH:
            values = group[metric]
            ratio = values.iloc[:_FIRST].median() / values.iloc[_FIRST:].median()
            ratios.setdefault(str(group["series"].iloc[0]), []).append(float(ratio))
    if not ratios:
        return f"{name} of every request: passes are too short to see a warm-up"
    worst = max(ratios, key=lambda panel: median(ratios[panel]))
    times = quantity(median(ratios[worst]), "x")
    if median(ratios[worst]) > _WARMING:
        return (
            f"Warm-up in {worst}: the first {_FIRST} requests have {times} the {name} of the rest"
        )
    return (
        f"No warm-up seen: the first {_FIRST} requests have at most {times} the {name} of the rest"
    )
