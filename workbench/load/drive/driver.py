"""Drive a workload against a server: all requests on schedule, one record each."""

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

from workbench.errors import ParameterError, must_be
from workbench.load.drive.conversations import Conversations
from workbench.load.drive.health import ClientHealth, Pulse
from workbench.load.drive.open_files import most_in_flight, reserve_files
from workbench.load.drive.pacing import Alarm, Starts
from workbench.load.drive.recorder import Recorder
from workbench.load.http.client import request_facts
from workbench.load.http.kernel_stamps import KernelClock
from workbench.load.http.request import USUAL_FORM, Endpoint, Outgoing, RequestForm
from workbench.load.http.response import Response
from workbench.load.http.transport import Transport
from workbench.load.workload.arrivals import Arrivals
from workbench.load.workload.workload import Request, Workload
from workbench.records import RequestRecord

_TIMER_S = 0.002
"""How late a timer of the event loop may be."""

OnRecord = Callable[[RequestRecord], object]
Send = Callable[[Request, float], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """The result of a drive."""

    records: tuple[RequestRecord, ...]
    """One per request, in the workload's order."""
    sent: tuple[Request, ...]
    """The requests as sent: prompts of conversations contain real responses."""
    health: ClientHealth
    started_s: float
    """Start of the arrival times: all bodies were built, no request was sent."""
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
    start: Callable[[], Awaitable[float]] | None = None,
) -> LoadRun:
    """Send every request of the workload; a failed one never stops the others.

    For base_url to `form` see `Endpoint`. `kernel_stamps` takes arrival times from the kernel, over
    plain http on Linux. `start` is awaited when everything is prepared and returns the start time,
    so that several drives can start together. `on_record` is called with each record soon after its
    request has ended. On cancellation the requests in flight and those never sent become records
    with the error `cancelled`, `on_record` gets them all, and CancelledError is raised. Raises
    ParameterError for an invalid base_url, for an open loop without one time per request or with
    conversations, and if the requests in flight need more open files than allowed.
    """
    requests, open_loop = workload.requests, arrivals.kind != "closed"
    _check(workload, arrivals)
    endpoint = Endpoint(
        base_url=base_url,
        model=model,
        timeout_s=timeout_s,
        headers=headers or {},
        decode_shift=decode_shift,
        form=form,
    )
    reserve_files(most_in_flight(arrivals, len(requests), timeout_s=timeout_s))
    run_name = f"{workload.name}-{secrets.token_hex(4)}"  # an id is never sent twice
    conversations = Conversations(requests)
    records: dict[int, RequestRecord] = {}

    def keep(record: RequestRecord) -> None:
        records[record.index] = record
        conversations.answered(record)
        if on_record is not None:
            on_record(record)

    def prepare(request: Request) -> Outgoing:
        return endpoint.outgoing(request, f"{run_name}-{request.index}")

    # Built before the clock starts, since a long body takes milliseconds. A turn of a conversation
    # is known only after the response to the previous one.
    prepared = {r.index: prepare(r) for r in requests if r.after is None}
    clock = KernelClock.begin() if kernel_stamps else None
    recorder = Recorder(keep)
    async with Transport(endpoint.origin, clock=clock) as transport:

        async def send(planned: Request, scheduled_s: float) -> None:
            outgoing = prepared.pop(planned.index, None)
            if outgoing is None:
                outgoing = prepare(await conversations.next(planned))
                scheduled_s = monotonic()
            response = Response(outgoing.limit_bytes)
            try:
                await transport.send(outgoing, response)
            finally:  # what had arrived before a cancellation is kept
                recorder.take(outgoing, response, scheduled_s)

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
                    await recorder.rest()
        finally:
            recorder.rest_now()
            for request in requests:
                if request.index not in records:
                    keep(unsent(request, f"{run_name}-{request.index}"))
            if clock is not None:
                clock.close()
    in_order = tuple(records[request.index] for request in requests)
    return LoadRun(
        records=in_order,
        sent=tuple(conversations.sent[request.index] for request in requests),
        health=pulse.health(in_order, open_loop=open_loop, clock=clock),
        started_s=started_s,
        ended_s=pulse.ended_s,
    )


def _check(workload: Workload, arrivals: Arrivals) -> None:
    requests = workload.requests
    if arrivals.kind == "closed":
        return
    if len(arrivals.offsets_s) != len(requests):
        allowed = f"{len(requests)} arrival times, one per request of {workload.name}"
        example = f"arrivals=poisson(2.0, {len(requests)}, seed=0)"
        raise ParameterError(must_be("arrivals", allowed, len(arrivals.offsets_s), example))
    if any(request.after is not None for request in requests):
        allowed = f"closed for {workload.name}, because its turns wait for responses"
        raise ParameterError(must_be("arrivals", allowed, arrivals.kind, "-p arrivals closed"))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Disable Python's garbage collector: one collection during a drive delays sends by
    milliseconds. A request leaves no reference cycles, which a test checks."""
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


def unsent(
    request: Request,
    request_id: str = "",
    *,
    error: str = "cancelled",
    message: str = "never sent: the run was cancelled first",
) -> RequestRecord:
    """The record of a request that was not sent, or whose fate is unknown."""
    return RequestRecord(
        **request_facts(request),
        request_id=request_id,
        scheduled_s=nan,
        error=error,
        error_message=message,
    )


async def drive_in_thread(
    workload: Workload, arrivals: Arrivals, *, on_record: OnRecord | None = None, **options: Any
) -> LoadRun:
    """`drive` under uvloop in its own thread, separate from the caller's event loop.

    `options` are those of `drive`. `on_record` is called in the caller's loop. If the caller is
    cancelled (a notebook's interrupt), so is the drive; CancelledError is raised after `on_record`
    has had all records.
    """
    caller = asyncio.get_running_loop()
    ended: asyncio.Future[None] = caller.create_future()

    def hand_over(record: RequestRecord) -> None:
        if on_record is not None:
            caller.call_soon_threadsafe(on_record, record)

    loop = uvloop.new_event_loop()
    task: asyncio.Task[LoadRun] = loop.create_task(
        drive(workload, arrivals, on_record=hand_over, **options)
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
