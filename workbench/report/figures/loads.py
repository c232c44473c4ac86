"""The figure of a load sweep: TTFT and throughput by arrival rate or number of users."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from workbench.experiment.load_unit import RATE, USERS
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, for_each_model
from workbench.report.numbers import number, quantity, time_scale

_KEPT_UP = 0.95
"""A deployment keeps up if it completes this fraction of the offered rate."""
_TTFT = ["ttft_s", "ttft_low_s", "ttft_high_s"]
_ENDED = ["achieved_per_s", "goodput_per_s"]


@for_each_model
def loads(frame: pd.DataFrame) -> Chart | None:
    """TTFT, throughput and goodput by offered rate, or by users; None without a sweep.

    Takes `result.loads`. Goodput (open markers) counts the requests within the limits; it is
    drawn only where there are limits (`attrs["limited"]`) and some request missed them.
    """
    if frame.empty:
        return None
    limited = bool(frame.attrs.get("limited", True))
    # a column without a single value holds None
    rows = frame.astype(dict.fromkeys([*_TTFT, *_ENDED, "offered_per_s", "users"], float))
    met = limited and bool(rows["goodput_per_s"].ge(rows["achieved_per_s"]).all())
    open_marks = limited and not met
    closed = bool(rows["users"].notna().any())
    x = "users" if closed else "offered_per_s"
    look = marks.looks([str(arm) for arm in frame["arm"].unique()])
    factor, unit = time_scale(rows[_TTFT].max().max())

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for arm, group in rows.sort_values(x).groupby("arm"):
            mine = look[str(arm)]
            timed = group[group["ttft_s"].notna()]
            times = timed[_TTFT] * factor
            left.plot(timed[x], times["ttft_s"], color=mine.colour, linewidth=1.2)
            for at, (ttft, low, high) in zip(timed[x], times.to_numpy(), strict=True):
                marks.mark(left, at, ttft, (low, high), mine, upright=True)
            for column in _ENDED if open_marks else _ENDED[:1]:
                ended, filled = group[group[column].gt(0)], column == "achieved_per_s"
                right.plot(
                    ended[x], ended[column], color=mine.colour, marker=mine.marker,
                    markersize=8, linewidth=1.2, markeredgewidth=1.6, zorder=3 if filled else 2,
                    markerfacecolor=mine.colour if filled else "white",
                    linestyle="-" if filled else (0, (4, 2)),
                )  # fmt: skip
        marks.log_axis(left, rows[_TTFT].to_numpy().ravel() * factor, axis="y", most=7)
        left.set_ylabel(f"median TTFT, {unit} (log scale)")
        beside = _ENDED if closed else [*_ENDED, x]
        marks.log_axis(right, rows[beside].to_numpy().ravel(), axis="y", most=7)
        right.set_ylabel("completed requests per second (log scale)")
        for axes in (left, right):
            measured = sorted(rows["users"].dropna().unique())
            marks.log_axis(axes, rows[x], most=6, ticks=measured if len(measured) < 8 else ())
            what = "users" if closed else "offered rate, req/s"
            axes.set_xlabel(f"{what} (log scale)")
        if not closed:
            ends = right.get_xlim()
            right.plot(ends, ends, color=marks.GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)

    found = _found(rows, closed)
    spoken = "; ".join(
        f"{row['arm']} at {_said(row)}: TTFT {quantity(row['ttft_s'], 's')},"
        f" {number(row['achieved_per_s'])} req/s completed"
        + (f", {100 * row['share']:.0f} % within the limits" if limited else "")
        for _, row in rows.iterrows()
    )
    return draw(
        paint,
        title=found,
        body_px=330,
        alt=f"{found}. {spoken}.",
        caption="Left: median TTFT with 95 % CI. Right: completed requests per second (filled)"
        + "," * (open_marks or not closed)
        + " and" * (closed and open_marks)
        + " goodput, which counts only requests within the limits (open)" * open_marks
        + ("." if closed else "," * open_marks + " and the offered rate (dotted).")
        + " All requests are within the limits, so goodput is the same." * met
        + " Each user has one request in flight." * closed,
        keys=look,
        shows=("times",),
        attrs=frame.attrs,
    )


def _found(rows: pd.DataFrame, closed: bool) -> str:
    """The highest throughput, or that every offered rate was matched."""
    if rows["achieved_per_s"].isna().all():
        return f"TTFT and throughput by {'users' if closed else 'offered rate'}"
    best = rows.nlargest(1, "achieved_per_s").iloc[0]
    peak = f"{best['achieved_per_s']:.3g} req/s"
    if closed:
        return f"Highest throughput: {peak} ({best['arm']}, {USERS.said(best['users'])})"
    fastest = rows.loc[rows.groupby("arm")["offered_per_s"].idxmax()]
    if (fastest["achieved_per_s"] >= _KEPT_UP * fastest["offered_per_s"]).all():
        highest = f"{rows['offered_per_s'].max():.3g}"
        return f"Throughput matches every offered rate up to {highest} req/s"
    return f"Throughput peaks at {peak} ({best['arm']})"


def _said(row: pd.Series[float]) -> str:
    """`2.5 req/s`, `8 users`"""
    if pd.notna(row["users"]):
        return USERS.said(row["users"])
    return f"{row['offered_per_s']:.3g} {RATE.name}"
