"""Servers in containers, with a docker that is pretended: what it is asked, and what is left."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.conftest import gone
from tests.fake_docker import ID, NO_GPU, NO_PROGRAM, NO_SPACE, UNKNOWN_FLAG, FakeDocker
from workbench.errors import LaunchError
from workbench.hardware.images import image
from workbench.serve.processes.containers import ContainerLauncher, gpu_access
from workbench.serve.processes.launcher import Process
from workbench.serve.processes.startup import failure_line, ready

NAME = "vllm/vllm-openai:v0.32.0"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_running: str) -> FakeDocker:
    made = FakeDocker(tmp_path / "docker")
    made.has(NAME)
    monkeypatch.setenv("PATH", made.path, prepend=":")
    image.cache_clear()
    return made


def launcher(tmp_path: Path, *args: str, platform: str = "cpu") -> ContainerLauncher:
    return ContainerLauncher(tmp_path / "logs", image(NAME, args), "python3", platform)


def inside(spec):
    """The same process with the interpreter of the image."""
    return replace(spec, program=("python3", *spec.program[1:]))


async def start(launcher, tmp_path, *specs) -> list[Process]:
    started = [await launcher.start(inside(one), tmp_path) for one in specs]
    await ready(started, timeout_s=20)
    return started


async def test_servers_share_memory_and_the_network_of_this_machine(docker, spec, tmp_path):
    async with launcher(tmp_path, "--memory", "8g") as running:
        processes = await start(running, tmp_path, spec("prefill-0"), spec("decode-0"))
        for process in processes:
            assert httpx.get(process.spec.ready_url, trust_env=False).status_code == 200
        (memory,) = docker.runs("shared-memory")
        assert memory[memory.index("--ipc") + 1] == "shareable"
        (line,) = docker.runs("decode-0")
        assert (
            line[line.index("--ipc") + 1] == f"container:workbench-{running.token}-1-shared-memory"
        )
        assert line[line.index("--network") + 1] == "host"
        assert line[line.index("--pull") + 1] == "never"
        # The options of the user come last, before the image and its program.
        end = line.index("--entrypoint")
        assert line[end - 2 : end + 3] == ["--memory", "8g", "--entrypoint", "python3", ID]
        assert len(docker.containers) == 3
    assert docker.containers == []


async def test_the_proxy_stays_a_process_of_this_machine(docker, spec, tmp_path):
    async with launcher(tmp_path) as running:
        proxy = await running.start(spec("proxy", role="proxy", here=True), tmp_path)
        await ready([proxy], timeout_s=20)
        assert proxy.pid and docker.containers == []


async def test_values_of_variables_are_not_in_the_command_line(docker, spec, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    show = "import os; print(os.environ['MINE'], os.environ['HF_TOKEN'], flush=True)"
    async with launcher(tmp_path) as running:
        (process,) = await start(running, tmp_path, spec(first=show, env={"MINE": "mine"}))
        assert process.log.read_text() == "mine hf_secret\n"
    (line,) = docker.runs("decode-0")
    assert "--env MINE" in " ".join(line) and "--env HF_TOKEN" in " ".join(line)
    assert "hf_secret" not in str(docker.calls) and "=mine" not in str(docker.calls)


async def test_what_a_process_reads_is_mounted_so_that_it_cannot_be_written(docker, spec, tmp_path):
    kept = tmp_path / "kept"
    given = spec(
        reads=("/models/llama",), writes=(str(kept),),
        env_files={"CONFIG_PATH": "{}"},
    )  # fmt: skip
    async with launcher(tmp_path) as running:
        await start(running, tmp_path, given)
    (line,) = docker.runs("decode-0")
    volumes = [line[at + 1] for at, word in enumerate(line) if word == "--volume"]
    file = tmp_path / "decode-0.config_path"
    assert volumes == [
        "/models/llama:/models/llama:ro", f"{file}:{file}:ro", f"{kept}:{kept}"
    ]  # fmt: skip
    assert kept.is_dir()  # docker would make it, for root
    assert ["rm", "--force", "--volumes"] in [call[:3] for call in docker.calls]


async def test_the_end_of_a_server_is_noticed_and_says_if_memory_ran_out(docker, spec, tmp_path):
    (docker.folder / "oom").touch()
    async with launcher(tmp_path) as running:
        (process,) = await start(running, tmp_path, spec())
        for _ in range(100):
            if process.pid:
                break
            await asyncio.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        assert await asyncio.wait_for(process.exited, 20) == -signal.SIGKILL
        assert "ended by itself: its container ran out of memory" in failure_line(
            process, "ended by itself"
        )


async def test_a_program_that_fails_gives_its_own_reason(docker, spec, tmp_path):
    async with launcher(tmp_path) as running:
        process = await running.start(
            inside(spec(code="raise ValueError('no such model')")), tmp_path
        )
        with pytest.raises(LaunchError, match="decode-0 did not start: ValueError: no such model"):
            await ready([process], timeout_s=20)
        assert await process.exited == 1


@pytest.mark.parametrize(
    ("said", "status", "sentence"),
    [
        (NO_GPU, 125, "docker must be set up for NVIDIA GPUs, .*NVIDIA Container Toolkit"),
        (NO_PROGRAM, 127, "image must be one with Python and vLLM"),
    ],
)
async def test_a_container_that_cannot_start_says_why(
    docker, spec, tmp_path, said, status, sentence
):
    async with launcher(tmp_path) as running:
        docker.breaks("run", said, status, only="-decode-0")
        process = await running.start(inside(spec()), tmp_path)
        with pytest.raises(LaunchError, match=f"decode-0 did not start: {sentence}"):
            await ready([process], timeout_s=20)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (NO_SPACE, "the disk of docker must have free space"),
        (UNKNOWN_FLAG, "container_args must be options of docker run"),
    ],
)
async def test_what_breaks_every_container_is_said_before_any_server(
    docker, spec, tmp_path, said, sentence
):
    async with launcher(tmp_path, "--foo") as running:
        docker.breaks("run", said)
        with pytest.raises(LaunchError, match=sentence):
            await running.start(spec(), tmp_path)
        assert docker.runs("decode-0") == []


async def test_a_stop_ends_servers_and_the_last_one_ends_the_shared_memory(docker, spec, tmp_path):
    async with launcher(tmp_path) as running:
        one, other = await start(running, tmp_path, spec("decode-0"), spec("decode-1"))
        await running.stop([one])
        assert [name.rpartition("-")[2] for name in docker.containers] == ["memory", "1"]
        assert other.alive and not one.alive
        await running.stop([other])
        assert docker.containers == [] and gone(other.pid)
        await start(running, tmp_path, spec())
        assert len(docker.runs("shared-memory")) == 2


async def test_without_its_supervisor_the_launcher_removes_containers_itself(
    docker, spec, tmp_path
):
    async with launcher(tmp_path) as running:
        (process,) = await start(running, tmp_path, spec())
        supervisor = running.local._link
        os.kill(supervisor.pid, signal.SIGKILL)
        await asyncio.wait_for(process.exited, 20)
        assert len(docker.containers) == 2
    assert docker.containers == []


KILLED = """
import asyncio, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from workbench.hardware.images import image
from workbench.serve.processes.containers import ContainerLauncher
from workbench.serve.processes.launcher import ProcessSpec

