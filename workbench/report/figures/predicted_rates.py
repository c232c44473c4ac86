"""Predicted TTFT and TPOT by arrival rate, with intervals at the chosen rate."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from workbench.report.figures import marks
from workbench.report.figures.chart import Chart, draw, no_data


def predicted_rates(frame: pd.DataFrame, title: str, caption: str = "") -> Chart:
    """Predicted medians up to saturation as lines, and the chosen rate with its intervals.

    Takes the curves of `whatif.rate_curve`. All markers are hollow, because nothing was measured.
    """
    if frame.empty:
        return no_data("Prediction", title)
    rows = marks.records(frame, ("rate_per_s",))
    look = marks.predicted(marks.looks(marks.unique(rows, "topology")))

    def paint(figure: Figure) -> None:
        for axes, name in zip(figure.subplots(1, 2), ("ttft", "tpot"), strict=True):
            for topology, mine in look.items():
                line = [row for row in rows if row["topology"] == topology]
                xs, ys = ([row[key] for row in line] for key in ("rate_per_s", f"{name}_s"))
                axes.plot(xs, [1000 * y for y in ys], color=mine.colour, linewidth=1.4)
                for row in line:
                    if not row["chosen"]:
                        continue
                    low, value, high = (
                        1000 * row[f"{name}{end}_s"] for end in ("_low", "", "_high")
                    )
                    marks.mark(axes, row["rate_per_s"], value, (low, high), mine, upright=True)
            axes.set(xlim=(0, None), ylim=(0, None), xlabel="arrival rate, req/s")
            axes.set_ylabel(f"predicted median {name.upper()}, ms")

    chosen = [row for row in rows if row["chosen"]]
    spoken = "; ".join(
        f"{row['topology']} at {row['rate_per_s']:.3g} req/s: TTFT {1000 * row['ttft_s']:.3g} ms,"
        f" TPOT {1000 * row['tpot_s']:.3g} ms"
        for row in chosen
    )
    return draw(
        paint, title=title, body_px=270, alt=f"{title}. {spoken}.",
        caption=f"Predicted, not measured. Lines end near saturation. {caption}".strip(),
        keys=look, attrs=frame.attrs,
    )  # fmt: skip
