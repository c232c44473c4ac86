"""Start, watch and stop processes through a supervisor, so that none outlives the notebook."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import httpx

from workbench.control import control_client
from workbench.errors import DeploymentError, LaunchError
from workbench.serve.plan import ProcessSpec
from workbench.serve.processes import logs
from workbench.serve.processes.ports import free_ports, listens
from workbench.serve.vllm import instance_env

__all__ = ["Launcher", "Process", "free_ports"]

FORK_SERVER = "fork-server"
FORKS = {"engine": ("vllm", "lmcache"), "simulated": ("simulated", "proxy")}
"""What a fork server can become, by what it has loaded."""
FIRST_POLL_S = 0.02
POLL_PERIOD_S = 0.1
LOG_PERIOD_S = 0.5
STOP_GRACE_S = 0.5
"""Servers end on TERM within a second or two; what they would tidy, the supervisor tidies."""
_GONE = object()
"""The answer to every question when the supervisor has ended."""


@dataclass(slots=True)
class Process:
    """A started process: `exited` holds its status once it has ended."""

    spec: ProcessSpec
    pid: int
    log: Path
    exited: asyncio.Future[int]

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    def lines(self) -> list[str]:
        """The log without colours and without vLLM's line prefixes."""
        return logs.lines(self.log)

    def reason(self) -> str:
        """One sentence from the log: why it ended, as far as it says."""
        return logs.reason(self.lines())

    def failure(self, what: str) -> str:
        tail = "\n".join(f"    {line}" for line in self.lines()[-8:])
        return f"{self.spec.name} {what}: {self.reason()}\n  log: {self.log}\n{tail}"


async def _answers(client: httpx.AsyncClient, process: Process) -> bool:
    """True when the ready URL says 200; False as soon as the process ends."""
    asking = asyncio.create_task(client.get(process.spec.ready_url))
    both: set[asyncio.Future[Any]] = {asking, process.exited}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asking.cancel()
    if not asking.done() or asking.cancelled() or asking.exception():
        return False
    port = httpx.URL(process.spec.ready_url).port or 80
    # Another program that was faster to take the port may answer as well.
    return asking.result().status_code == 200 and listens(process.pid, port)


