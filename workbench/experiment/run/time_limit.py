"""How long a measurement may take: which rounds it starts, and when it is stopped.

The first round shows how long the others take; a further round starts only if there is time.
"""

from __future__ import annotations

import time
from asyncio import timeout
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf, isnan, nan
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.experiment.plan.plan import ExperimentPlan
    from workbench.experiment.result.facts import PassTime
    from workbench.experiment.result.finding_rows import ClockRow, EnergyRow
    from workbench.experiment.result.run_folder import RunFolder
    from workbench.experiment.run.run_log import Log


@dataclass(slots=True, kw_only=True)
class TimeLimit:
    """The time limit of one measurement of several rounds; by default there is none."""

    most_s: float = inf
    """After this time whatever is running is stopped."""
    goes_on: Callable[[TimeLimit, int], bool] = lambda limit, planned: True
    """Whether another round should start, given the planned number; asked from the second on."""
    fixed_s: float = 0.0
    """Planned time of what is done once, before the first round."""
    round_s: float = 0.0
    """Planned time of each round."""
    clock: Callable[[], float] = time.monotonic
    rounds_s: list[float] = field(default_factory=list)
    """The time of each round that ended; the first includes what is done once."""
    cut: bool = False
    """Fewer rounds were started than planned, or one was stopped."""
    broken_off: bool = False
    _began_s: float = nan

    @property
    def rounds(self) -> int:
        """Rounds that ended."""
        return len(self.rounds_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began; 0 before."""
        return 0.0 if isnan(self._began_s) else self.clock() - self._began_s

    @property
    def each_s(self) -> float:
        """Expected time of a further round, from those that ended; 0 without any."""
        if len(self.rounds_s) > 1:
            return median(self.rounds_s[1:])
        planned_s = self.fixed_s + self.round_s
        part = self.round_s / planned_s if planned_s > 0 else 1.0
        return sum(self.rounds_s) * part

    @property
    def slowness(self) -> float:
        """Actual over planned time of the rounds so far; NaN without any."""
        planned_s = self.fixed_s + self.rounds * self.round_s
        return sum(self.rounds_s) / planned_s if self.rounds and planned_s > 0 else nan

    def rounds_of(self, planned: int) -> Iterator[int]:
        """The numbers of the rounds to start; a round ends when the next number is requested."""
        self._begin()
        for number in range(planned):
            if number and not self.goes_on(self, planned):
                self.cut = True
                return
            begin_s = self.elapsed_s if number else 0.0
            yield number
            self.rounds_s.append(self.elapsed_s - begin_s)

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Stop what runs inside after `most_s`; a cancellation from outside is passed on."""
        self._begin()
        left_s = None if self.most_s == inf else max(0.0, self.most_s - self.elapsed_s)
        try:
            async with timeout(left_s) as timer:
                yield
        except TimeoutError:
            if not timer.expired():
                raise
            self.cut = self.broken_off = True

    def _begin(self) -> None:
        if isnan(self._began_s):
            self._began_s = self.clock()


def keep_whole_rounds(
    plan: ExperimentPlan, log: Log, limit: TimeLimit, folder: RunFolder
) -> ExperimentPlan:
    """The plan as far as it was measured; rows of an unfinished round are removed from `log`.

    If the first round is unfinished, its finished passes are kept. Requests that do not count stay
    on disk, in `requests_broken_off`.
    """
    if not limit.broken_off:
        return replace(plan, rounds=limit.rounds) if limit.cut else plan
    done = max(1, limit.rounds)
    ended = _keep_before(done, log, folder)
    if limit.rounds or plan.loads is not None:
        return replace(plan, rounds=done)
    arms = tuple(
        replace(arm, passes=tuple(p for p in arm.passes if (arm.label, 0, p.name) in ended))
        for arm in plan.arms
    )
    return replace(plan, rounds=done, arms=arms)


def keep_rounds(plan: ExperimentPlan, log: Log, rounds: int, folder: RunFolder) -> ExperimentPlan:
    """The plan with only its first rounds; all that is of later ones is removed from `log`."""
    if any(number >= rounds for number, _ in log.ended):
        _keep_before(rounds, log, folder)
    return replace(plan, rounds=rounds)


def _keep_before(done: int, log: Log, folder: RunFolder) -> set[tuple[str, int, str]]:
    """Remove what is not of a finished pass of the first `done` rounds; the passes that stay."""
    ended = {(p.arm, p.round, p.pass_name) for p in log.passes if p.round < done}
    for name in ("requests", "legs", "counters", "gauges"):
        rows = log.frame(name)
        if not len(rows):
            continue
        keys = zip(rows["arm"], rows["round"], rows["pass"], strict=True)
        kept = [key in ended for key in keys]
        if name == "requests" and not all(kept):
            log.broken_off.append(rows[[not keep for keep in kept]])
            folder.write("requests_broken_off", log.frame("broken_off"))
        setattr(log, name, [rows[kept]])
        folder.write(name, rows[kept])
    log.passes = [p for p in log.passes if p.round < done]
    _keep_launches_before(done, log, ended)
    return ended


def _keep_launches_before(done: int, log: Log, ended: set[tuple[str, int, str]]) -> None:
    """Remove from `log` what it says of launches and passes that do not stay."""

    def stays(each: PassTime | ClockRow | EnergyRow) -> bool:
        return (each.arm, each.round, each.pass_name) in ended

    gone_s = sum(each.to_s - each.from_s for each in log.pass_times if not stays(each))
    log.measuring_s = max(0.0, log.measuring_s - gone_s)
    log.pass_times = [each for each in log.pass_times if stays(each)]
    log.clocks = [each for each in log.clocks if stays(each)]
    log.energy = [each for each in log.energy if stays(each)]
    log.links = [each for each in log.links if each[1] < done]
    started = zip(log.launch_rounds, log.launches_s, strict=False)  # an old file has no rounds
    log.launches_s = [seconds for number, seconds in started if number < done]
    log.launch_rounds = [number for number in log.launch_rounds if number < done]
    took_s: dict[str, list[float]] = {}
    left_s = {arm: iter(seconds) for arm, seconds in log.took_s.items()}
    for number, arm in log.ended:  # in the order of their durations
        for second in islice(left_s.get(arm, iter(())), 1):
            if number < done:
                took_s.setdefault(arm, []).append(second)
    log.took_s = took_s
    # Here, because an engine's environment that imports this module lacks what a run needs.
    from workbench.experiment.run.sessions import launch_name

    gone = {launch_name(number, arm) for number, arm in log.ended if number >= done}
    log.sessions = [
        replace(one, launches=tuple(name for name in one.launches if name not in gone))
        for one in log.sessions
    ]
    log.ended = [(number, arm) for number, arm in log.ended if number < done]
