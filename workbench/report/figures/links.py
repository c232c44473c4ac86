"""The figure of links between hosts: the link rate above which a PD split is faster."""

from __future__ import annotations

from math import inf, isnan, nan
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.experiment.findings.crossing import Crossing, LinkPoint, crossing, excess_at
from workbench.experiment.findings.link_findings import crossing_text
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw
from workbench.report.numbers import number, quantity, time_scale

_SPLIT = marks.Look(colour=marks.BLUE, marker="s", dash="-")
_BASELINE = marks.Look(colour=marks.VERMILION, marker="o", dash="-")
_RATIOS = {
    "ttft_s": marks.Look(colour=marks.GREEN, marker="D", dash="-"),
    "e2e_s": marks.Look(colour=marks.PURPLE, marker="^", dash="-"),
}
_NOT_MEASURED = (0, (4, 3))
_BEYOND = 4.0
"""How far lines go beyond the slowest and the fastest measured link."""


def links(frame: pd.DataFrame) -> Chart | None:
    """TTFT and speed-up of a PD split by the rate of the link; None without links.

    Takes `result.links`. Left: TTFT of the split and of its baseline. Right: the speed-up over the
    baseline, TTFT and E2E, and the rate above which it is more than 1. Lines are solid between
    measured links and dashed beyond.
    """
    usable = frame[(frame["kv_bytes"] > 0) & (frame["ratio"] > 0)] if len(frame) else frame
    if usable.empty:
        return None
    arm = usable["arm"].iloc[-1]
    baseline = usable.loc[usable["arm"] == arm, "baseline_arm"].iloc[0]
    rows = usable[usable["arm"].eq(arm) & usable["baseline_arm"].eq(baseline)]
    of = {
        str(metric): group.sort_values("gbit_s").reset_index(drop=True)
        for metric, group in rows.groupby("metric", sort=False)
    }
    points = {metric: _points(group) for metric, group in of.items()}
    found = {metric: crossing(line) for metric, line in points.items()}
    measured = sorted(float(rate) for rate in rows["gbit_s"].unique())
    near = [c.gbit_s for c in found.values() if 0 < c.gbit_s < inf]
    near = [rate for rate in near if measured[0] / 20 < rate < 20 * measured[-1]]
    ends = (
        min([measured[0] / _BEYOND, *(rate / 1.5 for rate in near)]),
        max([measured[-1] * _BEYOND, *(1.5 * rate for rate in near)]),
    )

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _times(left, of.get("ttft_s", rows), measured, ends)
        _speedups(right, of, points, found, measured, ends)
        for axes in (left, right):
            marks.log_axis(axes, ends, most=5)
            axes.set_xlabel("link rate, Gbit/s (log scale)")

    keys: dict[str, marks.Key] = {f"TTFT, {arm}": _SPLIT, f"TTFT, {baseline}": _BASELINE}
    keys |= {f"speed-up, {_short(metric)}": _RATIOS[metric] for metric in of}
    title = _finding(str(arm), str(baseline), found)
    spoken = "; ".join(
        f"at {number(row['gbit_s'])} Gbit/s {_short(metric)} {quantity(row['value'], 's')},"
        f" {baseline} {quantity(row['baseline'], 's')}"
        for metric, group in of.items()
        for _, row in group.iterrows()
    )
    said = " ".join(f"{_short(metric)}: {crossing_text(c)}." for metric, c in found.items())
    return draw(
        paint,
        title=title,
        body_px=330,
        alt=f"{title}. {said} Measured: {spoken}.",
        caption=f"Cold prompts, {number(1e-6 * rows['kv_bytes'].median())} MB of KV each, with 95 %"
        f" CI ({marks.span(marks.records(rows, ('ratio',)), 'n_rounds', 'round')} per link)."
        " Rates are the payload of one TCP connection, measured before the passes. Dashed: not"
        f" measured, extrapolated from bytes / rate. {said}",
        keys=keys,
        shows=("times", "ratios"),
        intervals=bool(rows["ratio_low"].notna().any()),
        attrs=frame.attrs,
    )


def _points(group: pd.DataFrame) -> list[LinkPoint]:
    return [
        LinkPoint(
            gbit_s=row["gbit_s"], ratio=row["ratio"], low=row["ratio_low"], high=row["ratio_high"],
            slope=8e-9 * row["kv_bytes"] / row["baseline"],
        )
        for _, row in group.astype({"ratio_low": float, "ratio_high": float}).iterrows()
    ]  # fmt: skip


def _short(metric: str) -> str:
    return metric.removesuffix("_s").upper()


