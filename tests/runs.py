"""What tests of several rooms share: starting a deployment, and reading what a run found."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from workbench.serve.connectors import connector
from workbench.serve.deployed import Deployment, DeploymentPlan
from workbench.serve.deployment import deploy, plan_deployment
from workbench.serve.processes.launcher import Launcher
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology


def start(
    launcher: Launcher,
    topology: str,
    name: str,
    *,
    settings: EngineSettings,
    logs: Path,
    change: Callable[[DeploymentPlan], DeploymentPlan] = lambda plan: plan,
    **options: Any,
) -> AbstractAsyncContextManager[Deployment]:
    """Start a topology with a connector, as a run does."""
    known = Topology.parse(topology)

    def make_plan(ports: Any) -> DeploymentPlan:
        shm = f"workbench-test-{uuid4().hex}"
        return change(plan_deployment(known, connector(name), settings, ports=ports, shm_name=shm))

    return deploy(launcher, make_plan, log_dir=logs, **options)


def lend(launcher: Launcher, patch: pytest.MonkeyPatch) -> None:
    """Runs start their servers by this launcher, which has loaded their code already."""

    @asynccontextmanager
    async def lent(*_: Any, **__: Any) -> AsyncIterator[Launcher]:
        yield launcher

    patch.setattr("workbench.experiment.run.run.launcher_for", lent)


def outcomes(facts: dict[str, Any]) -> dict[str, str]:
    """The outcome of each gate."""
    return {gate["name"]: gate["outcome"] for gate in facts["gates"]}


BUSY = {"client kept up", "answers were streamed"}
"""Gates that other programs may make fail: on a busy machine tokens arrive together."""


def not_passed(facts: dict[str, Any]) -> dict[str, str]:
    """Gates that are not PASS, with their outcome."""
    return {name: outcome for name, outcome in outcomes(facts).items() if outcome != "PASS"}


def causes(facts: dict[str, Any]) -> set[str]:
    """Every cause in the ledger."""
    return {entry["cause"] for account in facts["ledger"] for entry in account["entries"]}
