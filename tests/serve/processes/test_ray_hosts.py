"""The launcher of several hosts, without Ray: its actor is a plain class, called directly here."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import left_running
from workbench.errors import DeploymentError, LaunchError
from workbench.hardware.hosts import Host
from workbench.serve.processes import ray_hosts
from workbench.serve.processes.host_agent import HostAgent
from workbench.serve.processes.local import SUPERVISOR
from workbench.serve.processes.ports import free_ports
from workbench.serve.processes.ray_hosts import HostLauncher, Share, shares, with_gpus
from workbench.serve.processes.startup import failure_line, ready

HOST = Host(name="host-2", address="10.0.0.2", interface="eth0")


class RaisedThereError(Exception):
    """As Ray's RayTaskError: what was raised over there is its `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"a traceback of {cause}")
        self.cause = cause


class PretendedRay:
    """Waits for an agent's answer, as Ray does; `cut` makes calls hang."""

    def __init__(self) -> None:
        self.cut = self.killed = False

    def get(self, asked: "Future[Any] | None", timeout: float | None = None) -> Any:
        if self.killed:
            raise ChildProcessError("the actor died")
        if self.cut or asked is None:
            assert timeout, "whoever asks a host that is cut off waits for ever"
            time.sleep(min(timeout, 0.5))
            raise TimeoutError
        if wait([asked], timeout).not_done:
            raise TimeoutError
        if isinstance(raised := asked.exception(), Exception):
            raise RaisedThereError(raised)
        return asked.result()


class PretendedActor:
    """Runs one call at a time, and those of a concurrency group beside it."""

    def __init__(self, agent: HostAgent, ray: PretendedRay) -> None:
        self._agent, self._ray = agent, ray
        self._threads = {"": ThreadPoolExecutor(1), "probe": ThreadPoolExecutor(4)}

    def __getattr__(self, name: str) -> Any:
        return Method(self._agent, name, self._ray, self._threads)


@dataclass
class Method:
    agent: HostAgent
    name: str
    ray: PretendedRay
    threads: dict[str, ThreadPoolExecutor]
    group: str = ""

    def options(self, concurrency_group: str) -> "Method":
        return replace(self, group=concurrency_group)

    def remote(self, *given: Any) -> "Future[Any] | None":
        if self.ray.cut or self.ray.killed:
            return None
        return self.threads[self.group].submit(getattr(self.agent, self.name), *given)


