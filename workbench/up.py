"""Starts one deployment, prints how to use and measure it, and ends it on Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path

from workbench.control import curl_line
from workbench.errors import DeploymentError, LaunchError
from workbench.experiment.plan.arm import Arm
from workbench.experiment.plan.arms import servers_of
from workbench.experiment.result.run_folder import output_root
from workbench.experiment.run.servers import deployed
from workbench.hardware.machine import repository_root
from workbench.params.notebooks import as_typed
from workbench.params.pd_sweep import PdSweep
from workbench.serve.attach import parameters_for
from workbench.serve.deployed import Deployment, DeploymentPlan
from workbench.serve.deployment import launcher_for
from workbench.serve.processes.startup import failure


def up(params: PdSweep) -> int:
    """Keep servers running until a signal comes (0), or one of them ends or does not start (1).

    Raises PlanError and ParameterError before anything starts.
    """
    arm, notes = servers_of(params)
    name = f"{arm.label.replace(' ', '-')}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    logs = output_root(params.output_dir) / "up" / name
    return asyncio.run(_up(arm, params, logs, notes))


async def _up(arm: Arm, params: PdSweep, logs: Path, notes: list[str]) -> int:
    plan = arm.deployment(count(20_000))
    work = asyncio.create_task(_until_a_server_ends(arm, params, plan, logs))

    def end() -> None:
        if not work.cancelling():  # a second Ctrl-C must not cut the clean-up short
            print(f"\nending {arm.label}", flush=True)
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end)
    print(
        f"starting {plan.heading}; {plan.settings.platform}",
        f"  {', '.join(process.name for process in plan.processes)}",
        *notes, f"logs: {_typed(logs)}", sep="\n", flush=True,
    )  # fmt: skip
    status = 1
    try:
        await work
    except asyncio.CancelledError:
        status = 0
    except (DeploymentError, LaunchError) as error:
        print(error, file=sys.stderr, flush=True)
    print(f"all servers of {arm.label} are stopped", flush=True)
    return status


async def _until_a_server_ends(arm: Arm, params: PdSweep, plan: DeploymentPlan, logs: Path) -> None:
    launcher = launcher_for(plan.settings, logs, fork=params.fork, plans=[plan])
    try:
        async with launcher, deployed(arm, launcher, log_dir=logs) as running:
            print(*_usage(running, arm, params), sep="\n", flush=True)
            exits = [process.exited for process in running.processes]
            await asyncio.wait(exits, return_when="FIRST_COMPLETED")
            told = (failure(process, "ended by itself") for process in running.dead())
            raise DeploymentError("\n".join(told))
    finally:
        for note in launcher.notes:
            print(note, flush=True)


def _usage(running: Deployment, arm: Arm, params: PdSweep) -> Iterator[str]:
    """Where the servers are, and commands that work as typed."""
    metrics = {i.name: i.url for i in running.instances} | running.store_urls
    measured = {"topology": arm.topology_text, **parameters_for(running)}
    usual = PdSweep()
    if (room := params.context_tokens - usual.output_tokens) < usual.lengths[0]:
        measured["prompt_tokens"] = room
    notebook = _typed(repository_root() / "notebooks" / "pd_sweep.ipynb")
    yield f"ready after {running.started_s:.0f} s: {running.url} (model {running.model})\n"
    yield "use it:"
    yield f"  {curl_line(running.url, running.model)}"
    yield "measure it:"
    yield f"  {shlex.join(['papermill', notebook, 'out.ipynb', *as_typed(measured)])}"
    yield "metrics:"
    yield from (f"  {name:12} {url}/metrics" for name, url in metrics.items())
    yield "\nCtrl-C ends the servers."


def _typed(path: Path) -> str:
    """The path, relative to the working folder if it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
