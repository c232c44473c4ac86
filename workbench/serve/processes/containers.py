"""The launcher of containers on this machine: each instance, and the store, has one of its own.

    python -m workbench.serve.processes.containers podman 8f3a...    removes what a launcher started

A container belongs to docker or podman, not to the process that asked for it. So each has the
launcher's token as a label, and the supervisor runs the command above when it ends: also after the
notebook's kernel was killed. Proxy and Redis stay processes of this machine.

Containers of a deployment share memory (LMCache with its engines; CUDA's and UCX's transports) in
the IPC namespace of a container that does nothing else. It ends with them, and with it every
segment that a killed server left, which on the machine itself would belong to root.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import psutil

from workbench.errors import LaunchError
from workbench.hardware.images import LABEL, Image, explained, remove
from workbench.serve.processes import logs
from workbench.serve.processes.launcher import Process, ProcessSpec
from workbench.serve.processes.local import LocalLauncher

_NOT_STARTED = (125, 126, 127)
"""Exit statuses of docker's and podman's own errors."""
_NEVER = "0001-"
"""What the time of a start begins with until there is one."""
_SIGNALLED = 128
"""A status above it means that a signal ended the program."""
_PERIOD_S, _LOOK_S = 0.3, 60.0
_SETTLED_S, _SWEEP_S = 0.6, 60.0
PASSED_ON = ("HF_TOKEN",)
"""Variables of the notebook that containers get too."""
WAITS = ("-c", "import signal; signal.pause()")
MEMORY = "shared-memory"
"""The container that only holds the shared memory of the others."""


@dataclass(slots=True)
class _Container:
    """A server, its container, and the client that is attached to it."""

    name: str
    process: Process
    client: Process
    watch: asyncio.Task[None]


@dataclass(slots=True)
class ContainerLauncher:
    """Starts instances and stores in containers of an image.

    Use as `async with ContainerLauncher(...) as launcher`; leaving it ends all of them.
    """

    log_dir: Path
    image: Image
    python: str
    """The interpreter of the image."""
    platform: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    notes: list[str] = field(default_factory=list)
    local: LocalLauncher = field(init=False)
    _running: list[_Container] = field(default_factory=list)
    _memory: str = ""
    _started: int = 0

    def __post_init__(self) -> None:
        self.local = LocalLauncher(self.log_dir, notes=self.notes)

    async def __aenter__(self) -> Self:
        await self.local.__aenter__()
        await self.local.at_the_end(
            [sys.executable, "-m", __name__, self.image.program, self.token]
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.local.__aexit__()
        for container in self._running:
            container.watch.cancel()
        # The supervisor has swept, unless it was killed.
        left = await asyncio.shield(asyncio.to_thread(sweep, self.image.program, self.token, 0.0))
        if left:
            self.notes.append(
                f"{len(left)} containers could not be removed; run {self.image.program} rm --force"
                f" {' '.join(left)}."
            )

    async def unused_ports(self) -> Iterator[int]:
        """Free ports of this machine, whose network containers use."""
        return await self.local.unused_ports()

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        """Start one process in a container, without waiting until it is ready.

        Raises LaunchError if no container can be started.
        """
        if spec.here:
            return await self.local.start(spec, log_dir)
        if not self._memory:
            self._memory = await self._share_memory(log_dir)
        log_dir.mkdir(parents=True, exist_ok=True)
        files = spec.write_files(log_dir)
        for folder in spec.writes:
            # Otherwise docker makes it, for root.
            Path(folder).mkdir(parents=True, exist_ok=True)
        gpus = gpu_access(spec, self.platform)
        line = self.image.run_line(
            *spec.argv,
            label=self.token,
            env=[*gpus.env, *files, *filter(os.environ.get, PASSED_ON)],
            reads=[*spec.reads, *files.values()],
            writes=spec.writes,
            options=(
                *("--name", name := self._name(spec.name), "--ipc", f"container:{self._memory}"),
                *gpus.options(self.image.program),
            ),
        )
        client = await self._client(spec, line, gpus.env | files, log_dir)
        process = Process(spec, client.log, asyncio.get_running_loop().create_future())
        watch = asyncio.create_task(self._watch(name, process, client))
        self._running.append(_Container(name, process, client, watch))
        return process

    async def stop(self, processes: Iterable[Process]) -> None:
        """End processes, with the shared memory once no container uses it."""
        given = list(processes)
        ended = [one for one in self._running if any(one.process is p for p in given)]
        names = [one.name for one in ended]
        self._running = [one for one in self._running if one not in ended]
        if self._memory and not self._running:
            names.append(self._memory)
            self._memory = ""
        await asyncio.shield(asyncio.to_thread(remove, self.image.program, names))
        ours = [one.process for one in ended]
        await self.local.stop(
            [p for p in given if not any(p is one for one in ours)] + [one.client for one in ended]
        )
        if ended:
            await asyncio.wait([one.watch for one in ended], timeout=_LOOK_S)

    def _name(self, of: str) -> str:
        self._started += 1
        return f"{LABEL}-{self.token}-{self._started}-{of}"

    async def _client(
        self, spec: ProcessSpec, line: Sequence[str], env: dict[str, str], log_dir: Path
    ) -> Process:
        """A docker or podman that the supervisor owns; what its container prints is its output."""
        asked = replace(spec, program=tuple(line), args=(), env=env, env_files={}, forks="")
        return await self.local.start(asked, log_dir)

    async def _share_memory(self, log_dir: Path) -> str:
        """Start the container whose IPC namespace the others use. Raises LaunchError.

        Its shared memory is limited by this machine's memory alone; only what is used takes any.
        """
        name = self._name(MEMORY)
        line = self.image.run_line(
            self.python, *WAITS, label=self.token,
            options=(
                *("--name", name, "--detach", "--ipc", "shareable"),
                *("--shm-size", str(psutil.virtual_memory().total)),
            ),
        )  # fmt: skip
        spec = ProcessSpec(
            name=MEMORY, role="store", program=(), args=(), port=self._started, ready_url=""
        )
        client = await self._client(spec, line, {}, log_dir)
        if await client.exited:
            raise LaunchError(explained("\n".join(logs.lines(client.log)), self.image))
        return name

    async def _watch(self, name: str, process: Process, client: Process) -> None:
        """Note the container's process on this machine, then how it ended."""
        ends_s = time.monotonic() + _LOOK_S
        while client.alive and not process.pid and time.monotonic() < ends_s:
            process.pid = int((await self._state(name)).get("Pid", 0))
            await asyncio.wait([client.exited], timeout=_PERIOD_S)
        status = await asyncio.shield(client.exited)
        state = await self._state(name)
        if state.get("OOMKilled"):
            process.end = "its container ran out of memory (OOM-killed)"
        elif status in _NOT_STARTED and state.get("StartedAt", _NEVER).startswith(_NEVER):
            process.end = explained("\n".join(logs.lines(client.log)), self.image)
        if not process.exited.done():
            process.exited.set_result(_SIGNALLED - status if status > _SIGNALLED else status)

    async def _state(self, name: str) -> dict[str, Any]:
        """What docker or podman knows about a container; empty if there is none."""
        asked = await asyncio.create_subprocess_exec(
            self.image.program, "container", "inspect", "--format", "{{json .State}}", name,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        out, _ = await asked.communicate()
        with suppress(ValueError):
            return dict(json.loads(out))
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuAccess:
    """How a process in a container reaches its GPUs; empty without one."""

    env: dict[str, str]
    """All variables of the process."""
    nvidia: tuple[str, ...] = ()
    """Ids of the only GPUs that it has."""
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    security: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()

    def options(self, program: str) -> tuple[str, ...]:
        """Options of `docker run`, or of podman's."""
        named = {
            "--device": self.devices, "--group-add": self.groups, "--security-opt": self.security,
            "--cap-add": self.capabilities,
        }  # fmt: skip
        if self.nvidia and Path(program).name == "docker":
            # The value is a line of CSV.
            named["--gpus"] = (f'"device={",".join(self.nvidia)}"',)
        elif self.nvidia:
            named["--device"] = tuple(f"nvidia.com/gpu={gpu}" for gpu in self.nvidia)
        return tuple(w for name, values in named.items() for value in values for w in (name, value))


def gpu_access(spec: ProcessSpec, platform: str) -> GpuAccess:
    """What a process in a container gets of this machine's GPUs.

    On CUDA the container has no other GPUs and counts its own from 0. On ROCm it has all, as AMD's
    and vLLM's guides do it, and a variable names its own.
    """
    env = dict(spec.env)
    if platform == "rocm":
        nodes = [str(node) for node in sorted(Path("/dev/dri").glob("render*"))]
        # The group that owns the nodes has another number in each distribution.
        groups = {str(os.stat(node).st_gid) for node in ("/dev/kfd", *nodes) if Path(node).exists()}
        return GpuAccess(
            env=env,
            devices=("/dev/kfd", "/dev/dri"),
            groups=("video", *sorted(groups)),
            security=("seccomp=unconfined",),
            capabilities=("SYS_PTRACE",),
        )
    if platform == "cuda" and spec.devices:
        env.pop("CUDA_VISIBLE_DEVICES", None)
        return GpuAccess(env=env, nvidia=spec.devices)
    return GpuAccess(env=env)


def sweep(program: str, token: str, settled_s: float = _SETTLED_S) -> list[str]:
    """Remove every container with this token; those that are left.

    It goes on until none was there for `settled_s`: what a killed client had asked for may come
    late.
    """
    line = [program, "ps", "--all", "--quiet", "--filter", f"label={LABEL}={token}"]
    ends_s = time.monotonic() + _SWEEP_S
    empty_since_s = time.monotonic()
    while True:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_SWEEP_S)
        left = done.stdout.split()
        now_s = time.monotonic()
        if left:
            remove(program, left)
            empty_since_s = now_s
        if now_s > ends_s or (not left and now_s - empty_since_s >= settled_s):
            return left
        time.sleep(0.1)


if __name__ == "__main__":
    _, given_program, given_token = sys.argv
    sys.exit(bool(sweep(given_program, given_token)))
