"""The verdict on a claim: a pure function of the claim, our conditions and our measurement.

Gates in order, and the first that fires decides: G0 is the claim complete, G1 is it possible and
not contradicted by its own source, G2 is the comparison fair, G3 was our run sound, G4 the number.
Nothing is confirmed by default: without a measurement a claim is at most not tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from workbench.claims.claim import CHECKS, UNSTATED, Bound, Claim
from workbench.claims.decision import Decision, Interval, decide
from workbench.claims.fit import NEEDS_MODEL, hardware_fits, names, other_model
from workbench.claims.physics_gate import impossible, unknown_limits
from workbench.claims.sums import inconsistent

__all__ = ["Conditions", "Measurement", "Verdict", "judge"]

_WEAKEST_FIRST = (
    "contradicted", "hardware", "inconclusive", "too_few_runs", "not_measured",
)  # fmt: skip
_NO_EVIDENCE = {"constant", "none"}


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

    claim: str
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


def judge(
    claim: Claim,
    conditions: Conditions | None = None,
    measurement: Measurement | None = None,
) -> Verdict:
    """The verdict on `claim`; without a measurement, what follows from its source alone."""
    ours = measurement.bounds if measurement else ()
    doubts = unknown_limits((*claim.bounds, *ours))
    found = _complete(claim) or _possible(claim) or _fair(claim, conditions, measurement)
    if found is not None:
        pass
    elif measurement is None or conditions is None:
        found = Verdict(
            claim=claim.id, verdict="not_tested", code="not_measured", gate="G3",
            reason="Nothing was measured for it.", needed=_test(claim),
        )  # fmt: skip
    else:
        found = _sound(claim, measurement) or _decided(claim, conditions, measurement)
    return replace(found, doubts=doubts + found.doubts)


def _complete(claim: Claim) -> Verdict | None:
    missing = []
    if claim.comparator == UNSTATED:
        missing.append("what it is compared with")
    if claim.level in NEEDS_MODEL and claim.model is None:
        missing.append("the model")
    if not missing:
        return None
    what = " and ".join(missing)
    return Verdict(
        claim=claim.id, verdict="not_comparable", code="underspecified", gate="G0",
        reason=f"The source does not say {what}.", failed_checks=_failed(claim),
        needed=f"The source would have to name {what}.",
    )  # fmt: skip


def _possible(claim: Claim) -> Verdict | None:
    def no(code: str, reason: str, needed: str) -> Verdict:
        return Verdict(
            claim=claim.id, verdict="not_confirmed", code=code, reason=reason, gate="G1",
            failed_checks=_failed(claim), needed=needed,
        )  # fmt: skip

    if sentence := impossible(claim.bounds):
        return no("impossible", f"{sentence}.", "Other hardware, or another meaning of the number.")
    if sentence := inconsistent(claim):
        return no("inconsistent", sentence, "Numbers of the source that agree with one another.")
    if claim.evidence.contradicted_by:
        return no(
            "contradicted_by_source", claim.evidence.contradicted_by,
            "A measurement that the source's own text and logs agree with.",
        )  # fmt: skip
    if claim.evidence.kind in _NO_EVIDENCE:
        return no("no_evidence", "The source has no measurement behind it.", "A measurement.")
    return None


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
    for name, state in ours.items():
        if state == "fail" and name not in skipped:
            what = CHECKS.get(name, name)
            failed.setdefault(name, f"A check fails in our own run: {what}.")
    if measurement is not None and measurement.effects:
        if conditions is not None and (other := other_model(claim, conditions.model)):
            # A direction may be tested with any model, and says so; a size may not.
            if conditions.platform != "cpu":
                failed.setdefault("same_model_and_weights", other)
        for name, check in claim.checks.items():
            if check.state == "unknown" and ours.get(name, "unknown") == "unknown":
                failed.setdefault(name, _unsettled(name, check.why))
    if not failed:
        return None
    name, why = next(iter(failed.items()))
    return Verdict(
        claim=claim.id, verdict="not_comparable", code=name, gate="G2", reason=why,
        failed_checks=tuple(failed),
        needed="; ".join(CHECKS.get(name, name) for name in failed) + ".",
    )  # fmt: skip


def _unsettled(name: str, why: str) -> str:
    return f"It is not known, of our run either, whether {CHECKS.get(name, name)}. {why}"


def _sound(claim: Claim, measurement: Measurement) -> Verdict | None:
    above = impossible(measurement.bounds)
    faults = measurement.faults + ((f"{above}, so the run is void.",) if above else ())
    if not faults:
        return None
    return Verdict(
        claim=claim.id, verdict="not_comparable", code="unreliable_run", gate="G3",
        reason=faults[0], needed="A run whose gates pass.", doubts=faults[1:],
    )  # fmt: skip


def _decided(claim: Claim, conditions: Conditions, measurement: Measurement) -> Verdict:
    """G4: every part on its own, and the weakest decides."""
    here = names(claim, conditions.hardware)
    parts = {}
    for effect in claim.effects:
        cells = measurement.effects.get(effect.name, ())
        counted = effect.name in measurement.counted
        fits = hardware_fits(
            effect, claim, platform=conditions.platform, hardware=conditions.hardware
        )
        if cells and not counted and not fits:
            parts[effect.name] = Decision(
                code="hardware",
                reason=f"A magnitude of {claim.hardware or 'unstated hardware'} cannot be judged"
                f" on {conditions.hardware}.",
            )
        else:
            parts[effect.name] = decide(
                effect, cells, counted=counted,
                tolerance=measurement.tolerance, noise_floor=measurement.noise_floor,
            )  # fmt: skip
    weakest = min(parts, key=lambda name: _rank(parts[name].code))
    part = parts[weakest]
    verdict = {"confirmed": "confirmed", "hardware": "not_comparable", "not_measured": "not_tested"}
    tier = "shape" if conditions.platform == "cpu" else "gpu" if here else "transfer"
    if measurement.built_in.issuperset(parts):
        tier = "construction"
    at_full = "" if tier == "gpu" and part.code == "confirmed" else _test(claim)
    return Verdict(
        claim=claim.id, verdict=verdict.get(part.code, "not_confirmed"), code=part.code, gate="G4",
        reason=_why(parts, weakest),
        tier=tier, needed=at_full, parts=parts, versions=dict(conditions.versions),
        doubts=tuple(filter(None, [other_model(claim, conditions.model)])),
    )  # fmt: skip


def _why(parts: Mapping[str, Decision], weakest: str) -> str:
    """The reasons of the parts that decide, those that are as weak as the weakest."""
    of_reason: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part.code == parts[weakest].code:
            of_reason.setdefault(part.reason, []).append(name)
    if len(of_reason) == 1 and sum(map(len, of_reason.values())) == len(parts):
        return next(iter(of_reason))
    return " ".join(f"{', '.join(names)}: {reason}" for reason, names in of_reason.items())


def _rank(code: str) -> int:
    return _WEAKEST_FIRST.index(code) if code in _WEAKEST_FIRST else len(_WEAKEST_FIRST)


def _test(claim: Claim) -> str:
    how = claim.test.get("gpu") or claim.test.get("analytic") or "A measurement of each part"
    where = claim.hardware or "hardware that the source would have to name"
    return f"{how.rstrip('.')}, on {'any hardware' if where == 'any' else where}."
