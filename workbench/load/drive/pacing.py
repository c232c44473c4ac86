"""When a request may start: a wake-up on schedule, and a few starts per turn of the event loop.

Timers of asyncio and uvloop have millisecond resolution: requests would leave 0.3 to 0.5 ms late.
Linux's timerfd is accurate to the microsecond.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import Self

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_STARTS_PER_TURN = 8


class Alarm:
    """Sleeps until given times, for one task at a time; an async context manager."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._rung: asyncio.Future[None] | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        # TFD_NONBLOCK and TFD_CLOEXEC are the O_ flags of the same name.
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop.add_reader(self._fd, self._ring)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    async def until(self, at_s: float) -> None:
        """Sleep until `time.monotonic()` is `at_s`; returns at once when that has passed."""
        if at_s <= monotonic():
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


class Starts:
    """Lets a few tasks start per turn of the event loop, first come, first served.

    Starting a request takes a few hundred microseconds in which nothing is read. If hundreds end in
    one turn, as in a closed loop, their successors would all start in that turn, and the tokens
    that arrive meanwhile would be read and timestamped together.
    """

    def __init__(self, per_turn: int = _STARTS_PER_TURN) -> None:
        self._per_turn = self._left = per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._woken = 0
        """Tasks that start in the next turn; until then no other task may start."""
        self._turning = False
        self._loop = asyncio.get_running_loop()

    async def allowed(self) -> None:
        """Return when this task may start; at once if few have started in this turn."""
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._next_turn)
        if self._left and not self._waiting and not self._woken:
            self._left -= 1
            return
        turn = self._loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_turn(self) -> None:
        passed = self._woken or self._per_turn - self._left
        self._left = self._per_turn - self._woken
        self._woken = 0
        while self._waiting and self._woken < self._per_turn:
            turn = self._waiting.popleft()
            if not turn.done():  # it is, if its task was cancelled
                turn.set_result(None)
                self._woken += 1
        self._turning = bool(passed or self._woken)
        if self._turning:
            self._loop.call_soon(self._next_turn)
