"""Real vLLM in real containers: every gate, every end, and nothing left."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.places.conftest import Made
from workbench.errors import LaunchError
from workbench.experiment.environment import TIMING_GATES
from workbench.experiment.plan.arms import plan
from workbench.hardware.images import image
from workbench.params.engine_args import words
from workbench.params.notebooks import check_params
from workbench.serve.processes.containers import ContainerLauncher
from workbench.serve.processes.startup import ready


def run_line(made: Made, connector: str, folder: Path) -> list[str]:
    given = {
        "topology": "1p1d", "connector": connector, "opponents": False, "rounds": 1,
        "prompt_tokens": 2000, "requests": 2, "output_tokens": 8, "output_dir": folder,
        "place": "container", "image": made.name, "container_args": made.args,
    }  # fmt: skip
    typed = [word for name, value in given.items() for word in ("-p", name, str(value))]
    return [sys.executable, "-m", "workbench.cli", "run", "pd_sweep", *typed, "--json"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("connector", ["lmcache", "nixl"])
def test_1p1d_in_containers_passes_every_gate_but_those_on_timing(
    made: Made, connector: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        run_line(made, connector, tmp_path), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.glob("pd_sweep/*/result.json")
    facts = json.loads(file.read_text())
    found = {gate["name"]: gate["outcome"] for gate in facts["gates"]}
    print(connector, facts["launches_s"], found)
    assert {name for name, o in found.items() if o != "PASS"} <= TIMING_GATES | {"steady state"}
    assert found["KV moved"] == found["the ledger closes"] == found["same text"] == "PASS"
    assert facts["machine"]["versions"]["image"].startswith("sha256:")
    assert facts["machine"]["versions"][made.program]


VLLM = """
import asyncio, sys
import workbench as wb

async def main():
    given = {
        "topology": "1p1d", "place": "container", "image": sys.argv[1],
        "container_args": sys.argv[2], "opponents": False,
    }
    plan = wb.plan(wb.check_params("pd_sweep", given))
    print("planned", flush=True)
    while True:
        async with wb.deploy(plan.arms[0]):
            await asyncio.sleep(1)

asyncio.run(main())
"""
TINY = """
import asyncio, sys
from pathlib import Path
from tests.serve.conftest import SERVER
from workbench.hardware.images import image
from workbench.params.engine_args import words
from workbench.serve.processes.containers import ContainerLauncher
from workbench.serve.processes.launcher import ProcessSpec
from workbench.serve.processes.ports import free_ports
from workbench.serve.processes.startup import ready

async def main():
    used = image(sys.argv[1], words(sys.argv[2]))
    print("planned", flush=True)
    async with ContainerLauncher(Path("logs"), used, "python3", "cpu") as launcher:
        while True:
            running = [
                await launcher.start(
                    ProcessSpec(
                        name=f"decode-{port}", role="decode", program=("python3", "-c", SERVER),
                        args=(str(port),), port=port, ready_url=f"http://127.0.0.1:{port}/",
                    ),
                    Path("logs"),
                )
                for port in free_ports(3)
            ]
            await ready(running, timeout_s=60)
            await launcher.stop(running)

asyncio.run(main())
"""
"""Starts and stops tiny servers all the time, so that a kill meets a container in the making."""
KILLS = 10


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kernel", "longest_s"), [(TINY, 12.0), (VLLM, 30.0)], ids=["tiny", "vllm"]
)
def test_kernels_killed_at_random_moments_leave_no_container(
    made: Made, tmp_path: Path, environment: dict[str, str], kernel: str, longest_s: float
) -> None:
    chance = random.Random()
    seen = []
    for _ in range(KILLS):
        running = subprocess.Popen(
            [sys.executable, "-c", kernel, made.name, made.args], env=environment, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert running.stdout is not None and running.stdout.readline() == b"planned\n"
        time.sleep(chance.uniform(0, longest_s))
        there = made.containers()
        running.send_signal(signal.SIGKILL)
        running.wait()
        killed_s = quiet_since_s = time.monotonic()
        # A last client may still ask for a container when none is there.
        while time.monotonic() - quiet_since_s < 4:
            if made.containers():
                quiet_since_s = time.monotonic()
            assert time.monotonic() - killed_s < 20, (seen, made.containers())
            time.sleep(0.2)
        seen.append((len(there), round(quiet_since_s - killed_s, 1)))
    print("containers when killed, seconds until none was left:", seen)
    assert any(count for count, _ in seen)


@pytest.fixture
def launcher(made: Made, tmp_path: Path) -> Any:
    def start(*args: str) -> ContainerLauncher:
        used = image(made.name, (*words(made.args), *args))
        return ContainerLauncher(tmp_path / "logs", used, "python3", "cpu")

    return start


def inside(spec: Any, **given: Any) -> Any:
    made = spec(**given)
    return replace(made, program=("python3", *made.program[1:]))


async def test_a_server_in_a_container_is_a_process_of_this_machine(
    launcher: Any, spec: Any, tmp_path: Path
) -> None:
    writes = "open('/dev/shm/segment', 'w').write('x');"
    async with launcher() as running:
        process = await running.start(inside(spec, first=writes), tmp_path)
        await ready([process], timeout_s=60)
        for _ in range(50):
            if process.pid:
                break
            await asyncio.sleep(0.1)
        # Its port is looked up, and its CPU time counts as ours.
        assert "python3" in Path(f"/proc/{process.pid}/cmdline").read_text()
        assert httpx.get(process.spec.ready_url, trust_env=False).status_code == 200
        # The machine's shared memory has nothing of it.
        assert not Path("/dev/shm/segment").exists()


async def test_a_container_that_runs_out_of_memory_says_so(
    launcher: Any, spec: Any, tmp_path: Path
) -> None:
    async with launcher("--memory", "64m") as running:
        greedy = inside(spec, code="held = [bytearray(2**20) for _ in range(500)]")
        process = await running.start(greedy, tmp_path)
        # podman 4.3 does not report on cgroups v1 that memory was the reason.
        reasons = "its container ran out of memory|killed by SIGKILL, .* when memory runs out"
        with pytest.raises(LaunchError, match=reasons):
            await ready([process], timeout_s=60)


def test_what_docker_or_podman_cannot_do_is_one_sentence(made: Made, refused: Any) -> None:
    def planned(**given: Any) -> str:
        asked = {"place": "container", "image": made.name, "container_args": made.args} | given
        sentence: str = refused(lambda: plan(check_params("pd_sweep", asked)))
        assert len(sentence.split()) <= 45 and "\n" not in sentence
        return sentence

    pull = f"(example: {made.program} pull no/such:image)"
    assert planned(image="no/such:image").endswith(pull)
    assert "one with vLLM" in planned(container_args=made.bare_args)
    assert "container_args must be options" in planned(container_args=f"{made.args} --no-such")
    # Nothing is mounted, so there is no Python.
    assert planned(container_args="").startswith("image must be one with Python and vLLM")
