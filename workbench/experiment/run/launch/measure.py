"""One launch of one arm: warm up, then for each pass make its state, send the load, count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from math import isnan, lcm, nan
from typing import Any, TypeVar

import httpx
import pandas as pd

from workbench.errors import DeploymentError, ResetRefusedError
from workbench.experiment.plan.arm import Arm, Pass
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import ArmFacts, PassTime
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.launch.across_hosts import clock_rows, measure_links, read_clocks
from workbench.experiment.run.launch.energy import energy_rows, idle_watts, meters_of
from workbench.experiment.run.launch.greedy_ties import ask_where_answers_part
from workbench.experiment.run.launch.isolation import (
    CounterReading,
    make_state,
    read_counters,
    store_is_quiet,
    warm_up,
)
from workbench.experiment.run.launch.launch_counts import LaunchCounts
from workbench.experiment.run.launch.monitor import (
    watch_client,
    watch_proxy,
    watched_gauges,
    worker_count,
)
from workbench.experiment.run.progress import Progress
from workbench.experiment.run.run_log import Echo, Log, echo_line
from workbench.experiment.run.under_way import NowFile
from workbench.experiment.run.watch import Watch
from workbench.hardware.machine import ProcessorLoad
from workbench.hardware.power import watched
from workbench.load.drive.driver import LoadRun, drive_in_thread
from workbench.load.drive.workers import drive_in_workers, most_workers
from workbench.load.files.traces import trace_of_run
from workbench.load.workload.workload import Workload, asked_again
from workbench.metrics.latency import latencies, succeeded, system_tps
from workbench.records import RequestRecord, to_frame
from workbench.serve.deployed import Deployment
from workbench.serve.processes.launcher import Process
from workbench.serve.processes.startup import failure_line

_T = TypeVar("_T")
_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


async def measure_arm(
    plan: ExperimentPlan,
    arm: Arm,
    number: int,
    deployment: Deployment,
    folder: RunFolder,
    log: Log,
    echo: Echo = echo_line,
    far: Progress | None = None,
    watch: Watch | None = None,
    now: NowFile | None = None,
) -> str:
    """All passes of an arm in one round. A server that dies ends only this launch.

    Returns why the first server ended by itself, empty if none did.
    """
    log.launches_s.append(deployment.started_s)
    log.launch_rounds.append(number)
    log.arms.setdefault(arm.label, _arm_facts(arm, deployment))
    if (topology := deployment.topology) is not None:
        await warm_up(
            deployment,
            vocab_tokens=plan.workload.options["vocab_tokens"],
            salt=f"{folder.attempt.name}-warm-up-{number}",
            # The number of prefill-decode pairs that routing by index can make.
            pairs=lcm(topology.prefill or 1, topology.decode or topology.aggregated),
        )
    await measure_links(deployment, arm.label, number, log)
    # All arms of a round get the same prompts, so that they can be paired. The attempt's salt
    # makes the prompts of other rounds and reruns different; servers that live longer than a
    # session may have seen those of the one before.
    salt = f"{folder.attempt.name}-{number}"
    if deployment.plan is None and len(log.sessions) > 1:
        salt += f"-session-{len(log.sessions)}"
    prompts = plan.workload.build(salt)
    launch = _Launched(plan, arm, number, deployment, folder, log, now)
    launch.idle_w = await idle_watts(launch.meters)
    where = f"{arm.label}, round {number + 1}"
    whole, ended = prompts, ""
    for measured in plan.passes(arm, number, lambda: log.frame("requests")):
        if measured.requests and measured.state == "cold":
            # The same prompts in every size, so that texts can be compared.
            prompts = replace(whole, requests=whole.requests[: measured.requests])
        if measured not in arm.passes:
            # What one load of a sweep left in a cache must not serve the next.
            prompts = plan.workload.build(f"{salt}-{measured.name}")
        try:
            prompts, line = await _while_servers_live(deployment, launch.measure(measured, prompts))
            if watch is not None:
                await watch.pass_ended(log)
        except DeploymentError as error:
            line = str(error)
            if isinstance(error, ResetRefusedError):
                log.refusals.append(f"{where}, {measured.name}: {line}")
            log.reasons.append(line)
            log.doubt(f"{where}, {measured.name}: {line}")
        standing = f"  {far.pass_ended(number, arm.label, measured.name)}" if far else ""
        echo(
            f"round {number + 1}/{plan.rounds}  {arm.label:14} {measured.name:15} {line}{standing}"
        )
        if dead := deployment.dead():
            reasons = [failure_line(process, "ended by itself") for process in dead]
            ended = reasons[0]
            for reason in reasons:
                log.reasons.append(f"{where}: {reason}")
                log.doubt(f"{where}: {reason}")
            echo(f"{dead[0].spec.name} ended by itself; log: {dead[0].log}")
            break
    else:
        asked = plan.loads is None  # concurrent responses differ by the shape of their batch
        if asked and await ask_where_answers_part(
            plan, arm.label, number, prompts, deployment, log.requests
        ):
            folder.write("requests", log.frame("requests"))
    # Thousands of series a pass: once a launch is often enough.
    folder.write("counters", log.frame("counters"))
    folder.write("gauges", log.frame("gauges"))
    return ended


async def _while_servers_live(deployment: Deployment, measuring: Awaitable[_T]) -> _T:
    """Stop a pass when a server ends, because requests would wait for a timeout.

    So would a reading of the counters of a host that is cut off.
    """
    load = asyncio.ensure_future(measuring)
    needed = _needed(deployment)
    if not needed:
        return await load
    awaited: list[asyncio.Future[Any]] = [load, *(p.exited for p in needed)]
    try:
        await asyncio.wait(awaited, return_when="FIRST_COMPLETED")
    finally:
        if not load.done():
            load.cancel()
            await asyncio.wait([load])
    if load.cancelled():
        raise _stopped_by(next(process for process in needed if not process.alive))
    return load.result()


def _needed(deployment: Deployment) -> list[Process]:
    return [p for p in deployment.processes if p.spec.role in deployment.stalling_roles]


def _stopped_by(ended: Process) -> DeploymentError:
    return DeploymentError(failure_line(ended, "ended by itself, and the pass was stopped"))


async def _check_unread(deployment: Deployment, reading: CounterReading) -> None:
    """Raise, as a stopped pass does, if a server that is needed ended and its requests were faster.

    The news of its end takes a moment, so it is waited for if the counters could not be read.
    """
    unread = {name for name, counters in reading.engines.items() if not counters.values}
    silent = [process for process in _needed(deployment) if process.spec.name in unread]
    if silent:
        await asyncio.wait([process.exited for process in silent], timeout=1.0)
    if ended := next((process for process in silent if not process.alive), None):
        raise _stopped_by(ended)


def _arm_facts(arm: Arm, deployment: Deployment) -> ArmFacts:
    lines = [p.command_line for p in deployment.plan.processes] if deployment.plan else []
    return ArmFacts(
        label=arm.label,
        topology=arm.topology_text,
        connector=arm.connector,
        short_model=arm.model,
        role=arm.role,
        gpus=arm.gpus,
        instances=len(deployment.instances),
        model=deployment.model,
        passes=tuple(p.name for p in arm.passes),
        command_lines=tuple(lines or [deployment.url]),
        hosts=deployment.plan.hosts if deployment.plan else {},
    )


class _Launched:
    """One launch of an arm, whose passes are measured one after the other."""

    def __init__(
        self,
        plan: ExperimentPlan,
        arm: Arm,
        number: int,
        deployment: Deployment,
        folder: RunFolder,
        log: Log,
        now: NowFile | None,
    ) -> None:
        self.plan, self.arm, self.number = plan, arm, number
        self.deployment, self.folder, self.log, self.now = deployment, folder, log, now
        self.counting = LaunchCounts(arm, number, deployment)
        self.meters = meters_of(arm, deployment)
        if self.meters.missing:
            log.unmetered[arm.label] = self.meters.missing
        self.idle_w: dict[str, float] = {}
        self.columns = {
            "arm": arm.label,
            "topology": arm.topology_text,
            "connector": arm.connector,
            "workload": plan.workload.name,
            "round": number,
        } | ({"model": arm.model} if arm.model else {})

    async def measure(self, measured: Pass, prompts: Workload) -> tuple[Workload, str]:
        """Make the state, send the workload, read the counters; returns the line to print.

        It also returns the prompts that later passes repeat. After a cold pass these are the ones
        that it sent, since the turns of a conversation contain the responses.
        """
        plan, deployment, log = self.plan, self.deployment, self.log
        made = await make_state(deployment, measured)
        for doubt in made.doubts:
            log.doubt(doubt)
        if made.refused:
            where = f"{self.arm.label}, round {self.number + 1}, {measured.name}"
            log.refusals.append(f"{where}: {made.refused}")
        cold = measured.state == "cold"
        workload = prompts if cold else asked_again(prompts, share=measured.share, seed=self.number)
        await deployment.legs()  # discards those of the warm-up, or of a pass that broke off
        clocks = await read_clocks(deployment, log)
        before = await read_counters(deployment)
        self.counting.begins(made, before)
        self._keep_kv_space(before)
        proxy_before = await deployment.proxy_stats()
        columns = {**self.columns, "pass": measured.name}
        load, rows, others_share = await self._drive(measured, workload, columns)
        if deployment.tiers:  # what was sent to them is compared with what they hold
            await store_is_quiet(deployment)
        after = await read_counters(deployment)
        await _check_unread(deployment, after)
        log.measuring_s += load.ended_s - load.started_s
        log.clocks += clock_rows(
            clocks, await read_clocks(deployment, log),
            arm=self.arm.label, number=self.number, pass_name=measured.name,
        )  # fmt: skip
        log.pass_times.append(self._time(measured, load))
        legs = await deployment.legs()
        log.legs.append(to_frame(legs, **columns))
        series = before.rows(**columns, when="before") + after.rows(**columns, when="after")
        log.counters.append(pd.DataFrame(series))
        self.folder.write("legs", log.frame("legs"))
        counted = after.since(before)
        if plan.form.first_token_from_prefill:
            counted = counted.without_first_tokens()
        for doubt in counted.doubts:
            log.doubt(doubt)
        workload = replace(workload, requests=load.sent)
        if cold:
            prompts = workload
            # A sweep over loads has many cold passes; the first is the one that is kept.
            if not self.number and all(known.arm != self.arm.label for known in log.passes):
                trace = trace_of_run(workload, load.records)
                self.folder.write_trace(self.arm.label, trace)
        log.passes.append(
            self.counting.ended(measured, prompts, workload, load.records, legs, after, counted)
        )
        known = rows["index"].map(self.counting.expected_cached)
        rows["expected_cached_tokens"] = known.fillna(-1).astype(int)
        self.folder.write("requests", log.frame("requests"))
        watch_proxy(proxy_before, await deployment.proxy_stats(), load, log)
        most = most_workers(workload, plan.arrivals_in(measured))
        watch_client(load, others_share, log, most=0 if plan.params.client_workers else most)
        return prompts, _pass_line(rows)

    def _counting(
        self, measured: Pass, ended: list[RequestRecord]
    ) -> AbstractAsyncContextManager[None]:
        if self.now is None:
            return nullcontext()
        requests = measured.requests or len(self.plan.workload.sample.requests)
        return self.now.counting(self.arm.label, self.number, measured.name, ended, requests)

    def _keep_kv_space(self, reading: CounterReading) -> None:
        """Note the KV space of the instances that decode, which they report from their start on."""
        known = self.log.arms[self.arm.label]
        if not known.decode_kv_tokens:
            decoding = [i.name for i in self.deployment.instances if i.role != "prefill"]
            space = tuple(reading.capacity_tokens[name] for name in decoding)
            self.log.arms[self.arm.label] = replace(known, decode_kv_tokens=space)

    def _time(self, measured: Pass, load: LoadRun) -> PassTime:
        """When the load was sent; the clock of a load has no date."""
        ahead_s = time.time() - time.monotonic()
        return PassTime(
            arm=self.arm.label,
            round=self.number,
            pass_name=measured.name,
            from_s=round(load.started_s + ahead_s, 3),
            to_s=round(load.ended_s + ahead_s, 3),
        )

    async def _drive(
        self, measured: Pass, workload: Workload, columns: Mapping[str, Any]
    ) -> tuple[LoadRun, pd.DataFrame, float]:
        """Send the workload; the load, its rows, and the fraction of the CPU that others used."""
        plan, deployment, log = self.plan, self.deployment, self.log
        arrivals = plan.arrivals_in(measured)
        workers = worker_count(plan, most_workers(workload, arrivals), log)
        ended: list[RequestRecord] = []

        def take(record: RequestRecord) -> None:
            ended.append(record)
            if log.on_record is not None:
                log.on_record(record, columns)

        servers = [process.pid for process in deployment.processes if process.pid]
        load_before = ProcessorLoad.now(servers)
        options: dict[str, Any] = {
            "base_url": deployment.url,
            "model": deployment.model,
            "headers": deployment.headers,
            "timeout_s": plan.params.timeout_s,
            "decode_shift": measured.decode_shift,
            "form": plan.form,
            "kernel_stamps": plan.params.kernel_stamps,
            "on_record": take,
        }
        try:
            async with self._counting(measured, ended), watched_gauges(deployment) as gauges:
                if workers == 1:
                    driving = drive_in_thread(workload, arrivals, **options)
                else:
                    driving = drive_in_workers(workload, arrivals, workers=workers, **options)
                with watched(self.meters.found) as used:
                    load = await driving
        finally:
            # Kept in any case: a cancelled drive has a record of every request too.
            ended.sort(key=lambda record: record.index)
            rows = latencies(to_frame(ended, **columns)).assign(
                expected_cached_tokens=-1, parting_nat=nan,
                rate_per_s=measured.rate_per_s, concurrency=measured.concurrency,
            )  # fmt: skip
            log.requests.append(rows)
            self.folder.write("requests", log.frame("requests"))
        log.gauges.append(pd.DataFrame([{**columns, **row} for row in gauges]))
        log.energy += energy_rows(
            used, self.idle_w,
            arm=self.arm.label, number=self.number, pass_name=measured.name,
        )  # fmt: skip
        others_share = ProcessorLoad.now(servers).others_since(load_before)
        if deployment.plan is None and httpx.URL(deployment.url).host in _THIS_MACHINE:
            others_share = nan
            log.doubt(
                "The attached server runs on this machine, so the CPU use of other programs is"
                " unknown."
            )
        return load, rows, others_share


def _pass_line(rows: pd.DataFrame) -> str:
    """Median TTFT, output tokens per second, and failures of one pass, in columns."""
    ttft_ms, tps = 1000 * rows["ttft_s"].median(), system_tps(rows)
    ttft = "TTFT unknown   " if isnan(ttft_ms) else f"TTFT {ttft_ms:7,.0f} ms"
    throughput = "throughput unknown" if isnan(tps) else f"{tps:7,.1f} tok/s"
    failed = int((~succeeded(rows)).sum())
    return f"{ttft}  {throughput}" + (f", {failed} of {len(rows)} failed" if failed else "")
