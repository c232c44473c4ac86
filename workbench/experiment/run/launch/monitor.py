"""Watches gauges during a pass, and whether proxy, client or other programs were too busy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from math import isnan
from typing import Any

from workbench.control import control_client
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.run.run_log import Log
from workbench.load.drive.driver import LoadRun
from workbench.load.drive.workers import WHY_NO_MORE
from workbench.metrics.counters import sample
from workbench.metrics.gates.client_gate import CLIENT_BUSY_SHARE
from workbench.serve.deployed import Deployment

GAUGE_PERIOD_S = 2.0
PROXY_BUSY_SHARE = 0.5
OTHERS_BUSY_SHARE = 0.1
SHORTEST_WATCHED_S = 0.1


def worker_count(plan: ExperimentPlan, most: int, log: Log) -> int:
    """Client processes of the next pass: as requested, or one until a pass shows it too busy."""
    asked = plan.params.client_workers
    if asked > most:
        log.doubt(f"client_workers is {asked}, but at most {most} can be used: {WHY_NO_MORE}.")
    return min(asked or log.workers, most)


@asynccontextmanager
async def watched_gauges(deployment: Deployment) -> AsyncIterator[list[dict[str, Any]]]:
    """Read requests running and waiting, and KV in use, of every instance during a pass."""
    rows: list[dict[str, Any]] = []
    stop = asyncio.Event()
    urls = {instance.name: instance.url for instance in deployment.instances}
    async with control_client(headers=deployment.headers) as client:
        task = asyncio.create_task(sample(client, urls, GAUGE_PERIOD_S, stop, rows))
        try:
            yield rows
        except BaseException:
            # The pass was broken off. A host that is cut off would answer after a timeout only.
            task.cancel()
            raise
        stop.set()
        await task


def watch_proxy(before: dict[str, Any], after: dict[str, Any], load: LoadRun, log: Log) -> None:
    """Add a doubt if the proxy was busy; `before` and `after` are its stats, empty without one."""
    if before and after:
        share = (after["cpu_s"] - before["cpu_s"]) / max(load.ended_s - load.started_s, 1e-9)
        if share > PROXY_BUSY_SHARE:
            log.doubt(
                f"The proxy used {100 * share:.0f} % of a core in a pass and may add to TTFT."
            )


def watch_client(load: LoadRun, others_share: float, log: Log, *, most: int = 0) -> None:
    """Keep the worst of the client's health for its gate, and add a doubt if others were busy.

    A client that was too busy gets one more process for later passes, up to `most`; 0 if their
    number was requested.
    """
    # A pass that fails at once is all client, and too short for a reading of its loop.
    brief = load.ended_s - load.started_s < SHORTEST_WATCHED_S
    for name, value in (*asdict(load.health).items(), ("others_cpu_share", others_share)):
        if not isnan(value) and not (brief and name.endswith("cpu_share")):
            worst = min if name == "kernel_stamped_share" else max
            log.client[name] = worst(value, log.client.get(name, value))
    busy = load.health.thread_cpu_share > CLIENT_BUSY_SHARE and not brief
    used = 100 * load.health.thread_cpu_share
    seen = f"The client's busiest process used {used:.0f} % of a core in a pass"
    if busy and 0 < most <= log.workers:
        log.doubt(f"{seen}, and no more than {most} can be used: {WHY_NO_MORE}.")
    elif busy and most and log.workers < max(1, (os.cpu_count() or 1) - 1):
        log.workers += 1
        log.doubt(
            f"{seen}, so later passes used {log.workers} processes. Repeat the run with"
            f" client_workers {log.workers}, so that all passes are alike."
        )
    if others_share > OTHERS_BUSY_SHARE:
        log.doubt(
            f"Other programs used more than {100 * OTHERS_BUSY_SHARE:.0f} % of the CPU in some"
            " passes. Stop them and measure again."
        )
