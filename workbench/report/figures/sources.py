"""Where every prompt token came from: one bar per arm, cache state and role."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from workbench.report.figures.chart import Chart, draw, no_data
from workbench.report.figures.dots import column_at_right, row_axis
from workbench.report.figures.looks import BLUE, GREEN, VERMILION, Look

__all__ = ["token_sources"]

_PARTS = {
    "computed": ("computed", VERMILION),
    "engine_hit": ("the engine's own prefix cache", GREEN),
    "external_hit": ("loaded through the connector", BLUE),
}
_ROW_PX, _AXIS_PX = 24, 84


def token_sources(sources: pd.DataFrame, *, title: str = "", caption: str = "") -> Chart:
    """Share of the prompt tokens of each role by source, over all rounds, beside their number.

    Takes `result.token_sources`. Servers that do not say have no bar.
    """
    if sources.empty:
        return no_data("Where prompt tokens came from", "no server showed its counters.")
    keys = ["arm", "pass", "role"]
    rows = sources.groupby(keys, sort=False)[["sent", *_PARTS]].sum(min_count=1).reset_index()
    rows = rows.dropna(subset=list(_PARTS))
    if rows.empty:
        return no_data("Where prompt tokens came from", "no server says where they came from.")
    totals = rows[list(_PARTS)].sum(axis=1).to_list()

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (_, row) in enumerate(rows.iterrows()):
            left = 0.0
            for name, (_, colour) in _PARTS.items():
                share = float(row[name]) / max(totals[y], 1.0)
                axes.barh(y, share, left=left, height=0.7, color=colour, linewidth=0)
                left += share
        row_axis(axes, [f"{r['arm']}, {r['pass']}: {r['role']}" for _, r in rows.iterrows()])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("share of the prompt tokens sent to that role")
        column_at_right(axes, "tokens", [(f"{total:,.0f}", False) for total in totals])

    decode = rows[rows["role"] == "decode"]
    found = "Where every prompt token came from"
    if len(decode):
        share = decode["computed"].sum() / max(1.0, decode[list(_PARTS)].sum().sum())
        found = f"Decode instances computed {share:.1%} of their prompt tokens themselves"
    spoken = [
        f"{r['arm']} {r['pass']} {r['role']}: {r['computed']:,.0f} computed,"
        f" {r['engine_hit']:,.0f} engine, {r['external_hit']:,.0f} connector."
        for _, r in rows.iterrows()
    ]
    return draw(
        paint,
        title=title or found,
        body_px=_ROW_PX * len(rows) + _AXIS_PX,
        alt=f"Prompt tokens by source. {' '.join(spoken)}",
        caption=caption or "From the engines' counters, all rounds together.",
        keys={text: Look(colour=colour, marker="s", dash=" ") for text, colour in _PARTS.values()},
        shows=("counts",),
        marks=sources.attrs,
    )
