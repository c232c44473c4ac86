"""Drive a workload against a server: all its requests, at their times, each to its one record."""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import nan
from threading import Thread
from time import monotonic
from typing import Any

import uvloop

from workbench.errors import ParameterError
from workbench.load.drive.alarm import Alarm
from workbench.load.drive.clerk import Clerk
from workbench.load.drive.health import ClientHealth, Pulse
from workbench.load.drive.open_files import most_in_flight, reserve_files
from workbench.load.drive.starts import Starts
from workbench.load.drive.turns import Turns
from workbench.load.http.client import Exchange, open_client
from workbench.load.http.kernel_stamps import KernelClock
from workbench.load.http.outgoing import outgoing_request
from workbench.load.http.request_form import USUAL_FORM, RequestForm
from workbench.load.workload.arrivals import Arrivals
from workbench.load.workload.workload import Request, Workload
from workbench.records import RequestRecord

__all__ = ["NEVER_SENT", "ClientHealth", "LoadRun", "drive", "drive_in_thread", "unsent"]

_TIMER_S = 0.002
"""A timer of the loop may be late by so much."""

OnRecord = Callable[[RequestRecord], object]
Send = Callable[[Request, float], Coroutine[Any, Any, None]]
Start = Callable[[], Awaitable[float]]
"""Waits for the start that several drives share, and gives its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """What a drive has seen."""

    records: tuple[RequestRecord, ...]
    """One per request, in the workload's order."""
    sent: tuple[Request, ...]
    """The requests with the prompts that were really sent: those of conversations hold answers."""
    health: ClientHealth
    started_s: float
    """When the clock of the arrivals started: all bodies were built, no request was sent."""
    ended_s: float


async def drive(
    workload: Workload,
    arrivals: Arrivals,
    *,
    base_url: str,
    model: str,
    timeout_s: float = 600.0,
    headers: Mapping[str, str] | None = None,
    decode_shift: int = 0,
    form: RequestForm = USUAL_FORM,
    kernel_stamps: bool = False,
    on_record: OnRecord | None = None,
    start: Start | None = None,
) -> LoadRun:
    """Send every request of the workload; a failed one never stops the others.

    `start` is awaited when all is prepared, and gives the time at which the clock starts.
    `kernel_stamps` takes the arrival of each read from the kernel, over plain http on Linux.
    `on_record` is called with each record soon after its request has ended. When the drive is
    cancelled, the requests in flight and those never sent become records with the error
    `cancelled`, `on_record` has them all, and CancelledError is raised. `timeout_s` is per request;
    for `headers`, `decode_shift` and `form` see `outgoing_request`. A turn of a conversation is
    sent when the one before has ended, so in a closed loop alone. Raises ParameterError for a
    base_url that is none, for an open loop that has not one time for each request, and for more
    requests in flight than this process may have files.
    """
    requests = workload.requests
    open_loop = arrivals.kind != "closed"
    if open_loop and len(arrivals.offsets_s) != len(requests):
        raise ParameterError(
            f"{len(arrivals.offsets_s)} arrival times for the {len(requests)} requests of"
            f" {workload.name!r}: draw one for each, e.g. poisson(rate, {len(requests)}, seed)"
        )
    if open_loop and any(request.after is not None for request in requests):
        raise ParameterError(
            f"{workload.name!r} has turns that wait for answers: send it in a closed loop, e.g."
            " closed(1)"
        )
    reserve_files(most_in_flight(arrivals, len(requests), timeout_s=timeout_s))
    run_name = f"{workload.name}-{secrets.token_hex(4)}"  # an id is never sent twice
    turns = Turns(requests)
    records: dict[int, RequestRecord] = {}

    def keep(record: RequestRecord) -> None:
        records[record.index] = record
        turns.answered(record)
        if on_record is not None:
            on_record(record)

    clock = KernelClock.begin() if kernel_stamps else None
    clerk = Clerk(keep)
    async with open_client(base_url, clock=clock) as client:

        def prepare(request: Request) -> Exchange:
            request_id = f"{run_name}-{request.index}"
            outgoing = outgoing_request(
                client,
                request,
                base_url=base_url,
                model=model,
                headers=headers,
                request_id=request_id,
                decode_shift=decode_shift,
                form=form,
            )
            return Exchange(request, outgoing, request_id=request_id, timeout_s=timeout_s)

        # A turn of a conversation is known when the one before has been answered.
        prepared = {r.index: prepare(r) for r in requests if r.after is None}

        async def send(planned: Request, scheduled_s: float) -> None:
            exchange = prepared.pop(planned.index, None)
            if exchange is None:
                exchange = prepare(await turns.next(planned))
                scheduled_s = monotonic()
            try:
                await exchange.run(client, scheduled_s)
            finally:
                clerk.take(exchange)

        try:
            started_s = monotonic()
            if start is not None:
                started_s = await start()
                await asyncio.sleep(started_s - monotonic() - _TIMER_S)
            with _no_collections():
                async with Pulse() as pulse:
                    if open_loop:
                        await _open_loop(requests, send, arrivals.offsets_s, started_s)
                    else:
                        await _closed_loop(requests, send, arrivals.concurrency)
                    await clerk.rest()
        finally:
            clerk.rest_now()
            for request in requests:
                if request.index not in records:
                    keep(unsent(request, f"{run_name}-{request.index}"))
            if clock is not None:
                clock.close()
    in_order = tuple(records[request.index] for request in requests)
    return LoadRun(
        records=in_order,
        sent=tuple(turns.sent[request.index] for request in requests),
        health=pulse.health(in_order, open_loop=open_loop, clock=clock),
        started_s=started_s,
        ended_s=pulse.ended_s,
    )


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python's garbage collector still: a look through the records of a drive holds up its
    sends by milliseconds. An exchange leaves no cycles behind, which a test holds, and what else
    runs in the process meanwhile waits for the end."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


