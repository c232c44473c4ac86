"""Measures recipes one after another, within a time that holds on any machine.

If one measurement fails, its claims say why and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path

from workbench.claims.recipes.recipe import Outcome, Recipe, Setting
from workbench.claims.registry.claim import Claim
from workbench.claims.validation.budget import INTERVAL_RUNS, Schedule, Step, schedule, worth
from workbench.claims.verdict.decision import MIN_RUNS
from workbench.errors import WorkbenchError
from workbench.experiment.run.progress import Standing
from workbench.experiment.run.run_log import Echo
from workbench.experiment.run.time_limit import TimeLimit

_STOPS = 1.15
"""All measuring stops after this many times the budget; 1.2 times include stopping and writing."""
_ENDS = 1.1
"""Rounds of a started measurement may end this many times the budget after the start."""
_SAME_WORTH = 0.5
"""Claims that others must decide in addition before a started recipe makes room for them."""
_MOST, _LEFT_MOST = 3.0, 0.75
"""A recipe is stopped after this many times its estimate, or this fraction of the time that is
left, whichever is more."""
_FASTEST = 0.7
"""The fraction of its estimate that a recipe is planned with at least."""
_SLOW = 1.3
"""From here on the page reports a slow machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a recipe took; `time_spent` of result.json."""

    recipe: str
    level: str
    planned_s: float
    took_s: float
    rounds: int
    """Finished rounds."""
    planned_rounds: int
    requests_share: float
    slowness: float | None
    """Measured over estimated time; None if unknown."""


@dataclass(slots=True, kw_only=True)
class Measuring:
    """What has been measured so far, and the plan of the rest."""

    claims: Sequence[Claim]
    setting: Setting
    tiers: Sequence[str]
    plan: Schedule
    home: Path
    """Gets a folder `runs/<recipe>/`."""
    echo: Echo
    clock: Callable[[], float]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Claim -> why its measurement failed."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Claim -> why its measurement was stopped without a result."""
    spent: list[Spent] = field(default_factory=list)
    _recipes: dict[str, Recipe] = field(init=False)
    _under_way: tuple[str, float, float] = "", nan, 0.0
    """Level, measured over estimated time, and seconds of the recipe that is running."""
    _began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._began_s = self.clock()
        offered = (*self.plan.steps, *self.plan.waiting)
        self._recipes = {step.recipe.name: step.recipe for step in offered}

    @property
    def gone_s(self) -> float:
        """Seconds since the measuring began."""
        return self.clock() - self._began_s

    @property
    def budget_s(self) -> float:
        return self.setting.budget_s

    def recipe_of(self, claim_id: str) -> Recipe | None:
        """The last recipe that measured a claim, or tried to."""
        begun = [self._recipes[spent.recipe] for spent in self.spent]
        return next((each for each in reversed(begun) if claim_id in each.claims), None)

    async def run(self) -> None:
        """Measure what fits; make a new plan after each recipe, since it took more or less."""
        while self.plan.steps:
            # Only the first step of a plan runs: the time it took changes the rest.
            await self._measure(self.plan.steps[0])
            before = [step.recipe.name for step in self.plan.steps[1:]]
            left, gone_s = self._left(), self.gone_s
            self._under_way = "", nan, 0.0
            self.plan = self._planned(left, gone_s)
            now = [step.recipe.name for step in self.plan.steps]
            if now != before and left:
                self.echo(
                    f"{gone_s:.0f} of {self.budget_s:.0f} s used; new plan:"
                    f" {', '.join(now) or 'nothing more fits'}"
                )
        self.echo(f"all claims judged{self._standing(self.gone_s)}")

    @property
    def doubts(self) -> list[str]:
        """What was stopped, and what a slow machine left out."""
        doubts = list(dict.fromkeys(self.stopped.values()))
        if (slowness := self._slowness("")) >= _SLOW:
            names = ", ".join(step.recipe.name for step in self.plan.waiting)
            left_out = f"; not measured: {names}." if names else "."
            doubts.insert(0, f"This machine took {slowness:.1f}x the planned time{left_out}")
        return doubts

    async def _measure(self, step: Step) -> None:
        """Run one recipe within its time; an error becomes a sentence on its claims."""
        recipe, gone_s = step.recipe, self.gone_s
        limit = self._limit(step, gone_s)
        setting = replace(
            self.setting, runs=step.runs, requests_share=step.requests_share, limit=limit,
            allotted_s=step.estimate_s, output_dir=self.home / "runs" / recipe.name,
            echo=self.echo,
        )  # fmt: skip
        self.echo(f"{recipe.level} level, {recipe.name}: {recipe.what}{self._standing(gone_s)}")
        said = [step.cut] if step.cut else []
        if step.cut:
            self.echo(step.cut)
        began_s = self.clock()
        try:
            outcome = await recipe.run(setting)
            if limit.cut:
                said.append(_why_stopped(step, limit))
                self.echo(said[-1])
            self.outcomes[recipe.name] = replace(outcome, doubts=(*said, *outcome.doubts))
        except Exception as error:
            kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
            reason = f"{recipe.name} failed: {kind}{' '.join(str(error).split())[:400]}"
            kept = self.failed
            if limit.cut:
                reason, kept = _why_stopped(step, limit), self.stopped
            kept |= dict.fromkeys(step.claims, reason)
            self.echo(reason)
        self.spent.append(
            Spent(
                recipe=recipe.name, level=recipe.level, planned_s=round(step.estimate_s, 1),
                took_s=round(self.clock() - began_s, 1), rounds=limit.rounds,
                planned_rounds=_planned_rounds(step, limit), requests_share=step.requests_share,
                slowness=_slowness_of(step, setting, limit),
            )
        )  # fmt: skip

    def _limit(self, step: Step, gone_s: float) -> TimeLimit:
        """How long a step may take, given its estimate and the time left for it and the others."""
        budget_s, recipe = self.budget_s, step.recipe
        setting = replace(self.setting, requests_share=step.requests_share)
        once_s = recipe.estimate_s(replace(setting, runs=1))
        round_s = recipe.estimate_s(replace(setting, runs=2)) - once_s
        others = self._left(beside=recipe.name)
        most_s = max(0.0, _STOPS * budget_s - gone_s)
        if others:
            left_s = max(0.0, budget_s - gone_s)
            most_s = min(most_s, max(_MOST * step.estimate_s, _LEFT_MOST * left_s))
        ours = [claim for claim in self.claims if claim.id in step.claims]

        def goes_on(limit: TimeLimit, planned: int) -> bool:
            """Whether the next rounds decide more than other recipes would in that time."""
            left_s = _ENDS * budget_s - gone_s - limit.elapsed_s
            if limit.each_s > left_s or not others:
                return limit.each_s <= left_s
            self._under_way = recipe.level, limit.slowness, limit.elapsed_s
            # Compare two futures: the others start now, or after further rounds of this one. Only
            # five rounds, three, or one more can change a verdict.
            now_s = gone_s + limit.elapsed_s
            now = worth(ours, setting, limit.rounds)
            elsewhere = self._worth(self._planned(others, now_s))
            for rounds in dict.fromkeys((min(planned, MIN_RUNS), INTERVAL_RUNS, limit.rounds + 1)):
                cost_s = (rounds - limit.rounds) * limit.each_s
                if not limit.rounds < rounds <= planned or cost_s > left_s:
                    continue
                then = self._worth(self._planned(others, now_s + cost_s))
                if worth(ours, setting, rounds) - now + then >= elsewhere - _SAME_WORTH:
                    return True
            return False

        return TimeLimit(
            most_s=most_s, goes_on=goes_on, fixed_s=once_s - round_s, round_s=round_s,
            clock=self.clock,
        )  # fmt: skip

    def _left(self, *, beside: str = "") -> list[Recipe]:
        done = {spent.recipe for spent in self.spent} | {beside}
        return [recipe for name, recipe in self._recipes.items() if name not in done]

    def _planned(self, left: Sequence[Recipe], gone_s: float) -> Schedule:
        """The plan of these recipes for the time that is left, at the speed of this machine."""
        served = {name for recipe in left for name in recipe.claims}
        return schedule(
            [claim for claim in self.claims if claim.id in served], left, self.setting,
            tiers=self.tiers, budget_s=self.budget_s, spent_s=gone_s, slowness=self._slowness,
        )  # fmt: skip

    def _worth(self, plan: Schedule) -> float:
        claims = {claim.id: claim for claim in self.claims}
        return sum(
            worth([claims[name] for name in step.claims], self.setting, step.runs)
            for step in plan.steps
        )

    def _standing(self, gone_s: float) -> str:
        """The progress for the end of a line; the budget limits the time left."""
        done, steps = len(self.spent), self.plan.steps
        if not done and not steps:
            return ""
        planned_s = sum(step.estimate_s for step in steps)
        standing = Standing(
            done=done, total=done + len(steps), elapsed_s=gone_s, unit="measurements",
            left_s=min(planned_s, max(0.0, self.budget_s - gone_s)),
        )  # fmt: skip
        return f"  {standing}"

    def _slowness(self, level: str) -> float:
        """Measured over estimated time of a level; of all levels if it has none, 1 if none has."""
        known = [
            (spent.level, spent.slowness, spent.took_s)
            for spent in self.spent
            if spent.slowness is not None
        ]
        if self._under_way[1] > 0:
            known.append(self._under_way)
        known = [one for one in known if one[0] == level] or known
        took_s = sum(seconds for *_, seconds in known)
        if not took_s:
            return 1.0
        return max(_FASTEST, took_s / sum(seconds / times for _, times, seconds in known))


def _slowness_of(step: Step, setting: Setting, limit: TimeLimit) -> float | None:
    """Measured over estimated time of a step."""
    if not limit.rounds:
        # No round finished: the step takes at least as long as it ran.
        least_s = step.recipe.estimate_s(replace(setting, runs=1, allotted_s=0.0))
        return max(1.0, limit.elapsed_s / least_s) if limit.broken_off and least_s else None
    if setting.allotted_s and step.recipe.most_s is not None:
        # It uses all the time that it gets, so only an overrun is information.
        times = limit.elapsed_s / setting.allotted_s
        return times if times > 1 else None
    return limit.slowness if limit.slowness > 0 else None


def _planned_rounds(step: Step, limit: TimeLimit) -> int:
    """The planned rounds; counts need one."""
    return step.runs if limit.round_s > 0 else 1


def _why_stopped(step: Step, limit: TimeLimit) -> str:
    """Why a step has fewer rounds than planned."""
    name, took_s, planned_s = step.recipe.name, limit.elapsed_s, step.estimate_s
    return (
        f"{name} was stopped after {limit.rounds} of {_planned_rounds(step, limit)} rounds, after"
        f" {took_s:.0f} of {planned_s:.0f} planned seconds. Set a larger time_budget_s."
    )
