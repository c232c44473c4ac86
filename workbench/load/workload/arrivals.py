"""When requests are sent: a closed loop with fixed concurrency, or an open loop at set times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np

from workbench.errors import ParameterError, must_be


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Either `concurrency` requests in flight at any time, or one request at each offset."""

    kind: Literal["closed", "constant", "poisson", "gamma", "ramp", "trace"]
    concurrency: int = 0
    """Closed loop: a new request starts when one ends."""
    offsets_s: tuple[float, ...] = ()
    """Open loop: seconds from the start of the run to each request, ascending."""
    rate_per_s: float = 0.0
    """Open loop: the requested arrival rate; of a ramp the first."""
    seed: int = 0
    burstiness: float = 1.0
    """Gamma: shape of the gaps; 1 is Poisson, below 1 more bursty, above 1 more even."""
    end_rate_per_s: float = 0.0
    """Ramp: the last rate."""

    def describe(self) -> str:
        """One line for a report, e.g. `closed loop, 4 at a time`."""
        rate = f"{self.rate_per_s:g} requests/s"
        match self.kind:
            case "closed":
                return f"closed loop, {self.concurrency} at a time"
            case "constant":
                return f"open loop, constant {rate}"
            case "poisson":
                return f"open loop, Poisson at {rate} (seed {self.seed})"
            case "gamma":
                return (
                    f"open loop, gamma at {rate}, burstiness {self.burstiness:g} (seed {self.seed})"
                )
            case "ramp":
                return (
                    f"open loop, {self.rate_per_s:g} to {self.end_rate_per_s:g} requests/s (ramp)"
                )
            case "trace":
                return f"open loop, {len(self.offsets_s)} recorded arrival times"


def closed(concurrency: int) -> Arrivals:
    """A closed loop. Raises ParameterError below 1."""
    if concurrency < 1:
        raise ParameterError(must_be("concurrency", "at least 1", concurrency, 4))
    return Arrivals(kind="closed", concurrency=concurrency)


def constant(rate_per_s: float, n: int) -> Arrivals:
    """`n` arrivals with equal gaps, the first after one gap."""
    _check(rate_per_s, n)
    offsets_s = tuple(index / rate_per_s for index in range(1, n + 1))
    return Arrivals(kind="constant", offsets_s=offsets_s, rate_per_s=rate_per_s)


def poisson(rate_per_s: float, n: int, seed: int) -> Arrivals:
    """A Poisson process: `n` arrivals with independent exponential gaps of mean 1 / rate.

    Gaps are not clipped (that would raise the rate), and the first request comes after one gap.
    """
    _check(rate_per_s, n, seed)
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, n)
    offsets_s = tuple(np.cumsum(gaps_s).tolist())
    return Arrivals(kind="poisson", offsets_s=offsets_s, rate_per_s=rate_per_s, seed=seed)


def gamma(rate_per_s: float, n: int, seed: int, *, burstiness: float) -> Arrivals:
    """`n` arrivals with gamma-distributed gaps of mean 1 / rate and shape `burstiness`.

    The standard deviation of a gap is its mean / sqrt(burstiness): 1 is a Poisson process, 0.25 is
    more bursty, 4 more even. vLLM's benchmark uses the same definition.
    """
    _check(rate_per_s, n, seed)
    if not (isfinite(burstiness) and burstiness > 0):
        raise ParameterError(must_be("burstiness", "a number above 0", burstiness, 0.5))
    gaps_s = np.random.default_rng(seed).gamma(burstiness, 1 / (rate_per_s * burstiness), n)
    return Arrivals(
        kind="gamma",
        offsets_s=tuple(np.cumsum(gaps_s).tolist()),
        rate_per_s=rate_per_s,
        seed=seed,
        burstiness=burstiness,
    )


def ramp(rate_per_s: float, end_rate_per_s: float, n: int) -> Arrivals:
    """`n` arrivals, not random, whose rate changes linearly in time from one rate to the other."""
    _check(rate_per_s, n)
    _check(end_rate_per_s, n)
    # The k-th arrival is at the time t for which the area under the line, r0 t + slope t^2 / 2, is
    # k. This form of the solution stays exact for a slope of zero.
    duration_s = 2 * n / (rate_per_s + end_rate_per_s)
    slope = (end_rate_per_s - rate_per_s) / duration_s
    count = np.arange(1, n + 1)
    # At the end of a falling ramp rounding may give a tiny negative number.
    root = np.sqrt(np.maximum(rate_per_s**2 + 2 * slope * count, 0.0))
    offsets_s = tuple((2 * count / (rate_per_s + root)).tolist())
    return Arrivals(
        kind="ramp", offsets_s=offsets_s, rate_per_s=rate_per_s, end_rate_per_s=end_rate_per_s
    )


def at_times(offsets_s: Iterable[float]) -> Arrivals:
    """Arrivals at known times, such as those of a trace, in seconds from the start."""
    times_s = tuple(float(offset_s) for offset_s in offsets_s)
    if not times_s:
        raise ParameterError(
            must_be("offsets_s", "one time per request", times_s, "offsets_s=[0, 0.5, 1]")
        )
    before_s = 0.0
    for offset_s in times_s:
        if not (isfinite(offset_s) and offset_s >= before_s):
            got = (before_s, offset_s)
            allowed = "ascending times from 0, in seconds"
            raise ParameterError(must_be("offsets_s", allowed, got, "offsets_s=[0, 0.5, 1]"))
        before_s = offset_s
    rate_per_s = (len(times_s) - 1) / span_s if (span_s := times_s[-1] - times_s[0]) else 0.0
    return Arrivals(kind="trace", offsets_s=times_s, rate_per_s=rate_per_s)


def _check(rate_per_s: float, n: int, seed: int = 0) -> None:
    if not (isfinite(rate_per_s) and rate_per_s > 0):
        raise ParameterError(must_be("rate_per_s", "a number above 0", rate_per_s, 2))
    if n < 1:
        raise ParameterError(must_be("n", "at least 1", n, "n=20"))
    if seed < 0:
        raise ParameterError(must_be("seed", "at least 0", seed, 0))
