"""How well the clocks of hosts agree, so that durations of several hosts can be subtracted.

The waterfall subtracts a duration of an engine's clock from one of the proxy's. It uses no time of
day or timestamp of another host, so only the speed of the clocks matters. Clocks are read before
and after each pass. The bound is the largest error that these two readings can have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workbench.records import ClockReading


@dataclass(frozen=True, slots=True, kw_only=True)
class HostClock:
    """The clock of a host during a pass, from a reading before it and one after it."""

    host: str
    """Its address."""
    wall_offset_s: float
    """Its time of day minus ours, after the pass; for readers of its logs."""
    bound_s: float
    """The largest error of an offset or a duration: the sum of both readings' bounds."""
    rate: float
    """Seconds of its clock in a second of ours."""
    rate_bound: float
    """The largest error of `rate`."""

    @property
    def factor(self) -> float:
        """Converts its seconds to ours; 1 where the readings show no difference."""
        return 1.0 if abs(self.rate - 1.0) <= self.rate_bound else 1.0 / self.rate


def host_clocks(
    before: Iterable[ClockReading], after: Iterable[ClockReading]
) -> tuple[HostClock, ...]:
    """The clock of each host that was read both before and after."""
    first = {reading.host: reading for reading in before}
    return tuple(_during(first[end.host], end) for end in after if end.host in first)


def _during(start: ClockReading, end: ClockReading) -> HostClock:
    took_s = end.at_s - start.at_s
    bound_s = start.bound_s + end.bound_s
    return HostClock(
        host=end.host,
        wall_offset_s=end.wall_offset_s,
        bound_s=bound_s,
        rate=1.0 + (end.offset_s - start.offset_s) / took_s,
        rate_bound=bound_s / took_s,
    )
