"""The claim table and the panel of each claim, as HTML that needs no network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any

from workbench.experiment.result.claim_account import (
    SECTIONS,
    ClaimAccount,
    FoundEffect,
    ShownNumber,
)
from workbench.experiment.result.result import Result
from workbench.report.figures.chart import Chart
from workbench.report.figures.claims import claim_curve, claim_intervals
from workbench.report.numbers import UNKNOWN, exactly, number
from workbench.report.templating import fill

MARKS = {
    # kind of verdict: its mark, so that nobody needs to see the colour
    "confirmed": "●",
    "contradicted": "▲",
    "no-evidence": "▽",
    "inconclusive": "◆",
    "not-comparable": "■",
    "not-tested": "○",
}

WORDS = {kind: kind.replace("-", " ") for kind in MARKS} | {"no-evidence": "without evidence"}
"""How kinds of verdicts are counted."""
_LEGEND = {
    "contradicted": "contradicted, impossible or inconsistent",
    "no-evidence": "no evidence (its source measured nothing)",
    "not-comparable": "not comparable (unfair or incomplete comparison)",
}
"""Kinds of verdicts that need more words."""

_OPEN_ROWS = 30
"""Parts of the table are unfolded up to about this many claims."""
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z0-9\"“])")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """HTML that shows itself as the last expression of a cell."""

    html: str
    text: str

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}


def claim_table(result: Result) -> ClaimView:
    """The table of all claims for a notebook; the page can also sort it."""
    return _view("claim_table.html.j2", result)


def claim_panels(result: Result) -> ClaimView:
    """A panel for each claim, for a notebook."""
    return _view("claim_panels.html.j2", result)


def shown_rows(claims: Iterable[ClaimAccount]) -> list[dict[str, Any]]:
    """The claims as the templates show them, in the parts of the table."""
    ordered = sorted(claims, key=lambda claim: list(SECTIONS).index(claim.section))
    rows: list[dict[str, Any]] = []
    drawn_in: dict[str, str] = {}
    for section, group in groupby(ordered, key=lambda claim: claim.section):
        members = list(group)
        said = _counts(members)
        part = {
            "title": SECTIONS[section],
            "count": len(members),
            "said": said if said != f"{len(members)} {SECTIONS[section].lower()}" else "",
            "open": not rows or len(rows) + len(members) <= _OPEN_ROWS,
        }
        for claim in members:
            charts, elsewhere = _charts(claim, drawn_in)
            rows.append(
                {
                    **{field.name: getattr(claim, field.name) for field in fields(claim)},
                    "statement": claim.statement.replace(" %", "\u00a0%"),
                    "part": part,
                    "place": len(rows),
                    "rank": _rank(claim.kind),
                    "mark": MARKS.get(claim.kind, "◆"),
                    "claimed": _claimed(claim.says),
                    "short": _SENTENCE.split(claim.skipped or claim.reason)[0],
                    "numbers": [shown_number(each) for each in claim.number],
                    "elsewhere": elsewhere,
                    "charts": charts,
                }
            )
    return rows


def _claimed(says: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of what is claimed; one alone needs a name only if it is a yes or a 0."""
    pairs = [tuple(each.split(": ", 1)) for each in says]
    needed = len(pairs) > 1 or any(pair[-1].split()[0] in ("0", "yes", "no") for pair in pairs)
    return [(pair[0] if needed else "", pair[-1]) for pair in pairs]


def _rank(kind: str) -> int:
    return list(MARKS).index(kind) if kind in MARKS else len(MARKS)


def _counts(claims: Sequence[ClaimAccount]) -> str:
    """`1 confirmed, 2 not comparable`."""
    count = Counter(claim.kind for claim in claims)
    return ", ".join(f"{count[kind]} {WORDS.get(kind, kind)}" for kind in sorted(count, key=_rank))


