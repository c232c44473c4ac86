"""When requests are sent: a closed loop of so many at a time, or an open loop at set times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np

from workbench.errors import ParameterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Either `concurrency` requests in flight at any time, or one request at each offset."""

    kind: Literal["closed", "constant", "poisson", "gamma", "ramp", "trace"]
    concurrency: int = 0
    """Closed loop: a new request starts when one has ended."""
    offsets_s: tuple[float, ...] = ()
    """Open loop: seconds from the start of the run to each request, ascending."""
    rate_per_s: float = 0.0
    """Open loop: the rate that was asked for; of a ramp the first one."""
    seed: int = 0
    burstiness: float = 1.0
    """Gamma: shape of the gaps; below 1 requests come in bursts, above 1 evenly."""
    end_rate_per_s: float = 0.0
    """Ramp: the last rate."""

    def describe(self) -> str:
        """One line for a report, e.g. `closed loop, 4 at a time`."""
        rate = f"{self.rate_per_s:g} requests/s"
        match self.kind:
            case "closed":
                return f"closed loop, {self.concurrency} at a time"
            case "constant":
                return f"open loop, evenly at {rate}"
            case "poisson":
                return f"open loop, Poisson at {rate} (seed {self.seed})"
            case "gamma":
                return (
                    f"open loop, gamma at {rate}, burstiness {self.burstiness:g} (seed {self.seed})"
                )
            case "ramp":
                return f"open loop, from {self.rate_per_s:g} to {self.end_rate_per_s:g} requests/s"
            case "trace":
                return f"open loop, {len(self.offsets_s)} times of a trace"


def closed(concurrency: int) -> Arrivals:
    """A closed loop. Raises ParameterError below 1."""
    if concurrency < 1:
        raise ParameterError(
            f"concurrency is {concurrency}: at least 1 request has to be in flight"
        )
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

    The deviation of a gap is its mean / sqrt(burstiness): 1 is a Poisson process, 0.25 comes in
    bursts, 4 is more even. vLLM's benchmark gives the word the same meaning.
    """
    _check(rate_per_s, n, seed)
    if not (isfinite(burstiness) and burstiness > 0):
        raise ParameterError(
            f"burstiness is {burstiness}: give a shape above 0; 1 is a Poisson process"
        )
    gaps_s = np.random.default_rng(seed).gamma(burstiness, 1 / (rate_per_s * burstiness), n)
    return Arrivals(
        kind="gamma",
        offsets_s=tuple(np.cumsum(gaps_s).tolist()),
        rate_per_s=rate_per_s,
        seed=seed,
        burstiness=burstiness,
    )


def ramp(rate_per_s: float, end_rate_per_s: float, n: int) -> Arrivals:
    """`n` arrivals, not random, whose rate changes evenly in time from one rate to the other."""
    _check(rate_per_s, n)
    _check(end_rate_per_s, n)
    # The k-th arrival is where the area under the line, r0 t + slope t^2 / 2, is k. It is solved
    # in the form that stays exact for a slope of zero.
    duration_s = 2 * n / (rate_per_s + end_rate_per_s)
    slope = (end_rate_per_s - rate_per_s) / duration_s
    count = np.arange(1, n + 1)
    # At the end of a falling ramp rounding may leave a hair below the square of the end rate.
    root = np.sqrt(np.maximum(rate_per_s**2 + 2 * slope * count, 0.0))
    offsets_s = tuple((2 * count / (rate_per_s + root)).tolist())
    return Arrivals(
        kind="ramp", offsets_s=offsets_s, rate_per_s=rate_per_s, end_rate_per_s=end_rate_per_s
    )


def at_times(offsets_s: Iterable[float]) -> Arrivals:
    """Arrivals at times that are known, such as those of a trace: seconds from the start."""
    times_s = tuple(float(offset_s) for offset_s in offsets_s)
    if not times_s:
        raise ParameterError("there are no arrival times: give one for each request")
    before_s = 0.0
    for index, offset_s in enumerate(times_s):
        if not (isfinite(offset_s) and offset_s >= before_s):
            raise ParameterError(
                f"arrival {index} is at {offset_s} s, after one at {before_s} s: times start at 0"
                " and ascend"
            )
        before_s = offset_s
    rate_per_s = (len(times_s) - 1) / span_s if (span_s := times_s[-1] - times_s[0]) else 0.0
    return Arrivals(kind="trace", offsets_s=times_s, rate_per_s=rate_per_s)


def _check(rate_per_s: float, n: int, seed: int = 0) -> None:
    if not (isfinite(rate_per_s) and rate_per_s > 0):
        raise ParameterError(f"rate_per_s is {rate_per_s}: give requests per second above 0")
    if n < 1 or seed < 0:
        raise ParameterError(f"n is {n} and seed is {seed}: n starts at 1, a seed at 0")
