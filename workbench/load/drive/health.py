"""Whether the client kept up: event-loop lag, CPU use and lateness of a drive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, nan
from typing import Self

import numpy as np

from workbench.load.http.kernel_stamps import KernelClock
from workbench.records import RequestRecord

_BEAT_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """Whether the client kept up; NaN if a value does not apply."""

    lateness_p50_s: float
    """Sent minus scheduled time of open-loop requests; a closed loop has no schedule."""
    lateness_p99_s: float
    loop_lag_p99_s: float
    """Lateness of a timer that fires every 10 ms. Timers alone are up to 1 ms late."""
    loop_lag_max_s: float
    thread_cpu_share: float
    """CPU time of the driver's thread / wall time: near 1 it is saturated. Of several processes the
    busiest one's; likewise the loop lags."""
    process_cpu_share: float
    """CPU time of all threads of the process / wall time."""
    merged_share: float
    """Fraction of gaps between token chunks that are 0, since one read held both chunks."""
    kernel_stamped_share: float
    """Fraction of reads with a kernel timestamp; 0 if this process took the time itself."""
    clock_moved_s: float
    """By how much the time of day was set meanwhile, which would shift kernel timestamps."""
    workers: float = 1
    """Processes (or threads) that sent the requests."""


class Pulse:
    """Monitors the running event loop and its thread inside the context."""

    async def __aenter__(self) -> Self:
        self._lags_s: list[float] = []
        self._beating = asyncio.create_task(self._beat())
        self._thread_s, self._process_s = time.thread_time(), time.process_time()
        self.started_s = self.ended_s = time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
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
            self._lags_s.append(time.monotonic() - due_s)

    def health(
        self, records: Sequence[RequestRecord], *, open_loop: bool, clock: KernelClock | None = None
    ) -> ClientHealth:
        """The numbers of the whole drive, after leaving the context."""
        lags_s, wall_s = self._lags_s or [nan], self.ended_s - self.started_s
        reads = clock.stamped + clock.unstamped if clock else 0
        return ClientHealth(
            **_of_records(records, open_loop=open_loop),
            loop_lag_p99_s=float(np.quantile(lags_s, 0.99)),
            loop_lag_max_s=max(lags_s),
            thread_cpu_share=self._thread_s / wall_s if wall_s else nan,
            process_cpu_share=self._process_s / wall_s if wall_s else nan,
            kernel_stamped_share=clock.stamped / reads if clock and reads else 0.0,
            clock_moved_s=clock.moved_s() if clock else 0.0,
        )


def together(
    parts: Sequence[ClientHealth], records: Sequence[RequestRecord], *, open_loop: bool
) -> ClientHealth:
    """The health of several processes that together sent `records`: the worst of each value.

    Process CPU times are summed, since they share one machine.
    """
    worst = {
        name: float(np.fmax.reduce([getattr(part, name) for part in parts] or [nan]))
        for name in ("loop_lag_p99_s", "loop_lag_max_s", "thread_cpu_share", "clock_moved_s")
    }
    stamped = [part.kernel_stamped_share for part in parts]
    return ClientHealth(
        **_of_records(records, open_loop=open_loop),
        **worst,
        process_cpu_share=sum(part.process_cpu_share for part in parts) if parts else nan,
        kernel_stamped_share=min(stamped, default=0.0),
        workers=len(parts),
    )


def _of_records(records: Sequence[RequestRecord], *, open_loop: bool) -> dict[str, float]:
    lateness_s = [r.sent_s - r.scheduled_s for r in records if isfinite(r.sent_s) and open_loop]
    p50, p99 = np.quantile(lateness_s, [0.5, 0.99]).tolist() if lateness_s else (nan, nan)
    gaps_s = np.concatenate([np.diff(record.chunk_s) for record in records] or [np.array([])])
    merged = float((gaps_s == 0).mean()) if gaps_s.size else nan
    return {"lateness_p50_s": p50, "lateness_p99_s": p99, "merged_share": merged}
