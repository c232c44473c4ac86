"""The load from several processes, for rates that one cannot keep up with.

Worker k is this module in a new interpreter. It sends every N-th request from the k-th on; all use
the host's monotonic clock. Tasks and results are exchanged as files.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import uvloop

from workbench.errors import ParameterError, must_be
from workbench.load.drive.driver import LoadRun, OnRecord, drive, unsent
from workbench.load.drive.health import ClientHealth, together
from workbench.load.workload.arrivals import Arrivals
from workbench.load.workload.workload import Request, Workload
from workbench.records import RequestRecord

_PR_SET_PDEATHSIG = 1
_LEAD_S = 0.05
"""From the moment when the last worker is ready to the start of the clock."""
_READY_S = 60.0
_HEADERS = "WORKBENCH_LOAD_HEADERS"
WHY_NO_MORE = "at most one per request in flight, and one for conversations"


def share(
    workload: Workload, arrivals: Arrivals, *, worker: int, workers: int
) -> tuple[Workload, Arrivals]:
    """What one worker sends: every N-th request, and its part of the concurrency."""
    requests = workload.requests[worker::workers]
    if arrivals.kind == "closed":
        at_once = len(range(worker, arrivals.concurrency, workers))
        return replace(workload, requests=requests), replace(arrivals, concurrency=at_once)
    offsets_s = arrivals.offsets_s[worker::workers]
    return replace(workload, requests=requests), replace(arrivals, offsets_s=offsets_s)


async def drive_in_workers(
    workload: Workload,
    arrivals: Arrivals,
    *,
    workers: int,
    on_record: OnRecord | None = None,
    **options: Any,
) -> LoadRun:
    """`driver.drive` from several processes; `options` are its own.

    `on_record` gets all records when the last worker has ended, or when the caller is cancelled. A
    worker that dies loses its measurements: each of its requests becomes a record with the error
    `client_died` and the last line of the worker's log. `headers` reach the workers through their
    environment, since they may hold a key, everything else through files. Raises ParameterError for
    more workers than `most_workers`.
    """
    most = most_workers(workload, arrivals)
    if not 1 <= workers <= most:
        numbers = f"between 1 and {most}" if most > 1 else "1"
        allowed = f"{numbers} for workload {workload.name} ({WHY_NO_MORE})"
        raise ParameterError(must_be("client_workers", allowed, workers, most))
    headers = orjson.dumps(dict(options.pop("headers", None) or {})).decode()
    with tempfile.TemporaryDirectory(prefix="workbench-load-") as name:
        folder = Path(name)
        for worker in range(workers):
            part = share(workload, arrivals, worker=worker, workers=workers)
            (folder / f"task-{worker}").write_bytes(pickle.dumps((*part, options)))
        running: list[asyncio.subprocess.Process] = []
        started_s = monotonic()
        try:
            for worker in range(workers):
                running.append(await _start(folder, worker, headers))
            await asyncio.gather(*(_ready(process) for process in running))
            started_s = monotonic() + _LEAD_S
            for process in running:
                _say(process, started_s)
            await asyncio.gather(*(process.wait() for process in running))
        finally:
            told = await _end(running)
            parts = []
            for worker in range(workers):
                # One that never started, or that we ended, has not died.
                died = worker < len(running) and worker not in told
                mine = workload.requests[worker::workers]
                parts.append(_collect(folder, worker, running[worker] if died else None, mine))
            records = {record.index: record for found, _ in parts for record in found}
            for record in records.values():
                if on_record is not None:
                    on_record(record)
    ended_s = monotonic()
    in_order = tuple(records[request.index] for request in workload.requests)
    known = [health for _, health in parts if health is not None]
    return LoadRun(
        records=in_order,
        sent=workload.requests,
        health=together(known, in_order, open_loop=arrivals.kind != "closed"),
        started_s=started_s,
        ended_s=max((r.stream_end_s for r in in_order if r.ok), default=ended_s),
    )


def most_workers(workload: Workload, arrivals: Arrivals) -> int:
    """How many processes can share this load; conversations wait for responses, so one."""
    if any(request.after is not None for request in workload.requests):
        return 1
    most = len(workload.requests)
    return max(1, min(most, arrivals.concurrency) if arrivals.kind == "closed" else most)


async def _start(folder: Path, worker: int, headers: str) -> asyncio.subprocess.Process:
    with open(folder / f"log-{worker}", "wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workbench.load.drive.workers",
            str(folder),
            str(worker),
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=os.environ | {_HEADERS: headers},
        )


async def _ready(process: asyncio.subprocess.Process) -> None:
    """Wait for its ready line; one that died has no records later."""
    assert process.stdout is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(_READY_S):
            await process.stdout.readline()


def _say(process: asyncio.subprocess.Process, started_s: float) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.write(f"{started_s!r}\n".encode())


async def _end(running: Sequence[asyncio.subprocess.Process]) -> set[int]:
    """Make running workers write their records, because the caller was cancelled.

    Returns those that ended this way; very early the signal simply ends a worker.
    """
    told = set()
    for worker, process in enumerate(running):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
                told.add(worker)
    for process in running:
        await process.wait()
    return {worker for worker in told if running[worker].returncode in (0, -signal.SIGTERM)}


def _collect(
    folder: Path,
    worker: int,
    died: asyncio.subprocess.Process | None,
    requests: Sequence[Request],
) -> tuple[list[RequestRecord], ClientHealth | None]:
    """A worker's records, and one for each of its requests that has none.

    Those say that the worker `died`, or that they were cancelled if we ended it.
    """
    file = _seen(folder, worker)
    records, health = pickle.loads(file.read_bytes()) if file.exists() else ([], None)
    why: dict[str, str] = {}
    if died is not None:
        words = (folder / f"log-{worker}").read_text("utf-8", "replace").strip().splitlines()
        reason = f"load generator process {worker} died with status {died.returncode}"
        why = {"error": "client_died", "message": ": ".join([reason, *words[-1:]])}
    has = {record.index for record in records}
    return [*records, *(unsent(r, **why) for r in requests if r.index not in has)], health


def _seen(folder: Path, worker: int) -> Path:
    """The file of a worker's records and health; it exists only when complete."""
    return folder / f"seen-{worker}"


async def _work(folder: Path, worker: int) -> None:
    """A worker: read its task, report ready, send from the common start, write records."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the notebook's interrupt is the parent's
    workload, arrivals, options = pickle.loads((folder / f"task-{worker}").read_bytes())
    options["headers"] = orjson.loads(os.environ[_HEADERS])
    records: list[RequestRecord] = []

    async def start() -> float:
        words = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
        print("ready", flush=True)
        return float(await words.readline())

    def write(health: ClientHealth | None) -> None:
        partial = folder / f"partial-{worker}"
        partial.write_bytes(pickle.dumps((records, health)))
        partial.rename(_seen(folder, worker))

    try:
        run = await drive(workload, arrivals, on_record=records.append, start=start, **options)
    except asyncio.CancelledError:
        write(None)
        raise
    write(run.health)  # after any other error the parent reads the log


def main(words: Sequence[str]) -> None:
    """`python -m ...drive.workers FOLDER WORKER PARENT`, as `drive_in_workers` calls it."""
    folder, worker, parent = Path(words[0]), int(words[1]), int(words[2])
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it ended before it could be asked to
    with suppress(asyncio.CancelledError):
        uvloop.run(_work(folder, worker))


if __name__ == "__main__":
    main(sys.argv[1:])
