"""Was the client itself in the way? Loop lag, CPU and lateness of a drive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, nan
from types import TracebackType
from typing import Self

import numpy as np

from workbench.records import RequestRecord

__all__ = ["ClientHealth", "Pulse"]

_BEAT_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """Whether the client kept up; NaN where a value does not apply."""

    lateness_p50_s: float
    """Sent minus scheduled, over the requests of an open loop; a closed loop has no schedule."""
    lateness_p99_s: float
    loop_lag_max_s: float
    """The most by which a beat every 10 ms came late. Timers alone are up to 1 ms late."""
    thread_cpu_share: float
    """CPU time of the driver's thread / wall time: near 1 it can do no more."""
    process_cpu_share: float
    """CPU time of all threads of the process / wall time."""
    merged_share: float
    """Of the gaps between chunks with tokens, those that are 0 because one read brought both."""


class Pulse:
    """Watches the running loop and its thread from entering to leaving the context."""

    async def __aenter__(self) -> Self:
        self._lag_s = nan
        self._beating = asyncio.create_task(self._beat())
        self._thread_s, self._process_s = time.thread_time(), time.process_time()
        self.started_s = self.ended_s = time.monotonic()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended_s = time.monotonic()
        self._thread_s = time.thread_time() - self._thread_s
        self._process_s = time.process_time() - self._process_s
        self._beating.cancel()
        with suppress(asyncio.CancelledError):
            await self._beating

    async def _beat(self) -> None:
        while True:
            due_s = time.monotonic() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self._lag_s = float(np.fmax(self._lag_s, time.monotonic() - due_s))

    def health(self, records: Sequence[RequestRecord], *, open_loop: bool) -> ClientHealth:
        """The numbers of the whole drive, after the context has been left."""
        lateness = [r.sent_s - r.scheduled_s for r in records if isfinite(r.sent_s) and open_loop]
        p50, p99 = np.quantile(lateness, [0.5, 0.99]).tolist() if lateness else (nan, nan)
        gaps = np.concatenate([np.diff(record.chunk_s) for record in records] or [np.array([])])
        wall_s = self.ended_s - self.started_s
        return ClientHealth(
            lateness_p50_s=p50,
            lateness_p99_s=p99,
            loop_lag_max_s=self._lag_s,
            thread_cpu_share=self._thread_s / wall_s if wall_s else nan,
            process_cpu_share=self._process_s / wall_s if wall_s else nan,
            merged_share=float((gaps == 0).mean()) if gaps.size else nan,
        )
