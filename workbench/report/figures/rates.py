"""The figure of a sweep over arrival rates: TTFT and throughput at each."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, for_each_model
from workbench.report.numbers import number, quantity, time_scale

_KEPT_UP = 0.95
"""A deployment keeps up where it completes this fraction of the offered rate."""
_TTFT = ["ttft_s", "ttft_low_s", "ttft_high_s"]
_ENDED = ["achieved_per_s", "goodput_per_s"]


@for_each_model
def rates(frame: pd.DataFrame) -> Chart | None:
    """TTFT, throughput and goodput by offered rate; None without rates.

    Takes `result.rates`. Goodput (open markers) counts the requests within the limits; it is
    drawn only where there are limits (`attrs["limited"]`).
    """
    if frame.empty:
        return None
    limited = bool(frame.attrs.get("limited", True))
    # a column without a single value holds None
    rows = frame.astype(dict.fromkeys([*_TTFT, *_ENDED, "offered_per_s"], float))
    look = marks.looks([str(arm) for arm in frame["arm"].unique()])
    factor, unit = time_scale(rows[_TTFT].max().max())

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for arm, group in rows.sort_values("offered_per_s").groupby("arm"):
            mine = look[str(arm)]
            timed = group[group["ttft_s"].notna()]
            times = timed[_TTFT] * factor
            left.plot(timed["offered_per_s"], times["ttft_s"], color=mine.colour, linewidth=1.2)
            for x, (ttft, low, high) in zip(timed["offered_per_s"], times.to_numpy(), strict=True):
                marks.mark(left, x, ttft, (low, high), mine, upright=True)
            for column in _ENDED if limited else _ENDED[:1]:
                ended, filled = group[group[column].gt(0)], column == "achieved_per_s"
                right.plot(
                    ended["offered_per_s"], ended[column], color=mine.colour, marker=mine.marker,
                    markersize=8, linewidth=1.2, markeredgewidth=1.6, zorder=3 if filled else 2,
                    markerfacecolor=mine.colour if filled else "white",
                    linestyle="-" if filled else (0, (4, 2)),
                )  # fmt: skip
        marks.log_axis(left, rows[_TTFT].to_numpy().ravel() * factor, axis="y", most=7)
        left.set_ylabel(f"median TTFT, {unit} (log scale)")
        marks.log_axis(right, rows[[*_ENDED, "offered_per_s"]].to_numpy().ravel(), axis="y", most=7)
        right.set_ylabel("completed requests per second (log scale)")
        for axes in (left, right):
            marks.log_axis(axes, rows["offered_per_s"], most=6)
            axes.set_xlabel("offered rate, req/s (log scale)")
        ends = right.get_xlim()
        right.plot(ends, ends, color=marks.GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)

    found = "TTFT and throughput by offered rate"
    if rows["achieved_per_s"].notna().any():
        best = rows.nlargest(1, "achieved_per_s").iloc[0]
        found = f"Throughput peaks at {best['achieved_per_s']:.3g} req/s ({best['arm']})"
        fastest = rows.loc[rows.groupby("arm")["offered_per_s"].idxmax()]
        if (fastest["achieved_per_s"] >= _KEPT_UP * fastest["offered_per_s"]).all():
            highest = f"{rows['offered_per_s'].max():.3g}"
            found = f"Throughput matches every offered rate up to {highest} req/s"
    spoken = "; ".join(
        f"{row['arm']} at {row['offered_per_s']:.3g} req/s: TTFT {quantity(row['ttft_s'], 's')},"
        f" {number(row['achieved_per_s'])} req/s completed"
        + (f", {100 * row['share']:.0f} % within the limits" if limited else "")
        for _, row in rows.iterrows()
    )
    return draw(
        paint,
        title=found,
        body_px=330,
        alt=f"{found}. {spoken}.",
        caption="Left: median TTFT with 95 % CI. Right: completed requests per second (filled),"
        + " goodput, which counts only requests within the limits (open)," * limited
        + " and the offered rate (dotted).",
        keys=look,
        shows=("times",),
        attrs=frame.attrs,
    )