def _charts(claim: ClaimAccount, drawn_in: dict[str, str]) -> tuple[list[Chart], list[Any]]:
    """The figures of a panel, and titles of those that another panel has; `drawn_in` grows."""
    drawn = [asdict(effect) for effect in claim.effects if _has_width(effect)]
    # A number that judges nothing is not drawn over the range that would confirm the claim.
    judges = claim.measured and claim.gate == "G4" and claim.code != "hardware"
    charts = [claim_intervals(asdict(claim) | {"effects": drawn})] if drawn and judges else []
    elsewhere = []
    for curve in claim.curves:
        if (known := repr(curve)) in drawn_in:
            elsewhere.append((curve.title, drawn_in[known]))
        elif curve.points:
            charts.append(claim_curve(asdict(curve)))
            drawn_in[known] = claim.id
    return charts, elsewhere


def _has_width(effect: FoundEffect) -> bool:
    """A count that was always the same has nothing to draw."""
    return effect.estimate is not None and not (
        effect.exact and effect.low == effect.high == effect.value
    )


def shown_number(value: ShownNumber) -> dict[str, str]:
    """`0.213x [0.20, 0.22]`, `0 tokens` for a count, `2.00x to 2.35x` for several cases."""
    tail = value.unit if value.unit in ("x", "") else f" {value.unit}"
    between = "x to " if value.unit == "x" else " to "
    low, high, text, interval = value.low, value.high, UNKNOWN, ""
    if value.kind == "recomputed":
        same = number(low) == number(high)
        text = f"{'about ' if same else ''}{_span(low, high, between)}{tail}"
    elif value.estimate is not None and value.unit == "bool":
        text, interval = "yes" if value.estimate else "no", "exact"
    elif value.estimate is not None and value.exact and low == high:
        text, interval = f"{exactly(value.estimate)}{tail}", "exact"
    elif value.estimate is not None:
        text, interval = f"{number(value.estimate)}{tail}", "no interval"
        if low is not None and high is not None:
            interval = f"[{number(low)},\u00a0{number(high)}]"
        if value.cells > 1 and value.least != value.most:
            text = f"{_span(value.least, value.most, between)}{tail}"
            interval = f"in {value.cells} cases, weakest {interval}"
    return {"name": value.name, "value": text, "interval": interval}


def _span(low: float | None, high: float | None, between: str) -> str:
    """A range as shown: one number if both ends round to the same."""
    shown = []
    for end in (low, high):
        # Recomputed numbers are as long as they come, so they have commas from 1,000 on.
        long = end is not None and abs(end) >= 1000
        shown.append(f"{float(f'{end:.3g}'):,.0f}" if long else number(end))
    return between.join(dict.fromkeys(shown))


def legend(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the marks of these rows mean, and what their brackets are."""
    kinds = sorted({row["kind"] for row in rows}, key=_rank)
    said = [f"{MARKS.get(kind, '◆')} {_LEGEND.get(kind, kind.replace('-', ' '))}" for kind in kinds]
    text = f"{'; '.join(said)}."
    if any("(on CPU)" in row["verdict"] for row in rows):
        text += " A verdict “on CPU” is about direction and counts, not effect size."
    if any(" below 1x" in each for row in rows for each in row["says"]):
        text += " “Below 1x” means lower than the baseline, “above 1x” means higher."
    effects = [effect for row in rows for effect in row["effects"]]
    if any(not effect.exact for effect in effects):
        text += " Brackets are 95 % confidence intervals"
        unchanged = any(effect.quantifier == "unchanged" for effect in effects)
        text += f"{'; 90 % for “unchanged”, which is an equivalence test' if unchanged else ''}."
    return text


def _view(template: str, result: Result) -> ClaimView:
    rows = shown_rows(result.run.claims)
    lines = [f"{row['mark']} {row['id']}: {row['verdict']}. {row['reason']}" for row in rows]
    return ClaimView(
        html=fill(template, claims=rows, legend=legend(rows), linked=False), text="\n".join(lines)
    )
