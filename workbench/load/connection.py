"""A TCP connection that stamps each read, and the response that grows from these reads.

A read is stamped before anything else happens to it, then unframed by httptools (C, 0.3 us for a
chunk of one token) and kept; what the body means is left to whoever reads it when it has ended.
All times are `time.monotonic()` in seconds.
"""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from math import nan
from time import monotonic
from typing import cast

import httptools
import httpx

__all__ = [
    "ANSWER_BYTES",
    "HEAD_BYTES",
    "Answer",
    "Connection",
    "Disconnected",
    "TooLarge",
    "UserStamped",
]

HEAD_BYTES = 64 * 1024
"""Of a response's head, with those of early hints before it; servers send less than 1 KiB."""
ANSWER_BYTES = 64 * 1024 * 1024
"""Of a whole response, unless the request says otherwise."""


class Disconnected(httpx.RemoteProtocolError):
    """The server closed the connection (no reset) before its response was complete."""


class TooLarge(httpx.RemoteProtocolError):
    """A response of more bytes than may be kept."""


class Answer:
    """One response as it arrives.

    `stamps` and `reads` hold the time and the body bytes of each read. `head` is done when status
    and headers are known, `finished` at the end of the body; a failure is set on both as an
    httpx.TransportError. `more` is set at the end, and by each read if somebody has `watched`.
    httptools calls the `on_` methods.
    A head of more than HEAD_BYTES, and a response of more than `limit_bytes` as sent, framing
    included, fail with TooLarge: memory is bounded whatever the server sends.
    """

    def __init__(self, limit_bytes: int = ANSWER_BYTES) -> None:
        loop = asyncio.get_running_loop()
        self.head: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()
        for future in (self.head, self.finished):
            future.add_done_callback(_retrieve)
        self.more = asyncio.Event()
        self.watched = False
        """Does somebody wait for `more`?"""
        self.ended = False
        self._streaming = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_s = nan
        self.stamps: list[float] = []
        self.reads: list[bytes] = []
        self.complete = False
        self.keep_alive = False
        """May the connection carry another request? Known when complete."""
        self._pieces: list[bytes] = []
        self._until_close = True
        self._limit_bytes = limit_bytes
        self._received_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes, now_s: float) -> None:
        """Take one read. A framing error fails the response with RemoteProtocolError."""
        self.stamps.append(now_s)
        failure = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keep_alive = False
            failure = f"the response is not HTTP/1.1: {error}"
        pieces = self._pieces
        self.reads.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        pieces.clear()
        self._received_bytes += len(data)
        if self._streaming and not self.complete and not failure:
            if self._received_bytes > self._limit_bytes:
                self.fail(TooLarge(f"an answer of more than {self._limit_bytes:,} bytes"))
            elif self.watched:
                self.more.set()
            return
        self._settle()  # first, since the head of a broken answer still has its status
        if self.complete:
            return  # bytes after the end only cost the connection
        if failure:
            self.fail(httpx.RemoteProtocolError(failure))
        elif self._received_bytes > HEAD_BYTES and not self.status:
            self.fail(TooLarge(f"a head of more than {HEAD_BYTES:,} bytes"))
        elif self._received_bytes > self._limit_bytes:
            self.fail(TooLarge(f"an answer of more than {self._limit_bytes:,} bytes"))

    def lost(self, error: Exception | None) -> None:
        """The connection is gone: a failure, unless the body has no other end than this."""
        if error is not None:
            self.fail(httpx.ReadError(f"connection lost: {error}"))
        elif not self.status:
            part = "in the head of its response" if self.stamps else "without sending a response"
            self.fail(Disconnected(f"the server hung up {part}"))
        elif not self._until_close:
            self.fail(Disconnected("the server hung up before the end of its response"))
        else:
            self.stamps.append(monotonic())
            self.reads.append(b"")
            self.complete = True
            self._settle()

    def fail(self, error: httpx.TransportError) -> None:
        """End the response with `error`; does nothing to one that has ended."""
        for future in (self.head, self.finished):
            if not future.done():
                future.set_exception(error)
        self._end()
        self.more.set()

    def _settle(self) -> None:
        if self.status and not self.head.done():
            self.head.set_result(None)
            self._streaming = True
        if self.complete and not self.finished.done():
            self.finished.set_result(None)
            self._end()
        self.more.set()

    def _end(self) -> None:
        self.ended = True
        # It holds this answer's methods: a cycle that would wait for the garbage collector.
        vars(self).pop("_parser", None)

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False  # a second response to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            return  # a trailer
        self.headers.append((name, value))
        name, value = name.lower(), value.lower()
        if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value):
            self._until_close = False

    def on_headers_complete(self) -> None:
        if self.status:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the response is yet to come
            self.headers.clear()
            self._until_close = True
            return
        self.status, self.head_s = status, self.stamps[-1]

    def on_body(self, piece: bytes) -> None:
        if not self.complete:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if self.status and not self.complete:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()


