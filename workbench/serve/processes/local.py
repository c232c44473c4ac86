"""The launcher of this machine, with a supervisor so that no process outlives the notebook."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from workbench.errors import DeploymentError
from workbench.serve.processes.launcher import Process, ProcessSpec
from workbench.serve.processes.ports import unused_ports

FORK_SERVER = "fork-server"
SUPERVISOR = "workbench.serve.processes.supervisor"
_LOADED = f"{FORK_SERVER} ready"
STOP_GRACE_S = 0.5
"""Servers need a second or two to end on TERM; the supervisor cleans up after them."""
_GONE = object()
"""The reply to every request after the supervisor has ended."""


class Link(Protocol):
    """The link to a supervisor: sends orders, and yields what it reports, line by line."""

    def write(self, line: bytes) -> None:
        """Send an order."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The lines that it reports, until it has ended."""
        ...

    def close(self) -> None:
        """Close its input, so that it ends all servers."""
        ...

    async def wait(self) -> object:
        """Wait until it has ended."""
        ...


class _Child:
    """A supervisor that is a child of this process."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdin is not None and child.stdout is not None
        self.pid, self.wait = child.pid, child.wait
        self._stdin, self._stdout = child.stdin, child.stdout
        self.write, self.close = self._stdin.write, self._stdin.close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stdout)


@dataclass(slots=True)
class LocalLauncher:
    """Owns a supervisor process, and a fork server if `loads` is given.

    Use as `async with LocalLauncher(log_dir) as launcher`; leaving it ends all started processes.
    """

    log_dir: Path
    loads: Sequence[str] = ()
    """What the fork server loads, as `module` or `module:function`; empty: no fork server."""
    python: str = sys.executable
    """What runs the fork server."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of the fork server."""
    notes: list[str] = field(default_factory=list)
    _link: Link | None = None
    _reader: asyncio.Task[None] | None = None
    _leaving: bool = False
    _waiting: dict[str, asyncio.Future[Any]] = field(default_factory=dict)
    _exits: dict[str, asyncio.Future[int]] = field(default_factory=dict)
    _groups: dict[str, int] = field(default_factory=dict)
    _forked: set[str] = field(default_factory=set)
    _fork_server: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> Self:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._link = await self._open()
        self._reader = asyncio.create_task(self._listen())
        if self.loads:
            # It loads while the first arm is prepared.
            self._fork_server = asyncio.create_task(self._start_fork_server())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._link is not None
        self._leaving = True
        self._link.close()
        if self._fork_server is not None:
            self._fork_server.cancel()
        # The supervisor ends everything below itself; an interrupt must not stop that.
        await asyncio.shield(self._link.wait())
        if self._reader is not None:
            self._reader.cancel()

    async def _open(self) -> Link:
        """Start the supervisor."""
        # Servers use cached byte code, whatever the notebook's shell prefers.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return _Child(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", SUPERVISOR,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                env=env, start_new_session=True, limit=2**20,
            )
        )  # fmt: skip

    async def unused_ports(self) -> Iterator[int]:
        """Free ports of this machine."""
        return unused_ports()

    async def loaded(self) -> bool:
        """Wait for the fork server; False if there is none and instances start without it."""
        return self._fork_server is not None and await self._fork_server

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        """Start one process, forked if possible, without waiting until it is ready."""
        log_dir.mkdir(parents=True, exist_ok=True)
        log = log_dir / f"{spec.name}.log"
        name = f"{spec.name}@{spec.port}"
        self._exits[name] = asyncio.get_running_loop().create_future()
        env = spec.env | await self._files_of(spec, log_dir)
        order: dict[str, Any] = {"start": name, "argv": spec.argv, "env": env}
        if spec.forks and await self.loaded() and not self._exits[FORK_SERVER].done():
            self._forked.add(name)
            job = {
                "fork": spec.forks, "name": name, "args": spec.args, "env": env,
                "cores": spec.cores, "log": self._log_there(log),
            }  # fmt: skip
            order = {"send": FORK_SERVER, "line": json.dumps(job)}
        self._groups[name] = await self._ask(name, **order, log=self._log_there(log))
        return Process(spec, log, self._exits[name], self._groups[name])

    async def _files_of(self, spec: ProcessSpec, log_dir: Path) -> dict[str, str]:
        """Write the files that it reads; the variables that name them."""
        return spec.write_files(log_dir)

    def _log_there(self, log: Path) -> str:
        """Where the supervisor writes what becomes this log."""
        return str(log)

    async def stop(self, processes: Iterable[Process], *, grace_s: float = STOP_GRACE_S) -> None:
        """End processes with everything they started, and remove their shared memory."""
        groups = [self._groups[f"{p.spec.name}@{p.spec.port}"] for p in processes]
        if groups:
            tag = f"stop-{time.monotonic_ns()}"
            await asyncio.shield(self._ask(tag, stop=tag, groups=groups, grace_s=grace_s))

    async def at_the_end(self, argv: Sequence[str]) -> None:
        """Have the supervisor run this before and after it ends everything below itself."""
        await self._ask("finally", **{"finally": list(argv)})

    async def _ask(self, key: str, **order: Any) -> Any:
        assert self._link is not None
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        self._link.write(json.dumps(order).encode() + b"\n")
        assert self._reader is not None
        value = _GONE if self._reader.done() else await answer
        if value is _GONE:
            raise DeploymentError(self._why_gone())
        return value

    def _why_gone(self) -> str:
        return (
            "the supervisor process exited unexpectedly, and all servers with it; check whether"
            " it was killed (out of memory?) and run again"
        )

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
        assert self._link is not None
        async for raw in self._link:
            event = json.loads(raw)
            if "line" in event:
                # Libraries may print other lines on the fork server's stdout.
                with suppress(ValueError, LookupError, TypeError):
                    self._fork_event(json.loads(event["text"]))
            elif "started" in event:
                self._answer(event["started"], event["pid"])
            elif "stopped" in event:
                self._answer(event["stopped"], None)
            elif "noted" in event:
                self._answer(event["noted"], None)
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
            self._answer(_LOADED, True)
        elif "forked" in event:
            self._answer(event["forked"], event["pid"])
        else:
            self._ended(event["exited"], event["status"])

    def _fork_server_ended(self, status: int) -> None:
        """Its forks end with it, and nothing else would report that."""
        if _LOADED not in self._waiting and not self._leaving:
            self.notes.append("The fork server exited; later instances started without it.")
        self._answer(_LOADED, False)
        self._ended(FORK_SERVER, status)
        for name in self._forked:
            self._ended(name, -signal.SIGKILL)

    async def _start_fork_server(self) -> bool:
        """True when the fork server is ready; False if instances must start without it."""
        loop = asyncio.get_running_loop()
        log = self.log_dir / f"{FORK_SERVER}.log"
        self._exits[FORK_SERVER] = loop.create_future()
        ready = self._waiting[_LOADED] = loop.create_future()
        argv = [self.python, "-m", "workbench.serve.processes.forkserver", *self.loads]
        order = {"start": FORK_SERVER, "argv": argv, "env": dict(self.env), "talks": True}
        await self._ask(FORK_SERVER, **order, log=self._log_there(log))
        if await ready is True:
            return True
        self.notes.append(
            f"The fork server did not start, so instances start without it; log: {log}"
        )
        return False
