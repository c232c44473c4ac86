"""One launch of one arm: warm up, and for each pass make its state, drive, count, write down."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from math import isnan, lcm, nan
from typing import Any

import pandas as pd

from workbench.control import control_client
from workbench.errors import DeploymentError, ResetRefusedError
from workbench.experiment.isolation import make_state, read_counters, warm_up
from workbench.experiment.launch import Launch
from workbench.experiment.plan import Arm, ExperimentPlan, Pass
from workbench.experiment.run_folder import RunFolder
from workbench.experiment.ties import ask_where_answers_part
from workbench.load.arrivals import Arrivals
from workbench.load.driver import LoadRun, drive_in_thread
from workbench.load.traces import trace_of_run
from workbench.load.workers import WHY_NO_MORE, drive_in_workers, most_workers
from workbench.load.workload import Workload, asked_again
from workbench.machine import ProcessorLoad
from workbench.metrics.conduct_gates import CLIENT_BUSY_SHARE
from workbench.metrics.counters import sample
from workbench.metrics.latency import latencies
from workbench.metrics.passes import PassCounters
from workbench.records import RequestRecord, to_frame
from workbench.serve.deployment import Deployment
from workbench.topology import Topology

__all__ = ["Echo", "Log", "echo_line", "measure_arm"]

Echo = Callable[[str], None]

GAUGE_PERIOD_S = 2.0
PROXY_BUSY_SHARE = 0.5
OTHERS_BUSY_SHARE = 0.1
SHORTEST_WATCHED_S = 0.1


def echo_line(line: str) -> None:
    """Print at once, so that progress shows in a terminal and in a notebook."""
    print(line, flush=True)


@dataclass(slots=True)
class Log:
    """What a run has gathered so far."""

    requests: list[pd.DataFrame] = field(default_factory=list)
    legs: list[pd.DataFrame] = field(default_factory=list)
    counters: list[pd.DataFrame] = field(default_factory=list)
    gauges: list[pd.DataFrame] = field(default_factory=list)
    passes: list[PassCounters] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why passes could not be measured."""
    refusals: list[str] = field(default_factory=list)
    """Resets that an instance refused."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    workers: int = 1
    """Processes that send the load, where the plan leaves that open."""
    client: dict[str, float] = field(default_factory=dict)
    """The worst of each reading of the client's health."""
    launches_s: list[float] = field(default_factory=list)
    measuring_s: float = 0.0

    def doubt(self, sentence: str) -> None:
        if sentence not in self.doubts:
            self.doubts.append(sentence)

    def frame(self, name: str) -> pd.DataFrame:
        parts = [part for part in getattr(self, name) if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else to_frame(())


async def measure_arm(
    plan: ExperimentPlan,
    arm: Arm,
    number: int,
    deployment: Deployment,
    folder: RunFolder,
    log: Log,
    echo: Echo = echo_line,
) -> None:
    """All passes of an arm in one round. A server that ends by itself ends only this launch."""
    log.launches_s.append(deployment.started_s)
    log.arms.setdefault(arm.label, _arm_facts(arm, deployment))
    if deployment.plan is not None:
        await warm_up(
            deployment,
            vocab_tokens=plan.workload.options["vocab_tokens"],
            salt=f"{folder.attempt.name}-warm-up-{number}",
            pairs=_pairs(arm.topology),
        )
    # All arms of a round get the same prompts, so that they can be paired; the salt of the
    # attempt keeps rounds and reruns apart.
    prompts = plan.workload.build(f"{folder.attempt.name}-{number}")
    launch = Launch(arm, number, deployment)
    for measured in plan.passes(arm, number, lambda: log.frame("requests")):
        if measured.rate_per_s:
            # What one rate has left in a cache must not serve the next.
            prompts = plan.workload.build(f"{folder.attempt.name}-{number}-{measured.name}")
        try:
            prompts, line = await _measure_pass(
                plan, arm, number, measured, deployment, launch, prompts, folder, log
            )
        except DeploymentError as error:
            if isinstance(error, ResetRefusedError):
                log.refusals.append(f"{arm.label}, round {number + 1}, {measured.name}: {error}")
            log.reasons.append(f"{error}")
            log.doubt(f"{arm.label}, round {number + 1}, {measured.name}: {error}")
            line = str(error)
        echo(f"round {number + 1}/{plan.rounds}  {arm.label:14} {measured.name:15} {line}")
        if dead := deployment.dead():
            for process in dead:
                reason = f"{arm.label}, round {number + 1}: {process.failure('ended by itself')}"
                log.reasons.append(reason)
                log.doubt(reason)
            echo(f"{dead[0].spec.name} ended by itself; log: {dead[0].log}")
            break
    else:
        asked = plan.rates is None  # side by side answers part by the shape of their batch
        if asked and await ask_where_answers_part(
            plan, arm.label, number, prompts, deployment, log.requests
        ):
            folder.write("requests", log.frame("requests"))
    # Thousands of series a pass: once a launch is often enough.
    folder.write("counters", log.frame("counters"))
    folder.write("gauges", log.frame("gauges"))


def _pairs(topology: str) -> int:
    """Requests that walk every prefill-decode pair which routing by index can make."""
    known = Topology.parse(topology)
    return lcm(known.prefill or 1, known.decode or known.aggregated)


def _arm_facts(arm: Arm, deployment: Deployment) -> dict[str, Any]:
    lines = [p.command_line for p in deployment.plan.processes] if deployment.plan else []
    return {
        "label": arm.label,
        "topology": arm.topology,
        "connector": arm.connector,
        "role": arm.role,
        "gpus": arm.gpus,
        "instances": len(deployment.instances),
        "passes": [p.name for p in arm.passes],
        "command_lines": lines or [deployment.url],
    }


async def _measure_pass(
    plan: ExperimentPlan,
    arm: Arm,
    number: int,
    measured: Pass,
    deployment: Deployment,
    launch: Launch,
    prompts: Workload,
    folder: RunFolder,
    log: Log,
) -> tuple[Workload, str]:
    """Make the state, drive the workload, read the counters; returns the line to print.

    With it come the prompts that later passes ask again: after a cold pass those that it sent,
    since the turns of a conversation hold the answers that they got.
    """
    made = await make_state(deployment, measured)
    for doubt in made.doubts:
        log.doubt(doubt)
    if made.refused:
        where = f"{arm.label}, round {number + 1}, {measured.name}"
        log.refusals.append(f"{where}: {made.refused}")
    workload = prompts
    if measured.state != "cold":
        workload = asked_again(prompts, share=measured.share, seed=number)
    await deployment.legs()
    before = await read_counters(deployment)
    launch.begins(made, before)
    proxy_before = await deployment.proxy_stats()
    constants = {
        "arm": arm.label,
        "topology": arm.topology,
        "connector": arm.connector,
        "workload": plan.workload.name,
        "round": number,
        "pass": measured.name,
    }
    most = most_workers(workload, plan.arrivals)
    ended: list[RequestRecord] = []
    load_before = ProcessorLoad.now()
    try:
        async with _watched(deployment) as gauges:
            load = await _drive(
                workload,
                plan.arrivals_in(measured),
                workers=_workers(plan, most, log),
                base_url=deployment.url,
                model=deployment.model,
                headers=deployment.headers,
                timeout_s=plan.params.timeout_s,
                decode_shift=measured.decode_shift,
                kernel_stamps=plan.params.kernel_stamps,
                on_record=ended.append,
            )
    finally:
        # Kept whatever happened: a cancelled drive has made a record of every request too.
        ended.sort(key=lambda record: record.index)
        rows = latencies(to_frame(ended, **constants)).assign(
            expected_cached_tokens=-1, parting_nat=nan, rate_per_s=measured.rate_per_s
        )
        log.requests.append(rows)
        folder.write("requests", log.frame("requests"))
    others_share = ProcessorLoad.now().others_since(load_before)
    after = await read_counters(deployment)
    log.measuring_s += load.ended_s - load.started_s
    legs = await deployment.legs()
    log.legs.append(to_frame(legs, **constants))
    series = before.rows(**constants, when="before") + after.rows(**constants, when="after")
    log.counters.append(pd.DataFrame(series))
    log.gauges.append(pd.DataFrame([{**constants, **row} for row in gauges]))
    folder.write("legs", log.frame("legs"))
    counted = after.since(before, deployment)
    for doubt in counted.doubts:
        log.doubt(doubt)
    workload = replace(workload, requests=load.sent)
    if measured.state == "cold":
        prompts = workload
        # A sweep over rates has many cold passes; the first is the one that is kept.
        if not number and all(known.arm != arm.label for known in log.passes):
            folder.write_trace(arm.label, trace_of_run(workload, load.records))
    log.passes.append(launch.ended(measured, prompts, workload, load.records, legs, after, counted))
    known = rows["index"].map(launch.expected_cached)
    rows["expected_cached_tokens"] = known.fillna(-1).astype(int)
    folder.write("requests", log.frame("requests"))
    _watch_client(load, others_share, log, most=0 if plan.params.client_workers else most)
    _watch_proxy(proxy_before, await deployment.proxy_stats(), load, log)
    failed = sum(not record.ok for record in load.records)
    ttft_ms = 1000 * rows["ttft_s"].median()
    line = f"TTFT {ttft_ms:7.0f} ms" + (f", {failed} of {len(rows)} failed" if failed else "")
    return prompts, line


async def _drive(
    workload: Workload, arrivals: Arrivals, *, workers: int, **options: Any
) -> LoadRun:
    if workers == 1:
        return await drive_in_thread(workload, arrivals, **options)
    return await drive_in_workers(workload, arrivals, workers=workers, **options)


def _workers(plan: ExperimentPlan, most: int, log: Log) -> int:
    """Processes that send the next pass: as asked, or one until a pass has shown it too busy."""
    asked = plan.params.client_workers
    if asked > most:
        log.doubt(f"client_workers is {asked} and {most} sent the load: {WHY_NO_MORE}.")
    return min(asked or log.workers, most)


@asynccontextmanager
async def _watched(deployment: Deployment) -> AsyncIterator[list[dict[str, Any]]]:
    """Read requests running and waiting, and KV in use, of every instance during a pass."""
    rows: list[dict[str, Any]] = []
    stop = asyncio.Event()
    urls = {instance.name: instance.url for instance in deployment.instances}
    async with control_client(headers=deployment.headers) as client:
        task = asyncio.create_task(sample(client, urls, GAUGE_PERIOD_S, stop))
        try:
            yield rows
        finally:
            stop.set()
            rows += await task


def _watch_proxy(before: dict[str, Any], after: dict[str, Any], load: LoadRun, log: Log) -> None:
    if before and after:
        share = (after["cpu_s"] - before["cpu_s"]) / max(load.ended_s - load.started_s, 1e-9)
        if share > PROXY_BUSY_SHARE:
            log.doubt(f"The proxy took {share:.0%} of a core in a pass: it may be part of TTFT.")


def _watch_client(load: LoadRun, others_share: float, log: Log, *, most: int = 0) -> None:
    """Keep the worst of the client's health for its gate, and say when others were busy.

    A client that was too busy gets one process more for the passes to come, up to `most`; 0 where
    their number was asked for.
    """
    # A pass that fails at once is all client, and so short that no beat was due in it.
    brief = load.ended_s - load.started_s < SHORTEST_WATCHED_S
    for name, value in (*asdict(load.health).items(), ("others_cpu_share", others_share)):
        if not isnan(value) and not (brief and name.endswith("cpu_share")):
            worst = min if name == "kernel_stamped_share" else max
            log.client[name] = worst(value, log.client.get(name, value))
    busy = load.health.thread_cpu_share > CLIENT_BUSY_SHARE and not brief
    seen = (
        f"A pass kept the client's busiest process {load.health.thread_cpu_share:.0%} of the time"
        " on its core"
    )
    if busy and 0 < most <= log.workers:
        log.doubt(f"{seen}, and {most} is the most that can send the load: {WHY_NO_MORE}.")
    elif busy and most and log.workers < max(1, (os.cpu_count() or 1) - 1):
        log.workers += 1
        log.doubt(
            f"{seen}: later passes were sent by {log.workers}. Measure again with client_workers"
            f" {log.workers}, so that all passes are alike."
        )
    if others_share > OTHERS_BUSY_SHARE:
        log.doubt(
            "In some passes other programs kept more than"
            f" {OTHERS_BUSY_SHARE:.0%} of this machine's cores busy; end them and measure again."
        )
