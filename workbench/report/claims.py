"""The claim table and the panel of each claim, from the rows of a result; HTML that needs no net.

The rows are plain values (docs/claims.md): this room knows nothing of how they were judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.experiment.result.result import Result
from workbench.report.figures.claims import claim_curve, claim_intervals
from workbench.report.numbers import exactly, number
from workbench.report.templating import fill

__all__ = ["MARKS", "ClaimView", "claim_panels", "claim_table", "shown_number", "shown_rows"]

MARKS = {
    # kind of verdict: its shape; the colour is the page's
    "confirmed": "●",
    "contradicted": "▲",
    "no-evidence": "▽",
    "inconclusive": "◆",
    "not-comparable": "■",
    "not-tested": "○",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """HTML that shows itself as the last expression of a cell."""

    html: str
    text: str

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}


def claim_table(result: Result) -> ClaimView:
    """The table of all claims, for a notebook; the page has its own, sortable one."""
    return _view("claim_table.html.j2", result)


def claim_panels(result: Result) -> ClaimView:
    """A panel for each claim, for a notebook."""
    return _view("claim_panels.html.j2", result)


def shown_rows(claims: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The claims with what the templates show of them: mark, numbers in words, drawings."""
    rows: list[dict[str, Any]] = []
    drawn_in: dict[str, str] = {}
    for place, claim in enumerate(claims):
        drawn = [effect for effect in claim.get("effects", []) if _has_width(effect)]
        # A number that judges nothing is not drawn over a band that would confirm the claim.
        if not claim["measured"] or claim["gate"] != "G4" or claim["code"] == "hardware":
            drawn = []
        charts = [claim_intervals({**claim, "effects": drawn})] if drawn else []
        curves = [curve for curve in claim.get("curves", []) if curve["points"]]
        charts += [claim_curve(curve) for curve in curves if repr(curve) not in drawn_in]
        elsewhere = [
            (curve["title"], drawn_in[repr(curve)]) for curve in curves if repr(curve) in drawn_in
        ]
        drawn_in |= {repr(curve): claim["id"] for curve in curves if repr(curve) not in drawn_in}
        rows.append(
            {
                **claim,
                "place": place,
                "rank": list(MARKS).index(claim["kind"]) if claim["kind"] in MARKS else len(MARKS),
                "mark": MARKS.get(claim["kind"], "◆"),
                "numbers": [shown_number(each) for each in claim.get("number", [])],
                "elsewhere": elsewhere,
                "charts": [
                    {"svg": chart.svg, "alt": chart.alt, "caption": chart.caption}
                    for chart in charts
                ],
            }
        )
    return rows


def _has_width(effect: Mapping[str, Any]) -> bool:
    """A count that came out the same every time has nothing to draw."""
    return effect["estimate"] is not None and not (
        effect["exact"] and effect["low"] == effect["high"] == effect["value"]
    )


def shown_number(value: Mapping[str, Any]) -> dict[str, str]:
    """`0.213x [0.20, 0.22]`, a count alone, `2.00 to 2.35x` where it was recomputed."""
    unit = value["unit"]
    tail = unit if unit == "x" else f" {unit}" if unit else ""
    name = value["name"]
    if value["kind"] == "recomputed":
        low, high = (number(value[end]) for end in ("low", "high"))
        span = low if low == high else f"{low} to {high}"
        return {"name": name, "value": f"{span}{tail}", "interval": ""}
    if value["estimate"] is None:
        return {"name": name, "value": "not known", "interval": ""}
    low, high = value["low"], value["high"]
    if unit == "bool":
        return {"name": name, "value": "yes" if value["estimate"] else "no", "interval": "exact"}
    if value["exact"] and low == high:
        return {"name": name, "value": f"{exactly(value['estimate'])}{tail}", "interval": "exact"}
    interval = (
        "no interval" if low is None or high is None else f"[{number(low)},\u00a0{number(high)}]"
    )
    if value.get("cells", 1) > 1 and value["least"] != value["most"]:
        span = f"{number(value['least'])} to {number(value['most'])}{tail}"
        return {"name": name, "value": span,
                "interval": f"in {value['cells']} cells, the weakest {interval}"}  # fmt: skip
    return {"name": name, "value": f"{number(value['estimate'])}{tail}", "interval": interval}


def _view(template: str, result: Result) -> ClaimView:
    rows = shown_rows(result.run.claims)
    lines = [f"{row['mark']} {row['id']}: {row['verdict']}. {row['reason']}" for row in rows]
    return ClaimView(html=fill(template, claims=rows, linked=False), text="\n".join(lines))
