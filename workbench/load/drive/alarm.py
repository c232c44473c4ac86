"""A wake-up call at a monotonic time, exact to the kernel's timer where Linux has timerfd.

Timers of asyncio and uvloop go by milliseconds: a request timed by them leaves 0.3 to 0.5 ms late.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress
from time import monotonic
from typing import Self

__all__ = ["Alarm"]

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1


class Alarm:
    """Sleeps until given times, for one task at a time; an async context manager.

    Where there is no timerfd it sleeps by asyncio's own timer.
    """

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._rung: asyncio.Future[None] | None = None
        self._fd = -1
        with suppress(AttributeError, OSError):  # AttributeError: this C library has none
            self._libc = ctypes.CDLL(None)
            # TFD_NONBLOCK and TFD_CLOEXEC are the O_ flags of the same name.
            flags = os.O_NONBLOCK | os.O_CLOEXEC
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, flags)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._ring)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    async def until(self, at_s: float) -> None:
        """Sleep until `time.monotonic()` is `at_s`; returns at once when that has passed."""
        if at_s <= monotonic():
            return
        if self._fd < 0:
            await asyncio.sleep(at_s - monotonic())
            await self.until(at_s)  # asyncio may wake early, by the resolution of its clock
            return
        seconds, fraction = divmod(at_s, 1)
        # struct itimerspec: the interval (none), then the time; a nanosecond more, as 0 disarms.
        spec = (ctypes.c_long * 4)(0, 0, int(seconds), int(fraction * 1e9) + 1)
        self._rung = self._loop.create_future()
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, spec, None)
        await self._rung

    def _ring(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 8)
        if self._rung is not None and not self._rung.done():
            self._rung.set_result(None)
