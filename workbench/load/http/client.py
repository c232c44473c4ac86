"""One request, sent and watched to its end: whatever happens, it ends as one RequestRecord."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from math import nan
from time import monotonic
from typing import Any
from uuid import uuid4

import httpx

from workbench.errors import ParameterError
from workbench.load.http.answer import Disconnected, TooLarge
from workbench.load.http.kernel_stamps import KernelClock
from workbench.load.http.outgoing import outgoing_request
from workbench.load.http.refusal import refusal
from workbench.load.http.stream import parse_stream
from workbench.load.http.transport import StampingTransport
from workbench.load.workload.workload import Request
from workbench.records import RequestRecord

__all__ = [
    "CONNECT_TIMEOUT_S",
    "Exchange",
    "open_client",
    "stream_completion",
]

CONNECT_TIMEOUT_S = 10.0


class _NoCookies(httpx.Cookies):
    def extract_cookies(self, response: httpx.Response) -> None:
        """Keep none, and look for none: that would take 13 us a response."""


class _Client(httpx.AsyncClient):
    """Each request is another user's: no cookie of one goes with the next."""

    @property
    def cookies(self) -> httpx.Cookies:
        return _NoCookies()

    @cookies.setter
    def cookies(self, cookies: Any) -> None:
        raise AttributeError("requests have no cookies in common")


def open_client(base_url: str, *, clock: KernelClock | None = None) -> httpx.AsyncClient:
    """A client for `stream_completion`; with a `clock`, reads of plain http have kernel stamps.

    Proxy variables of the environment are not heeded, and the number of connections has no limit.
    """
    url = httpx.URL(base_url)
    if url.scheme not in ("http", "https") or not url.host:
        raise ParameterError(f"base_url is {base_url!r}: write it like http://127.0.0.1:8000")
    return _Client(
        transport=StampingTransport(clock=clock),
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,
    )


async def stream_completion(
    client: httpx.AsyncClient,
    request: Request,
    *,
    timeout_s: float = 600.0,
    request_id: str = "",
    scheduled_s: float = nan,
    on_record: Callable[[RequestRecord], None] | None = None,
    **options: Any,
) -> RequestRecord:
    """Send one request and give its record; a failure is a record too, with what had arrived.

    `options` are those of `outgoing_request`; `scheduled_s` is now unless given; `timeout_s` is
    for the whole request. The errors are those of RequestRecord. When the task is cancelled,
    `on_record` gets the record and then CancelledError is raised, as always.
    """
    request_id = request_id or uuid4().hex
    outgoing = outgoing_request(client, request, request_id=request_id, **options)
    exchange = Exchange(request, outgoing, request_id=request_id, timeout_s=timeout_s)
    try:
        await exchange.run(client, scheduled_s if scheduled_s == scheduled_s else monotonic())
    finally:
        record = exchange.record()
        if on_record is not None:
            on_record(record)
    return record


class Exchange:
    """A request on its way, and what has been seen of its response so far.

    What arrives is only kept; `record` says what it means, and can wait for a better moment.
    """

    def __init__(
        self, request: Request, outgoing: httpx.Request, *, request_id: str, timeout_s: float
    ) -> None:
        self._request, self._outgoing = request, outgoing
        self._request_id, self._timeout_s = request_id, timeout_s
        self._failure: BaseException | None = None
        self.scheduled_s = self.head_s = nan
        self.status = 0
        self.headers = httpx.Headers()
        self.stamps: list[float] = []
        self.reads: list[bytes] = []

    async def run(self, client: httpx.AsyncClient, scheduled_s: float) -> None:
        """Send it and see it to its end. Of what may cut it short only a cancellation is raised."""
        self.scheduled_s = scheduled_s
        callers = sys.exception()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._watch(client)
        except Exception as error:
            self._failure = _without_frames(error, callers)
        except asyncio.CancelledError as error:
            self._failure = error
            raise

    async def _watch(self, client: httpx.AsyncClient) -> None:
        outgoing = self._outgoing

        async def trace(event: str, _info: Any) -> None:
            if event == "http11.send_request_headers.started":
                outgoing.extensions["sent_s"] = monotonic()

        outgoing.extensions["trace"] = trace  # other transports call it, the stamping one need not
        try:
            response = await client.send(outgoing, stream=True)
        finally:
            del outgoing.extensions["trace"]
        try:
            self.status, self.headers = response.status_code, response.headers
            self.head_s = response.extensions.get("head_s", monotonic())
            if "finished" in response.extensions:
                self.stamps = response.extensions["stamps"]
                self.reads = response.extensions["reads"]
                await response.extensions["finished"]
            else:
                await _read_stock(response, self, outgoing.extensions["limit_bytes"])
        finally:
            await response.aclose()
            response.stream = httpx.ByteStream(b"")  # the one it had knows it: a cycle

    def record(self) -> RequestRecord:
        """Its record, when it has ended: parsing takes about 1 us a token."""
        sent_s = self._outgoing.extensions.get("sent_s", nan)
        record = _record(
            self._request, self._request_id, self, sent_s, self._failure, self._timeout_s
        )
        if self._outgoing.extensions.get("first_token_from_prefill"):
            record = _with_first_token(record)
        # Some servers quote the key that they refuse.
        key = self._outgoing.headers.get("Authorization", "").removeprefix("Bearer ")
        if key and record.error_message:
            record = replace(record, error_message=record.error_message.replace(key, "[key]"))
        return record


