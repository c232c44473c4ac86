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

pytest_plugins = ["tests.serve.conftest"]


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


KERNEL = """
import asyncio, json, sys, time
import workbench as wb

async def main():
    plan = wb.plan(wb.check_params("pd_sweep", json.loads(sys.argv[1])))
    print("planned", flush=True)
    while True:
        async with wb.deploy(plan.arms[0]):
            await asyncio.sleep(1)

asyncio.run(main())
"""
KILLS = 10


@pytest.mark.timeout(900)
def test_kernels_killed_at_random_moments_leave_no_container(
    made: Made, tmp_path: Path, environment: dict[str, str]
) -> None:
    # Real servers: a short life begins and ends containers, a long one has engines that load.
    given: dict[str, Any] = {
        "topology": "1p1d", "connector": "lmcache", "place": "container", "image": made.name,
        "container_args": made.args, "opponents": False,
    }  # fmt: skip
    chance = random.Random()
    seen = []
    for _ in range(KILLS):
        kernel = subprocess.Popen(
            [sys.executable, "-c", KERNEL, json.dumps(given)], env=environment, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert kernel.stdout is not None and kernel.stdout.readline() == b"planned\n"
        lived_s = chance.choice((chance.uniform(0, 3), chance.uniform(3, 25)))
        time.sleep(lived_s)
        seen.append((round(lived_s, 2), len(made.containers())))
        kernel.send_signal(signal.SIGKILL)
        kernel.wait()
        ends_s = time.monotonic() + 15
        # A last client may still be asking for a container when none is there.
        quiet_since_s = time.monotonic()
        while time.monotonic() < ends_s and time.monotonic() - quiet_since_s < 4:
            if made.containers():
                quiet_since_s = time.monotonic()
            time.sleep(0.2)
        assert made.containers() == [], seen
    print("lived s, containers when killed:", seen)
    assert any(count for _, count in seen)


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