async def _closed_loop(requests: Sequence[Request], send: Send, concurrency: int) -> None:
    waiting, starts = iter(requests), Starts()

    async def worker() -> None:
        for request in waiting:
            await starts.allowed()
            await send(request, monotonic())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(requests))):
            group.create_task(worker())


async def _open_loop(
    requests: Sequence[Request], send: Send, offsets_s: Sequence[float], start_s: float
) -> None:
    starts = Starts()
    async with Alarm() as alarm, asyncio.TaskGroup() as group:
        for request, offset_s in zip(requests, offsets_s, strict=True):
            await alarm.until(start_s + offset_s)
            await starts.allowed()
            group.create_task(send(request, start_s + offset_s))


NEVER_SENT = "never sent: the run was cancelled before"


def unsent(
    request: Request, request_id: str = "", *, error: str = "cancelled", message: str = NEVER_SENT
) -> RequestRecord:
    """The record of a request of which nothing else is known."""
    return RequestRecord(
        index=request.index,
        request_id=request_id,
        prompt_tokens=request.prompt_tokens,
        ideal_reuse_tokens=request.ideal_reuse_tokens,
        max_tokens=request.max_tokens,
        scheduled_s=nan,
        error=error,
        error_message=message,
    )


async def drive_in_thread(
    workload: Workload,
    arrivals: Arrivals,
    *,
    base_url: str,
    model: str,
    timeout_s: float = 600.0,
    headers: Mapping[str, str] | None = None,
    decode_shift: int = 0,
    form: RequestForm = USUAL_FORM,
    kernel_stamps: bool = False,
    on_record: OnRecord | None = None,
) -> LoadRun:
    """`drive` under uvloop in a thread of its own, out of the way of the caller's loop.

    `on_record` is called in the caller's loop. When the caller is cancelled (the interrupt of a
    notebook's kernel), so is the drive; CancelledError is raised once `on_record` has had all.
    """
    caller = asyncio.get_running_loop()
    ended: asyncio.Future[None] = caller.create_future()

    def hand_over(record: RequestRecord) -> None:
        if on_record is not None:
            caller.call_soon_threadsafe(on_record, record)

    loop = uvloop.new_event_loop()
    task: asyncio.Task[LoadRun] = loop.create_task(
        drive(
            workload,
            arrivals,
            base_url=base_url,
            model=model,
            timeout_s=timeout_s,
            headers=headers,
            decode_shift=decode_shift,
            form=form,
            kernel_stamps=kernel_stamps,
            on_record=hand_over,
        )
    )

    def run() -> None:
        loop.run_until_complete(asyncio.wait({task}))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        with suppress(RuntimeError):  # the caller's loop may be closed by now
            caller.call_soon_threadsafe(ended.set_result, None)

    # A daemon: a kernel that shuts down does not wait for the requests in flight.
    Thread(target=run, name="workbench-load", daemon=True).start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        with suppress(RuntimeError):  # the drive may have ended in the meantime
            loop.call_soon_threadsafe(task.cancel)
        await asyncio.shield(ended)
        raise
    return task.result()
