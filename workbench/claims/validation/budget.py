"""Which claims are measured in the time there is, and why the others are not. Pure.

Claims that their source decides cost nothing. Each recipe can be measured in full, with fewer
requests, or with fewer rounds. The plan takes the choices that decide most claims in the time, and
starts with what decides most per second. It is made anew after each recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from math import ceil

from workbench.claims.recipes.recipe import Recipe, Setting
from workbench.claims.registry.claim import Claim
from workbench.claims.verdict.decision import MIN_RUNS
from workbench.claims.verdict.verdict import hardware_fits, judge
from workbench.errors import WorkbenchError

_NO_RUN_SETTLES = {
    "strong_tuned_baseline",
    "same_slo_and_arrivals",
    "unit_and_iteration_accounting",
}
"""Checks on the source's side, which no run of ours can settle."""
_MORE_RUNS = 10
"""Rounds for effects below 5 %, if there is time."""
_UNDECIDED_WORTH = 0.1
INTERVAL_RUNS, _INTERVAL_WORTH = 3, 0.3
"""Rounds that give a ratio an interval, which so few rounds do not let decide."""
_FEWER = 0.1
"""The worth that a recipe loses at most when it is shortened and decides the same."""
_LEAST_TIME = 1e-4
"""The worth of all the time, in claims: of equal choices, the cheapest is taken."""
_AS_GOOD = 0.5
"""The first recipe is the cheapest that has this fraction of the best rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One recipe that will run, for these claims."""

    recipe: Recipe
    claims: tuple[str, ...]
    runs: int
    estimate_s: float
    requests_share: float = 1.0
    """Fraction of the requests of a pass that it sends."""
    cut: str = ""
    """What was left out and why, in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What will be measured, in order, and the reason for each claim that will not be."""

    steps: tuple[Step, ...] = ()
    waiting: tuple[Step, ...] = ()
    """What starts, in this order, if the steps leave time."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    by_reading: tuple[str, ...] = ()
    """Claims that their source decides."""

    @property
    def estimate_s(self) -> float:
        return sum(step.estimate_s for step in self.steps)

    def __str__(self) -> str:
        lines = [f"decided from their source: {len(self.by_reading)} claims"]
        for step in (*self.steps, *self.waiting):
            notes = ["" if step in self.steps else "if time remains"]
            notes += [f"{100 * step.requests_share:.0f} % of its requests"] * (
                step.requests_share < 1
            )
            notes += ["shortened"] * bool(step.cut)
            rounds = "1 round" if step.runs == 1 else f"{step.runs} rounds"
            said = ", ".join(filter(None, [rounds, *notes]))
            lines.append(
                f"{step.recipe.level:8} {step.recipe.name:14} about {step.estimate_s:4.0f} s,"
                f" {said}: {', '.join(step.claims)}"
            )
        hope = sum(len(step.claims) for step in self.waiting)
        lines.append(f"not measured: {len(self.skipped) - hope} claims, with reasons in the table")
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
    """The best plan for `budget_s`, of which `spent_s` are used; each arm has `setting.runs`.

    `slowness` is the measured over the estimated time of each level on this machine.
    """
    reading = tuple(claim.id for claim in claims if judge(claim).verdict != "not_tested")
    open_ = {claim.id: claim for claim in claims if claim.id not in reading}
    room = _Room(
        open_, setting, budget_s=budget_s, left_s=max(0.0, budget_s - spent_s), slowness=slowness
    )
    skipped: dict[str, str] = {}
    offers: list[Step] = []
    for recipe in recipes:
        serves = tuple(name for name in recipe.claims if name in open_)
        reason = _not_allowed(recipe, setting, tiers)
        if serves and not reason:
            try:
                offers.append(room.step(recipe, serves, setting.runs))
            except WorkbenchError as error:
                reason = f"{recipe.name} cannot run here: {error}"
        if reason:
            skipped |= dict.fromkeys(serves, reason)
    steps = room.chosen(offers)
    taken = {step.recipe.name for step in steps}
    waiting = [step for step in room.in_order(offers) if step.recipe.name not in taken]
    if steps and not spent_s:
        steps = room.cheap_first(steps)
    left_s = room.left_s - sum(step.estimate_s for step in steps)
    for step in waiting:
        wanted_s = _rounded_up(budget_s - left_s + step.estimate_s)
        reason = (
            f"Not enough time: {step.recipe.name} takes about {step.estimate_s:.0f} s,"
            f" {left_s:.0f} of {budget_s:.0f} s are left. Set time_budget_s to {wanted_s}."
        )
        skipped |= dict.fromkeys(step.claims, reason)
    measured = {name for step in steps for name in step.claims}
    for name, claim in open_.items():
        skipped.setdefault(name, _no_recipe(claim))
    if not waiting and not any(step.cut for step in steps):
        steps = room.longer(room.more_runs(steps))
    return Schedule(
        steps=tuple(steps),
        waiting=tuple(waiting),
        skipped={name: text for name, text in skipped.items() if name not in measured},
        by_reading=reading,
    )


@dataclass(slots=True)
class _Room:
    """The time that is left while the plan is made."""

    claims: Mapping[str, Claim]
    setting: Setting
    _: KW_ONLY
    budget_s: float
    left_s: float
    slowness: Callable[[str], float]

    def step(self, recipe: Recipe, claims: tuple[str, ...], runs: int, share: float = 1.0) -> Step:
        """A recipe with `runs` rounds and this fraction of its requests."""
        asked = replace(self.setting, runs=runs, requests_share=share)
        cost_s = recipe.estimate_s(asked) * self.slowness(recipe.level)
        return Step(
            recipe=recipe, claims=claims, runs=runs, requests_share=share, estimate_s=cost_s
        )

    def chosen(self, offers: Sequence[Step]) -> list[Step]:
        """The steps, at most one of each offer, that together are worth most in the time."""
        ways = [way for offer in offers for way in self._ways(offer)]
        taken = _most_worth(
            [way.recipe.name for way in ways], [way.estimate_s for way in ways],
            [self._worth(way) for way in ways], self.left_s,
        )  # fmt: skip
        steps = [way for way, kept in zip(ways, taken, strict=True) if kept]
        left_s = self.left_s - sum(step.estimate_s for step in steps)
        full = {offer.recipe.name: offer for offer in offers}
        return self.in_order(
            [self._explained(step, full[step.recipe.name], left_s) for step in steps]
        )

    def in_order(self, steps: Sequence[Step]) -> list[Step]:
        """What decides most per second comes first."""
        return sorted(steps, key=lambda step: -self._rate(step))

    def cheap_first(self, steps: Sequence[Step]) -> list[Step]:
        """With a cheap one first, which soon shows how fast the machine is."""
        best = max(map(self._rate, steps))
        cheap = [
            step for step in steps if self._rate(step) >= _AS_GOOD * best and self._worth(step) >= 1
        ]
        first = min(cheap or steps[:1], key=lambda step: step.estimate_s)
        return [first, *(step for step in steps if step is not first)]

    def more_runs(self, steps: Sequence[Step]) -> list[Step]:
        """Time that is left goes to effects below 5 %, which five rounds rarely decide."""
        left_s = self.left_s - sum(step.estimate_s for step in steps)
        more = []
        for step in steps:
            fine = any(
                effect.quantifier == "unchanged" and (effect.margin or 1) < 0.05
                for name in step.claims
                for effect in self.claims[name].effects
            )
            each_s = step.estimate_s / max(step.runs, 1)
            extra = 0
            if fine and MIN_RUNS <= step.runs < _MORE_RUNS and each_s > 0:
                extra = min(_MORE_RUNS - step.runs, int(left_s // each_s))
                left_s -= extra * each_s
            more.append(self.step(step.recipe, step.claims, step.runs + extra))
        return more

    def longer(self, steps: Sequence[Step]) -> list[Step]:
        """Time left after that goes to recipes that can use it, the shortest first."""
        left_s = self.left_s - sum(step.estimate_s for step in steps)
        longer = {step.recipe.name: step for step in steps}
        for step in sorted(steps, key=lambda step: step.estimate_s):
            if step.recipe.most_s is None:
                continue
            most_s = step.recipe.most_s(replace(self.setting, runs=step.runs))
            most_s *= self.slowness(step.recipe.level)
            extra_s = max(0.0, min(left_s, most_s - step.estimate_s))
            left_s -= extra_s
            longer[step.recipe.name] = replace(step, estimate_s=step.estimate_s + extra_s)
        return list(longer.values())

    def _ways(self, offer: Step) -> list[Step]:
        """The offer in full, and with fewer requests and rounds."""
        least = 1 if any(_is_count(self.claims[name]) for name in offer.claims) else INTERVAL_RUNS
        fewer = [runs for runs in (INTERVAL_RUNS, 1) if least <= runs < offer.runs]
        return [
            self.step(offer.recipe, offer.claims, runs, share)
            for share in (1.0, *offer.recipe.fewer)
            for runs in (offer.runs, *fewer)
        ]

    def _worth(self, step: Step) -> float:
        """Claims decided; a complete recipe is worth a little more than a shortened one."""
        claims = [self.claims[name] for name in step.claims]
        whole = (step.requests_share + min(1.0, step.runs / self.setting.runs)) / 2
        return worth(claims, self.setting, step.runs) * (1 - _FEWER * (1 - whole))

    def _rate(self, step: Step) -> float:
        return self._worth(step) / max(step.estimate_s, 0.1)

    def _explained(self, step: Step, full: Step, left_s: float) -> Step:
        """The step with a sentence on what it leaves out, if anything."""
        if step == full:
            return step
        cuts = [f"{step.runs} of {full.runs} rounds"] if step.runs < full.runs else []
        if step.requests_share < 1:
            cuts.append(f"{100 * step.requests_share:.0f} % of its requests")
        room_s = left_s + step.estimate_s
        wanted_s = _rounded_up(self.budget_s - room_s + full.estimate_s)
        cut = (
            f"{step.recipe.name} was cut to {' and '.join(cuts)} to fit {room_s:.0f} s. In full it"
            f" takes {full.estimate_s:.0f} s; set time_budget_s to {wanted_s}."
        )
        return replace(step, cut=cut)


def _most_worth(
    groups: Sequence[str], costs_s: Sequence[float], values: Sequence[float], left_s: float
) -> list[bool]:
    """Which choices to take, at most one of each group, for the most worth in the time."""
    fits = [cost_s <= left_s for cost_s in costs_s]
    if not any(fits):
        return fits
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    # A knapsack with one choice per recipe: the best rate alone may leave no room for two others
    # that decide more together.
    costs = np.array(costs_s)
    one_of_each = np.array([[group == name for name in groups] for group in dict.fromkeys(groups)])
    found = milp(
        _LEAST_TIME * costs / left_s - np.array(values),
        integrality=1,
        bounds=Bounds(0, np.array(fits, dtype=float)),
        constraints=[LinearConstraint(one_of_each, ub=1), LinearConstraint(costs, ub=left_s)],
        options={"mip_rel_gap": 0.0},
    )
    return [bool(taken > 0.5) for taken in found.x]


def worth(claims: Sequence[Claim], setting: Setting, runs: int) -> float:
    """How many of `claims` so many rounds decide; a number without a verdict is worth a little."""
    total = 0.0
    for claim in claims:
        if undecidable(claim, setting):
            total += _UNDECIDED_WORTH if runs else 0.0
        elif runs >= MIN_RUNS or (runs and _is_count(claim)):
            total += 1.0
        elif runs:
            total += _INTERVAL_WORTH if runs >= INTERVAL_RUNS else _UNDECIDED_WORTH
    return total


def _is_count(claim: Claim) -> bool:
    """Whether one round decides it."""
    return all(effect.quantifier == "exact" for effect in claim.effects)


def undecidable(claim: Claim, setting: Setting) -> bool:
    """Whether a measurement here gives a number but no verdict."""
    return any(
        check.state == "unknown" and name in _NO_RUN_SETTLES for name, check in claim.checks.items()
    ) or not all(
        hardware_fits(effect, claim, platform=setting.platform, hardware=setting.hardware)
        for effect in claim.effects
    )


def _not_allowed(recipe: Recipe, setting: Setting, tiers: Sequence[str]) -> str:
    if recipe.level not in tiers:
        return (
            f"Needs the tier “{recipe.level}”, which the parameter “tiers” does not include."
            f" Add it to run {recipe.name}."
        )
    if setting.platform not in recipe.platforms:
        wanted = " or ".join(recipe.platforms)
        return f"{recipe.name} needs {wanted}; this machine has {setting.platform}."
    if recipe.needs and not setting.engine.find(recipe.needs):
        where = "this environment" if setting.engine.own else setting.engine.path
        return (
            f"{recipe.name} needs {recipe.needs}, which {where} does not have. Set engine_python to"
            " an interpreter that has it."
        )
    return ""


def _no_recipe(claim: Claim) -> str:
    how = claim.test.get("gpu") or claim.test.get("analytic") or ""
    if how.startswith("Nothing to measure"):
        return how
    return "This run does not measure this claim." + (
        f" To test it: {how.rstrip('.')}." if how else ""
    )


def _rounded_up(seconds: float) -> int:
    return 10 * ceil(seconds / 10)
