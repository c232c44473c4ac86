"""What real servers do when something breaks: a clear sentence, soon, and nothing left behind."""

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks.conftest import clean_env as clean_env
from tests.notebooks.conftest import papermill as papermill
from tests.notebooks.conftest import typed as typed
from workbench.errors import LaunchError
from workbench.experiment.plan.arms import plan
from workbench.experiment.run.run import run
from workbench.load.drive.driver import drive_in_thread
from workbench.load.workload.arrivals import closed
from workbench.load.workload.workload import reference
from workbench.params.pd_sweep import PdSweep
from workbench.serve.deployed import Deployment, DeploymentPlan
from workbench.serve.processes.ports import unused_ports
from workbench.serve.tiny_model import tiny_model
from workbench.serve.vllm import EngineSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_taken_port_is_lost_once_and_another_is_tried(deployed: Any, ask: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        tries: list[bool] = []

        def choose() -> Iterator[int]:
            tries.append(True)
            first = [taken.getsockname()[1]] if len(tries) == 1 else []
            return chain(first, unused_ports())

        async with deployed("1a", "none", ports=choose) as deployment:
            assert (await ask(deployment.url, 200, seed=1))["status"] == 200
        assert len(tries) == 2


async def test_too_little_kv_space_is_said_in_vllms_own_numbers(
    deployed: Any, settings: EngineSettings
) -> None:
    with pytest.raises(LaunchError, match=r"aggregated-0 did not start: .*max seq len") as error:
        async with deployed("1a", "none", settings=replace(settings, kv_cache_mib=1)):
            pass
    assert "aggregated-0.log" in str(error.value)


async def test_an_absent_store_is_named_within_seconds(deployed: Any) -> None:
    def without_store(plan: DeploymentPlan) -> DeploymentPlan:
        return replace(plan, processes=plan.processes[1:])

    with pytest.raises(LaunchError, match="did not start") as error:
        async with deployed("1a", "lmcache", change=without_store):
            pass
    assert "lmcache" in str(error.value).lower()


async def drive(deployment: Deployment, requests: int, tokens: int = 3000) -> list[str]:
    """The error class of each request, in order; "" for a success."""
    workload = reference(
        requests=requests, prompt_tokens=tokens, output_tokens=64, salt=os.urandom(4).hex()
    )
    load = await drive_in_thread(
        workload, closed(2), base_url=deployment.url, model="workbench", timeout_s=60
    )
    assert len(load.records) == requests
    return [record.error for record in load.records]


async def test_a_decode_instance_killed_in_mid_run_fails_its_requests_and_no_others(
    deployed: Any,
) -> None:
    async with deployed("1p2d", "lmcache") as deployment:
        driving = asyncio.create_task(drive(deployment, 8))
        await asyncio.sleep(1.0)
        victim = next(p for p in deployment.processes if p.spec.name == "decode-1")
        os.killpg(victim.pid, signal.SIGKILL)
        errors = await driving
        assert "timeout" not in errors
        # Requests are routed by index: the even ones never touch decode-1.
        assert errors[::2] == [""] * 4
        assert errors[-1] == "http_502"
        assert [p.spec.name for p in deployment.dead()] == ["decode-1"]


async def test_a_store_killed_in_mid_run_is_noticed_and_every_request_ends(deployed: Any) -> None:
    async with deployed("1p1d", "lmcache") as deployment:
        driving = asyncio.create_task(drive(deployment, 6))
        await asyncio.sleep(0.5)
        store = next(p for p in deployment.processes if p.spec.name == "store")
        os.killpg(store.pid, signal.SIGKILL)
        errors = await driving
        # LMCache 0.5.6: an engine whose store request was in flight dies with it (docs/log.md);
        # one that had none goes on without the store.
        # None of them waits until the client's timeout.
        assert set(errors) <= {"", "http_502", "stream_error"}
        assert "store" in [p.spec.name for p in deployment.dead()]


async def test_a_failed_rerun_leaves_the_earlier_good_result_untouched(
    papermill: Any, tmp_path: Path, one_launcher: None
) -> None:
    model = Path(shutil.copytree(tiny_model(), tmp_path / "model"))
    given: dict[str, Any] = {
        "topology": "1a", "connector": "none", "rounds": 1, "prompt_tokens": 3000, "requests": 2,
        "output_tokens": 8, "model": str(model),
    }  # fmt: skip
    await run(plan(PdSweep(**given, output_dir=str(tmp_path))), echo=lambda _: None)
    (result,) = (tmp_path / "pd_sweep").glob("*/result.json")
    before = result.read_bytes()

    (model / "model.safetensors").unlink()
    arguments = " ".join(f"-p {name} {value}" for name, value in given.items())
    again = await asyncio.to_thread(papermill, "pd_sweep", arguments)
    assert again.returncode != 0
    assert "aggregated-0 did not start" in again.stderr
    assert result.read_bytes() == before
    (attempt,) = (tmp_path / "pd_sweep").glob("*/attempt-*/result.json")
    assert '"status": "failed"' in attempt.read_text()
    # The same parameters, so the same run: it is that result which was not touched.
    assert attempt.parent.parent == result.parent
