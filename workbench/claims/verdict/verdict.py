"""The verdict on a claim: a pure function of the claim, our conditions and our measurement.

Gates in order, and the first that fires decides: G0 is the claim complete, G1 is it possible and
not contradicted by its own source, G2 is the comparison fair, G3 was our run sound, G4 the number.
Nothing is confirmed by default: without a measurement a claim is at most not tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from workbench.claims.registry.claim import BUILT_IN, CHECKS, UNSTATED, Bound, Claim, Effect
from workbench.claims.verdict.decision import Decision, Interval, decide
from workbench.claims.verdict.physics_gate import impossible, unknown_limits

_WEAKEST_FIRST = (
    "contradicted", "hardware", "inconclusive", "too_few_runs", "not_measured",
)  # fmt: skip
_NEEDS_MODEL = {"model", "server", "cluster"}
"""Levels at which a number depends on the model."""
_SHAPES = {"higher", "lower", "unchanged"}
_COUNTS = {"tokens", "count", "bool", "fraction"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Where and how we measured."""

    platform: str
    """cpu, cuda or rocm."""
    hardware: str
    """As workbench.hardware.physics names it."""
    model: str = ""
    """The model's name; empty where it does not matter."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """What our own run proved of CHECKS: pass, fail or unknown; BUILT_IN settles as pass does."""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What we measured: for each effect one interval, or one for each cell fixed beforehand."""

    effects: Mapping[str, tuple[Interval, ...]]
    """95 % intervals in the effect's unit, adjusted over cells (Holm); 90 % for unchanged."""
    counted: frozenset[str] = frozenset()
    """Effects that were counted or computed, not timed: they hold on any hardware, in one run."""
    built_in: frozenset[str] = frozenset()
    """Effects that our own code fixes, such as bytes of a format that it writes: arithmetic."""
    faults: tuple[str, ...] = ()
    """Sentences of gates that failed; a run with one gives no verdict."""
    bounds: tuple[Bound, ...] = ()
    """Physical limits of our own values."""
    noise_floor: float = 0.0
    """How far two equal arms differ, as a ratio - 1: 0.25 is a factor of 1.25, either way. NaN
    where no equal arms were compared, 0 for what has no noise."""
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came out, why, and what it would take to test the claim fully."""

    verdict: str
    """confirmed, not_confirmed, not_comparable or not_tested."""
    code: str
    """Why, as a word: impossible, no_evidence, contradicted, inconclusive, a check, ..."""
    reason: str
    gate: str
    tier: str = "source"
    """source: read, not measured; shape: on a CPU; gpu: as claimed; transfer: on another GPU;
    construction: our own code fixes what was counted."""
    failed_checks: tuple[str, ...] = ()
    needed: str = ""
    doubts: tuple[str, ...] = ()
    parts: Mapping[str, Decision] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    """The verdict holds for these only."""

    @property
    def word(self) -> str:
        """For readers: contradicted and inconclusive are never one word."""
        if self.verdict == "confirmed":
            return {
                "shape": "confirmed (shape)",
                "transfer": "confirmed (other GPU)",
                "construction": "holds by construction",
            }.get(self.tier, "confirmed")
        if self.verdict == "not_confirmed":
            if self.code in ("inconclusive", "too_few_runs"):
                return "inconclusive"
            shape = " (shape)" if self.tier == "shape" else ""
            return f"{self.code.replace('_', ' ')}{shape}"
        return self.verdict.replace("_", " ")


def state(holds: bool) -> str:
    """As a check of CHECKS is answered."""
    return "pass" if holds else "fail"


def known(*values: float) -> str:
    """pass where each value is a number; unknown where one could not be measured."""
    return "pass" if all(map(isfinite, values)) else "unknown"


def by_construction(*names: str) -> dict[str, str]:
    """Checks that no run can fail, since one program runs all sides from one job.

    Of the job only the field that names an arm differs; model, number formats, shapes, batches and
    prompts are the same fields for all, and one function takes every time. This is a statement
    about our own code, not a finding: docs/claims.md says which checks are of this kind.
    """
    return dict.fromkeys(names, BUILT_IN)


def judge(
    claim: Claim,
    conditions: Conditions | None = None,
    measurement: Measurement | None = None,
) -> Verdict:
    """The verdict on `claim`; without a measurement, what follows from its source alone."""
    ours = measurement.bounds if measurement else ()
    found = _complete(claim) or _possible(claim) or _fair(claim, conditions, measurement)
    if found is None:
        if measurement is None or conditions is None:
            found = Verdict(
                verdict="not_tested", code="not_measured", gate="G3",
                reason="Nothing was measured for it.", needed=_test(claim),
            )  # fmt: skip
        else:
            found = _sound(measurement) or _decided(claim, conditions, measurement)
    return replace(found, doubts=unknown_limits((*claim.bounds, *ours)) + found.doubts)


def hardware_fits(effect: Effect, claim: Claim, *, platform: str, hardware: str) -> bool:
    """Whether a measurement on `hardware` may judge that effect.

    Counts hold anywhere; a CPU judges directions, and bounds at 1 x, which are directions too;
    another GPU judges what has a comparator.
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
    """A sentence where the claim names models and ours is none of them."""
    named = (claim.model or "any").casefold()
    same = not model or named == "any" or model.casefold() in named
    if same or claim.level not in _NEEDS_MODEL:
        return ""
    return f"The claim is about {claim.model}, and ours was measured with {model}."


