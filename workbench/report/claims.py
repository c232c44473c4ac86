"""The claim table and the panel of each claim, from their accounts; HTML that needs no net."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from workbench.experiment.result.claim_account import ClaimAccount, FoundEffect, ShownNumber
from workbench.experiment.result.result import Result
from workbench.report.figures.claims import claim_curve, claim_intervals
from workbench.report.numbers import UNKNOWN, exactly, number
from workbench.report.templating import fill

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


def shown_rows(claims: Iterable[ClaimAccount]) -> list[dict[str, Any]]:
    """The claims with what the templates show of them: mark, numbers in words, drawings."""
    rows: list[dict[str, Any]] = []
    drawn_in: dict[str, str] = {}
    for place, claim in enumerate(claims):
        drawn = [asdict(effect) for effect in claim.effects if _has_width(effect)]
        # A number that judges nothing is not drawn over a band that would confirm the claim.
        judges = claim.measured and claim.gate == "G4" and claim.code != "hardware"
        charts = [claim_intervals(asdict(claim) | {"effects": drawn})] if drawn and judges else []
        elsewhere = []
        for curve in claim.curves:
            if (known := repr(curve)) in drawn_in:
                elsewhere.append((curve.title, drawn_in[known]))
            elif curve.points:
                charts.append(claim_curve(asdict(curve)))
                drawn_in[known] = claim.id
        rows.append(
            {
                **{field.name: getattr(claim, field.name) for field in fields(claim)},
                "place": place,
                "rank": list(MARKS).index(claim.kind) if claim.kind in MARKS else len(MARKS),
                "mark": MARKS.get(claim.kind, "◆"),
                "numbers": [shown_number(each) for each in claim.number],
                "elsewhere": elsewhere,
                "charts": charts,
            }
        )
    return rows


def _has_width(effect: FoundEffect) -> bool:
    """A count that came out the same every time has nothing to draw."""
    return effect.estimate is not None and not (
        effect.exact and effect.low == effect.high == effect.value
    )


def shown_number(value: ShownNumber) -> dict[str, str]:
    """`0.213x [0.20, 0.22]`, a count alone, `2.00 to 2.35x` where it was recomputed."""
    tail = value.unit if value.unit in ("x", "") else f" {value.unit}"
    low, high, text, interval = value.low, value.high, UNKNOWN, ""
    if value.kind == "recomputed":
        text = f"{_span(low, high)}{tail}"
    elif value.estimate is not None and value.unit == "bool":
        text, interval = "yes" if value.estimate else "no", "exact"
    elif value.estimate is not None and value.exact and low == high:
        text, interval = f"{exactly(value.estimate)}{tail}", "exact"
    elif value.estimate is not None:
        text, interval = f"{number(value.estimate)}{tail}", "no interval"
        if low is not None and high is not None:
            interval = f"[{number(low)},\u00a0{number(high)}]"
        if value.cells > 1 and value.least != value.most:
            text = f"{_span(value.least, value.most)}{tail}"
            interval = f"in {value.cells} cells, the weakest {interval}"
    return {"name": value.name, "value": text, "interval": interval}


def _span(low: float | None, high: float | None) -> str:
    """From where to where, as shown: one number where both round to the same."""
    return " to ".join(dict.fromkeys((number(low), number(high))))


def _view(template: str, result: Result) -> ClaimView:
    rows = shown_rows(result.run.claims)
    lines = [f"{row['mark']} {row['id']}: {row['verdict']}. {row['reason']}" for row in rows]
    return ClaimView(html=fill(template, claims=rows, linked=False), text="\n".join(lines))
