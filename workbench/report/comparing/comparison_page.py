"""The page of a comparison: which settings differ, ratios with intervals, distributions."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from workbench.experiment.between.differences import Difference
from workbench.experiment.between.unpaired import NAMES
from workbench.report.comparing.comparison import SideBySide
from workbench.report.comparing.run_pair import RunPair, ratio_text, verdict_text
from workbench.report.figures import Chart
from workbench.report.templating import fill, labelled

_TONES = {"faster": "PASS", "slower": "FAIL"}
"""The class of a verdict that an interval supports."""


def comparison_page(found: SideBySide, command: str) -> str:
    """One HTML file that opens without a network; `command` repeats the comparison."""
    settings, *others = found.sentences
    return fill(
        "compare.html.j2",
        heading=settings.removesuffix("."),
        labels=found.labels,
        simulated=bool(found.requests.attrs.get("simulated")),
        sentences=others,
        pairs=[
            {
                "label": pair.label,
                "baseline": pair.baseline,
                "settings": pair.settings,
                "figure": _drawn(figure),
                "rows": _rows(pair),
                "differences": [_setting(each) for each in pair.differences],
            }
            for pair, figure in zip_longest(found.runs, found.ratio_figures)
        ],
        figure=_drawn(found.figure),
        percentiles=found.table.to_dict("split"),
        command=command,
    )


def _drawn(chart: Chart) -> dict[str, str]:
    return {"svg": labelled(chart.svg, chart.alt), "caption": chart.caption}


def _rows(pair: RunPair) -> list[dict[str, Any]]:
    """The rows of the table; one that a failed gate takes away is struck out."""
    return [
        {
            "metric": NAMES[row.metric],
            "arm": ", ".join(row.kind),
            "against": "" if row.kind == row.baseline else ", ".join(row.baseline),
            "unit": "tok/s" if row.metric == "system_tps" else "s",
            "both": (row.theirs, row.ours),
            "ratio": ratio_text(row.ratio),
            "struck": row.spoilt.struck,
            "verdict": verdict_text(row),
            "tone": "" if row.spoilt.effect else _TONES.get(row.ratio.verdict, ""),
        }
        for row in pair.rows
    ]


def _setting(each: Difference) -> dict[str, str]:
    follows = "" if each.counted else " (follows from the others)"
    return {"name": each.name, "kind": f"{each.group}{follows}", "one": each.one,
            "other": each.other}  # fmt: skip