@pytest.fixture
def agent(nothing_running: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(HostAgent, "gpus", lambda _: ["4", "5"])
    made = HostAgent(lease_s=3.0)
    yield made
    made.close()


@pytest.fixture
async def running(
    agent: HostAgent, tmp_path: Path
) -> AsyncIterator[tuple[HostLauncher, PretendedRay]]:
    async with launched(agent, tmp_path) as both:
        yield both


@asynccontextmanager
async def launched(agent: HostAgent, folder: Path) -> AsyncIterator[Any]:
    ray = PretendedRay()
    launcher = HostLauncher(folder / "host-2", agent=PretendedActor(agent, ray), ray=ray, host=HOST)
    async with launcher:
        yield launcher, ray


async def test_a_process_of_a_host_has_its_log_here(running, agent, spec, tmp_path):
    launcher, _ = running
    process = await launcher.start(spec(first="print('loading', flush=True)"), tmp_path / "arm")
    await ready([process], timeout_s=10)
    assert process.alive and process.pid == 0  # an id of another machine means nothing here
    assert process.log == tmp_path / "arm" / "decode-0.log"
    for _ in range(50):
        if process.log.exists() and "loading" in process.log.read_text():
            break
        await asyncio.sleep(0.1)
    assert "loading" in process.log.read_text()
    await launcher.stop([process])
    assert not process.alive
    # The end was asked for.
    assert launcher.lost == ""


async def test_a_start_that_fails_gives_the_reason_of_its_log(running, spec, tmp_path):
    launcher, _ = running
    process = await launcher.start(spec(code="raise MemoryError('no room')"), tmp_path)
    with pytest.raises(LaunchError, match="decode-0 did not start: MemoryError: no room"):
        await ready([process], timeout_s=10)


async def test_files_that_a_process_reads_are_written_on_its_host(running, agent, spec, tmp_path):
    launcher, _ = running
    show = "import os; print(open(os.environ['CONFIG']).read(), os.environ['CONFIG'], flush=True)"
    process = await launcher.start(spec(code=show, env_files={"CONFIG": "{}"}), tmp_path)
    await process.exited
    await asyncio.sleep(0.6)
    said = process.log.read_text()
    assert said.startswith("{} ") and agent.folder() in said


async def test_a_killed_agent_leaves_nothing_and_the_error_names_the_host(
    running, agent, spec, tmp_path, alive
):
    launcher, ray = running
    process = await launcher.start(spec(), tmp_path)
    await ready([process], timeout_s=10)
    # What the system does with the pipe of a killed actor.
    ray.killed = True
    agent.close()
    await asyncio.wait_for(process.exited, 10)
    line = failure_line(process, "ended by itself")
    assert line.startswith("decode-0 ended by itself: host-2 (10.0.0.2) was lost")
    with pytest.raises(LaunchError, match=r"decode-1 did not start: host-2 \(10.0.0.2\) was lost"):
        await launcher.start(spec("decode-1"), tmp_path)
    with pytest.raises(DeploymentError, match="host-2"):
        await launcher.free([20_000])
    await launcher.stop([process])  # does not wait for the lost host


async def test_a_host_that_is_cut_off_is_clean_by_its_lease(
    running, agent, spec, tmp_path, monkeypatch, token
):
    launcher, ray = running
    process = await launcher.start(spec(), tmp_path)
    await ready([process], timeout_s=10)
    ray.cut = True
    cut_s = time.monotonic()
    await asyncio.wait_for(process.exited, 10)
    assert "did not answer for" in process.end and "host-2 (10.0.0.2)" in process.end
    # Nothing told the host to end it.
    assert left_running(token, within_s=10) == {}
    assert time.monotonic() - cut_s < 10
    assert not Path(agent.folder()).exists()


async def test_the_supervisor_is_no_child_of_the_actor(agent):
    """Ray kills the children of its workers, and a killed supervisor could not tidy up."""
    assert all(
        "supervisor" not in " ".join(child.cmdline()) for child in psutil.Process().children()
    )


async def test_a_link_that_lets_nothing_through_does_not_cost_the_host(
    agent, tmp_path, monkeypatch
):
    """Its probe waits for the link, and the host must still answer and hear its pings."""
    monkeypatch.setattr(ray_hosts, "LEASE_S", 2.0)
    monkeypatch.setattr(agent, "send", lambda *_: time.sleep(3.5))
    async with launched(agent, tmp_path) as (launcher, _):
        await asyncio.to_thread(launcher.ask, "send", "10.0.0.3", 20_000, 1.0)
        assert launcher.lost == ""
        assert await launcher.free([]) == []
        assert agent.news()[2] is False  # the supervisor's lease of 3 s has not run out


async def test_an_error_on_a_host_that_answers_is_told_as_it_was(running):
    launcher, _ = running
    (closed,) = free_ports(1)
    with pytest.raises(DeploymentError) as raised:
        await asyncio.to_thread(launcher.ask, "send", "127.0.0.1", closed, 0.1)
    assert str(raised.value) == (
        "host-2 (10.0.0.2) answered with an error: ConnectionError: cannot send to 127.0.0.1"
        " ([Errno 111] Connection refused)"
    )


def test_ray_keeps_what_was_raised_over_there():
    exceptions = pytest.importorskip("ray.exceptions")
    there = exceptions.RayTaskError("send", "a traceback", TimeoutError("timed out"), ip="10.0.0.2")
    assert ray_hosts._reason(HOST, there.as_instanceof_cause(), 6.0) == (
        "host-2 (10.0.0.2) answered with an error: TimeoutError: timed out"
    )


async def test_a_host_that_is_cut_off_at_a_start_is_an_error_of_ours(agent, spec, tmp_path):
    async with launched(agent, tmp_path) as (launcher, ray):
        ray.cut = True
        with pytest.raises(LaunchError, match=r"decode-0 did not start: host-2 .* did not answer"):
            await launcher.start(spec(env_files={"CONFIG": "{}"}), tmp_path)


async def test_a_host_that_is_cut_off_before_its_first_answer_is_not_waited_for(agent, tmp_path):
    ray = PretendedRay()
    ray.cut = True
    launcher = HostLauncher(tmp_path, agent=PretendedActor(agent, ray), ray=ray, host=HOST)
    with pytest.raises(LaunchError, match=r"host-2 \(10.0.0.2\) did not answer for"):
        await launcher.__aenter__()


async def test_a_log_that_cannot_be_kept_here_is_noted_once_and_the_host_goes_on(
    running, spec, tmp_path
):
    launcher, _ = running
    log = tmp_path / "arm" / "decode-0.log"
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    code = "import time\nfor n in range(9): print(n, flush=True); time.sleep(0.2)"
    process = await launcher.start(spec(code=code), log.parent)
    assert await asyncio.wait_for(process.exited, 10) == 0
    assert launcher.notes == [
        "Logs of host-2 (10.0.0.2) are not whole here: No space left on device."
    ]
    assert launcher.lost == ""


async def test_who_waits_for_a_host_is_told_whatever_ends_the_thread_that_follows_it(
    agent, tmp_path, monkeypatch
):
    monkeypatch.setattr(agent, "news", lambda: ([], None, False))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    async with launched(agent, tmp_path) as (launcher, _):
        await asyncio.wait_for(launcher.link.wait(), 5)
        assert launcher.lost == "host-2 (10.0.0.2) was lost: nobody follows it any more"


def test_the_gpus_are_those_that_ray_assigned(spec):
    planned = spec(devices=("0", "1"), env={"CUDA_VISIBLE_DEVICES": "0,1"})
    given = with_gpus(planned, ["4", "5"])
    assert given.devices == ("4", "5")
    assert given.env == {"CUDA_VISIBLE_DEVICES": "4,5"}
    alone = spec(env={"CUDA_VISIBLE_DEVICES": ""})
    assert with_gpus(alone, ["4"]) is alone


def test_a_run_holds_what_its_largest_deployment_needs_of_each_host(spec):
    other = replace(HOST, name="host-3", address="10.0.0.3")
    one, two = spec(devices=("0",), host=HOST), spec(devices=("1",), host=HOST)
    proxy = spec("proxy", here=True)
    assert shares([(one, two, proxy), (one, spec(host=other))]) == {
        HOST: Share(instances=2, gpus=2), other: Share(instances=1, gpus=0)
    }  # fmt: skip


def test_free_ports_are_asked_on_the_host(agent):
    candidates = free_ports(3)
    assert agent.free(candidates, "127.0.0.1") == candidates


@pytest.mark.parametrize("quiet", [True, False])
def test_a_supervisor_ends_when_its_lease_runs_out(quiet, nothing_running):
    line = [sys.executable, "-m", SUPERVISOR, "--lease", "1.0"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdin is not None
        for number in range(10):
            if number == 0 or not quiet:
                supervisor.stdin.write(json.dumps({"ping": 1}).encode() + b"\n")
                supervisor.stdin.flush()
            time.sleep(0.3)
        assert (supervisor.poll() is None) is not quiet
        supervisor.terminate()


async def test_a_supervisor_that_ended_is_named_by_its_host(running, agent, spec, tmp_path):
    launcher, _ = running
    process = await launcher.start(spec(), tmp_path)
    agent.close()  # as its lease would do
    await asyncio.wait_for(process.exited, 15)
    # Whether this one is refused or ends at once, it is said whose doing it is.
    with pytest.raises(LaunchError, match=r"host-2 \(10.0.0.2\) was lost: its supervisor"):
        await ready([await launcher.start(spec("decode-1"), tmp_path)], timeout_s=10)
