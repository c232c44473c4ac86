"""From a claim, its verdict and its measurement to what the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from workbench.claims.recipes.recipe import Outcome, Point, Recipe, Setting
from workbench.claims.registry.claim import BUILT_IN, CHECKS, Claim, failed_check
from workbench.claims.registry.sums import Sum
from workbench.claims.verdict.decision import band
from workbench.claims.verdict.verdict import Measurement, Verdict, judge
from workbench.experiment.result.claim_account import (
    ClaimAccount,
    FoundEffect,
    ShownCheck,
    ShownCurve,
    ShownNumber,
    ShownSum,
)

_CPU_LIMIT = "Measured with a tiny model on a CPU. Only directions and counts hold elsewhere."
_OURS_ALONE = (
    "Our own code produces what is counted here. This checks our arithmetic, not an engine."
)
_CONFIRMED = {"primary": "primary source", "secondary": "secondary source", "memory": "memory"}
_MOST_DOUBTS = 4
"""Doubts of a measurement that are repeated at each of its claims."""


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
) -> ClaimAccount:
    """One claim as the page shows it; `claims` are those of the registry."""
    sums = claim.sums(claims)
    effects = () if measurement is None else _effects(claim, measurement, verdict)
    source = claim.source
    ours = outcome if effects else None
    # A claim with an unmeasured part is not tested; its measured parts are shown.
    by_reading = judge(claim).verdict != "not_tested"
    fixed = verdict.tier == "construction"
    measured = bool(effects) and not (by_reading or fixed or verdict.verdict == "not_tested")
    return ClaimAccount(
        id=claim.id,
        group=source.group,
        title=_short_source(claim, claims),
        source=source.cited,
        confirmation=f"{_CONFIRMED[source.confirmation]} ({source.how})",
        withdrawn=source.withdrawn,
        own=source.own,
        statement=claim.statement,
        says=tuple(f"{effect.name}: {effect}" for effect in claim.effects),
        conditions=_conditions(claim),
        subject=claim.subject,
        comparator=claim.comparator or "",
        ours=ours.says if ours else "",
        number=_numbers(effects, sums),
        effects=effects,
        measured=measured,
        by_construction=fixed,
        shown_only=bool(effects) and not measured and not fixed,
        recipe=recipe.name if recipe and outcome else "",
        verdict=verdict.word,
        kind=verdict.kind,
        code=verdict.code,
        gate=verdict.gate,
        tier=verdict.tier,
        reason=verdict.reason,
        needed=verdict.needed,
        skipped="" if effects else skipped,
        checked=_checked(claim, verdict, ours.checks if ours else {}),
        sums=tuple(
            ShownSum(sentence=each.sentence, holds=each.holds, rows=each.rows) for each in sums
        ),
        curves=_curves(claim.id, ours, recipe) if ours and recipe else (),
        doubts=(*verdict.doubts, *(ours.doubts[:_MOST_DOUBTS] if ours else ())),
        limits=tuple(_limits(claim, verdict, setting, shown=bool(effects), measured=measured)),
        note=claim.note,
        versions=dict(verdict.versions),
    )


def _effects(claim: Claim, measurement: Measurement, verdict: Verdict) -> tuple[FoundEffect, ...]:
    found = []
    for effect in claim.effects:
        cells = measurement.effects.get(effect.name, ())
        part = verdict.parts.get(effect.name)
        low, high = band(effect, measurement.tolerance)
        found += [
            FoundEffect(
                name=effect.name,
                cells=len(cells),
                cell=cell.cell,
                quantifier=effect.quantifier,
                unit="" if effect.unit == "count" else effect.unit,
                estimate=_finite(cell.estimate),
                low=_finite(cell.low),
                high=_finite(cell.high),
                runs=cell.runs,
                exact=effect.name in measurement.counted or effect.quantifier == "exact",
                confidence=0.9 if effect.quantifier == "unchanged" else 0.95,
                claimed=str(effect),
                value=float(effect.value),
                confirms_from=_finite(low),
                confirms_to=_finite(high),
                code=part.code if part else "",
                noise_floor=measurement.noise_floor,
            )
            for cell in cells
        ]
    return tuple(found)


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None


def _numbers(effects: Sequence[FoundEffect], sums: Sequence[Sum]) -> tuple[ShownNumber, ...]:
    """Our numbers in short: measured ones, and the claim's own table where it was corrected."""
    names = list(dict.fromkeys(effect.name for effect in effects))
    shown = [_of_cells([each for each in effects if each.name == name]) for name in names]
    if len(names) == 1:
        shown = [replace(shown[0], name="")]
    # A correction that contradicts the claim is shown beside a measurement too.
    corrected = sorted((each for each in sums if each.low is not None), key=lambda s: s.holds)[:1]
    return (
        *shown,
        *(
            ShownNumber(
                name="recomputed from its table", estimate=None, low=each.low, high=each.high,
                unit=each.unit, exact=False, kind="recomputed",
            )
            for each in corrected
            if not shown or not each.holds
        ),
    )  # fmt: skip


