"""Times of one operation: warmed up until steady, each call, arms in mirrored order.

Runs in the measuring process; no module above this one imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from workbench.claims.recipes.rounds import Cost
from workbench.claims.recipes.rows import row

TORCH = Cost(start_s=5.0, launch_s=0.0, gpu_launch_s=5.0)
"""A process that imports torch; more on a slow disk."""

STEADY = 0.02
"""The last windows agree if their medians differ by at most this fraction."""
WINDOWS = 3
WARM_UP_WINDOWS = 10
"""After so many windows, the measurement goes on and reports that it was not steady."""
WINDOW_S = 0.004
MOST_LAPS = 20
VISITS = 4
"""Visits of each arm in a run, in mirrored order (ABBA)."""
LONG_S = 0.05
"""Arms with longer calls are visited only twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to do the work."""

    call: Callable[[], Any]
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered once for a window of calls: it costs as much as a small kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The result of a warm-up: seconds of a call, calls in a window, whether windows agreed."""

    lap_s: float
    count: int
    steady: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Seconds of single calls on a device, by its own events on a GPU."""

    device: str
    host: bool = False
    """True times the host's side of GPU work, such as allocations."""

    def laps(self, arm: Arm, count: int) -> list[float]:
        """The seconds of each of `count` calls in a row."""
        with arm.within():
            if self.device == "cpu":
                return [self._lap(arm.call) for _ in range(count)]
            import torch

            torch.cuda.synchronize()
            if self.host:
                return [self._lap(arm.call, torch.cuda.synchronize) for _ in range(count)]
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
            marks[0].record()
            for mark in marks[1:]:
                arm.call()
                mark.record()
            torch.cuda.synchronize()
            return [start.elapsed_time(end) / 1e3 for start, end in pairwise(marks)]

    def warm_up(self, arm: Arm) -> Pace:
        """Call until the last windows agree, or for the most windows."""
        # The very first call also includes memory, threads and the choice of a kernel.
        first = self.laps(arm, 2)
        lap_s = min(first)
        count = max(1, min(MOST_LAPS, round(WINDOW_S / max(lap_s, 1e-7))))
        medians = first if count == 1 else []
        for _ in range(WARM_UP_WINDOWS):
            medians.append(median(self.laps(arm, count)))
            last = medians[-WINDOWS:]
            if len(last) == WINDOWS and max(last) <= min(last) * (1 + STEADY):
                return Pace(lap_s=lap_s, count=count, steady=True)
            if len(last) == WINDOWS and lap_s > LONG_S:
                break
        return Pace(lap_s=lap_s, count=count, steady=False)

    def _lap(self, call: Callable[[], Any], wait: Callable[[], Any] | None = None) -> float:
        start_s = time.perf_counter()
        call()
        if wait is not None:
            wait()
        return time.perf_counter() - start_s


def compare(
    clock: Clock, arms: Mapping[str, Arm], *, quantity: str, cell: str
) -> list[dict[str, Any]]:
    """A row for each call of each arm, in seconds; warmed-up arms alternate in mirrored order."""
    paces = {name: clock.warm_up(arm) for name, arm in arms.items()}
    longest_s = max((pace.lap_s for pace in paces.values()), default=0.0)
    rows = []
    for visit in range(VISITS if longest_s <= LONG_S else 2):
        names = list(arms) if visit % 2 == 0 else list(arms)[::-1]
        for order, name in enumerate(names, visit * len(arms)):
            pace = paces[name]
            rows += [
                row(quantity, name, cell, lap_s, "s", order=order, steady=pace.steady)
                for lap_s in clock.laps(arms[name], pace.count)
            ]
    return rows


def expected_s(laps_s: Iterable[float]) -> float:
    """About how long `compare` takes, from the seconds of one call of each arm."""
    kept = [max(WINDOW_S, lap_s) for lap_s in laps_s]
    visits = VISITS if max(kept, default=0.0) <= LONG_S else 2
    return sum(kept) * (WINDOWS + 2 + visits)


def falls(values: Sequence[float]) -> list[int]:
    """Places after which a value falls although work grows: the sign of a cold first shape."""
    return [place for place, (now, after) in enumerate(pairwise(values)) if after < now]