def _retrieve(future: asyncio.Future[None]) -> None:
    """Mark an error as seen: whoever has read `reads` need not await `finished`."""
    if not future.cancelled():
        future.exception()


class Connection(ABC):
    """A connection that carries one exchange at a time.

    It adds itself to `opened` while it is open, and to `idle` while it may carry a new request.
    """

    _socket: socket.socket

    def __init__(self, opened: set[Connection], idle: list[Connection]) -> None:
        self._opened, self._idle = opened, idle
        self._answer: Answer | None = None
        self.used = False
        self.peer = ""
        """Address at the other end."""

    @property
    @abstractmethod
    def usable(self) -> bool:
        """Is it still open?"""

    @abstractmethod
    def _close(self) -> None:
        """Close at once; whatever was not sent is lost."""

    @abstractmethod
    def _send_later(self, rest: memoryview) -> None:
        """Send what the socket did not take, when it does."""

    def _is_open(self) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._opened.add(self)

    def send(self, message: bytes, answer: Answer) -> float:
        """Hand the message to the socket and return the time of its first byte.

        By `os.write`, because uvloop's own write waits for the end of the loop's turn, that is
        for whatever else starts in it. Raises httpx.WriteError when the connection is gone.
        """
        self._answer, self.used = answer, True
        sent_s = monotonic()
        try:
            written = self._write(message)
        except BlockingIOError:
            written = 0
        except OSError as error:
            raise httpx.WriteError(f"connection lost: {error}") from error
        if written < len(message):
            self._send_later(memoryview(message)[written:])
        return sent_s

    def _write(self, message: bytes) -> int:
        return os.write(self._socket.fileno(), message)

    def drop(self, answer: Answer) -> None:
        """Abort the connection if it is still busy with this answer."""
        if self._answer is answer:
            self.abort()

    def abort(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.fail(httpx.ReadError("given up before the end of the response"))
        self._close()

    def _arrived(self, data: bytes, now_s: float) -> None:
        answer = self._answer
        if answer is None:
            self.abort()  # nobody asked
            return
        answer.feed(data, now_s)
        if answer.ended:
            self._answer = None
            if answer.keep_alive:
                self._idle.append(self)
            else:
                self.abort()

    def _is_gone(self, error: Exception | None) -> None:
        self._opened.discard(self)
        if self in self._idle:
            self._idle.remove(self)
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.lost(error)


class UserStamped(Connection, asyncio.Protocol):
    """Stamps a read when the loop hands it over; over TLS, when it has been decrypted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")
        self._tls = transport.get_extra_info("ssl_object") is not None
        self.peer = str(transport.get_extra_info("peername")[0])
        self._is_open()

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def _write(self, message: bytes) -> int:
        return 0 if self._tls else super()._write(message)

    def _send_later(self, rest: memoryview) -> None:
        self._transport.write(rest)

    def _close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._arrived(data, monotonic())

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_gone(exc)
