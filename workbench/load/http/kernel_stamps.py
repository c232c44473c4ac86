"""A connection whose reads are dated by the kernel, when their last segment arrived.

A stamp of Linux's own (SO_TIMESTAMPNS, see socket(7)) does not wait for this process: neither the
event loop's lag, nor a collection of garbage, nor a busy neighbour of the core is in it. Two events
that come before one read share a stamp; `ClientHealth.merged_share` tells of it. Not for TLS, where
a segment is no record.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from workbench.load.http.connection import Connection

__all__ = ["KernelClock", "KernelStamped", "ask_for_stamps"]

_SO_TIMESTAMPNS = 35
"""Of asm-generic/socket.h; Python names it from 3.14 on."""
_TIMESPEC = struct.Struct("@ll")
_Address = tuple[int, int, int, str, Any]
_READ_BYTES = 8192
"""More waits for the next turn of the loop; a larger buffer costs more to allocate each time."""
_CONTROL_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)


class KernelClock:
    """Moves the kernel's stamps, which are of CLOCK_REALTIME, to `time.monotonic()`.

    Both clocks run at one rate (the kernel slews them together), so that their distance is read
    once; `moved_s` says whether somebody has set the time of day since.
    """

    def __init__(self) -> None:
        self._ahead_ns = _realtime_ahead_ns()
        self._ahead = divmod(self._ahead_ns, 1_000_000_000)
        self._asking: tuple[socket.socket, ...] = ()
        self.stamped = 0
        """Reads that came with a stamp: all of them, unless the system has none to give."""
        self.unstamped = 0

    @classmethod
    def begin(cls) -> KernelClock | None:
        """A clock whose stamps have been seen to come; None where the system has none.

        Linux begins to stamp a moment after the first socket of all has asked for it. A connection
        of the clock to itself waits for that, up to 0.1 s, and goes on asking until `close`.
        """
        if sys.platform != "linux":
            return None
        clock = cls()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sender = socket.create_connection(listener.getsockname())
            reader, _ = listener.accept()
        clock._asking = (sender, reader)
        ask_for_stamps(reader)
        deadline_s = time.monotonic() + 0.1
        while time.monotonic() < deadline_s:
            sender.send(b".")
            clock.read(reader)
            if clock.stamped:
                clock.stamped = clock.unstamped = 0
                return clock
            time.sleep(0.002)
        clock.close()
        return None

    def close(self) -> None:
        for sock in self._asking:
            sock.close()

    def read(self, sock: socket.socket) -> tuple[bytes, float]:
        """Read what is there, and when it arrived. Raises BlockingIOError if nothing is."""
        data, control, _, _ = sock.recvmsg(_READ_BYTES, _CONTROL_BYTES)
        if not control:
            self.unstamped += bool(data)
            return data, time.monotonic()
        self.stamped += 1
        seconds, fraction_ns = _TIMESPEC.unpack(control[0][2])
        ahead_s, ahead_ns = self._ahead
        return data, seconds - ahead_s + (fraction_ns - ahead_ns) / 1e9

    def moved_s(self) -> float:
        """By how much CLOCK_REALTIME was set since; differences of microseconds are no news."""
        return abs(_realtime_ahead_ns() - self._ahead_ns) / 1e9


def ask_for_stamps(sock: socket.socket) -> None:
    """Have the kernel date what arrives at this socket from now on."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def _realtime_ahead_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, by the narrowest of many bracketed readings."""
    narrowest, ahead_ns = None, 0
    for _ in range(200):
        before_ns = time.monotonic_ns()
        realtime_ns = time.time_ns()
        after_ns = time.monotonic_ns()
        if narrowest is None or after_ns - before_ns < narrowest:
            narrowest = after_ns - before_ns
            ahead_ns = realtime_ns - (before_ns + after_ns) // 2
    return ahead_ns


@lru_cache(maxsize=8)
def _numeric(host: str, port: int) -> Sequence[_Address]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)


async def _addresses(host: str, port: int) -> Sequence[_Address]:
    """Where to connect to. An address that is a number needs no thread to be looked up in."""
    with suppress(socket.gaierror):
        return _numeric(host, port)
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _connected(sock: socket.socket, address: Any) -> bool:
    """Connect if that needs no waiting: on the loopback the second try finds it done."""
    return any(sock.connect_ex(address) == 0 for _ in range(2))


class KernelStamped(Connection):
    """A plain socket that the loop only watches; made by `connect`."""

    @classmethod
    async def connect(
        cls, host: str, port: int, opened: set[Connection], idle: list[Connection],
        clock: KernelClock,
    ) -> KernelStamped:  # fmt: skip
        """Connect to the first address of `host` that takes it. Raises OSError."""
        loop = asyncio.get_running_loop()
        failures: list[OSError] = []
        for family, kind, protocol, _, address in await _addresses(host, port):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                ask_for_stamps(sock)
                if not _connected(sock, address):
                    await loop.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                failures.append(error)
            except BaseException:
                sock.close()
                raise
            else:
                connection = cls(opened, idle)
                connection._begin(sock, str(address[0]), clock)
                return connection
        try:
            raise failures[0]
        finally:
            failures.clear()  # its traceback knows this list: a cycle

    def _begin(self, sock: socket.socket, peer: str, clock: KernelClock) -> None:
        self._socket, self.peer, self._clock = sock, peer, clock
        self._loop = asyncio.get_running_loop()
        self._unsent = memoryview(b"")
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
