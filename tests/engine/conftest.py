"""Real vLLM servers with the tiny model. All tests of a worker share one fork server."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from workbench.hardware.machine import fast_bf16
from workbench.serve.connectors import connector
from workbench.serve.deployment import Deployment, deploy, launcher_for
from workbench.serve.plan import DeploymentPlan, plan_deployment, ports_needed
from workbench.serve.processes.launcher import Launcher
from workbench.serve.tiny_model import tiny_model
from workbench.serve.vllm import EngineSettings, number_format
from workbench.topology import Topology

DTYPE = number_format("auto", "cpu", fast_bf16=fast_bf16())

Deployed = Callable[..., AbstractAsyncContextManager[Deployment]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "engine" in Path(item.path).parts:
            item.add_marker(pytest.mark.engine)


@pytest.fixture
def settings() -> EngineSettings:
    return EngineSettings(model=tiny_model(), platform="cpu", context_tokens=8192, dtype=DTYPE)


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def launcher(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Launcher]:
    engine = EngineSettings(model=tiny_model(), platform="cpu")
    async with launcher_for(engine, tmp_path_factory.mktemp("launcher")) as started:
        yield started


@pytest.fixture
def one_launcher(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run starts its servers by the launcher of all tests, which has loaded vLLM already."""

    @asynccontextmanager
    async def lent(*_: Any, **__: Any) -> AsyncIterator[Launcher]:
        yield launcher

    monkeypatch.setattr("workbench.experiment.run.run.launcher_for", lent)


@pytest.fixture
def deployed(launcher: Launcher, settings: EngineSettings, tmp_path: Path) -> Deployed:
    """Start a topology with a connector, as a run does."""

    def start(
        topology: str,
        name: str,
        *,
        settings: EngineSettings = settings,
        change: Callable[[DeploymentPlan], DeploymentPlan] = lambda plan: plan,
        **options: Any,
    ) -> AbstractAsyncContextManager[Deployment]:
        known = Topology.parse(topology)
        logs = tmp_path / "logs" / settings.platform

        def make_plan(ports: Any) -> DeploymentPlan:
            return change(
                plan_deployment(
                    known,
                    connector(name),
                    settings,
                    ports=ports,
                    shm_name=f"workbench-test-{ports[0]}",
                )
            )

        return deploy(launcher, make_plan, ports=ports_needed(known), log_dir=logs, **options)

    return start


@pytest.fixture
def ask() -> Callable[..., Any]:
    """One greedy completion of a prompt of seeded random tokens; returns the JSON answer."""

    async def complete(url: str, tokens: int, seed: int, max_tokens: int = 8) -> dict[str, Any]:
        ids = random.Random(seed).choices(range(100, 9000), k=tokens)
        body = {"model": "workbench", "prompt": ids, "max_tokens": max_tokens, "temperature": 0}
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            answer = await client.post(f"{url}/v1/completions", json=body)
        found: dict[str, Any] = answer.json() | {"status": answer.status_code}
        return found

    return complete