async def main():
    folder = Path({folder!r})
    async with ContainerLauncher(folder, image({name!r}), "python3", "cpu") as running:
        for number in range(2):
            spec = ProcessSpec(
                name=f"decode-{{number}}", role="decode", program=("python3", "-c"),
                args=("import time; time.sleep(600)",), port=number + 1, ready_url="",
            )
            await running.start(spec, folder)
        print("started", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_after_the_kernel_is_killed_no_container_is_left(docker, tmp_path):
    code = KILLED.format(root=str(Path(__file__).parents[3]), folder=str(tmp_path), name=NAME)
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert kernel.stdout is not None and kernel.stdout.readline() == b"started\n"
    for _ in range(100):
        if len(docker.containers) == 3:
            break
        await asyncio.sleep(0.1)
    assert len(docker.containers) == 3
    kernel.kill()
    kernel.wait()
    for _ in range(100):
        if not docker.containers:
            break
        await asyncio.sleep(0.1)
    assert docker.containers == []


def test_a_cuda_instance_has_its_own_gpus_only_and_counts_them_from_0(spec):
    given = spec(devices=("2", "3"), env={"CUDA_VISIBLE_DEVICES": "2,3", "A": "b"})
    access = gpu_access(given, "cuda")
    assert access.env == {"A": "b"}
    assert access.options("docker") == ("--gpus", '"device=2,3"')
    assert access.options("/usr/bin/podman") == (
        *("--device", "nvidia.com/gpu=2", "--device", "nvidia.com/gpu=3"),
    )


def test_a_rocm_instance_has_all_gpus_and_a_variable_names_its_own(spec):
    given = spec(devices=("1",), env={"HIP_VISIBLE_DEVICES": "1"})
    access = gpu_access(given, "rocm")
    assert access.env == {"HIP_VISIBLE_DEVICES": "1"}
    line = " ".join(access.options("docker"))
    for part in ("/dev/kfd", "/dev/dri", "--group-add video", "seccomp=unconfined", "SYS_PTRACE"):
        assert part in line


def test_without_a_gpu_nothing_is_added(spec):
    access = gpu_access(spec(env={"A": "b"}), "cpu")
    assert (access.env, access.options("docker")) == ({"A": "b"}, ())
