"""A response as it arrives: socket reads with timestamps, parsed into body bytes.

Reads that end with an event in its own chunk are parsed in batches: httptools (C) then costs half
as much. All times are `time.monotonic()` in seconds.
"""

from __future__ import annotations

import asyncio
from math import nan
from time import monotonic

import httptools

HEAD_BYTES = 64 * 1024
"""Largest response head, early hints included; servers send less than 1 KiB."""
_LOT = 32
"""Reads that are parsed together."""
_LARGE = 4096
"""A read of this many bytes is parsed at once, so that limits are not exceeded by much."""
_EVENT_END = b"\n\n\r\n"
"""The end of a read that holds an event in its own chunk; a body's end differs."""


class Response:
    """What has arrived of one response, and what ended it early.

    `stamps` and `reads` hold the time and the body bytes of each read, complete when `finished`
    is done. `error` is then empty or a class of RequestRecord, `message` its reason. A head of more
    than HEAD_BYTES, and a response of more than `limit_bytes` as sent, framing included, end as
    `too_large`: memory is bounded whatever the server sends. httptools calls the `on_` methods.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.sent_s = self.head_s = nan
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.stamps: list[float] = []
        self.reads: list[bytes] = []
        self.complete = False
        self.keep_alive = False
        """May the connection carry another request? Known when complete."""
        self.on_body = self.reads.append
        self._framed: list[bytes] = []
        self._body_ends: int | None = None
        self._chunked = self._sized = self._may_wait = False
        self._limit_bytes, self._received_bytes = limit_bytes, 0
        self.expect()

    def expect(self) -> None:
        """Wait for the first byte, also on a new connection after the first one broke."""
        self.ended, self.error, self.message = False, "", ""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes, now_s: float) -> None:
        """Take one read."""
        self.stamps.append(now_s)
        self._framed.append(data)
        if self._may_wait and data[-4:] == _EVENT_END and len(data) < _LARGE:
            if len(self._framed) < _LOT:
                return
        self._unframe()

    def look(self) -> None:
        """Parse now: the end of a response, or too much data, may look like an event."""
        if not self.ended:
            self._unframe()

    def lost(self, error: Exception | None) -> None:
        """The connection closed: a failure, unless that is how this body ends."""
        self._unframe()
        if self.ended:
            return
        if error is not None:
            self.fail("reset", f"connection lost: {error}")
        elif not self.status:
            part = "within the response headers" if self.stamps else "before sending a response"
            self.fail("reset", f"the server closed the connection {part}")
        elif self._chunked or self._sized:
            self.fail("truncated", "the server closed the connection before the response ended")
        else:
            self.stamps.append(monotonic())
            self.reads.append(b"")
            self.complete = True
            self._end()

    def fail(self, error: str, message: str) -> None:
        """End it with an error, unless it has ended."""
        self._unframe()
        if not self.ended:
            self.error, self.message = error, message
            self._end()

    def _unframe(self) -> None:
        """Parse the reads that have waited."""
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
        if self.complete:
            self._end()  # bytes after the end only cost the connection
        elif failure:
            self.fail("protocol", failure)
        elif self._received_bytes > HEAD_BYTES and not self.status:
            self._too_large("response headers", HEAD_BYTES)
        elif self._received_bytes > self._limit_bytes:
            self._too_large("the response", self._limit_bytes)

    def _too_large(self, what: str, limit_bytes: int) -> None:
        why = "check that base_url is an inference server and max_tokens is respected"
        self.fail("too_large", f"{what} exceeded {limit_bytes:,} bytes; {why}")

    def _end(self) -> None:
        self.ended = True
        del self._parser  # it holds methods of this: a cycle, and nothing collects those in a drive
        if not self.finished.done():
            self.finished.set_result(None)

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
        self._may_wait = self._chunked

    def on_message_complete(self) -> None:
        if self.status and not self.complete:
            self.complete = True
            self._body_ends = len(self.reads)
            self.keep_alive = self._parser.should_keep_alive()