def _spans(
    measured: list[float], ends: tuple[float, float]
) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """The dash of each stretch of a line, and its link rates."""
    found: list[tuple[Any, np.ndarray[Any, Any]]] = [
        (_NOT_MEASURED, np.geomspace(ends[0], measured[0], 60)),
        (_NOT_MEASURED, np.geomspace(measured[-1], ends[1], 60)),
    ]
    if len(measured) > 1:
        found.append(("-", np.geomspace(measured[0], measured[-1], 120)))
    return found


def _times(
    axes: Axes,
    rows: pd.DataFrame,
    measured: list[float],
    ends: tuple[float, float],
) -> None:
    """Median TTFT of split and baseline, measured and not."""
    factor, unit = time_scale(float(rows[["value", "baseline"]].max().max()))
    baseline = factor * rows["baseline"].to_numpy(float)
    # Through the split's own medians, which paired ratios may miss. The baseline of one second
    # makes its excess a time.
    medians = [
        LinkPoint(gbit_s=row["gbit_s"], ratio=1 / row["value"], low=nan, high=nan,
                  slope=8e-9 * row["kv_bytes"])
        for _, row in rows.iterrows()
    ]  # fmt: skip
    for dash, rates in _spans(measured, ends):
        flat = np.interp(np.log(rates), np.log(rows["gbit_s"].to_numpy(float)), baseline)
        axes.plot(rates, flat, color=_BASELINE.colour, linewidth=1.4, linestyle=dash)
        split = [factor * (1 + excess_at(medians, rate)) for rate in rates]
        axes.plot(rates, split, color=_SPLIT.colour, linewidth=1.4, linestyle=dash)
    for name, look in (("baseline", _BASELINE), ("value", _SPLIT)):
        for _, row in rows.iterrows():
            low_high = tuple(factor * float(row[f"{name}_{end}"]) for end in ("low", "high"))
            marks.mark(
                axes, row["gbit_s"], factor * row[name], (low_high[0], low_high[1]), look,
                upright=True,
            )  # fmt: skip
    tops = factor * rows[["value", "value_high", "baseline", "baseline_high"]].astype(float)
    axes.set(ylim=(0, 1.35 * float(np.nanmax(tops.to_numpy()))), ylabel=f"median TTFT, {unit}")


def _speedups(
    axes: Axes,
    of: dict[str, pd.DataFrame],
    points: dict[str, list[LinkPoint]],
    found: dict[str, Crossing],
    measured: list[float],
    ends: tuple[float, float],
) -> None:
    """Baseline / split of each metric, and where it is 1."""
    low, high = 1.0, 1.0
    for nth, (metric, group) in enumerate(of.items()):
        look = _RATIOS[metric]
        for dash, rates in _spans(measured, ends):
            line = [1 / (1 + excess_at(points[metric], rate)) for rate in rates]
            axes.plot(rates, line, color=look.colour, linewidth=1.4, linestyle=dash)
        for _, row in group.iterrows():
            bounds = float(row["ratio_low"]), float(row["ratio_high"])
            x = row["gbit_s"] * 1.03 ** (nth - 0.5)
            marks.mark(axes, x, row["ratio"], bounds, look, upright=True)
            low = np.nanmin([low, row["ratio"], bounds[0]])
            high = np.nanmax([high, row["ratio"], bounds[1]])
        where = found[metric]
        if not ends[0] <= where.gbit_s <= ends[1]:
            continue
        axes.axvline(
            where.gbit_s, color=look.colour, linewidth=1.2,
            linestyle="-" if where.kind == "measured" else _NOT_MEASURED,
        )  # fmt: skip
        if not (isnan(where.low) or isnan(where.high)):
            axes.axvspan(
                max(where.low, ends[0]), min(where.high, ends[1]), color=look.colour, alpha=0.15,
                linewidth=0,
            )  # fmt: skip
        axes.annotate(
            f"{number(where.gbit_s)} Gbit/s", (where.gbit_s, 1.0),
            xycoords=axes.get_xaxis_transform(), xytext=(0, 4 + 15 * nth),
            textcoords="offset points", ha="center", va="bottom", size=11,
        )  # fmt: skip
    axes.axhline(1.0, color=marks.BLACK, linewidth=1.2, zorder=1)
    room = 0.15 * (high - low) + 0.05
    axes.set(
        ylim=(max(0.0, low - room), high + room), ylabel="speed-up of the split (above 1: faster)"
    )


def _finding(arm: str, baseline: str, found: dict[str, Crossing]) -> str:
    """The sentence of the first metric for which the split is faster on some link, else of TTFT."""
    faster = [m for m, c in found.items() if c.kind in ("measured", "extrapolated", "always")]
    metric = next(iter(faster), next(iter(found)))
    return f"{arm} over {baseline}, {_short(metric)}: {crossing_text(found[metric])}"