def _of_cells(cells: Sequence[FoundEffect]) -> ShownNumber:
    """One number for all cells of an effect: the one that decides, with the range of all."""
    up = cells[0].quantifier in ("higher", "at_least")

    def reach(cell: FoundEffect) -> float:
        end = cell.low if up else cell.high
        return float((cell.estimate if end is None else end) or 0.0)

    known = [cell for cell in cells if cell.estimate is not None]
    # The cell that the verdict names: its interval is closest to the claim.
    weakest = (min if up else max)(known, key=reach) if known else cells[0]
    spread = [cell.estimate for cell in known if cell.estimate is not None]
    return ShownNumber(
        name=weakest.name, estimate=weakest.estimate, low=weakest.low, high=weakest.high,
        unit=weakest.unit, exact=weakest.exact, kind="measured", cells=len(cells),
        least=min(spread, default=None), most=max(spread, default=None),
    )  # fmt: skip


def _short_source(claim: Claim, claims: Mapping[str, Claim]) -> str:
    """The group's title, or the claim's own reference if the group has several."""
    source = claim.source
    refs = {other.source.ref for other in claims.values() if other.source.group == source.group}
    return source.ref if len(refs) > 1 else source.title


def _conditions(claim: Claim) -> str:
    """Model, hardware and workload as the source states them."""
    model = "any model" if claim.model == "any" else claim.model or "model not stated"
    hardware = "any hardware" if claim.hardware == "any" else claim.hardware
    stated = [
        f"{name.replace('_', ' ')} {_plain(value)}"
        for name, value in claim.workload.items()
        if str(value) != "not stated"
    ]
    against = f"compared with {claim.comparator}" if claim.comparator else "an absolute value"
    return "; ".join([model, hardware or "hardware not stated", *stated, against])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return (" to " if len(value) == 2 else ", ").join(map(str, value))
    return str(value)


def _checked(claim: Claim, verdict: Verdict, ours: Mapping[str, str]) -> tuple[ShownCheck, ...]:
    """The fairness checks of the source and of our own run, with their states."""
    rows = [
        ShownCheck(
            state=check.state, check=_said(name, check.state), by="its source", why=check.why
        )
        for name, check in claim.checks.items()
        if not (check.state == "unknown" and ours.get(name, "unknown") != "unknown")
    ]
    rows += [
        ShownCheck(state=state, check=_said(name, state), by="our run")
        for name, state in ours.items()
    ]
    if claim.bounds:
        broken = verdict.code == "impossible"
        at = "fail" if broken else "pass"
        physics = _said("below_physical_ceiling", at)
        why = verdict.reason if broken else ""
        rows.append(ShownCheck(state=at, check=physics, by="physics", why=why))
    return tuple(
        sorted(rows, key=lambda row: ("fail", "unknown", "pass", BUILT_IN).index(row.state))
    )


def _said(name: str, state: str) -> str:
    """A check in words: a sentence if it fails, else a clause."""
    return failed_check(name) if state == "fail" else CHECKS.get(name, name)


def _limits(
    claim: Claim, verdict: Verdict, setting: Setting, *, shown: bool, measured: bool
) -> list[str]:
    limits = []
    if measured and setting.platform == "cpu" and verdict.code != "unreliable_run":
        alone = " Our number does not decide the verdict." if verdict.code == "hardware" else ""
        limits.append(_CPU_LIMIT + alone)
    if verdict.tier == "construction":
        limits.append(_OURS_ALONE)
    if not measured and verdict.gate in ("G0", "G1", "G2"):
        ours = " Our number does not change it." if shown else ""
        limits.append(f"The verdict rests on the claim's own source.{ours}")
    if claim.source.confirmation == "memory":
        limits.append("The claim was written down from memory and not checked against its source.")
    if verdict.needed:
        by_source = verdict.gate in ("G0", "G1", "G2")
        what = "Needed for another verdict: " if by_source else "Full test: "
        what = "" if verdict.needed.startswith("Nothing to measure") else what
        limits.append(f"{what}{verdict.needed}")
    return limits


def _curves(claim: str, outcome: Outcome, recipe: Recipe) -> tuple[ShownCurve, ...]:
    """The curves of this claim's panel."""
    first = next((name for name in recipe.claims if name in outcome.measurements), "")
    return tuple(
        ShownCurve(title=each.title, x=each.x, y=each.y, points=tuple(map(_point, each.points)))
        for each in outcome.curves
        if claim in (each.claims or (first,))
    )


def _point(point: Point) -> dict[str, Any]:
    series, x, *numbers = point
    value, low, high = map(_finite, numbers)
    return {"series": series, "x": x, "value": value, "low": low, "high": high}