def _with_first_token(record: RequestRecord) -> RequestRecord:
    """The counts as the client sees them, where usage has the first token as part of the prompt."""
    if record.usage_prompt_tokens != record.prompt_tokens + 1 or record.output_tokens < 0:
        return record
    return replace(
        record,
        usage_prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens + 1,
    )


def _without_frames(error: Exception, callers: BaseException | None) -> Exception:
    """An error that no longer holds on to where it happened, and so to what holds on to it.

    What the caller was handling when it sent the request is left as it is.
    """
    part: BaseException | None = error
    while part is not None and part is not callers:
        part.__traceback__ = None
        part = part.__context__
    return error


async def _read_stock(response: httpx.Response, seen: Exchange, limit_bytes: int) -> None:
    try:
        async for piece in response.aiter_raw():
            seen.stamps.append(monotonic())
            seen.reads.append(piece)
            if response.num_bytes_downloaded > limit_bytes:
                raise TooLarge(f"an answer of more than {limit_bytes:,} bytes")
    except httpx.RemoteProtocolError as error:
        raise Disconnected(str(error)) from error


def _record(
    request: Request,
    request_id: str,
    seen: Exchange,
    sent_s: float,
    failure: BaseException | None,
    timeout_s: float,
) -> RequestRecord:
    streaming = seen.status == 200
    parsed = parse_stream(zip(seen.stamps, seen.reads, strict=True) if streaming else ())
    error, message = parsed.error, parsed.error_message
    if seen.status and not streaming:
        error, message = f"http_{seen.status}", refusal(seen.status, seen.headers, seen.reads)
    elif failure is not None and (not error or error == "truncated"):
        error, message = _classify(failure, seen, timeout_s)
        if error == "truncated" and parsed.done and not parsed.error:
            error, message = "", ""  # all was said before the server hung up
    return RequestRecord(
        index=request.index,
        request_id=request_id,
        prompt_tokens=request.prompt_tokens,
        ideal_reuse_tokens=request.ideal_reuse_tokens,
        max_tokens=request.max_tokens,
        scheduled_s=seen.scheduled_s,
        sent_s=sent_s,
        head_s=seen.head_s,
        chunk_s=parsed.chunk_s,
        chunk_tokens=parsed.chunk_tokens,
        stream_end_s=seen.stamps[-1] if seen.stamps and failure is None else nan,
        http_status=seen.status,
        finish_reason=parsed.finish_reason,
        usage_prompt_tokens=parsed.usage_prompt_tokens,
        output_tokens=parsed.output_tokens,
        cached_tokens=parsed.cached_tokens,
        text=parsed.text,
        answer_ids=parsed.answer_ids,
        engine_metrics=parsed.engine_metrics,
        error=error,
        error_message=message,
    )


def _classify(failure: BaseException, seen: Exchange, timeout_s: float) -> tuple[str, str]:
    """(error, message) of a request that did not come to its end."""
    text = str(failure) or type(failure).__name__
    match failure:
        case asyncio.CancelledError():
            return "cancelled", "cancelled before its end"
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return "connect", text
        case TimeoutError() | httpx.TimeoutException():
            return "timeout", f"no end after {timeout_s:g} s"
        case Disconnected():
            return ("truncated" if seen.status else "reset"), text
        case TooLarge():
            return "too_large", f"{text}: the server does not keep to max_tokens, or is none"
        case httpx.NetworkError() | OSError():
            return "reset", text
        case _:
            return "protocol", f"{type(failure).__name__}: {text}"
