"""The figure of the TTFT waterfall: one bar per request, its parts in time order."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.metrics.statistics import needed_n
from workbench.metrics.waterfall.waterfall import PARTS, doubts, representatives
from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, for_each_model, no_data
from workbench.report.numbers import quantity, time_scale

AREAS = {
    "proxy_s": marks.Area(colour=marks.BLACK),
    "prefill_server_s": marks.Area(colour="#F3C59B"),
    "prefill_queue_s": marks.Area(colour="#E69F00"),
    "prefill_compute_s": marks.Area(colour=marks.VERMILION),
    "handoff_s": marks.Area(colour=marks.PURPLE),
    "decode_server_s": marks.Area(colour="#A9D6F2"),
    "transfer_queue_s": marks.Area(colour=marks.BLUE),
    "decode_step_s": marks.Area(colour=marks.GREEN),
    "stream_s": marks.Area(colour="#9ADBC5"),
    "residual_s": marks.Area(colour="white", edge=marks.GREY, hatch="////"),
}
"""Warm colours on the prefill side and cold ones on the decode side; pale is the API server."""
NAMES = PARTS | {"residual_s": "untimed residual"}


@for_each_model
def ttft_waterfall(waterfall: pd.DataFrame) -> Chart:
    """The median request of each arm and cache state as a stacked bar, and the p99 or slowest one.

    Takes `metrics.waterfall.waterfall`. A panel per cache state, each with its own linear axis. A
    request with an unknown part has no bar; the caption says how many, and why.
    """
    rows = representatives(waterfall)
    why = " ".join(doubts(waterfall))
    if rows.empty:
        return no_data("TTFT in parts", why or "no request was measured.")
    panels = [(str(name), group) for name, group in rows.groupby("pass", sort=False)]

    def paint(figure: Figure) -> None:
        heights = [len(group) + 1 for _, group in panels]
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, (name, group) in zip(grid[:, 0], panels, strict=True):
            _panel(axes, name, group)

    tails = list(rows["which"].unique())[1:]
    sample = " and ".join(
        ["the request with the median TTFT", *(f"the {t} request" for t in tails)]
    )
    if "slowest" in tails:
        sample += f" (a p99 needs {needed_n(0.99)} requests)"
    if (withheld := waterfall.attrs.get("no_p99")) and not tails:
        sample += f". No slow request is shown: {withheld.partition(':')[0]}"
    if "at_once" in rows and (beside := rows.loc[rows["at_once"], "arm"].unique()).size:
        sample += (
            f". {', '.join(beside)}: prefill and decode got the request at once and decode waited,"
            f" so {PARTS['transfer_queue_s']} includes both API servers"
        )
    shown = [part for part in PARTS if (rows[part] > 0).any()]
    return draw(
        paint,
        title=_finding(rows),
        body_px=sum(24 * len(group) + 74 for _, group in panels),
        alt=f"TTFT split into its parts. {_spoken(rows)}",
        caption=f"Shown: {sample}. On the right: TTFT, and in brackets its untimed residual"
        " (hatched), mostly the hop from client to proxy."
        f" {why}".rstrip(),
        keys={NAMES[part]: AREAS[part] for part in (*shown, "residual_s")},
        shows=("times",),
        attrs=waterfall.attrs,
    )


def _panel(axes: Axes, name: str, rows: pd.DataFrame) -> None:
    factor, unit = time_scale(rows["ttft_s"].max())
    labels = (rows["arm"] + ", " + rows["which"]).to_list()
    texts = [
        f"{quantity(ttft_s, 's')} ({quantity(residual_s, 's')})"
        for ttft_s, residual_s in zip(rows["ttft_s"], rows["residual_s"], strict=True)
    ]
    parts = rows[list(AREAS)] * factor
    marks.stacked_rows(
        axes, parts, AREAS, labels=labels, texts=texts, heading="TTFT (untimed part)"
    )
    axes.set(xlim=(0, 1.02 * factor * rows["ttft_s"].max()), title=name)
    axes.set_xlabel(f"time since the client sent the request, {unit}")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))


def _finding(rows: pd.DataFrame) -> str:
    """The largest part of the first arm's median request in its first cache state."""
    first = rows[rows["which"] == "median"].iloc[0]
    part = max(PARTS, key=lambda name: float(first[name]))
    took = f"{100 * first[part] / first['ttft_s']:.0f} %"
    arm = f" ({first['arm']})" if rows["arm"].nunique() > 1 else ""
    state = str(first["pass"])
    whole = f"TTFT, {state}" if " " in state else f"{state} TTFT"
    return f"{PARTS[part][:1].upper()}{PARTS[part][1:]} takes {took} of {whole}{arm}"


def _spoken(rows: pd.DataFrame) -> str:
    """The median requests, part by part."""
    said = []
    for _, row in rows[rows["which"] == "median"].iterrows():
        shown = [part for part in NAMES if row[part] > 0 or part == "residual_s"]
        bits = [f"{NAMES[part]} {quantity(row[part], 's')}" for part in shown]
        said.append(f"{row['arm']} {row['pass']}: {', '.join(bits)}.")
    return " ".join(said)
