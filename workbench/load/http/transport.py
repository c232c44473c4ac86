"""The httpx API over connections that stamp every socket read before any other code runs.

Stock httpx dates a chunk when its own code gets round to it, and rescans its pool at each request.
Here each stream in flight has a connection of its own, and the next request takes the one that was
used last. HTTP/1.1 only. A read is dated by this process, or by the kernel if a clock for that is
given; over TLS always by this process, after decrypting.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

import httpx

from workbench.control import connect_problem, tls_context
from workbench.load.http.answer import ANSWER_BYTES, Answer
from workbench.load.http.connection import Connection, UserStamped
from workbench.load.http.kernel_stamps import KernelClock, KernelStamped

__all__ = ["StampingTransport"]

_Origin = tuple[str, str, int]
"""Scheme, host and port."""
_LOOK_S = 1.0
"""How often reads that wait are looked at; see answer.Answer."""


class StampingTransport(httpx.AsyncBaseTransport):
    """Sends a request in one write and stamps each read of its response.

    `response.extensions` holds, next to httpx's own (times are `time.monotonic()`, seconds):

    - `sent_s`: when the first byte was handed to the socket; also in `request.extensions`, for a
      request that gets no response
    - `head_s`: when the response's head had arrived
    - `stamps`, `reads`: time and body bytes of each read, in order, both complete at the end
    - `finished`: a future, done at the end of the body or failed with what cut it short

    A connection on which the server hung up while it was idle is dropped, and the request goes out
    once more on a new one if nothing of a response had come; `sent_s` stays that of the first try.
    `request.extensions["limit_bytes"]` bounds the response, see answer.Answer.
    Of httpx's timeouts only `connect` is heeded: put `asyncio.timeout` around the whole request.
    Cancelling a request, or closing a response before its end, ends its connection.
    """

    def __init__(
        self, *, clock: KernelClock | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """`ssl_context` is the one of all control calls unless given (`control.tls_context`)."""
        self._clock, self._ssl = clock, ssl_context
        self._opened: set[Connection] = set()
        self._idle: dict[_Origin, list[Connection]] = {}
        self._address: dict[str, str] = {}
        self._looking: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        scheme, host = request.url.scheme, request.url.host
        if scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"{request.url}: this transport speaks http and https")
        request.extensions.pop("sent_s", None)
        message = _message(request, await request.aread())
        origin = (scheme, host, request.url.port or (80 if scheme == "http" else 443))
        idle = self._take_idle(origin)
        if idle is not None:
            try:
                return await _exchange(idle, request, message)
            except _Stale:
                pass
        timeout_s = request.extensions.get("timeout", {}).get("connect")
        return await _exchange(await self._connect(origin, timeout_s), request, message)

    async def aclose(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for connection in tuple(self._opened):
            connection.abort()
        await asyncio.sleep(0)  # the turn in which the loop closes the sockets

    def _look(self) -> None:
        """Once a second: see to what waits on a server that has nothing more to send."""
        for connection in tuple(self._opened):
            connection.look()
        self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _take_idle(self, origin: _Origin) -> Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self, origin: _Origin, timeout_s: float | None) -> Connection:
        _, host, port = origin
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._open(origin)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(
                f"no connection to {host}:{port} in {timeout_s} s"
            ) from error
        except (OSError, UnicodeError) as error:  # a name that is none fails to encode
            reason = connect_problem(error) or error
            raise httpx.ConnectError(f"cannot connect to {host}:{port}: {reason}") from error
        self._address[host] = connection.peer  # a name is looked up once
        return connection

    async def _open(self, origin: _Origin) -> Connection:
        scheme, host, port = origin
        if self._looking is None:
            self._look()
        idle = self._idle.setdefault(origin, [])
        address = self._address.get(host, host)
        if scheme == "http" and self._clock is not None:
            return await KernelStamped.connect(address, port, self._opened, idle, self._clock)
        if scheme == "https" and self._ssl is None:
            self._ssl = tls_context()
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: UserStamped(self._opened, idle),
            address,
            port,
            ssl=self._ssl if scheme == "https" else None,
            server_hostname=host if scheme == "https" else None,
        )
        return connection


class _Stale(Exception):
    """A connection that was used before was closed, and nothing of a response has come."""


def _message(request: httpx.Request, body: bytes) -> bytes:
    """Head and body in one piece."""
    parts = [request.method.encode("ascii"), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        parts += name, b": ", value, b"\r\n"
    return b"".join([*parts, b"\r\n", body])


async def _exchange(
    connection: Connection, request: httpx.Request, message: bytes
) -> httpx.Response:
    reused = connection.used
    answer = Answer(request.extensions.get("limit_bytes", ANSWER_BYTES))
    try:
        sent_s = request.extensions.setdefault("sent_s", connection.send(message, answer))
        await answer.head
    except BaseException as error:
        connection.drop(answer)
        if reused and not answer.stamps and isinstance(error, httpx.TransportError):
            raise _Stale from error
        raise
    return httpx.Response(
        answer.status,
        headers=answer.headers,
        stream=_Stream(connection, answer),
        extensions={
            "http_version": b"HTTP/1.1",
            "sent_s": sent_s,
            "head_s": answer.head_s,
            "stamps": answer.stamps,
            "reads": answer.reads,
            "finished": answer.finished,
        },
    )


class _Stream(httpx.AsyncByteStream):
    """The body for readers who want it the httpx way: piece by piece, a failure at its place."""

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self._connection, self._answer = connection, answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        answer, taken = self._answer, 0
        answer.watch()
        while True:
            while taken < len(answer.reads):
                piece = answer.reads[taken]
                taken += 1
                if piece:
                    yield piece
            if answer.finished.done():
                break
            answer.more.clear()
            await answer.more.wait()
        answer.finished.result()

    async def aclose(self) -> None:
        self._connection.drop(self._answer)
