"""Kernel timestamps of reads: when the last segment arrived (SO_TIMESTAMPNS, see socket(7)).

They are free of event-loop lag and of CPU contention. Two events in one read share a timestamp
(`ClientHealth.merged_share`). Not for TLS, where a segment is not a record.
"""

from __future__ import annotations

import socket
import struct
import time

_SO_TIMESTAMPNS = 35
"""Of asm-generic/socket.h; Python names it from 3.14 on."""
_TIMESPEC = struct.Struct("@ll")
READ_BYTES = 8192
"""More waits for the next turn of the loop; a larger buffer costs more to allocate each time."""
_CONTROL_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)


class KernelClock:
    """Converts the kernel's timestamps from CLOCK_REALTIME to `time.monotonic()`.

    Both clocks run at the same rate (the kernel slews them together), so their offset is read once;
    `moved_s` says whether the time of day was set since.
    """

    def __init__(self) -> None:
        self._ahead_ns = _realtime_ahead_ns()
        self._ahead = divmod(self._ahead_ns, 1_000_000_000)
        self._asking: tuple[socket.socket, ...] = ()
        self.stamped = 0
        """Reads with a timestamp: all, unless the system has none."""
        self.unstamped = 0

    @classmethod
    def begin(cls) -> KernelClock | None:
        """A clock with working timestamps; None if the system has none.

        Linux begins to timestamp shortly after the first socket asks for it. A connection of the
        clock to itself waits for that, at most 0.1 s, and keeps asking until `close`.
        """
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
        """The data and its arrival time. Raises BlockingIOError if nothing is there."""
        data, control, _, _ = sock.recvmsg(READ_BYTES, _CONTROL_BYTES)
        if not control:
            self.unstamped += bool(data)
            return data, time.monotonic()
        self.stamped += 1
        seconds, fraction_ns = _TIMESPEC.unpack(control[0][2])
        ahead_s, ahead_ns = self._ahead
        return data, seconds - ahead_s + (fraction_ns - ahead_ns) / 1e9

    def moved_s(self) -> float:
        """By how much CLOCK_REALTIME was set since; microseconds are normal."""
        return abs(_realtime_ahead_ns() - self._ahead_ns) / 1e9


def ask_for_stamps(sock: socket.socket) -> None:
    """Have the kernel timestamp what arrives at this socket from now on."""
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
