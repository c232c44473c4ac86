"""What a report needs to know of each claim: plain values, so that a page can be made anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from workbench.claims.catalogue import said
from workbench.claims.claim import BUILT_IN, CHECKS, Claim, Effect
from workbench.claims.recipe import Curve, Outcome, Recipe, Setting
from workbench.claims.sums import Sum, own_sums
from workbench.claims.verdict import Measurement, Verdict, judge

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["account", "band"]

_KINDS = {
    # how the verdict is shown: its kind decides colour and shape together
    "confirmed": "confirmed",
    "not_comparable": "not-comparable",
    "not_tested": "not-tested",
}
_CPU_LIMIT = (
    "A CPU with a tiny model shows directions and counts; no size of it is promised anywhere else."
)

_OURS_ALONE = (
    "It holds by construction: our own code makes what is counted here, so that this checks our"
    " arithmetic and is no evidence about any engine."
)


def account(
    claim: Claim,
    verdict: Verdict,
    claims: Mapping[str, Claim],
    *,
    setting: Setting,
    recipe: Recipe | None = None,
    outcome: Outcome | None = None,
    measurement: Measurement | None = None,
    skipped: str = "",
) -> dict[str, Any]:
    """One claim as the report shows it; see docs/claims.md for the fields."""
    sums = own_sums(claim, claims)
    effects = [] if measurement is None else _effects(claim, measurement, verdict)
    source = claim.source
    ours = measurement is not None and bool(effects)
    # A claim of which a part was left out is not tested; what was measured of it is shown.
    open_ = judge(claim).verdict == "not_tested"
    fixed = verdict.tier == "construction"
    measured = ours and open_ and verdict.verdict != "not_tested" and not fixed
    return {
        "id": claim.id,
        "group": source.group,
        "title": _short_source(claim, claims),
        "source": _source(claim),
        "confirmation": f"{source.confirmation}: {source.how}",
        "withdrawn": source.withdrawn,
        "own": source.own,
        "statement": claim.statement,
        "says": [f"{effect.name}: {said(effect)}" for effect in claim.effects],
        "conditions": _conditions(claim),
        "subject": claim.subject,
        "comparator": claim.comparator or "",
        "ours": outcome.says if outcome and ours else "",
        "number": _number(effects, sums),
        "effects": effects,
        "measured": measured,
        "by_construction": fixed,
        "shown_only": ours and not measured and not fixed,
        "recipe": recipe.name if recipe and outcome else "",
        "verdict": verdict.word,
        "kind": _kind(verdict),
        "code": verdict.code,
        "gate": verdict.gate,
        "tier": verdict.tier,
        "reason": verdict.reason,
        "needed": verdict.needed,
        "skipped": skipped if not ours else "",
        "checked": _checked(claim, verdict, outcome if ours else None),
        "sums": [
            {"sentence": each.sentence, "holds": each.holds, "rows": list(each.rows)}
            for each in sums
        ],
        "curves": _curves(claim.id, outcome, recipe) if outcome and recipe and ours else [],
        "doubts": [*verdict.doubts, *((outcome.doubts if outcome and ours else ())[:4])],
        "limits": _limits(claim, verdict, setting, ours=ours, measured=measured),
        "note": claim.note,
        "versions": dict(verdict.versions),
    }


def band(effect: Effect, tolerance: float) -> tuple[float | None, float | None]:
    """From where to where a value would confirm the effect; None is an open end."""
    value = float(effect.value)
    slack = tolerance * abs(value)
    match effect.quantifier:
        case "higher":
            return value, None
        case "lower":
            return None, value
        case "at_least" | "up_to":
            return value - slack, None
        case "at_most":
            return None, value + slack
        case "unchanged":
            width = (effect.margin or 0) * abs(value)
            return value - width, value + width
        case "range":
            high = float(effect.high or value)
            return value - slack, high + tolerance * abs(high)
        case "exact":
            return value, value
    return value - slack, value + slack


def _effects(claim: Claim, measurement: Measurement, verdict: Verdict) -> list[dict[str, Any]]:
    found = []
    for effect in claim.effects:
        cells = measurement.effects.get(effect.name, ())
        part = verdict.parts.get(effect.name)
        low, high = band(effect, measurement.tolerance)
        for cell in cells:
            found.append(
                {
                    "name": effect.name,
                    "cells": len(cells),
                    "cell": cell.cell,
                    "quantifier": effect.quantifier,
                    "unit": "" if effect.unit == "count" else effect.unit,
                    "estimate": _finite(cell.estimate),
                    "low": _finite(cell.low),
                    "high": _finite(cell.high),
                    "runs": cell.runs,
                    "exact": effect.name in measurement.counted or effect.quantifier == "exact",
                    "confidence": 0.9 if effect.quantifier == "unchanged" else 0.95,
                    "claimed": said(effect),
                    "value": float(effect.value),
                    "confirms_from": low,
                    "confirms_to": high,
                    "code": part.code if part else "",
                    "noise_floor": measurement.noise_floor,
                }
            )
    return found


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _number(effects: list[dict[str, Any]], sums: tuple[Sum, ...]) -> list[dict[str, Any]]:
    """Our numbers in short: what was measured, and what the claim's own table corrects."""
    names = list(dict.fromkeys(effect["name"] for effect in effects))
    shown = [_of_cells([each for each in effects if each["name"] == name]) for name in names]
    if len(names) == 1:
        shown[0]["name"] = ""
    worked_out = sorted((s for s in sums if s.low is not None), key=lambda s: s.holds)
    # What does not hold tells more than what does, and stands beside a measurement too.
    for each in worked_out[:1]:
        if not shown or not each.holds:
            shown.append(
                {"name": "from its own table", "estimate": None, "low": each.low,
                 "high": each.high, "unit": each.unit, "exact": False, "kind": "recomputed",
                 "cells": 1}
            )  # fmt: skip
    return shown


