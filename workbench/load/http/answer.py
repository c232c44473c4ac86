"""A response as it arrives: its reads with their times, unframed into body bytes.

Reads that end as an event does in its chunk wait until there are several: httptools (C) unframes
them together at half the cost of one by one between the reads of other streams. What the body means
is left to whoever reads it when it has ended. All times are `time.monotonic()` in seconds.
"""

from __future__ import annotations

import asyncio
from math import nan
from time import monotonic

import httptools
import httpx

__all__ = ["ANSWER_BYTES", "HEAD_BYTES", "Answer", "Disconnected", "TooLarge"]

HEAD_BYTES = 64 * 1024
"""Of a response's head, with those of early hints before it; servers send less than 1 KiB."""
ANSWER_BYTES = 64 * 1024 * 1024
"""Of a whole response, unless the request says otherwise."""
_LOT = 32
"""Reads that are unframed together."""
_LARGE = 4096
"""Bytes of a read that does not wait, so that a limit is not passed by much."""
_EVENT_END = b"\n\n\r\n"
"""How a read ends that brings an event in a chunk of its own; the end of a body does not."""


class Disconnected(httpx.RemoteProtocolError):
    """The server closed the connection (no reset) before its response was complete."""


class TooLarge(httpx.RemoteProtocolError):
    """A response of more bytes than may be kept."""


class Answer:
    """One response as it arrives.

    `stamps` and `reads` hold the time and the body bytes of each read, `reads` some later unless
    somebody watches. `head` is done when status and headers are known, `finished` at the end of the
    body; a failure is set on both as an httpx.TransportError. `more` is set at the end, and by each
    read if it is watched. httptools calls the `on_` methods.
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
        self.ended = False
        self._watched = False
        self._may_wait = False
        """Is the body chunked, and does nobody watch?"""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_s = nan
        self.stamps: list[float] = []
        self.reads: list[bytes] = []
        self.complete = False
        self.keep_alive = False
        """May the connection carry another request? Known when complete."""
        self.on_body = self.reads.append
        self._framed: list[bytes] = []
        self._body_ends: int | None = None
        self._chunked = False
        self._sized = False
        self._limit_bytes = limit_bytes
        self._received_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes, now_s: float) -> None:
        """Take one read. A framing error fails the response with RemoteProtocolError."""
        self.stamps.append(now_s)
        self._framed.append(data)
        if self._may_wait and data[-4:] == _EVENT_END and len(data) < _LARGE:
            if len(self._framed) < _LOT:
                return
        self._unframe()

    def look(self) -> None:
        """Wait no longer: a server may send an end, or too much, that ends like an event."""
        if not self.ended:
            self._unframe()

    def watch(self) -> None:
        """Have `more` set by each read from now on."""
        self._watched, self._may_wait = True, False
        self.look()

    def lost(self, error: Exception | None) -> None:
        """The connection is gone: a failure, unless the body has no other end than this."""
        self._unframe()
        if self.ended:
            return
        if error is not None:
            self.fail(httpx.ReadError(f"connection lost: {error}"))
        elif not self.status:
            part = "in the head of its response" if self.stamps else "without sending a response"
            self.fail(Disconnected(f"the server hung up {part}"))
        elif self._chunked or self._sized:
            self.fail(Disconnected("the server hung up before the end of its response"))
        else:
            self.stamps.append(monotonic())
            self.reads.append(b"")
            self.complete = True
            self._settle()

    def fail(self, error: httpx.TransportError) -> None:
        """End the response with `error`; does nothing to one that has ended."""
        self._unframe()
        for future in (self.head, self.finished):
            if not future.done():
                future.set_exception(error)
        self._end()
        self.more.set()

    def _unframe(self) -> None:
        """Have the parser look at the reads that have waited."""
        framed, self._framed = self._framed, []
        if not framed:
            return
        failure = ""
        for data in framed:
            self._received_bytes += len(data)
            before = len(self.reads)
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self.keep_alive = False
                failure = failure or f"the response is not HTTP/1.1: {error}"
            if self.complete or len(self.reads) != before + 1:
                self.reads[before:] = [b"".join(self.reads[before : self._body_ends])]
            if self.complete:
                break
        if len(self.stamps) > len(self.reads):
            self.keep_alive = False  # reads behind the end
            del self.stamps[len(self.reads) :]
        self._settle()  # first, since the head of a broken answer still has its status
        if self.complete:
            return  # bytes after the end only cost the connection
        if failure:
            self.fail(httpx.RemoteProtocolError(failure))
        elif self._received_bytes > HEAD_BYTES and not self.status:
            self.fail(TooLarge(f"a head of more than {HEAD_BYTES:,} bytes"))
        elif self._received_bytes > self._limit_bytes:
            self.fail(TooLarge(f"an answer of more than {self._limit_bytes:,} bytes"))

    def _settle(self) -> None:
        if self.status and not self.head.done():
            self.head.set_result(None)
            self._may_wait = self._chunked and not self._watched
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
        if name == b"transfer-encoding" and b"chunked" in value:
            self._chunked = True
        elif name == b"content-length":
            self._sized = True

    def on_headers_complete(self) -> None:
        if self.status:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the response is yet to come
            self.headers.clear()
            self._chunked = self._sized = False
            return
        self.status, self.head_s = status, self.stamps[-1]

    def on_message_complete(self) -> None:
        if self.status and not self.complete:
            self.complete = True
            self._body_ends = len(self.reads)
            self.keep_alive = self._parser.should_keep_alive()


def _retrieve(future: asyncio.Future[None]) -> None:
    """Mark an error as seen: whoever has read `reads` need not await `finished`."""
    if not future.cancelled():
        future.exception()
