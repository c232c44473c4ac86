"""Gaps between chunks, pooled over any number of requests in a few megabytes.

A million answers of 128 chunks have 127 million gaps: they are counted in bins of 1 us as they are
read, and never held. Quantiles from the counts are exact to 1 us.
"""

from __future__ import annotations

from math import floor, nan
from typing import TYPE_CHECKING

import numpy as np

from workbench.metrics.statistics import Estimate, interval_ranks, needed_n

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GapCounts"]

_BIN_S = 1e-6
_BINS = 1_000_000
"""Gaps below 1 s are counted; longer ones, of which there are few, are kept as they are."""


class GapCounts:
    """How often each gap occurred."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._long_s: list[NDArray[np.float64]] = []
        self.n = 0

    def add(
        self,
        stamps_s: NDArray[np.float64],
        offsets: NDArray[np.integer],
        keep: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count the gaps of some requests, or of those where `keep` is true.

        `stamps_s` are their chunks' stamps one after another; request i has those from
        `offsets[i]` to `offsets[i + 1]`, as Arrow stores a list column. A request of no chunk or
        of one has no gap.
        """
        if len(stamps_s) < 2:
            return
        gaps_s = np.diff(stamps_s)
        # From the last chunk of one request to the first of the next is no gap. Nothing is cut
        # out, since that would copy all: these count as gaps of 0 and are taken off afterwards.
        none = np.zeros(len(gaps_s), bool)
        none[offsets[(offsets > 0) & (offsets < len(stamps_s))] - 1] = True
        if keep is not None and not keep.all():
            none |= np.repeat(~keep, np.diff(offsets))[:-1]
        gaps_s[none] = 0.0
        bins = (gaps_s * (1 / _BIN_S) + 0.5).astype(np.int64)
        np.maximum(bins, 0, out=bins)
        if int(bins.max()) >= _BINS:
            long = bins >= _BINS
            self._long_s.append(gaps_s[long])
            bins = bins[~long]
        counts = np.bincount(bins)
        self._counts[: len(counts)] += counts
        self._counts[0] -= np.count_nonzero(none)
        self.n += len(none) - np.count_nonzero(none)

    def quantile(self, q: float) -> Estimate:
        """The q-quantile with its 95 % interval, as `statistics.quantile` gives it.

        The interval takes gaps for independent. Those of one answer are not quite, so it is too
        narrow where few requests have many chunks.
        """
        if not self.n:
            return Estimate(value=nan, low=nan, high=nan, n=0, note="no values")
        until = np.cumsum(self._counts)
        long_s = np.sort(np.concatenate([*self._long_s, np.empty(0)]))

        def at(rank: int) -> float:
            """The value of that rank, from 1."""
            if rank > until[-1]:
                return float(long_s[rank - int(until[-1]) - 1])
            return int(np.searchsorted(until, rank)) * _BIN_S

        place = (self.n - 1) * q
        below, above = at(floor(place) + 1), at(min(floor(place) + 2, self.n))
        value = below + (place - floor(place)) * (above - below)
        ranks = interval_ranks(self.n, q)
        if ranks is None:
            note = f"needs n >= {needed_n(q)}"
            return Estimate(value=value, low=nan, high=nan, n=self.n, note=note)
        return Estimate(value=value, low=at(ranks[0]), high=at(ranks[1]), n=self.n)
