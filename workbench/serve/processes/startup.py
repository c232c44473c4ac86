"""Wait until started processes are ready, or report why they are not."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable, Sequence

import httpx

from workbench.control import control_client
from workbench.errors import LaunchError
from workbench.serve.processes import logs
from workbench.serve.processes.launcher import Process
from workbench.serve.processes.ports import listens

FIRST_POLL_S = 0.02
POLL_PERIOD_S = 0.1
LOG_PERIOD_S = 0.5


async def ready(
    processes: Iterable[Process], *, timeout_s: float, beside: Sequence[Process] = ()
) -> None:
    """Wait until each responds at its ready URL. Raises LaunchError with reason and log.

    The processes in `beside` are ready and must stay alive: an engine may wait minutes for its
    store.
    """
    failed: LaunchError | None = None
    try:
        async with control_client(2.0) as client, asyncio.TaskGroup() as group:
            for process in processes:
                group.create_task(_ready(client, process, timeout_s, beside))
    except* LaunchError as several:
        # The first failure is the cause; the others follow from it.
        failed = next(error for error in several.exceptions if isinstance(error, LaunchError))
    # Not inside the handler: IPython shows no error if its context is an exception group.
    if failed is not None:
        raise failed


async def _ready(
    client: httpx.AsyncClient, process: Process, timeout_s: float, beside: Sequence[Process]
) -> None:
    ends_s = time.monotonic() + timeout_s
    look_s, pause_s = 0.0, FIRST_POLL_S
    while not await _answers(client, process):
        now_s = time.monotonic()
        doomed = ""
        if now_s > look_s:
            # Starting servers need the cores, so their logs are read only twice a second.
            doomed = logs.fatal(logs.lines(process.log), process.spec.fatal)
            look_s = now_s + LOG_PERIOD_S
        if not process.alive or doomed:
            raise LaunchError(failure(process, "did not start"))
        for other in beside:
            if not other.alive:
                raise LaunchError(failure(other, f"ended while {process.spec.name} started"))
        if now_s > ends_s:
            raise LaunchError(failure(process, f"was not ready after {timeout_s:.0f} s"))
        await asyncio.sleep(pause_s)
        # Forked servers are ready within a tenth of a second, others within seconds.
        pause_s = min(2 * pause_s, POLL_PERIOD_S)


async def _answers(client: httpx.AsyncClient, process: Process) -> bool:
    url = httpx.URL(process.spec.ready_url)
    try:
        if url.scheme == "tcp":
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.close()
        elif (await client.get(url)).status_code != 200:
            return False
    except (httpx.HTTPError, OSError):
        return False
    # Another program that took the port may respond as well.
    return not process.pid or listens(process.pid, url.port or 80)


def failure(process: Process, what: str) -> str:
    """What happened to a process, the reason from its log, and the end of the log."""
    tail = "\n".join(f"    {line}" for line in logs.lines(process.log)[-8:])
    return f"{process.spec.name} {what}: {_reason(process)}\n  log: {process.log}\n{tail}"


def failure_line(process: Process, what: str) -> str:
    """The same on one line, with the path of the log instead of its end."""
    return f"{process.spec.name} {what}: {_reason(process)} (log: {process.log})"


def _reason(process: Process) -> str:
    if process.end:
        return process.end
    lines = logs.lines(process.log)
    return logs.reason(lines, process.spec.fatal, otherwise=_killed(process))


def _killed(process: Process) -> str:
    """The signal that ended it, if one did."""
    status = 0 if process.alive else process.exited.result()
    if status >= 0:
        return ""
    memory = ", as the system does when memory runs out" if status == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-status).name}{memory}"
