"""Which claims are measured in the time there is, and why the others are not. Pure.

Reading costs nothing and comes first. Time goes to recipes by the claims a second that they can
decide here; what gives a number but no verdict comes last. What does not fit is cut: to fewer
requests, then to fewer rounds, where these can still decide a count or give an interval. A recipe
that found no room waits. The plan is made anew after each recipe, from what the last ones took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

from workbench.claims.claim import CHECKS, Claim
from workbench.claims.decision import MIN_RUNS
from workbench.claims.fit import hardware_fits
from workbench.claims.recipe import Recipe, Setting
from workbench.claims.verdict import judge
from workbench.errors import WorkbenchError

__all__ = ["Schedule", "Step", "schedule", "undecidable"]

_NO_RUN_SETTLES = {
    "strong_tuned_baseline",
    "same_slo_and_arrivals",
    "unit_and_iteration_accounting",
}
"""Checks on the source's own side, which no run of ours can make good."""
_MORE_RUNS = 10
"""Launches an arm that effects under 5 % are given when there is time."""
_UNDECIDED_WORTH = 0.1
_INTERVAL_RUNS = 3
"""Fewer rounds give a ratio no interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One recipe that will run, for these claims."""

    recipe: Recipe
    claims: tuple[str, ...]
    runs: int
    estimate_s: float
    requests_share: float = 1.0
    """Of the requests of a pass that it sends."""
    cut: str = ""
    """What was left out of it and why, a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What will be measured, in order, and a sentence for each claim that will not be."""

    steps: tuple[Step, ...] = ()
    waiting: tuple[Step, ...] = ()
    """What would begin, in this order, where the steps leave the time."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    by_reading: tuple[str, ...] = ()
    """Claims whose verdict follows from their sources; nothing is measured for them."""

    @property
    def estimate_s(self) -> float:
        return sum(step.estimate_s for step in self.steps)

    def __str__(self) -> str:
        lines = [f"decided by reading and arithmetic: {len(self.by_reading)}"]
        for step in (*self.steps, *self.waiting):
            room = "" if step in self.steps else ", if the others leave it the time"
            if step.cut:
                room += f", with {step.requests_share:.0%} of its requests, to fit the time"
            lines.append(
                f"{step.recipe.level:8} {step.recipe.name:14} about {step.estimate_s:4.0f} s,"
                f" {step.runs} runs an arm{room}: {', '.join(step.claims)}"
            )
        hope = sum(len(step.claims) for step in self.waiting)
        lines.append(f"not measured, the table says why of each: {len(self.skipped) - hope}")
        return "\n".join([*lines, f"duration: about {self.estimate_s / 60:.1f} minutes"])


def schedule(
    claims: Sequence[Claim],
    recipes: Sequence[Recipe],
    setting: Setting,
    *,
    tiers: Sequence[str],
    budget_s: float,
    spent_s: float = 0.0,
    slowness: Callable[[str], float] = lambda _: 1.0,
) -> Schedule:
    """Spend `budget_s` on what can be decided; `setting.runs` is the least for each arm.

    Of the budget `spent_s` are gone. `slowness` says of each level how many times as long as
    estimated it takes on this machine.
    """
    reading = tuple(claim.id for claim in claims if judge(claim).verdict != "not_tested")
    open_ = {claim.id: claim for claim in claims if claim.id not in reading}
    skipped: dict[str, str] = {}
    offers: list[tuple[float, Step]] = []
    for recipe in recipes:
        serves = tuple(name for name in recipe.claims if name in open_)
        if not serves:
            continue
        if reason := _not_allowed(recipe, setting, tiers):
            skipped |= dict.fromkeys(serves, reason)
            continue
        try:
            cost_s = recipe.estimate_s(setting) * slowness(recipe.level)
        except WorkbenchError as error:
            skipped |= dict.fromkeys(serves, f"{recipe.name} cannot run here: {error}")
            continue
        worth = sum(
            _UNDECIDED_WORTH if undecidable(open_[name], setting) else 1.0 for name in serves
        )
        step = Step(recipe=recipe, claims=serves, runs=setting.runs, estimate_s=cost_s)
        offers.append((worth / max(cost_s, 0.1), step))
    ordered = [step for _, step in sorted(offers, key=lambda offer: -offer[0])]
    room = _Room(open_, setting, budget_s=budget_s, left_s=budget_s - spent_s, slowness=slowness)
    whole = {step.recipe.name: room.take(room.with_all_rounds(step)) for step in ordered}
    short = {
        step.recipe.name: room.take(room.with_fewer_rounds(step))
        for step in ordered
        if whole[step.recipe.name] is None
    }
    steps = [step for step in (*whole.values(), *short.values()) if step is not None]
    waiting = [step for step in ordered if short.get(step.recipe.name, step) is None]
    for step in waiting:
        skipped |= dict.fromkeys(step.claims, f"{step.recipe.name} takes {room.lacks(step)}")
    measured = {name for step in steps for name in step.claims}
    for name, claim in open_.items():
        if name not in measured:
            skipped.setdefault(name, _no_recipe(claim))
    if not waiting and not any(step.cut for step in steps):
        steps = _more_runs(steps, open_, setting, room.left_s, slowness)
        left_s = budget_s - spent_s - sum(step.estimate_s for step in steps)
        steps = _longer(steps, setting, left_s, slowness)
    return Schedule(
        steps=tuple(steps),
        waiting=tuple(waiting),
        skipped={name: text for name, text in skipped.items() if name not in measured},
        by_reading=reading,
    )


@dataclass(slots=True)
class _Room:
    """The time that is left while a plan is made."""

    claims: Mapping[str, Claim]
    setting: Setting
    _: KW_ONLY
    budget_s: float
    left_s: float
    slowness: Callable[[str], float]

    def take(self, step: Step | None) -> Step | None:
        if step is not None:
            self.left_s -= step.estimate_s
        return step

    def with_all_rounds(self, step: Step) -> Step | None:
        """The step with as many of its requests as fit; None where it has no room."""
        if step.estimate_s <= self.left_s:
            return step
        for share in step.recipe.fewer:
            cost_s = self._cost_s(step, share, step.runs)
            if cost_s <= self.left_s:
                return self._shortened(step, share, step.runs, cost_s)
        return None

    def with_fewer_rounds(self, step: Step) -> Step | None:
        """The step with the rounds that fit, where they decide a count or give an interval."""
        share = min((1.0, *step.recipe.fewer))
        least = 1 if self._counts(step) else _INTERVAL_RUNS
        for runs in range(step.runs - 1, least - 1, -1):
            cost_s = self._cost_s(step, share, runs)
            if cost_s <= self.left_s:
                return self._shortened(step, share, runs, cost_s)
        return None

    def lacks(self, step: Step) -> str:
        """How much it takes and how much there is, and what to do: the end of a sentence."""
        left_s = max(0.0, self.left_s)
        wanted_s = _rounded_up(self.budget_s - self.left_s + step.estimate_s)
        return (
            f"about {step.estimate_s:.0f} s and {left_s:.0f} of {self.budget_s:.0f} s are left;"
            f" raise time_budget_s, e.g. to {wanted_s}."
        )

    def _cost_s(self, step: Step, share: float, runs: int) -> float:
        changed = replace(self.setting, requests_share=share, runs=runs)
        return step.recipe.estimate_s(changed) * self.slowness(step.recipe.level)

    def _counts(self, step: Step) -> bool:
        """Whether it decides a claim that is counted, for which one round is enough."""
        return any(
            all(effect.quantifier == "exact" for effect in self.claims[name].effects)
            for name in step.claims
        )

    def _shortened(self, step: Step, share: float, runs: int, cost_s: float) -> Step:
        rounds = f"{runs} of {step.runs} rounds" if runs < step.runs else "all rounds"
        requests = f" and {share:.0%} of its requests" if share < 1 else ""
        return replace(
            step, runs=runs, requests_share=share, estimate_s=cost_s,
            cut=f"{step.recipe.name} was cut to {rounds}{requests}: in full it takes"
            f" {self.lacks(step)}",
        )  # fmt: skip


def undecidable(claim: Claim, setting: Setting) -> str:
    """Why a measurement here gives a number and no verdict; empty where it can give one."""
    for name, check in claim.checks.items():
        if check.state == "unknown" and name in _NO_RUN_SETTLES:
            return f"The source leaves open whether {CHECKS[name]}, and no run of ours settles it."
    for effect in claim.effects:
        if not hardware_fits(effect, claim, platform=setting.platform, hardware=setting.hardware):
            return f"A magnitude of {claim.hardware or 'unstated hardware'} is not judged here."
    return ""


def _not_allowed(recipe: Recipe, setting: Setting, tiers: Sequence[str]) -> str:
    if recipe.level not in tiers:
        return (
            f"It is measured at the {recipe.level} level ({recipe.name}), and tiers allows"
            f" {', '.join(tiers)}; add {recipe.level}."
        )
    if setting.platform not in recipe.platforms:
        wanted = " or ".join(recipe.platforms)
        return f"{recipe.name} needs {wanted}, and this is {setting.platform}."
    return ""


def _no_recipe(claim: Claim) -> str:
    how = claim.test.get("gpu") or claim.test.get("analytic") or ""
    if how.startswith("n/a"):
        return (
            "It describes a configuration or a definition of its source: there is nothing to run."
        )
    return "No recipe here measures it." + (f" How to: {how.rstrip('.')}." if how else "")


def _more_runs(
    steps: Sequence[Step], claims: Mapping[str, Claim], setting: Setting, left_s: float,
    slowness: Callable[[str], float],
) -> list[Step]:  # fmt: skip
    """What is left of the time goes to effects under 5 %, which five runs can hardly tell."""
    more = []
    for step in steps:
        fine = any(
            effect.quantifier == "unchanged" and (effect.margin or 1) < 0.05
            for name in step.claims
            for effect in claims[name].effects
        )
        runs = step.runs
        each_s = step.estimate_s / max(runs, 1)
        if fine and MIN_RUNS <= runs < _MORE_RUNS and each_s > 0:
            extra = min(_MORE_RUNS - runs, int(left_s // each_s))
            left_s -= extra * each_s
            runs += extra
        cost_s = step.recipe.estimate_s(replace(setting, runs=runs)) * slowness(step.recipe.level)
        more.append(replace(step, runs=runs, estimate_s=cost_s))
    return more


def _longer(
    steps: Sequence[Step], setting: Setting, left_s: float, slowness: Callable[[str], float]
) -> list[Step]:
    """What is left after that goes to recipes that can use it, the shortest first."""
    longer = {}
    for step in sorted(steps, key=lambda step: step.estimate_s):
        if step.recipe.most_s is None:
            continue
        most_s = step.recipe.most_s(replace(setting, runs=step.runs)) * slowness(step.recipe.level)
        extra_s = max(0.0, min(left_s, most_s - step.estimate_s))
        left_s -= extra_s
        longer[step.recipe.name] = replace(step, estimate_s=step.estimate_s + extra_s)
    return [longer.get(step.recipe.name, step) for step in steps]


def _rounded_up(seconds: float) -> int:
    return int(-(-seconds // 10) * 10)
