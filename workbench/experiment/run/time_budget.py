"""Which rounds fit into `time_budget_s`: whole rounds only, the same number for all arms."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from statistics import mean

from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.run.run_log import Log


@dataclass(slots=True)
class TimeBudget:
    """The time that a run may use, earlier sessions included; 0 is no limit.

    The first round always runs. A further one is begun, or finished after a resume, only if its
    missing launches fit by the durations measured so far. A round that was begun is not stopped.
    """

    plan: ExperimentPlan
    log: Log
    clock: Callable[[], float] = time.monotonic
    before_s: float = 0.0
    """Used by earlier sessions."""
    rounds: int = field(init=False)
    """Rounds that it allows, as far as asked."""
    dropped: int = 0
    """Launches of earlier sessions in rounds that it does not allow."""
    _began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._began_s = self.clock()
        self.rounds = self.plan.rounds
        self.before_s = sum(one.duration_s for one in self.log.sessions[:-1])

    @property
    def session_s(self) -> float:
        """Used so far by this session."""
        return self.clock() - self._began_s

    @property
    def spent_s(self) -> float:
        """Used so far, by all sessions."""
        return self.before_s + self.session_s

    def allows(self, number: int, left_out: Collection[str] = ()) -> bool:
        """Whether a round may be run; arms that are `left_out` need no time."""
        budget_s, took_s = self.plan.params.time_budget_s, self.log.took_s
        missing = [
            arm.label
            for arm in self.plan.arms
            if (number, arm.label) not in self.log.ended and arm.label not in left_out
        ]
        if not (budget_s and number and missing and took_s):
            return True
        others_s = mean(second for seconds in took_s.values() for second in seconds)
        needed_s = sum(mean(took_s.get(label) or [others_s]) for label in missing)
        if self.spent_s + needed_s > budget_s:
            self.rounds = number
            self.dropped = sum(begun >= number for begun, _ in self.log.ended)
            return False
        return True

    def doubts(self) -> list[str]:
        """What the budget left out of the plan, and whether it was exceeded."""
        budget_s, planned = self.plan.params.time_budget_s, self.plan.rounds
        rounds, found = self.rounds, []
        if rounds < planned:
            left = planned - rounds
            said = f"The last {left} {'was' if left == 1 else 'were'} not run"
            if self.dropped:
                many = "1 launch is" if self.dropped == 1 else f"{self.dropped} launches are"
                said = f"A later round was begun: its {many} left out"
            found.append(
                f"time_budget_s {budget_s:g} was enough for {rounds} of {planned} rounds. {said}."
            )
        if budget_s and self.spent_s > budget_s:
            found.append(
                f"The run took {self.spent_s:.0f} s, longer than time_budget_s {budget_s:g},"
                " because a round that has started is finished."
            )
        return found
