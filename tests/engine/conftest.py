"""Real vLLM servers with the tiny model. All tests of a worker share one fork server."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.runs import lend, start
from workbench.hardware.interpreter import interpreter
from workbench.hardware.machine import fast_bf16
from workbench.serve.checks.argument_check import abilities
from workbench.serve.deployed import Deployment
from workbench.serve.deployment import launcher_for
from workbench.serve.processes.launcher import Launcher
from workbench.serve.tiny_model import tiny_model
from workbench.serve.vllm import EngineSettings, number_format

Deployed = Callable[..., AbstractAsyncContextManager[Deployment]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "engine" in Path(item.path).parts:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def settings() -> EngineSettings:
    dtype = number_format("auto", "cpu", fast_bf16=fast_bf16())
    return EngineSettings(
        model=tiny_model(), platform="cpu", abilities=abilities(interpreter()),
        context_tokens=8192, dtype=dtype,
    )  # fmt: skip


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def launcher(
    settings: EngineSettings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Launcher]:
    async with launcher_for(settings, tmp_path_factory.mktemp("launcher")) as started:
        yield started


@pytest.fixture
def one_launcher(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    lend(launcher, monkeypatch)


@pytest.fixture
def deployed(launcher: Launcher, settings: EngineSettings, tmp_path: Path) -> Deployed:
    """`deployed("1p1d", "nixl")` starts that on real engines, or on those of other `settings`."""

    def started(
        topology: str, name: str, *, settings: EngineSettings = settings, **options: Any
    ) -> AbstractAsyncContextManager[Deployment]:
        logs = tmp_path / "logs" / settings.platform
        return start(launcher, topology, name, settings=settings, logs=logs, **options)

    return started


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
