"""The seam between a deployment and the place where its processes run.

Four verbs: a launcher can `start` and `stop`, a process is `alive` and has a `log`.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import httpx

from workbench.control import control_client
from workbench.errors import LaunchError
from workbench.serve.processes import logs
from workbench.serve.processes.ports import listens
from workbench.topology import Role

FIRST_POLL_S = 0.02
POLL_PERIOD_S = 0.1
LOG_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process: `role` is an instance's role, `store` or `proxy`."""

    name: str
    role: Role | Literal["store", "proxy"]
    program: tuple[str, ...]
    """How a plain start begins; `args` follow."""
    args: tuple[str, ...]
    port: int
    ready_url: str
    env: dict[str, str] = field(default_factory=dict)
    forks: str = ""
    """`module:function` that serves `args` in a fork of a warm process; empty where none can."""
    fatal: tuple[str, ...] = ()
    """Texts in its log after which it will not get ready, though it may live on."""

    @property
    def argv(self) -> tuple[str, ...]:
        return (*self.program, *self.args)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def command_line(self) -> str:
        return shlex.join(self.argv)


@dataclass(slots=True)
class Process:
    """A process that was started; its launcher resolves `exited` with its status."""

    spec: ProcessSpec
    log: Path
    """The file that gets all it prints."""
    exited: asyncio.Future[int]
    pid: int = 0
    """Its id on this machine; 0 where it runs elsewhere."""

    @property
    def alive(self) -> bool:
        return not self.exited.done()


class Launcher(Protocol):
    """A place where processes run. Whoever opens one leaves nothing behind when it is closed."""

    notes: list[str]
    """What went otherwise than planned, for the doubts of a run."""

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        """Start one process, whose log lies in `log_dir`; it need not be ready yet."""
        ...

    async def stop(self, processes: Iterable[Process]) -> None:
        """End processes with everything that they started."""
        ...


async def ready(processes: Iterable[Process], *, timeout_s: float) -> None:
    """Wait until each answers its ready URL. Raises LaunchError with the reason and the log."""
    failed: LaunchError | None = None
    try:
        async with control_client(2.0) as client, asyncio.TaskGroup() as group:
            for process in processes:
                group.create_task(_ready(client, process, timeout_s))
    except* LaunchError as several:
        # The first reason tells; the others are its consequences.
        failed = next(error for error in several.exceptions if isinstance(error, LaunchError))
    # Not inside the handler: IPython shows no error at all when a group is in its context.
    if failed is not None:
        raise failed


async def _ready(client: httpx.AsyncClient, process: Process, timeout_s: float) -> None:
    ends_s = time.monotonic() + timeout_s
    look_s, pause_s = 0.0, FIRST_POLL_S
    while not await _answers(client, process):
        now_s = time.monotonic()
        doomed = ""
        if now_s > look_s:
            # Servers that start want the cores: their logs are read twice a second, not always.
            doomed = logs.fatal(logs.lines(process.log), process.spec.fatal)
            look_s = now_s + LOG_PERIOD_S
        if not process.alive or doomed:
            raise LaunchError(failure(process, "did not start"))
        if now_s > ends_s:
            raise LaunchError(failure(process, f"was not ready after {timeout_s:.0f} s"))
        await asyncio.sleep(pause_s)
        # Forked servers answer within a tenth of a second, those that import within seconds.
        pause_s = min(2 * pause_s, POLL_PERIOD_S)


async def _answers(client: httpx.AsyncClient, process: Process) -> bool:
    try:
        answer = await client.get(process.spec.ready_url)
    except httpx.HTTPError:
        return False
    if answer.status_code != 200:
        return False
    # Another program that was faster to take the port may answer as well.
    return not process.pid or listens(process.pid, answer.url.port or 80)


def failure(process: Process, what: str) -> str:
    """What happened to a process, the reason that its log gives, and the log's end."""
    lines = logs.lines(process.log)
    tail = "\n".join(f"    {line}" for line in lines[-8:])
    reason = logs.reason(lines, process.spec.fatal)
    return f"{process.spec.name} {what}: {reason}\n  log: {process.log}\n{tail}"
