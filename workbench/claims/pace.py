"""What recipes took, and how slow that shows this machine to be: pure, for the plan of the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import nan

from workbench.claims.budget import Schedule, Step
from workbench.claims.recipe import Outcome, Setting
from workbench.experiment.run.time_limit import TimeLimit

__all__ = ["Measured", "Spent", "planned_rounds", "slowness_of", "why_stopped"]

FASTEST = 0.7
"""Of its estimate: what the plan of the rest counts on at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a recipe took; `time_spent` of result.json."""

    recipe: str
    level: str
    planned_s: float
    took_s: float
    rounds: int
    """That ended."""
    planned_rounds: int
    requests_share: float
    slowness: float | None
    """How many times as long as estimated it took; None where that cannot be told."""


@dataclass(slots=True, kw_only=True)
class Measured:
    """What has been measured so far, and the plan of the rest."""

    plan: Schedule
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    spent: list[Spent] = field(default_factory=list)
    under_way: tuple[str, float, float] = "", nan, 0.0
    """Of the recipe under way: level, how many times as long as estimated it takes, seconds."""

    def slowness(self, level: str) -> float:
        """How many times as long as estimated a level takes here, by all of it that was measured.

        Of a level that was not, or an empty one, what all levels say; 1 where nothing does.
        """
        known = [
            (spent.level, spent.slowness, spent.took_s)
            for spent in self.spent
            if spent.slowness is not None
        ]
        if self.under_way[1] > 0:
            known.append(self.under_way)
        known = [one for one in known if one[0] == level] or known
        took_s = sum(seconds for *_, seconds in known)
        if not took_s:
            return 1.0
        return max(FASTEST, took_s / sum(seconds / times for _, times, seconds in known))


def slowness_of(step: Step, setting: Setting, limit: TimeLimit) -> float | None:
    """How many times as long as estimated a step took."""
    if not limit.rounds:
        # Nothing ended: it takes at least as long as it ran.
        least_s = step.recipe.estimate_s(replace(setting, runs=1, allotted_s=0.0))
        return max(1.0, limit.elapsed_s / least_s) if limit.broken_off and least_s else None
    if setting.allotted_s and step.recipe.most_s is not None:
        # It fills the time that it is given, so that only an overrun says something.
        return (
            limit.elapsed_s / setting.allotted_s if limit.elapsed_s > setting.allotted_s else None
        )
    return limit.slowness if limit.slowness > 0 else None


def planned_rounds(step: Step, limit: TimeLimit) -> int:
    """Planned ones; what is counted once has a single round."""
    return step.runs if limit.round_s > 0 else 1


def why_stopped(step: Step, limit: TimeLimit) -> str:
    """Why a step has fewer rounds than planned."""
    name, took_s, planned_s = step.recipe.name, limit.elapsed_s, step.estimate_s
    return (
        f"{name} was stopped after {limit.rounds} of {planned_rounds(step, limit)} rounds: it took"
        f" {took_s:.0f} s, and {planned_s:.0f} s were planned for all; raise time_budget_s."
    )