def _of_cells(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """One number for all cells of an effect: the one that decides, and from where to where."""
    known = [cell for cell in cells if cell["estimate"] is not None]
    up = cells[0]["quantifier"] in ("higher", "at_least")
    weakest = cells[0]
    if known:
        # The one that the verdict names: its interval comes nearest to what is claimed.
        nearest = "low" if up else "high"

        def reach(cell: dict[str, Any]) -> float:
            return float(cell["estimate"] if cell[nearest] is None else cell[nearest])

        weakest = (min if up else max)(known, key=reach)
    keys = ("name", "estimate", "low", "high", "unit", "exact")
    spread = [float(cell["estimate"]) for cell in known]
    return {key: weakest[key] for key in keys} | {
        "kind": "measured",
        "cells": len(cells),
        "least": min(spread, default=None),
        "most": max(spread, default=None),
    }


def _short_source(claim: Claim, claims: Mapping[str, Claim]) -> str:
    """For the table: the group's title, or the claim's own reference where the group has many."""
    source = claim.source
    refs = {other.source.ref for other in claims.values() if other.source.group == source.group}
    return source.ref if len(refs) > 1 else source.title


def _source(claim: Claim) -> str:
    location = claim.source.location
    own = "" if location in ("no page noted", "not stated") else f"; {location}"
    ref = claim.source.ref
    group_wide = ref == claim.source.title or ref.startswith("each claim")
    return f"{claim.source.title}{own}" if group_wide else f"{ref}{own}"


def _conditions(claim: Claim) -> str:
    """Model, hardware and workload as the source states them."""
    model = "any model" if claim.model == "any" else claim.model or "model not stated"
    hardware = "any hardware" if claim.hardware == "any" else claim.hardware
    parts = [model, hardware or "hardware not stated"]
    stated = {k: v for k, v in claim.workload.items() if str(v) != "not stated"}
    parts += [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in stated.items()]
    against = f"against {claim.comparator}" if claim.comparator else "an absolute value"
    return "; ".join([*parts, against])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " to ".join(map(str, value)) if len(value) == 2 else ", ".join(map(str, value))
    return str(value)


def _kind(verdict: Verdict) -> str:
    if verdict.verdict == "not_confirmed":
        named = {"inconclusive": "inconclusive", "too_few_runs": "inconclusive",
                 "no_evidence": "no-evidence"}  # fmt: skip
        return named.get(verdict.code, "contradicted")
    return _KINDS[verdict.verdict]


def _checked(claim: Claim, verdict: Verdict, outcome: Outcome | None) -> list[dict[str, str]]:
    """The fairness checks of the source's reading and of our own run, with their state."""
    settled = outcome.checks if outcome else {}
    rows = [
        {"state": check.state, "check": CHECKS[name], "by": "its source", "why": check.why}
        for name, check in claim.checks.items()
        if not (check.state == "unknown" and settled.get(name, "unknown") != "unknown")
    ]
    if outcome is not None:
        rows += [
            {"state": state, "check": CHECKS.get(name, name), "by": "our run", "why": ""}
            for name, state in outcome.checks.items()
        ]
    if claim.bounds:
        broken = verdict.code == "impossible"
        rows.append(
            {
                "state": "fail" if broken else "pass",
                "check": CHECKS["below_physical_ceiling"],
                "by": "physics",
                "why": verdict.reason if broken else "",
            }
        )
    order = {"fail": 0, "unknown": 1, "pass": 2, BUILT_IN: 3}
    return sorted(rows, key=lambda row: order[row["state"]])


def _limits(
    claim: Claim, verdict: Verdict, setting: Setting, *, ours: bool, measured: bool
) -> list[str]:
    limits = []
    if measured and setting.platform == "cpu" and verdict.code == "hardware":
        limits.append(f"{_CPU_LIMIT} Our number is shown beside the claim and judges nothing.")
    elif measured and setting.platform == "cpu":
        limits.append(_CPU_LIMIT)
    if verdict.tier == "construction":
        limits.append(_OURS_ALONE)
    if not measured and verdict.gate in ("G0", "G1", "G2"):
        shown = "our number stands beside it and judges nothing" if ours else "nothing was measured"
        limits.append(f"The verdict is on this claim as its source supports it; {shown}.")
    if claim.source.confirmation == "memory":
        limits.append("The claim was written down from memory and not looked up again.")
    if verdict.needed:
        limits.append(f"To test it fully: {verdict.needed}")
    return limits


def _curves(claim: str, outcome: Outcome, recipe: Recipe) -> list[dict[str, Any]]:
    """The curves that stand in this claim's panel."""
    first = next((name for name in recipe.claims if name in outcome.measurements), "")
    return [_curve(each) for each in outcome.curves if claim in (each.claims or (first,))]


def _curve(curve: Curve) -> dict[str, Any]:
    points: pd.DataFrame = curve.points
    rows = points.astype(object).where(points.notna(), None)
    return {
        "title": curve.title, "x": curve.x, "y": curve.y, "points": rows.to_dict("records"),
    }  # fmt: skip
