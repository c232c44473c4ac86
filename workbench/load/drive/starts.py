"""At most a few new requests in one turn of the event loop, so that no read is far behind.

Starting a request takes a few hundred microseconds in which nothing is read. Where hundreds end
within one turn, as the streams of a closed loop do, those that take their places would start in
that turn too, and the tokens that arrive meanwhile be read, and dated, together.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["STARTS_PER_TURN", "Starts"]

STARTS_PER_TURN = 8


class Starts:
    """Lets so many tasks pass in each turn of the running loop, in the order of their coming."""

    def __init__(self, per_turn: int = STARTS_PER_TURN) -> None:
        self._per_turn = self._left = per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._woken = 0
        """Tasks that pass in the next turn: until then nobody may pass before them."""
        self._turning = False
        self._loop = asyncio.get_running_loop()

    async def allowed(self) -> None:
        """Return when it is this task's turn; at once if few have started in this one."""
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
