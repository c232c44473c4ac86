"""Finds the highest rate that meets the limits: which rate to try next, and what all rates show.

Nothing is run here. A rate meets the limits if a wanted fraction of its requests has TTFT and TPOT
within them. The first round doubles or halves the rate until the highest one is bracketed, then
bisects. Later rounds repeat the same rates, each on a fresh launch. The answer is based on the
intervals of all rounds, and is "not resolved" if they are too wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan, nan, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

from workbench.metrics.statistics import ROUNDS_FOR_INTERVAL, t_interval

_Z = NormalDist().inv_cdf(0.975)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """TTFT and TPOT limits in seconds, and the fraction of requests that must meet them."""

    ttft_s: float = inf
    tpot_s: float = inf
    share: float = 0.9

    def met(self, ttft_s: pd.Series[float], tpot_s: pd.Series[float]) -> pd.Series[bool]:
        """Which requests met both. A failed one has no TTFT, and one of a single token no TPOT."""
        return (ttft_s <= self.ttft_s) & (tpot_s.isna() | (tpot_s <= self.tpot_s))

    def __str__(self) -> str:
        known = (("TTFT", self.ttft_s), ("TPOT", self.tpot_s))
        parts = [f"{name} at most {1000 * limit:g} ms" for name, limit in known if limit < inf]
        return " and ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One rate: how many requests were sent in each round, and how many met the limits."""

    rate_per_s: float
    sent: tuple[int, ...]
    met: tuple[int, ...]

    @property
    def share(self) -> float:
        """Fraction of all requests that met the limits; NaN without any."""
        return sum(self.met) / sum(self.sent) if sum(self.sent) else nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the fraction: Wilson's over requests, or wider if rounds differ more.

        Requests of one launch share its queue, so an interval over requests alone is too narrow.
        Source: E. B. Wilson, JASA 22 (1927), 209-212; the t interval of the rounds' shares.
        """
        n = sum(self.sent)
        if not n:
            return nan, nan
        middle = (self.share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * sqrt(self.share * (1 - self.share) / n + (_Z / (2 * n)) ** 2)
        low, high = middle - half, middle + half
        shares = [met / sent for met, sent in zip(self.met, self.sent, strict=True) if sent]
        if len(shares) >= ROUNDS_FOR_INTERVAL:
            _, lowest, highest = t_interval(shares)
            low, high = min(low, lowest), max(high, highest)
        return max(0.0, low), min(1.0, high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The highest rate whose interval meets the limits, and the lowest one that misses them."""

    met_per_s: float
    """NaN if there is none."""
    missed_per_s: float
    """NaN if there is none."""
    resolved: bool
    reason: str
    """Why it is not resolved; empty if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search between `bottom_per_s` and `top_per_s` that begins at `first_per_s`."""

    limits: Limits
    first_per_s: float
    bottom_per_s: float
    top_per_s: float
    """Above it all requests arrive within one TTFT limit: a burst, not a rate."""
    resolution: float = 0.1
    """The search ends when both sides differ by at most this fraction."""
    wide: float = 0.3
    """The result is resolved if both sides differ by at most this fraction."""
    most_points: int = 9

    def next_rate(self, points: Sequence[Point]) -> float | None:
        """The rate to try after these of the first round, or None at the end.

        Here the fraction alone decides whether a rate met the limits; intervals need more rounds.
        """
        met = [p.rate_per_s for p in points if p.share >= self.limits.share]
        missed = [p.rate_per_s for p in points if not p.share >= self.limits.share]
        if not points:
            rate = min(self.top_per_s, max(self.bottom_per_s, self.first_per_s))
        elif len(points) >= self.most_points:
            return None
        elif not missed:
            rate = min(self.top_per_s, 2 * max(met))
        elif not (below := [rate for rate in met if rate < min(missed)]):
            rate = max(self.bottom_per_s, min(missed) / 2)
        elif min(missed) <= (1 + self.resolution) * max(below):
            return None
        else:
            rate = sqrt(max(below) * min(missed))
        rate = float(f"{rate:.3g}")
        return None if any(rate == p.rate_per_s for p in points) else rate

    def answer(self, points: Sequence[Point]) -> Answer:
        """What the rates of all rounds show together."""
        share = self.limits.share
        met = [p.rate_per_s for p in points if p.interval[0] >= share]
        missed = [p.rate_per_s for p in points if p.interval[1] < share]
        highest, lowest = max(met, default=nan), min(missed, default=nan)
        reason = self._why_not(points, highest, lowest)
        return Answer(met_per_s=highest, missed_per_s=lowest, resolved=not reason, reason=reason)

    def _why_not(self, points: Sequence[Point], highest: float, lowest: float) -> str:
        share = self.limits.share
        if not points:
            return "no rate was measured"
        if highest > lowest:
            return (
                f"{highest:g} req/s met the limits, but a lower rate of {lowest:g} req/s missed"
                " them; measure again with more requests"
            )
        straddling = ""
        for p in points:
            low, high = p.interval
            outside = p.rate_per_s < highest or p.rate_per_s > lowest
            if low < share <= high and not outside and not straddling:
                straddling = (
                    f"at {p.rate_per_s:g} req/s {100 * p.share:.0f} % of {sum(p.sent)} requests met"
                    f" the limits (95 % CI {100 * low:.0f} to {100 * high:.0f} %), which does not"
                    f" settle {100 * share:.0f} %; use more requests or rounds"
                )
        if isnan(highest) and isnan(lowest):
            return straddling
        if isnan(lowest):
            return straddling or (
                f"all rates up to {highest:g} req/s met the limits, and above {self.top_per_s:.3g}"
                " req/s all requests arrive at once; use more requests"
            )
        if isnan(highest):
            return straddling or (
                f"even {lowest:g} req/s missed the limits; raise the limits or start with a lower"
                " rate_per_s"
            )
        if lowest > (1 + self.wide) * highest:
            return straddling or (
                f"nothing was measured between {highest:g} and {lowest:g} req/s; start there"
                f" (example: -p rate_per_s {sqrt(highest * lowest):.3g})"
            )
        return ""
