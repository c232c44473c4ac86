"""One arm's servers by hand, for a notebook's next cell."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from workbench.experiment.plan.plan import Arm
from workbench.experiment.result.run_folder import output_root
from workbench.serve import deployment as serve
from workbench.serve.processes.processes import Launcher

__all__ = ["deploy"]


@asynccontextmanager
async def deploy(arm: Arm, *, log_dir: Path | None = None) -> AsyncIterator[serve.Deployment]:
    """`async with wb.deploy(plan.arms[0]) as deployment:` starts an arm; leaving ends it.

    `deployment.url` takes OpenAI requests. Raises LaunchError with the reason and the log's path.
    """
    logs = log_dir or output_root("outputs") / "deploy" / uuid.uuid4().hex[:8]
    platform = arm.settings.platform if arm.settings is not None else ""
    loads: Literal["engine", "simulated"] = "simulated" if platform == "simulated" else "engine"
    shm = f"workbench-{uuid.uuid4().hex[:12]}"
    async with (
        Launcher(logs, fork=platform in ("cpu", "simulated"), loads=loads) as launcher,
        serve.deploy(
            launcher,
            lambda ports: arm.deployment(ports, shm_name=shm),
            ports=arm.ports,
            log_dir=logs,
        ) as running,
    ):
        yield running