def _complete(claim: Claim) -> Verdict | None:
    missing = []
    if claim.comparator == UNSTATED:
        missing.append("what it is compared with")
    if claim.level in _NEEDS_MODEL and claim.model is None:
        missing.append("the model")
    if not missing:
        return None
    what = " and ".join(missing)
    return Verdict(
        verdict="not_comparable", code="underspecified", gate="G0",
        reason=f"The source does not say {what}.", failed_checks=_failed(claim),
        needed=f"The source would have to name {what}.",
    )  # fmt: skip


def _possible(claim: Claim) -> Verdict | None:
    if sentence := impossible(claim.bounds):
        code, reason = "impossible", f"{sentence}."
        needed = "Other hardware, or another meaning of the number."
    elif reason := claim.inconsistent:
        code, needed = "inconsistent", "Numbers of the source that agree with one another."
    elif reason := claim.evidence.contradicted_by:
        code = "contradicted_by_source"
        needed = "A measurement that the source's own text and logs agree with."
    elif claim.evidence.kind in ("constant", "none"):
        code, reason = "no_evidence", "The source has no measurement behind it."
        needed = "A measurement."
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
    """G2. A comparison that its source made unfairly stays so; what it left open we may settle."""
    ours = {} if conditions is None else dict(conditions.checks)
    failed = {name: claim.checks[name].why for name in _failed(claim)}
    # Too few launches are G4's to say: a count needs none, and in a single round nothing can turn.
    few = ours.get("replicated_runs_with_ci") == "fail"
    skipped = {"replicated_runs_with_ci", "interleaved_run_order"} if few else set()
    for name, found in ours.items():
        if found == "fail" and name not in skipped:
            what = CHECKS.get(name, name)
            failed.setdefault(name, f"A check fails in our own run: {what}.")
    if measurement is not None and measurement.effects:
        # A direction may be tested with any model, and says so; a size may not.
        if conditions is not None and conditions.platform != "cpu":
            if other := _other_model(claim, conditions.model):
                failed.setdefault("same_model_and_weights", other)
        for name, check in claim.checks.items():
            if check.state == "unknown" and ours.get(name, "unknown") == "unknown":
                open_ = f"It is not known, of our run either, whether {CHECKS[name]}."
                failed.setdefault(name, f"{open_} {check.why}")
    if not failed:
        return None
    name, why = next(iter(failed.items()))
    return Verdict(
        verdict="not_comparable", code=name, gate="G2", reason=why, failed_checks=tuple(failed),
        needed="; ".join(CHECKS.get(name, name) for name in failed) + ".",
    )  # fmt: skip


def _sound(measurement: Measurement) -> Verdict | None:
    """G3."""
    above = impossible(measurement.bounds)
    faults = measurement.faults + ((f"{above}, so the run is void.",) if above else ())
    if not faults:
        return None
    return Verdict(
        verdict="not_comparable", code="unreliable_run", gate="G3", reason=faults[0],
        needed="A run whose gates pass.", doubts=faults[1:],
    )  # fmt: skip


def _decided(claim: Claim, conditions: Conditions, measurement: Measurement) -> Verdict:
    """G4: every part on its own, and the weakest decides."""
    platform, hardware = conditions.platform, conditions.hardware
    parts = {}
    for effect in claim.effects:
        cells = measurement.effects.get(effect.name, ())
        counted = effect.name in measurement.counted
        fits = hardware_fits(effect, claim, platform=platform, hardware=hardware)
        if cells and not counted and not fits:
            parts[effect.name] = Decision(
                code="hardware",
                reason=f"A magnitude of {claim.hardware or 'unstated hardware'} cannot be judged"
                f" on {hardware}.",
            )
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
    """The reasons of the parts that decide, those that are as weak as the weakest."""
    of_reason: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part.code == code:
            of_reason.setdefault(part.reason, []).append(name)
    if len(of_reason) == 1 and sum(map(len, of_reason.values())) == len(parts):
        return next(iter(of_reason))
    return " ".join(f"{', '.join(names)}: {reason}" for reason, names in of_reason.items())


def _test(claim: Claim) -> str:
    how = claim.test.get("gpu") or claim.test.get("analytic") or "A measurement of each part"
    where = claim.hardware or "hardware that the source would have to name"
    return f"{how.rstrip('.')}, on {'any hardware' if where == 'any' else where}."
