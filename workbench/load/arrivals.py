"""When requests are sent: a closed loop of so many at a time, or an open loop at set times."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np

from workbench.errors import ParameterError

__all__ = ["Arrivals", "closed", "poisson"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Either `concurrency` requests in flight at any time, or one request at each offset."""

    kind: Literal["closed", "poisson"]
    concurrency: int = 0
    """Closed loop: a new request starts when one has ended."""
    offsets_s: tuple[float, ...] = ()
    """Open loop: seconds from the start of the run to each request, ascending."""
    rate_per_s: float = 0.0
    seed: int = 0

    def describe(self) -> str:
        """One line for a report, e.g. `closed loop, 4 at a time`."""
        if self.kind == "closed":
            return f"closed loop, {self.concurrency} at a time"
        return f"open loop, Poisson at {self.rate_per_s:g} requests/s (seed {self.seed})"


def closed(concurrency: int) -> Arrivals:
    """A closed loop. Raises ParameterError below 1."""
    if concurrency < 1:
        raise ParameterError(
            f"concurrency is {concurrency}: at least 1 request has to be in flight"
        )
    return Arrivals(kind="closed", concurrency=concurrency)


def poisson(rate_per_s: float, n: int, seed: int) -> Arrivals:
    """A Poisson process: `n` arrivals with independent exponential gaps of mean 1 / rate.

    Gaps are not clipped (that would raise the rate), and the first request comes after one gap.
    """
    if not (isfinite(rate_per_s) and rate_per_s > 0):
        raise ParameterError(f"rate_per_s is {rate_per_s}: give requests per second above 0")
    if n < 1 or seed < 0:
        raise ParameterError(f"n is {n} and seed is {seed}: n starts at 1, a seed at 0")
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, n)
    offsets_s = tuple(np.cumsum(gaps_s).tolist())
    return Arrivals(kind="poisson", offsets_s=offsets_s, rate_per_s=rate_per_s, seed=seed)
