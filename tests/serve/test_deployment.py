import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import gone
from workbench.errors import LaunchError
from workbench.serve import deployment as serve
from workbench.serve.connectors import connector
from workbench.serve.deployed import DeploymentPlan, Instance
from workbench.serve.deployment import deploy
from workbench.serve.processes.launcher import Process, ProcessSpec
from workbench.serve.processes.ports import free_ports, unused_ports
from workbench.serve.processes.startup import ready
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

# --- starting -----------------------------------------------------------------------------------

ASYNCIO_SERVER = """
import asyncio, sys
async def main():
    await asyncio.start_server(lambda *_: None, "127.0.0.1", int(sys.argv[1]))
asyncio.run(main())
"""

MakePlan = Callable[[Iterator[int]], DeploymentPlan]


@pytest.fixture
def pd(spec) -> Callable[..., MakePlan]:
    """Makes the plan of a 1p1d whose servers answer 200; `changed` says how one of them differs."""

    def plan(**changed: dict[str, Any]) -> MakePlan:
        def make(ports: Iterator[int]) -> DeploymentPlan:
            roles = {"store": "store", "prefill-0": "prefill", "decode-0": "decode"}
            processes = [
                spec(name, role=role, port=port, **changed.get(role, {}))
                for (name, role), port in zip((roles | {"proxy": "proxy"}).items(), ports)  # noqa: B905
            ]
            return DeploymentPlan(
                topology=Topology.parse("1p1d"),
                connector=connector("lmcache"),
                settings=EngineSettings(model=Path("/models/tiny"), platform="cuda"),
                tp=TensorParallel(),
                processes=tuple(processes),
            )

        return make

    return plan


async def test_a_deployment_is_one_url_with_everything_behind_it(launcher, pd, tmp_path):
    ports = free_ports(4)
    async with deploy(launcher, pd(), log_dir=tmp_path, ports=lambda: iter(ports)) as running:
        store, prefill, decode, proxy = (f"http://127.0.0.1:{port}" for port in ports)
        assert running.url == running.proxy_url == proxy
        assert running.store_url == store
        assert running.instances == (
            Instance(name="prefill-0", role="prefill", url=prefill),
            Instance(name="decode-0", role="decode", url=decode),
        )
        assert 0 < running.started_s < 30
        assert [process.spec.name for process in running.processes] == [
            "store", "prefill-0", "decode-0", "proxy"
        ]  # fmt: skip
        assert running.dead() == []
        assert httpx.get(proxy, trust_env=False).status_code == 200
    assert all(gone(process.pid) for process in running.processes)


@pytest.mark.parametrize(("platform", "timeout_s"), [("cpu", 180), ("cuda", 1800)])
async def test_a_gpu_has_half_an_hour_to_load_its_weights(
    platform, timeout_s, launcher, pd, tmp_path, monkeypatch
):
    waited = []

    async def ready_at_once(_: Any, *, timeout_s: float, beside: Any) -> None:
        waited.append(timeout_s)

    monkeypatch.setattr(serve, "ready", ready_at_once)

    def make(ports: Iterator[int]) -> DeploymentPlan:
        settings = EngineSettings(model=Path("/models/tiny"), platform=platform)
        return replace(pd()(ports), settings=settings)

    async with deploy(launcher, make, log_dir=tmp_path):
        assert set(waited) == {timeout_s}


class Elsewhere:
    """A place of another kind: it has the verbs of the seam, and processes without an id here."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.running: list[TestServer] = []

    async def unused_ports(self) -> Iterator[int]:
        return unused_ports()

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        async def answer(_: web.Request) -> web.Response:
            return web.Response()

        app = web.Application()
        app.router.add_get("/{any:.*}", answer)
        self.running.append(TestServer(app, port=spec.port))
        await self.running[-1].start_server()
        return Process(spec, log_dir / "none.log", asyncio.get_running_loop().create_future())

    async def stop(self, processes: Iterable[Process]) -> None:
        for process, server in zip(processes, self.running, strict=True):
            await server.close()
            process.exited.set_result(0)


async def test_processes_may_run_in_another_place_that_has_the_verbs(pd, tmp_path):
    place = Elsewhere()
    async with deploy(place, pd(), log_dir=tmp_path) as running:
        assert [process.alive for process in running.processes] == [True] * 4
    assert not any(process.alive for process in running.processes)


async def test_an_instance_that_looks_for_its_store_finds_it(launcher, pd, tmp_path):
    ports = free_ports(4)
    look = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{ports[0]}/health')"
    slow_store = {"first": "import time; time.sleep(0.2)"}
    plan = pd(store=slow_store, prefill={"first": look}, decode={"first": look})
    async with deploy(launcher, plan, log_dir=tmp_path, ports=lambda: iter(ports)):
        pass


@pytest.mark.parametrize("loser", ["prefill", "proxy"])
async def test_a_port_that_was_lost_to_another_program_is_chosen_anew(
    loser, launcher, pd, tmp_path
):
    tries = []

    def choose() -> Iterator[int]:
        tries.append(free_ports(4))
        if len(tries) == 1:
            tries[0][1 if loser == "prefill" else 3] = taken.getsockname()[1]
        return iter(tries[-1])

    # asyncio words the proxy's error otherwise than the system does.
    plan = pd(proxy={"first": ASYNCIO_SERVER} if loser == "proxy" else {})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with deploy(launcher, plan, log_dir=tmp_path, ports=choose) as running:
            assert running.instances[0].url.endswith(f":{tries[1][1]}")
    assert len(tries) == 2


async def test_a_lost_port_that_a_server_does_not_tell_of_is_found(launcher, pd, tmp_path):
    """Mooncake's master exits with 1 and no word about its port (0.3.13)."""
    tries = []

    def choose() -> Iterator[int]:
        tries.append(free_ports(4))
        if len(tries) == 1:
            tries[0][1] = taken.getsockname()[1]
        return iter(tries[-1])

    def plan(ports: Iterator[int]) -> DeploymentPlan:
        silent = pd(prefill={"code": "raise SystemExit(1)"} if not tries[1:] else {})
        return silent(ports)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with deploy(launcher, plan, log_dir=tmp_path, ports=choose):
            pass
    assert len(tries) == 2


