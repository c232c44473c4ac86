"""A connection that timestamps each read before anything else happens to it.

A plain one is our own socket, which the loop only watches. TLS is asyncio's, with a timestamp after
decryption.
"""

from __future__ import annotations

import asyncio
import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import Any, cast

from workbench.load.http.kernel_stamps import READ_BYTES
from workbench.load.http.response import Response

_Address = tuple[int, int, int, str, Any]
_AT_ONCE = 128
"""Sockets read in one turn of the event loop."""

Read = Callable[[socket.socket], tuple[bytes, float]]
"""Returns the data and its arrival time: `KernelClock.read` or `read_now`."""


def read_now(sock: socket.socket) -> tuple[bytes, float]:
    """A read timestamped by this process. Raises BlockingIOError if nothing is there."""
    return sock.recv(READ_BYTES), monotonic()


class Readable:
    """Callbacks for sockets with data or an error to read, by one epoll.

    uvloop's own `add_reader` silently closes its handle when a connection is reset (libuv takes
    POLLERR for a bad descriptor), so the request would hang until its timeout.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, sock: socket.socket, call: Callable[[], None]) -> None:
        self._calls[sock.fileno()] = call
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def forget(self, sock: socket.socket) -> None:
        del self._calls[sock.fileno()]
        self._epoll.unregister(sock.fileno())

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0, _AT_ONCE):
            call = self._calls.get(fd)
            if call is not None:  # one before it may have closed this one
                call()


class Connection(ABC):
    """A connection that carries one exchange at a time.

    It adds itself to `opened` while it is open, and to `idle` while it may carry a new request.
    """

    def __init__(self, opened: set[Connection], idle: list[Connection]) -> None:
        self._opened, self._idle = opened, idle
        self._response: Response | None = None

    @property
    @abstractmethod
    def usable(self) -> bool:
        """Is it still open?"""

    @abstractmethod
    def _send(self, message: bytes) -> None:
        """Write the message to the socket, the rest as soon as the socket accepts it."""

    @abstractmethod
    def _close(self) -> None:
        """Close at once; unsent data is lost."""

    async def exchange(self, message: bytes, response: Response) -> None:
        """Send, and return when the response has ended; leaving earlier closes both."""
        self._response = response
        now_s = monotonic()
        if response.sent_s != response.sent_s:  # a second try keeps the time of the first
            response.sent_s = now_s
        try:
            self._send(message)
            await response.finished
        finally:
            if self._response is response:
                self._response = None
                self._close()

    def abort(self) -> None:
        """Close it; a response in progress fails."""
        response, self._response = self._response, None
        if response is not None:
            response.fail("reset", "the client closed the connection before the response ended")
        self._close()

    def _arrived(self, data: bytes, now_s: float) -> None:
        response = self._response
        if response is None or response.ended:
            self.abort()  # data without a request
            return
        response.feed(data, now_s)
        if response.ended:
            self._is_over(response)

    def look(self) -> None:
        """Parse reads that may have waited for too long."""
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


class PlainConnection(Connection):
    """A connected socket, read by `read`."""

    def __init__(
        self,
        opened: set[Connection],
        idle: list[Connection],
        *,
        sock: socket.socket,
        read: Read,
        readable: Readable,
    ) -> None:
        super().__init__(opened, idle)
        self._socket, self._read, self._readable = sock, read, readable
        self._loop = asyncio.get_running_loop()
        self._unsent = memoryview(b"")
        readable.watch(sock, self._read_it)
        self._opened.add(self)

    @property
    def usable(self) -> bool:
        return self._socket.fileno() >= 0

    def _send(self, message: bytes) -> None:
        # At once: a transport's write waits for the end of the loop's turn, that is for whatever
        # else starts in it.
        try:
            written = self._socket.send(message)
        except BlockingIOError:
            written = 0
        except OSError as error:
            self._ended(error)
            return
        if written < len(message):
            self._unsent = memoryview(message)[written:]
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

    def _read_it(self) -> None:
        try:
            data, arrived_s = self._read(self._socket)
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
            self._readable.forget(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        self._opened.discard(self)


class TlsConnection(Connection, asyncio.Protocol):
    """asyncio's connection, whose reads are timestamped after decryption."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._opened.add(self)

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def _send(self, message: bytes) -> None:
        self._transport.write(message)

    def _close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._arrived(data, monotonic())

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_gone(exc)


async def connected(host: str, port: int) -> socket.socket:
    """A socket to the first address of `host` that accepts. Raises OSError."""
    loop = asyncio.get_running_loop()
    failures: list[OSError] = []
    for family, kind, protocol, _, address in await _addresses(host, port):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
    """Addresses to connect to. A numeric one needs no look-up in a thread."""
    with suppress(socket.gaierror):
        return _numeric(host, port)
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
