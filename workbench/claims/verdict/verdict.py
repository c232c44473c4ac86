"""The verdict on a claim: a pure function of the claim, our conditions and our measurement.

Five gates in order; the first that fires decides. G0: is the claim complete? G1: is it possible,
and does its own source support it? G2: is the comparison fair? G3: was our run sound? G4: what
does the number say? Nothing is confirmed by default: without a measurement, a claim is not tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from workbench.claims.registry.claim import (
    BUILT_IN,
    CHECKS,
    UNSTATED,
    Bound,
    Claim,
    Effect,
    failed_check,
    fair_comparison,
)
from workbench.claims.verdict.decision import Decision, Interval, decide
from workbench.claims.verdict.physics_gate import impossible, unknown_limits

_WEAKEST_FIRST = (
    "contradicted", "hardware", "inconclusive", "too_few_runs", "not_measured",
)  # fmt: skip
_NEEDS_MODEL = {"model", "server", "cluster"}
"""Levels where a number depends on the model."""
_SHAPES = {"higher", "lower", "unchanged"}
_COUNTS = {"tokens", "count", "bool", "fraction"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Where and how we measured."""

    platform: str
    """cpu, cuda or rocm."""
    hardware: str
    """Its name in workbench.hardware.physics."""
    model: str = ""
    """The model's name; empty if it does not matter."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """What our run showed for CHECKS: pass, fail, unknown, or BUILT_IN, which counts as a pass."""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What we measured: one interval for each effect, or one for each cell fixed beforehand."""

    effects: Mapping[str, tuple[Interval, ...]]
    """95 % intervals in the effect's unit, adjusted over cells (Holm); 90 % for unchanged."""
    counted: frozenset[str] = frozenset()
    """Effects that are counts, not times: they hold on any hardware, after one run."""
    built_in: frozenset[str] = frozenset()
    """Effects that our own code determines, such as the bytes of a format that it writes."""
    faults: tuple[str, ...] = ()
    """Sentences of failed gates; a run with one gives no verdict."""
    bounds: tuple[Bound, ...] = ()
    """Physical limits of our own values."""
    noise_floor: float = 0.0
    """How much identical arms differ, as a ratio - 1. NaN if none were compared, 0 for counts."""
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict, why, and what a full test of the claim would take."""

    verdict: str
    """confirmed, not_confirmed, not_comparable or not_tested."""
    code: str
    """Why, as a word: impossible, no_evidence, contradicted, inconclusive, a check, ..."""
    reason: str
    gate: str
    tier: str = "source"
    """source: read, not measured; shape: on a CPU; gpu: as claimed; transfer: on another GPU;
    construction: our own code determines what was counted."""
    failed_checks: tuple[str, ...] = ()
    needed: str = ""
    doubts: tuple[str, ...] = ()
    parts: Mapping[str, Decision] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    """The verdict holds for these only."""

    @property
    def word(self) -> str:
        """For readers: contradicted and inconclusive are never the same word."""
        where = {"shape": " (on CPU)", "transfer": " (other GPU)"}.get(self.tier, "")
        if self.verdict == "confirmed":
            return "holds by construction" if self.tier == "construction" else f"confirmed{where}"
        if self.verdict != "not_confirmed":
            return self.verdict.replace("_", " ")
        if self.code in ("inconclusive", "too_few_runs"):
            return "inconclusive"
        return f"{self.code.replace('_', ' ')}{where if self.tier == 'shape' else ''}"

    @property
    def kind(self) -> str:
        """Decides colour and mark: confirmed, contradicted, no-evidence, inconclusive, ..."""
        if self.verdict != "not_confirmed":
            return self.verdict.replace("_", "-")
        named = {"inconclusive": "inconclusive", "too_few_runs": "inconclusive",
                 "no_evidence": "no-evidence"}  # fmt: skip
        return named.get(self.code, "contradicted")


def state(holds: bool) -> str:
    """pass or fail, for one of CHECKS."""
    return "pass" if holds else "fail"


def known(*values: float) -> str:
    """pass if each value is a number; unknown if one was not measured."""
    return "pass" if all(map(isfinite, values)) else "unknown"


def by_construction(*names: str) -> dict[str, str]:
    """Checks that no run can fail, because one program runs all sides from one job.

    Only the field that names the arm differs between the sides. That is a statement about our
    code, not a finding; docs/claims.md lists these checks.
    """
    return dict.fromkeys(names, BUILT_IN)


def judge(
    claim: Claim, conditions: Conditions | None = None, measurement: Measurement | None = None
) -> Verdict:
    """The verdict on `claim`; without a measurement, the one that its source alone supports."""
    ours = measurement.bounds if measurement else ()
    found = _complete(claim) or _possible(claim) or _fair(claim, conditions, measurement)
    if found is None and measurement and conditions:
        found = _sound(measurement) or _decided(claim, conditions, measurement)
    if found is None:
        found = Verdict(
            verdict="not_tested", code="not_measured", gate="G3", reason="Not measured.",
            needed=_test(claim),
        )  # fmt: skip
    return replace(found, doubts=unknown_limits((*claim.bounds, *ours)) + found.doubts)


def hardware_fits(effect: Effect, claim: Claim, *, platform: str, hardware: str) -> bool:
    """Whether a measurement on `hardware` can judge that effect.

    Counts hold anywhere. A CPU judges directions, and so bounds at 1 x. Another GPU judges ratios
    and % changes.
    """
    if effect.unit in _COUNTS and effect.quantifier == "exact":
        return True
    if platform == "cpu":
        bound = effect.quantifier in ("at_most", "at_least") and effect.unit == "x"
        return effect.quantifier in _SHAPES or (bound and effect.value == 1)
    return _names(claim, hardware) or effect.type in ("ratio", "percent_change")


def _names(claim: Claim, hardware: str) -> bool:
    """Whether the claim is about this hardware, or any."""
    same = (claim.hardware or "").casefold()
    return hardware.casefold() in same or same == "any"


def _other_model(claim: Claim, model: str) -> str:
    """A sentence if the claim names models and ours is none of them."""
    named = (claim.model or "any").casefold()
    same = not model or named == "any" or model.casefold() in named
    if same or claim.level not in _NEEDS_MODEL:
        return ""
    return f"The claim is about {claim.model}; we measured {model}."


def _complete(claim: Claim) -> Verdict | None:
    missing = []
    if claim.comparator == UNSTATED:
        missing.append("its baseline")
    if claim.level in _NEEDS_MODEL and claim.model is None:
        missing.append("its model")
    if not missing:
        return None
    what = " and ".join(missing)
    return Verdict(
        verdict="not_comparable", code="underspecified", gate="G0",
        reason=f"The source does not name {what}.", failed_checks=_failed(claim),
        needed=f"A source that names {what}.",
    )  # fmt: skip


def _possible(claim: Claim) -> Verdict | None:
    if sentence := impossible(claim.bounds):
        code, reason = "impossible", f"{sentence}."
        needed = "Hardware that can reach the number, or a different definition of the metric."
    elif reason := claim.inconsistent:
        code, needed = "inconsistent", "A source whose numbers agree with each other."
    elif reason := claim.evidence.contradicted_by:
        code = "contradicted_by_source"
        needed = "A source whose text, code and logs agree with the claim."
    elif claim.evidence.kind in ("constant", "none"):
        code, reason = "no_evidence", "The source has no measurement for this claim."
        needed = "A measurement with its raw log."
    else:
        return None
    return Verdict(
        verdict="not_confirmed", code=code, reason=reason, gate="G1",
        failed_checks=_failed(claim), needed=needed,
    )  # fmt: skip


def _failed(claim: Claim) -> tuple[str, ...]:
    return tuple(name for name, check in claim.checks.items() if check.state == "fail")


def _fair(
    claim: Claim, conditions: Conditions | None, measurement: Measurement | None
) -> Verdict | None:
    """G2. A source's unfair comparison stays unfair; our run may settle what it left open."""
    ours = {} if conditions is None else dict(conditions.checks)
    failed = {name: claim.checks[name].why for name in _failed(claim)}
    # G4 reports too few launches: a count needs one, and a single round has no order to alternate.
    few = ours.get("replicated_runs_with_ci") == "fail"
    skipped = {"replicated_runs_with_ci", "interleaved_run_order"} if few else set()
    for name, found in ours.items():
        if found == "fail" and name not in skipped:
            failed.setdefault(name, f"In our run: {failed_check(name)}.")
    if measurement is not None and measurement.effects:
        # A direction may be tested with any model, with a doubt; a size may not.
        if conditions is not None and conditions.platform != "cpu":
            if other := _other_model(claim, conditions.model):
                failed.setdefault("same_model_and_weights", other)
        for name, check in claim.checks.items():
            if check.state == "unknown" and ours.get(name, "unknown") == "unknown":
                failed.setdefault(name, f"Unknown whether {CHECKS[name]}. {check.why}")
    if not failed:
        return None
    name, why = next(iter(failed.items()))
    return Verdict(
        verdict="not_comparable", code=name, gate="G2", reason=why, failed_checks=tuple(failed),
        needed=fair_comparison(tuple(failed)),
    )  # fmt: skip


