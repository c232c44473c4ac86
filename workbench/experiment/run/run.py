"""Runs a plan: for each round and arm a fresh deployment, then its passes.

Requests are written to disk after each pass, counters and gauges after each launch, so that a run
that breaks off keeps what it measured.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import mean

from workbench.errors import DeploymentError, LaunchError, ResultError
from workbench.experiment.findings.link_findings import earlier_links
from workbench.experiment.plan.arm import Arm, load_pass
from workbench.experiment.plan.duration import remember_launch
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import (
    SessionFacts,
    Status,
)
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.launch.measure import measure_arm
from workbench.experiment.run.probe import fitted
from workbench.experiment.run.progress import ANY_LOAD, Progress
from workbench.experiment.run.progress_bar import bar_in_lab
from workbench.experiment.run.run_facts import facts_of, facts_so_far
from workbench.experiment.run.run_log import Echo, Log, OnRecord, echo_line
from workbench.experiment.run.servers import check_installed, check_tiers, deployed
from workbench.experiment.run.sessions import (
    Session,
    begin_session,
    compare,
    kept_so_far,
    launch_name,
)
from workbench.experiment.run.time_budget import TimeBudget
from workbench.experiment.run.time_limit import TimeLimit, keep_rounds, keep_whole_rounds
from workbench.experiment.run.under_way import NowFile
from workbench.experiment.run.watch import Watch
from workbench.load.drive.open_files import most_in_flight, reserve_files
from workbench.metrics.latency import succeeded
from workbench.params.notebooks import LMCacheHitAnalysis
from workbench.params.pd_sweep import PdSweep
from workbench.serve.attach import attach
from workbench.serve.deployed import Deployment
from workbench.serve.deployment import launcher_for
from workbench.serve.processes.launcher import Launcher

CONCLUDES_EVERY = 20
"""Time between two writes of the findings so far, as a multiple of what one write takes."""


async def run(
    plan: ExperimentPlan,
    *,
    echo: Echo = echo_line,
    limit: TimeLimit | None = None,
    progress: bool = True,
    on_record: OnRecord | None = None,
) -> Result:
    """Measure all arms in all rounds and write the run folder.

    Returns the result after the last round, or after as many as `limit` allows. An error or an
    interrupt stops all servers, saves what was measured with status `failed` or `cancelled`, and is
    raised again; an earlier good result of the same run id stays. `progress` False prints lines
    without progress, for a run that is part of another. `on_record` is told each request that ends,
    by the thread that drives the load, so it must return at once.
    """
    # Before the servers start: a proxy inherits the limit.
    reserve_files(most_in_flight(plan.arrivals, timeout_s=plan.params.timeout_s))
    known = facts_of(plan, Log(sessions=[SessionFacts(number=1, started_at="")]), "started", 0.0)
    session = begin_session(plan, known, resume=limit is None, echo=echo)
    log = session.log
    log.on_record = on_record
    try:
        log.earlier = earlier_links(plan)
        with bar_in_lab(echo) if progress else nullcontext(echo) as shown:
            far = _progress(plan, log) if progress else None
            shown(f"{plan.notebook} {plan.run_id}" + (f"  {far.standing}" if far else ""))
            if log.ended:
                shown(kept_so_far(plan, log))
            return await _run(plan, session, far, shown, limit or TimeLimit())
    finally:
        session.folder.let_go()


async def _run(
    plan: ExperimentPlan,
    session: Session,
    far: Progress | None,
    echo: Echo,
    limit: TimeLimit,
) -> Result:
    folder, log = session.folder, session.log
    budget = TimeBudget(plan, log)
    planned = plan
    now = NowFile(folder, plan, log, far)
    now.say("starts")
    # A killed kernel writes nothing at its end, so its result says "started".
    folder.write_facts(facts_so_far(plan, log, 0.0))
    status: Status = "failed"
    watch: Watch | None = None
    try:
        watch = await Watch.begun(plan, folder)
        async with _launcher(plan, folder, log) as launcher, limit.enforced():
            launches = _Launches(plan, launcher, session, watch, echo, now, budget, far)
            if log.ended:
                await launches.repeat_first()
            await launches.all_rounds(limit)
            plan = launches.plan
        plan = keep_whole_rounds(plan, log, limit, folder)
        if budget.rounds < planned.rounds:
            plan = keep_rounds(plan, log, budget.rounds, folder)
        for doubt in budget.doubts():
            log.doubt(doubt)
        _must_have_measured(log)
        status = "success"
    except asyncio.CancelledError:
        status = "cancelled"
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DeploymentError(
            f"the disk of {folder.attempt} is full ({error.strerror}); free some space and run the"
            f" same command again: {len(log.ended)} finished launches are kept"
        ) from error
    finally:
        if watch is not None:
            await watch.ended(log)
        facts = facts_of(plan, log, status, budget.session_s, planned)
        with nullcontext() if status == "success" else suppress(OSError):
            folder.write_facts(facts)  # the first error matters more than a failed write
        if facts.status == "success":
            folder.promote()
        where = folder.home if facts.status == "success" else folder.attempt
        echo(f"{facts.status} after {facts.duration_s:.0f} s: {where}")
    if facts.status != "success":
        raise ResultError(f"{facts.finding}; the rows are in {folder.attempt}")
    frames = {name: log.frame(name) for name in ("requests", "legs")}
    return Result(run=facts, folder=folder.home, frames=frames)


@dataclass(slots=True)
class _Launches:
    """Runs the launches of one session, one after the other."""

    plan: ExperimentPlan
    launcher: Launcher | None
    session: Session
    watch: Watch
    echo: Echo
    now: NowFile
    budget: TimeBudget
    far: Progress | None
    left_out: set[str] = field(default_factory=set)
    """Arms that are no longer launched."""
    failed: set[str] = field(default_factory=set)
    """Arms with a launch that was skipped."""
    first_error: LaunchError | None = None
    fits: bool = False
    """The requests have the form that the servers accept."""
    concluded_s: float = field(default_factory=time.monotonic)
    """When the findings so far were last written."""
    concluding_s: float = 0.5
    """How long that took."""

    @property
    def log(self) -> Log:
        """What the run has collected."""
        return self.session.log

    async def launch(self, arm: Arm, number: int) -> None:
        """Measure an arm in a round, unless an earlier session has done so.

        A launch whose servers do not start, or end by themselves, is tried once more. If they do
        not start again, it is skipped, and after a second skipped launch so is the whole arm.
        """
        label, name = arm.label, launch_name(number, arm.label)
        if label in self.left_out or (number, label) in self.log.ended:
            return
        try:
            await self._tried(arm, number)
        except LaunchError as error:
            self.first_error = self.first_error or error
            reason = _first_line(error)
            again = arm.may_fail or label in self.failed
            self.failed.add(label)
            if again:
                self.left_out.add(label)
            skipped = f"{name}, and later rounds were" if again else f"{name}, was"
            self.log.doubt(f"{f'{label} was' if arm.may_fail else skipped} skipped: {reason}.")
            self.echo(self.log.doubts[-1])
        if self.far is not None:
            self.far.launch_ended(number, label, left_out=label in self.left_out)
            if self.far.replanned:
                self.echo(self.far.replanned)

    async def all_rounds(self, limit: TimeLimit) -> None:
        """Measure as many rounds as `limit` and time budget allow.

        Raises the first LaunchError if no arm has started in the first round.
        """
        for number in limit.rounds_of(self.plan.rounds):
            if not self.budget.allows(number, self.left_out):
                return
            for arm in self.plan.order(number):
                await self.launch(arm, number)
                self._conclude_so_far()
            if self.first_error is not None and not self.log.passes:
                raise self.first_error

    def _conclude_so_far(self) -> None:
        """Write what was found so far, for a partial page; it takes at most 5 % of the time."""
        began_s = time.monotonic()
        if began_s - self.concluded_s < CONCLUDES_EVERY * self.concluding_s:
            return
        with suppress(OSError):  # a full disk ends the run where rows are lost, not here
            facts = facts_so_far(self.plan, self.log, self.budget.session_s)
            self.session.folder.write_facts(facts)
        self.concluded_s = time.monotonic()
        self.concluding_s = self.concluded_s - began_s

    async def _tried(self, arm: Arm, number: int) -> None:
        """One launch, and once more if it fails.

        An arm that its engine may refuse is not tried again if it does not start.
        """
        name = launch_name(number, arm.label)
        try:
            failure = await self._measured(arm, number)
            if failure and arm.settings is not None:
                self.session.forget_launch()
                self.log.doubt(f"{name}, was measured again: {failure}.")
        except LaunchError as error:
            if arm.may_fail:
                raise
            failure = _first_line(error)
        if failure and arm.settings is not None:
            self.echo(f"{failure}; trying once more")
            await self._measured(arm, number)

    async def _measured(self, arm: Arm, number: int) -> str:
        """Start, measure and stop an arm; why a server ended by itself, empty if none did."""
        log, folder = self.log, self.session.folder
        began_s = time.monotonic()
        self.session.launch_begins()
        self.now.say("starts servers", arm.label, number)
        async with _deployment(self.plan, arm, number, self.launcher, folder) as deployment:
            _check_model(log, arm, deployment)
            if not self.fits:
                found = await fitted(self.plan.part_of(arm), deployment, log.doubt)
                self.plan = replace(self.plan, form=found.form) if self.plan.by_model else found
                self.fits = True
            arm = next(one for one in self.plan.arms if one.label == arm.label)
            async with self.watch.launch(arm, deployment, log):
                ended = await measure_arm(
                    self.plan.part_of(arm), arm, number, deployment, folder, log, self.echo,
                    self.far, self.watch, self.now,
                )  # fmt: skip
            self.now.say("stops servers", arm.label, number)
        took_s = time.monotonic() - began_s
        if self.session.launch_ended(number, arm.label, took_s=took_s):
            if key := self.plan.launch_key(arm):
                remember_launch(key, took_s)
        return ended

    async def repeat_first(self) -> None:
        """Measure the very first launch once more, to see whether the machine has changed."""
        number, label = self.log.ended[0]
        arm = next(arm for arm in self.plan.arms if arm.label == label)
        name = launch_name(number, label)
        folder = self.session.folder.repeated()
        again = Log()
        self.echo(f"first repeating {name}, to detect drift")
        self.now.say("repeats to detect drift", label, number)
        try:
            async with _deployment(self.plan, arm, number, self.launcher, folder) as deployment:
                _check_model(self.log, arm, deployment)
                part = self.plan.part_of(arm)
                reason = await measure_arm(part, arm, number, deployment, folder, again, self.echo)
        except LaunchError as error:
            reason = _first_line(error)
        else:
            self.session.repeat_ended()
            if compare(self.log, again, name):
                return
            reason = reason or "no request succeeded in a pass measured before"
        self.log.doubt(f"{name}, could not be repeated to detect drift: {reason}.")


def _check_model(log: Log, arm: Arm, deployment: Deployment) -> None:
    """Refuse an attached server that serves another model than before. Raises DeploymentError."""
    before = log.arms.get(arm.label)
    if before is not None and before.model != deployment.model:
        raise DeploymentError(
            f"{deployment.url} serves {deployment.model}, but the launches so far are of"
            f" {before.model}; serve that, or measure all again (example: workbench run --force)"
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _progress(plan: ExperimentPlan, log: Log) -> Progress:
    """All passes of the plan that are not in `log` yet.

    A search is expected to try the usual number of loads.
    """
    steps = []
    for number in range(plan.rounds):
        for arm in plan.order(number):
            if (number, arm.label) in log.ended:
                continue
            names = [one.name for one in arm.passes]
            if (loads := plan.loads) is not None:
                names += [
                    ANY_LOAD if loads.search else load_pass(loads.unit, load).name
                    for load in loads.expected
                ]
            steps += [(number, arm.label, name) for name in names]
    launch_s = dict(plan.duration.launch_s) | {
        arm: mean(seconds) for arm, seconds in log.took_s.items() if seconds
    }
    missing = dict.fromkeys((number, label) for number, label, _ in steps)
    planned_s = plan.once_s + sum(launch_s[label] for _, label in missing)
    return Progress(steps, planned_s=planned_s, once_s=plan.once_s)


def _must_have_measured(log: Log) -> None:
    """A run without a single success is a failure, and must not replace an earlier result."""
    requests = log.frame("requests")
    if requests.empty:
        raise DeploymentError(f"no pass could be measured; {' '.join(log.doubts[-1:])}")
    if not succeeded(requests).any():
        first = requests.iloc[0]
        raise DeploymentError(
            f"all {len(requests)} requests failed; first error: {first['error']}"
            f" {first['error_message']}"
        )


@asynccontextmanager
async def _launcher(
    plan: ExperimentPlan, folder: RunFolder, log: Log
) -> AsyncIterator[Launcher | None]:
    """The launcher of a run, which loads while the first arm is prepared; None for attach."""
    settings = plan.arms[0].settings
    if settings is None:
        yield None
        return
    for arm in plan.arms:  # now, not when the arms before it have been measured
        await check_tiers(arm)
        if not arm.may_fail:
            check_installed(arm)
    plans = [arm.deployment(count(20_000)) for arm in plan.arms]
    notes: list[str] = []
    try:
        async with launcher_for(
            settings, folder.logs, fork=plan.params.fork, plans=plans
        ) as launcher:
            notes = launcher.notes
            yield launcher
    finally:  # of a run that failed, too, and of its end
        for note in notes:
            log.doubt(note)


@asynccontextmanager
async def _deployment(
    plan: ExperimentPlan, arm: Arm, number: int, launcher: Launcher | None, folder: RunFolder
) -> AsyncIterator[Deployment]:
    if launcher is not None:
        logs = folder.new_logs(f"round-{number}", arm.label.replace(" ", "-"))
        async with deployed(arm, launcher, log_dir=logs) as deployment:
            yield deployment
        return
    assert isinstance(plan.params, PdSweep | LMCacheHitAnalysis)
    try:
        found = await attach(
            plan.params.base_url,
            model=plan.params.model,
            prefill_urls=plan.params.prefill_urls if isinstance(plan.params, PdSweep) else [],
            decode_urls=plan.params.decode_urls,
            lmcache_url=plan.params.lmcache_url,
        )
    except DeploymentError as error:
        if not number:
            raise
        reason = str(error).partition(";")[0]  # what follows is advice for the start of a run
        raise DeploymentError(
            f"the attached server failed after round {number} of {plan.rounds}"
            f" ({reason.partition(', but ')[2] or reason}); see its log and run again; measured"
            f" rounds are kept in {folder.attempt}"
        ) from error
    yield found
