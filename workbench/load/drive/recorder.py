"""Records of requests that have ended, made one at a time between other requests' reads.

Parsing a response of a thousand tokens takes milliseconds. Many at once, as they end in one engine
step, would delay reading the first tokens of the requests that follow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from workbench.load.http.client import record_of
from workbench.load.http.request import Outgoing
from workbench.load.http.response import Response
from workbench.records import RequestRecord

_PAUSE_S = 0.001
_MANY = 256
"""Unparsed responses; beyond that memory matters more."""


class Recorder:
    """Passes each record to `keep`, in the order in which the requests ended."""

    def __init__(self, keep: Callable[[RequestRecord], None]) -> None:
        self._keep = keep
        self._ended: deque[tuple[Outgoing, Response, float]] = deque()
        self._working: asyncio.Task[None] | None = None

    def take(self, outgoing: Outgoing, response: Response, scheduled_s: float) -> None:
        """Note a request that has ended."""
        self._ended.append((outgoing, response, scheduled_s))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._ended:
            await asyncio.sleep(_PAUSE_S if len(self._ended) < _MANY else 0)
            self._next()

    def _next(self) -> None:
        if self._ended:
            self._keep(record_of(*self._ended.popleft()))

    async def rest(self) -> None:
        """Make the remaining records, yielding to the event loop between them."""
        while self._ended:
            self._next()
            await asyncio.sleep(0)
        if self._working is not None:
            await self._working

    def rest_now(self) -> None:
        """Make the remaining records at once, because the drive was cancelled."""
        if self._working is not None:
            self._working.cancel()  # or its loop would close over a task that waits
        while self._ended:
            self._next()
