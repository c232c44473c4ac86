"""A TCP connection that stamps each read before anything else happens to it.

All times are `time.monotonic()` in seconds.
"""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from time import monotonic
from typing import cast

import httpx

from workbench.load.http.answer import Answer

__all__ = ["Connection", "UserStamped"]


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
        if answer is None or answer.ended:
            self.abort()  # nobody asked
            return
        answer.feed(data, now_s)
        if answer.ended:
            self._is_over(answer)

    def look(self) -> None:
        """See to an answer whose reads may have waited for too long."""
        if self._answer is not None:
            self._answer.look()
            if self._answer.ended:
                self._is_over(self._answer)

    def _is_over(self, answer: Answer) -> None:
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
