"""Starts and stops the servers of an arm: for one launch of a run, or by hand in a notebook."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from workbench.experiment.plan.plan import Arm
from workbench.experiment.result.run_folder import output_root
from workbench.serve import deployment as serve
from workbench.serve.processes.launcher import Launcher


def check_installed(arm: Arm) -> None:
    """Refuse an arm whose connector is not installed. Raises LaunchError."""
    if arm.kv_connector and arm.settings and arm.settings.platform != "simulated":
        arm.kv_connector.check_installed(arm.settings.interpreter)


@asynccontextmanager
async def deployed(
    arm: Arm, launcher: Launcher, *, log_dir: Path
) -> AsyncIterator[serve.Deployment]:
    """Start the servers of an arm; leaving stops them and deletes what their store has on disk.

    Raises LaunchError with the reason and the log's path.
    """
    check_installed(arm)
    shm = f"workbench-{uuid.uuid4().hex[:12]}"
    disk = (log_dir / "disk").absolute()
    if arm.disk:
        disk.mkdir(parents=True)
    try:
        async with serve.deploy(
            launcher,
            lambda ports: arm.deployment(ports, shm_name=shm, disk_folder=str(disk)),
            log_dir=log_dir,
        ) as running:
            yield running
    finally:
        shutil.rmtree(disk, ignore_errors=True)


@asynccontextmanager
async def deploy(arm: Arm, *, log_dir: Path | None = None) -> AsyncIterator[serve.Deployment]:
    """`async with wb.deploy(plan.arms[0]) as deployment:` starts an arm; leaving stops it.

    `deployment.url` accepts OpenAI requests. Raises PlanError for attached servers, and LaunchError
    with the reason and the log's path.
    """
    arm.deployment(count(1))  # refuses what cannot be started before anything is
    check_installed(arm)
    assert arm.settings is not None
    logs = log_dir or output_root("outputs") / "deploy" / uuid.uuid4().hex[:8]
    async with (
        serve.launcher_for(arm.settings, logs) as launcher,
        deployed(arm, launcher, log_dir=logs) as running,
    ):
        yield running
