"""The real fork server with what a simulation needs; tests/engine has it with vLLM."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import left_running
from workbench.hardware.machine import usable_cores
from workbench.serve.processes.ports import free_ports
from workbench.serve.simulated.substitution import LOADS

SIMULATED, PROXY = (f"{module}:main" for module in LOADS)


class Forks:
    """A fork server, what is said to it and what it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.serve.processes.forkserver", *LOADS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def event(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def order(
        self,
        name: str,
        *args: str,
        fork: str = "workbench.serve.simulated.__main__:main",
        cores: tuple[int, ...] = (),
    ) -> int:
        job = {"fork": fork, "name": name, "args": args, "env": {}, "cores": cores}
        job["log"] = str(self.folder / f"{name}.log")
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        forked = self.event()
        assert forked["forked"] == name
        return int(forked["pid"])


@pytest.fixture
def forks(tmp_path: Path, nothing_running: str) -> Iterator[Forks]:
    started = Forks(tmp_path)
    with started.process:
        assert 0 < started.event()["ready"] < 30
        yield started
        started.process.kill()


def answers(port: int, path: str = "/health") -> bool:
    transport = httpx.HTTPTransport(retries=6)  # 1.5 s in all
    with httpx.Client(transport=transport, trust_env=False, timeout=5) as client:
        return client.get(f"http://127.0.0.1:{port}{path}").status_code == 200


def test_instance_store_and_proxy_are_forked_and_end_when_asked(forks: Forks) -> None:
    ports = free_ports(4)
    engine, store, http, proxy = map(str, ports)
    decode = f"http://127.0.0.1:{engine}"
    core = usable_cores()[-1]
    pids = {
        "decode-0": forks.order("decode-0", "engine", "--port", engine, cores=(core,)),
        "store": forks.order("store", "lmcache", "--port", store, "--http-port", http),
        "proxy": forks.order(
            "proxy",
            "--port",
            proxy,
            "--mode",
            "none",
            "--decode",
            decode,
            fork=PROXY,
        ),
    }
    assert answers(ports[0]) and answers(ports[2], "/healthcheck") and answers(ports[3])
    assert psutil.Process(pids["decode-0"]).cpu_affinity() == [core]
    assert psutil.Process(pids["store"]).cpu_affinity() == list(usable_cores())
    for name, pid in pids.items():
        assert psutil.Process(pid).ppid() == forks.process.pid
        assert os.getpgid(pid) == pid
        os.kill(pid, signal.SIGTERM)
        assert forks.event() == {"exited": name, "status": 0}


def test_what_a_forked_server_complains_of_is_in_its_log(forks: Forks) -> None:
    forks.order("decode-0", "engine", "--port", "many")
    assert forks.event() == {"exited": "decode-0", "status": 2}
    assert "invalid int value: 'many'" in (forks.folder / "decode-0.log").read_text()


@pytest.mark.parametrize("end", ["stdin closes", "SIGKILL"])
def test_its_end_is_the_end_of_what_it_forked(
    forks: Forks, end: str, token: str, alive: Callable[[], dict[int, str]]
) -> None:
    (port,) = free_ports(1)
    pid = forks.order("decode-0", "engine", "--port", str(port))
    assert answers(port)
    assert set(alive()) == {forks.process.pid, pid}
    forks.process.stdin.close() if end == "stdin closes" else forks.process.kill()
    forks.process.wait(timeout=10)
    assert left_running(token, within_s=10) == {}


@pytest.mark.parametrize(("name", "ready"), [("no_such_module?", True), ("no_such_module", False)])
def test_what_only_one_connector_needs_may_be_missing(name: str, ready: bool) -> None:
    words = [sys.executable, "-m", "workbench.serve.processes.forkserver", name]
    ended = subprocess.run(words, input="", capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith('{"ready"') is ready
    assert "No module named 'no_such_module'" in ended.stderr
    assert (ended.returncode == 0) is ready
