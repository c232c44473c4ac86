"""A TCP connection that dates each read before anything else happens to it.

A plain one is read here and dated by the kernel, where a clock for its stamps is given; any other
by asyncio, dated when the loop hands the read over, over TLS when it has been decrypted.
"""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import Any, cast

from workbench.load.http.kernel_stamps import KernelClock, ask_for_stamps
from workbench.load.http.response import Response

_Address = tuple[int, int, int, str, Any]


class Connection(ABC):
    """A connection that carries one exchange at a time.

    It adds itself to `opened` while it is open, and to `idle` while it may carry a new request.
    """

    _socket: socket.socket

    def __init__(self, opened: set[Connection], idle: list[Connection]) -> None:
        self._opened, self._idle = opened, idle
        self._response: Response | None = None

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

    async def exchange(self, message: bytes, response: Response) -> None:
        """Send, and return when the response has ended; whoever leaves earlier ends both."""
        self._response = response
        self._send(message, response)
        try:
            await response.finished
        finally:
            if self._response is response:
                self._response = None
                self._close()

    def _send(self, message: bytes, response: Response) -> None:
        """By `os.write`, because uvloop's own write waits for the end of the loop's turn, that is
        for whatever else starts in it. A second try keeps the first one's time."""
        now_s = monotonic()
        if response.sent_s != response.sent_s:
            response.sent_s = now_s
        try:
            written = self._write(message)
        except BlockingIOError:
            written = 0
        except OSError as error:
            response.lost(error)
            return
        if written < len(message):
            self._send_later(memoryview(message)[written:])

    def _write(self, message: bytes) -> int:
        return os.write(self._socket.fileno(), message)

    def abort(self) -> None:
        """Close it; a response that it still carries fails."""
        response, self._response = self._response, None
        if response is not None:
            response.fail("reset", "given up before the end of the response")
        self._close()

    def _arrived(self, data: bytes, now_s: float) -> None:
        response = self._response
        if response is None or response.ended:
            self.abort()  # nobody asked
            return
        response.feed(data, now_s)
        if response.ended:
            self._is_over(response)

    def look(self) -> None:
        """See to a response whose reads may have waited for too long."""
        if self._response is not None:
            self._response.look()
            if self._response.ended:
                self._is_over(self._response)

    def _is_over(self, response: Response) -> None:
        self._response = None
        if response.keep_alive:
            self._idle.append(self)
        else:
            self.abort()

    def _is_gone(self, error: Exception | None) -> None:
        self._opened.discard(self)
        if self in self._idle:
            self._idle.remove(self)
        response, self._response = self._response, None
        if response is not None:
            response.lost(error)


class UserStamped(Connection, asyncio.Protocol):
    """asyncio's connection, plain or TLS."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")
        self._tls = transport.get_extra_info("ssl_object") is not None
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


class KernelStamped(Connection):
    """A plain socket, connected, that the loop only watches."""

    def __init__(
        self,
        opened: set[Connection],
        idle: list[Connection],
        sock: socket.socket,
        clock: KernelClock,
    ) -> None:
        super().__init__(opened, idle)
        self._socket, self._clock = sock, clock
        self._loop = asyncio.get_running_loop()
        self._unsent = memoryview(b"")
        ask_for_stamps(sock)
        self._loop.add_reader(sock, self._readable)
        self._is_open()

    @property
    def usable(self) -> bool:
        return self._socket.fileno() >= 0

    def _send_later(self, rest: memoryview) -> None:
        self._unsent = rest
        self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(error)
            return
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            data, arrived_s = self._clock.read(self._socket)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(error)
            return
        if data:
            self._arrived(data, arrived_s)
        else:
            self._ended(None)

    def _ended(self, error: OSError | None) -> None:
        self._close()
        self._is_gone(error)

    def _close(self) -> None:
        if self.usable:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        self._opened.discard(self)


async def connected(host: str, port: int) -> socket.socket:
    """A socket to the first address of `host` that takes it. Raises OSError."""
    loop = asyncio.get_running_loop()
    failures: list[OSError] = []
    for family, kind, protocol, _, address in await _addresses(host, port):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            # If that needs no waiting: on the loopback the second try finds it done.
            if not any(sock.connect_ex(address) == 0 for _ in range(2)):
                await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failures.append(error)
        except BaseException:
            sock.close()
            raise
    try:
        raise failures[0]
    finally:
        failures.clear()  # its traceback knows this list: a cycle


@lru_cache(maxsize=8)
def _numeric(host: str, port: int) -> Sequence[_Address]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)


async def _addresses(host: str, port: int) -> Sequence[_Address]:
    """Where to connect to. An address that is a number needs no thread to be looked up in."""
    with suppress(socket.gaierror):
        return _numeric(host, port)
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