async def test_a_stranger_on_the_port_is_not_taken_for_the_server(launcher, spec, pd, tmp_path):
    stranger = await launcher.start(spec("stranger"), tmp_path)
    await ready([stranger], timeout_s=5)
    slow = {"first": "import time; time.sleep(0.2)"}  # the stranger answers, ours cannot yet
    tries = []

    def choose() -> Iterator[int]:
        tries.append(free_ports(4))
        if len(tries) == 1:
            tries[0][2] = stranger.spec.port
        return iter(tries[-1])

    async with deploy(launcher, pd(decode=slow), log_dir=tmp_path, ports=choose) as running:
        assert running.instances[1].url.endswith(f":{tries[1][2]}")


async def test_a_port_that_is_lost_again_and_again_is_a_failed_start(launcher, pd, tmp_path):
    tries = []

    def choose() -> Iterator[int]:
        tries.append(1)
        return iter([*free_ports(3), taken.getsockname()[1]])

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LaunchError, match=r"proxy did not start: .*Address already in use"):
            async with deploy(launcher, pd(), log_dir=tmp_path, ports=choose):
                pass
    assert len(tries) == 3


async def test_any_other_failure_is_said_at_once_and_ends_the_rest(
    launcher, pd, tmp_path, nothing_running
):
    plan = pd(decode={"code": "raise MemoryError('no room for the weights')"})
    tries = []
    began_s = time.monotonic()
    with pytest.raises(LaunchError) as error:
        async with deploy(
            launcher,
            plan,
            log_dir=tmp_path,
            ports=lambda: tries.append(1) or unused_ports(),
        ):
            pass
    assert str(error.value).startswith(
        "decode-0 did not start: MemoryError: no room for the weights\n"
        f"  log: {tmp_path / 'decode-0.log'}"
    )
    assert tries == [1]
    assert time.monotonic() - began_s < 10


async def test_a_store_that_does_not_start_keeps_the_rest_from_starting(launcher, pd, tmp_path):
    with pytest.raises(LaunchError, match="store did not start"):
        async with deploy(launcher, pd(store={"code": "1/0"}), log_dir=tmp_path):
            pass
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["store.log"]


async def test_an_error_in_the_block_ends_the_servers_too(launcher, pd, tmp_path):
    with pytest.raises(ZeroDivisionError):
        async with deploy(launcher, pd(), log_dir=tmp_path) as running:
            _ = 1 / 0
    assert all(gone(process.pid) for process in running.processes)


async def test_a_start_that_is_cancelled_leaves_nothing(launcher, pd, tmp_path):
    never = {"code": "import time; time.sleep(60)"}

    async def start() -> None:
        async with deploy(launcher, pd(decode=never), log_dir=tmp_path):
            pass

    starting = asyncio.create_task(start())
    while not (tmp_path / "proxy.log").exists():
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)  # until the last start has been reported, too
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    (supervisor,) = [p for p in psutil.Process().children() if "supervisor" in str(p.cmdline())]
    assert supervisor.children(recursive=True) == []


async def test_a_server_that_ended_by_itself_is_told_from_the_others(launcher, pd, tmp_path):
    async with deploy(launcher, pd(), log_dir=tmp_path) as running:
        victim = running.processes[2]
        os.killpg(victim.pid, signal.SIGKILL)
        await asyncio.wait_for(victim.exited, 10)
        assert running.dead() == [victim]


# --- resets and reports -------------------------------------------------------------------------
