"""The fits of a profile: measured against fitted times, and the residuals in percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.experiment.result.predicted import range_text
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw
from workbench.report.numbers import time_scale

_LINE_PX = 15
_MOST = 2.0
"""The residual axis ends at this multiple of the limit. Larger residuals are drawn at its end."""


def residuals(frame: pd.DataFrame) -> Chart | None:
    """Measured against fitted times, and residuals (measured / fitted - 1); None without a profile.

    Takes `result.fits`. Each part (prefill, decode step, transfer) has its own column of panels.
    """
    if frame.empty:
        return None
    rows: list[marks.Row] = frame.to_dict("records")  # type: ignore[assignment]

    def paint(figure: Figure) -> None:
        panels = figure.subplots(2, len(rows), squeeze=False, sharex="col", height_ratios=[3, 2])
        for above, below, row in zip(*panels, rows, strict=True):
            _part(above, below, row)
        panels[1][0].set_ylabel("residual, %")

    off = ", ".join(f"{row['part']} {100 * row['residual']:.1f} %" for row in rows)
    found = f"Median residual of the profile's fits: {off}"
    spoken = "; ".join(f"{row['part']} for {range_text(row['ranges'])}" for row in rows)
    beyond = sum(_beyond(row) for row in rows)
    return draw(
        paint,
        title=found,
        body_px=400,
        alt=f"{found}. The fits are valid for: {spoken}.",
        caption="Top: measured against fitted times (line: equal). Bottom: residual, measured /"
        " fitted - 1. Grey: limit for the median residual; above it, no profile is made."
        + f" Triangles: {beyond} residual{'s' * (beyond > 1)} beyond the axis." * bool(beyond)
        + f" {frame.attrs.get('profile', '')}",
        attrs=frame.attrs,
        shows=("times",),
    )


def _part(above: Axes, below: Axes, row: marks.Row) -> None:
    factor, unit = time_scale(max(row["fitted_s"]))
    fitted, measured = ([factor * s for s in row[name]] for name in ("fitted_s", "measured_s"))
    style: dict[str, Any] = {"marker": "o", "markersize": 4, "linestyle": " ", "alpha": 0.6,
                             "color": marks.BLUE, "markeredgewidth": 0}  # fmt: skip
    above.plot(fitted, measured, **style)
    above.set_ylabel(f"measured, {unit}")
    equal = [min(fitted), max(fitted)]
    above.plot(equal, equal, color=marks.BLACK, linewidth=1.2, zorder=1)
    above.set_title(row["part"], pad=_LINE_PX * 2 + 12)
    for line, (name, ends) in enumerate(reversed(row["ranges"].items())):
        above.annotate(
            range_text({name: ends}), (0, 1), xytext=(0, 6 + _LINE_PX * line), size=12,
            xycoords="axes fraction", textcoords="offset points", color=marks.GREY,
        )  # fmt: skip
    above.set_ylim(0, None)
    above.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    limit = 100 * row["limit"]
    most = _MOST * limit
    off = _residuals(row)
    below.axhspan(-limit, limit, color=marks.SHADE, alpha=0.5, linewidth=0)
    below.axhline(0, color=marks.BLACK, linewidth=1.2, zorder=1)
    inside = [(x, y) for x, y in zip(fitted, off, strict=True) if abs(y) <= most]
    below.plot(*zip(*inside, strict=True), **style)
    for x, y in zip(fitted, off, strict=True):
        if abs(y) > most:
            shape, at = ("^", most) if y > 0 else ("v", -most)
            below.plot(x, 0.94 * at, marker=shape, color=marks.VERMILION, markersize=6)
    below.set_ylim(-most, most)
    below.set_yticks([-most, -limit, 0, limit, most])
    below.yaxis.set_major_formatter(lambda tick, _: f"{tick:+.0f}" if tick else "0")
    below.set_xlabel(f"fitted, {unit}")
    below.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def _residuals(row: marks.Row) -> list[float]:
    pairs: Sequence[tuple[float, float]] = list(
        zip(row["measured_s"], row["fitted_s"], strict=True)
    )
    return [100 * (measured / fitted - 1) for measured, fitted in pairs]


def _beyond(row: marks.Row) -> int:
    most = 100 * _MOST * row["limit"]
    return sum(abs(off) > most for off in _residuals(row))