@dataclass(slots=True)
class Launcher:
    """Owns a supervisor process and the fork server behind it (on a CPU, and for a simulation).

    Use as `async with Launcher(log_dir) as launcher`; leaving it ends all that it started.
    """

    log_dir: Path
    fork: bool = True
    offline: bool = True
    """Whether the fork server may do without a model hub."""
    loads: Literal["engine", "simulated"] = "engine"
    """What the fork server imports before it forks."""
    notes: list[str] = field(default_factory=list)
    _supervisor: asyncio.subprocess.Process | None = None
    _reader: asyncio.Task[None] | None = None
    _waiting: dict[str, asyncio.Future[Any]] = field(default_factory=dict)
    _exits: dict[str, asyncio.Future[int]] = field(default_factory=dict)
    _forked: set[str] = field(default_factory=set)
    _fork_server: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> Self:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        # Servers read their byte code from disk, whatever the notebook's shell prefers.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self._supervisor = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "workbench.serve.processes.supervisor",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=env, start_new_session=True, limit=2**20,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._supervisor is not None and self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        if self._fork_server is not None:
            self._fork_server.cancel()
        # The supervisor ends everything below itself; an interrupt must not cut that short.
        await asyncio.shield(self._supervisor.wait())
        if self._reader is not None:
            self._reader.cancel()

    def warm_up(self) -> None:
        """Begin to load the fork server, so that it is ready when the first instance is wanted."""
        if self.fork and self._fork_server is None:
            self._fork_server = asyncio.create_task(self._start_fork_server())

    async def loaded(self) -> bool:
        """Wait for the fork server; False where there is none and instances start plainly."""
        self.warm_up()
        return self._fork_server is not None and await self._fork_server

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        """Start one process, forked where that is possible; it need not be ready yet."""
        log_dir.mkdir(parents=True, exist_ok=True)
        log = log_dir / f"{spec.name}.log"
        name = f"{spec.name}@{spec.port}"
        self._exits[name] = asyncio.get_running_loop().create_future()
        if self.fork and spec.forks in FORKS[self.loads]:
            if await self.loaded() and not self._exits[FORK_SERVER].done():
                self._forked.add(name)
                job = {"fork": spec.forks, "name": name, "args": spec.args, "env": spec.env}
                pid = await self._ask(
                    name, send=FORK_SERVER, line=json.dumps(job | {"log": str(log)})
                )
                return Process(spec, pid, log, self._exits[name])
        pid = await self._ask(name, start=name, argv=spec.argv, env=spec.env, log=str(log))
        return Process(spec, pid, log, self._exits[name])

    async def ready(self, processes: Iterable[Process], *, timeout_s: float) -> None:
        """Wait until each answers its ready URL. Raises LaunchError with the reason and the log."""
        async with (
            control_client(2.0) as client,
            asyncio.TaskGroup() as g,
        ):
            for process in processes:
                g.create_task(self._ready(client, process, timeout_s))

    async def _ready(self, client: httpx.AsyncClient, process: Process, timeout_s: float) -> None:
        ends_s = time.monotonic() + timeout_s
        look_s, pause_s = 0.0, FIRST_POLL_S
        while True:
            if await _answers(client, process):
                return
            now_s = time.monotonic()
            # Servers that start want the cores: their logs are read twice a second, not always.
            doomed = now_s > look_s and logs.fatal(process.lines())
            look_s = now_s + LOG_PERIOD_S if now_s > look_s else look_s
            if not process.alive or doomed:
                raise LaunchError(process.failure("did not start"))
            if now_s > ends_s:
                raise LaunchError(process.failure(f"was not ready after {timeout_s:.0f} s"))
            await asyncio.sleep(pause_s)
            # Forked servers answer within a tenth of a second, those that import within seconds.
            pause_s = min(2 * pause_s, POLL_PERIOD_S)

    async def stop(self, processes: Iterable[Process], *, grace_s: float = STOP_GRACE_S) -> None:
        """End processes with everything they started, and remove their shared memory."""
        groups = [process.pid for process in processes]
        if groups:
            tag = f"stop-{time.monotonic_ns()}"
            await asyncio.shield(self._ask(tag, stop=tag, groups=groups, grace_s=grace_s))

    async def _ask(self, key: str, **order: Any) -> Any:
        assert self._supervisor is not None and self._supervisor.stdin is not None
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        self._supervisor.stdin.write(json.dumps(order).encode() + b"\n")
        assert self._reader is not None
        value = _GONE if self._reader.done() else await answer
        if value is _GONE:
            raise DeploymentError(
                "the supervisor of the servers ended by itself, and every server with it; was it"
                " killed? run again"
            )
        return value

    def _answer(self, key: str, value: Any) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(value)

    def _ended(self, name: str, status: int) -> None:
        exited = self._exits.get(name)
        if exited is not None and not exited.done():
            exited.set_result(status)
        self._answer(name, 0)

    async def _listen(self) -> None:
        assert self._supervisor is not None and self._supervisor.stdout is not None
        async for raw in self._supervisor.stdout:
            event = json.loads(raw)
            if "line" in event:
                # What a library prints on the fork server's stdout is none of its events.
                with suppress(ValueError, LookupError, TypeError):
                    self._fork_event(json.loads(event["text"]))
            elif "started" in event:
                self._answer(event["started"], event["pid"])
            elif "stopped" in event:
                self._answer(event["stopped"], None)
            elif event["exited"] == FORK_SERVER:
                self._fork_server_ended(event["status"])
            else:
                self._ended(event["exited"], event["status"])
        for name in self._exits:
            self._ended(name, -signal.SIGKILL)
        for key in list(self._waiting):
            self._answer(key, _GONE)

    def _fork_event(self, event: dict[str, Any]) -> None:
        if "ready" in event:
            self._answer(FORK_SERVER + " ready", True)
        elif "forked" in event:
            self._answer(event["forked"], event["pid"])
        else:
            self._ended(event["exited"], event["status"])

    def _fork_server_ended(self, status: int) -> None:
        """What it forked ends with it, and nobody else would report that."""
        assert self._supervisor is not None and self._supervisor.stdin is not None
        leaving = self._supervisor.stdin.is_closing()
        if FORK_SERVER + " ready" not in self._waiting and not leaving:
            self.notes.append("The fork server ended by itself; later instances started plainly.")
        self._answer(FORK_SERVER + " ready", False)
        self._ended(FORK_SERVER, status)
        for name in self._forked:
            self._ended(name, -signal.SIGKILL)

    async def _start_fork_server(self) -> bool:
        """True when the fork server has loaded; False when instances must start plainly."""
        loop = asyncio.get_running_loop()
        log = self.log_dir / f"{FORK_SERVER}.log"
        self._exits[FORK_SERVER] = loop.create_future()
        ready = self._waiting[FORK_SERVER + " ready"] = loop.create_future()
        argv = [sys.executable, "-m", "workbench.serve.processes.forkserver", self.loads]
        order = {
            "start": FORK_SERVER,
            "argv": argv,
            "env": instance_env("cpu", offline=self.offline) if self.loads == "engine" else {},
            "log": str(log),
        }
        await self._ask(FORK_SERVER, **order, talks=True)
        if await ready is True:
            return True
        self.notes.append(
            f"The fork server did not load, so instances start one by one; log: {log}"
        )
        return False
