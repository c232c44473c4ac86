"""How well the clocks of hosts agree, so that durations of several hosts can be subtracted.

The waterfall takes a duration of an engine's clock from one of the proxy's. It joins no time of day
or stamp of another host, so only the rates of the clocks matter: they are read before and after
each pass. What cannot be excluded, the bound, is what the two readings leave open.
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
    """Its time of day minus ours, after the pass; for those who read its logs."""
    bound_s: float
    """Of every offset, and so also of durations: the sum of both readings' bounds."""
    rate: float
    """Seconds of its clock in a second of ours."""
    rate_bound: float
    """How wrong `rate` can be."""

    @property
    def factor(self) -> float:
        """What makes its seconds ours; 1 where the readings show no difference."""
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
