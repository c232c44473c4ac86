"""Starts and stops the servers of an arm: for one launch of a run, or by hand in a notebook."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

from workbench.errors import DeploymentError
from workbench.experiment.plan.arm import Arm
from workbench.experiment.result.run_folder import output_root
from workbench.serve import deployment as serve
from workbench.serve.checks.connector_check import check_connector
from workbench.serve.connectors.tiers import Tier
from workbench.serve.deployed import Deployment
from workbench.serve.processes.launcher import Launcher


def check_installed(arm: Arm) -> None:
    """Refuse an arm whose vLLM or connector cannot start. Raises LaunchError or PlanError."""
    if arm.kv_connector and arm.settings and arm.settings.platform != "simulated":
        check_connector(arm.kv_connector, arm.settings.interpreter)


async def check_tiers(arm: Arm) -> None:
    """Refuse tiers of a store that cannot be used now. Raises LaunchError."""
    if arm.tiers:
        for tier in arm.deployment(count(20_000)).tiers:
            await tier.check()


@asynccontextmanager
async def deployed(arm: Arm, launcher: Launcher, *, log_dir: Path) -> AsyncIterator[Deployment]:
    """Start the servers of an arm; leaving stops them and deletes what their store's tiers hold.

    Raises LaunchError with the reason and the log's path.
    """
    check_installed(arm)
    await check_tiers(arm)
    shm = f"workbench-{uuid.uuid4().hex[:12]}"
    disk = (log_dir / "disk").absolute()
    tiers: tuple[Tier, ...] = ()
    if "disk" in arm.tiers:
        disk.mkdir(parents=True)
    try:
        async with serve.deploy(
            launcher,
            lambda ports: arm.deployment(ports, shm_name=shm, disk_folder=disk),
            log_dir=log_dir,
        ) as running:
            tiers = running.tiers
            yield running
    finally:
        shutil.rmtree(disk, ignore_errors=True)
        for tier in tiers:
            if not tier.processes:  # not gone with its server: the user's own
                with suppress(DeploymentError):
                    await tier.empty()


@asynccontextmanager
async def deploy(arm: Arm, *, log_dir: Path | None = None) -> AsyncIterator[Deployment]:
    """`async with wb.deploy(plan.arms[0]) as deployment:` starts an arm; leaving stops it.

    `deployment.url` accepts OpenAI requests. Raises PlanError for attached servers, and LaunchError
    with the reason and the log's path.
    """
    planned = arm.deployment(count(1))  # refuses what cannot be started before anything is
    check_installed(arm)
    assert arm.settings is not None
    logs = log_dir or output_root("outputs") / "deploy" / uuid.uuid4().hex[:8]
    async with (
        serve.launcher_for(arm.settings, logs, plans=[planned]) as launcher,
        deployed(arm, launcher, log_dir=logs) as running,
    ):
        yield running