def _sound(measurement: Measurement) -> Verdict | None:
    """G3."""
    above = impossible(measurement.bounds)
    faults = measurement.faults + ((f"Our own number is impossible: {above}.",) if above else ())
    if not faults:
        return None
    return Verdict(
        verdict="not_comparable", code="unreliable_run", gate="G3", reason=faults[0],
        needed="A run that passes its gates.", doubts=faults[1:],
    )  # fmt: skip


def _decided(claim: Claim, conditions: Conditions, measurement: Measurement) -> Verdict:
    """G4: each part on its own; the weakest decides."""
    platform, hardware = conditions.platform, conditions.hardware
    parts = {}
    for effect in claim.effects:
        cells = measurement.effects.get(effect.name, ())
        counted = effect.name in measurement.counted
        fits = hardware_fits(effect, claim, platform=platform, hardware=hardware)
        if cells and not counted and not fits:
            of = f"({claim.hardware})" if claim.hardware else "(which the source does not name)"
            reason = f"Sizes measured on {hardware} do not hold for the claimed hardware {of}."
            parts[effect.name] = Decision(code="hardware", reason=reason)
        else:
            parts[effect.name] = decide(
                effect, cells, counted=counted,
                tolerance=measurement.tolerance, noise_floor=measurement.noise_floor,
            )  # fmt: skip
    codes = {part.code for part in parts.values()}
    code = next((each for each in _WEAKEST_FIRST if each in codes), "confirmed")
    verdict = {"confirmed": "confirmed", "hardware": "not_comparable", "not_measured": "not_tested"}
    tier = "shape" if platform == "cpu" else "gpu" if _names(claim, hardware) else "transfer"
    if measurement.built_in.issuperset(parts):
        tier = "construction"
    at_full = "" if tier == "gpu" and code == "confirmed" else _test(claim)
    return Verdict(
        verdict=verdict.get(code, "not_confirmed"), code=code, gate="G4", reason=_why(parts, code),
        tier=tier, needed=at_full, parts=parts, versions=dict(conditions.versions),
        doubts=tuple(filter(None, [_other_model(claim, conditions.model)])),
    )  # fmt: skip


def _why(parts: Mapping[str, Decision], code: str) -> str:
    """The reasons of the parts that decide: those as weak as the weakest."""
    of_reason: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part.code == code:
            of_reason.setdefault(part.reason, []).append(name)
    (shared, names), *others = of_reason.items()
    if not others and len(names) == len(parts):
        return shared
    return " ".join(
        f"{', '.join(names) if len(names) < 3 else f'{len(names)} of {len(parts)} parts'}: {reason}"
        for reason, names in of_reason.items()
    )


def _test(claim: Claim) -> str:
    how = claim.test.get("gpu") or claim.test.get("analytic") or "Measure each part of the claim"
    if claim.evidence.kind == "configuration":
        return f"{how.rstrip('.')}."
    where = claim.hardware or "not stated by the source"
    if where == "any":
        return f"{how.rstrip('.')}."
    return f"{how.rstrip('.')}. Hardware: {where}."
