"""Finds the highest load that meets the limits: which load to try next, and what all loads show.

Nothing is run here. A load (an arrival rate, or users of a closed loop) meets the limits if a
wanted fraction of its requests has TTFT and TPOT within them. The first round doubles or halves the
load until the highest one is bracketed, then bisects. Later rounds repeat the same loads, each on a
fresh launch. The answer is based on the intervals of all rounds, and is "not resolved" if they are
too wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan, nan, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

from workbench.experiment.load_unit import RATE, LoadUnit, load_text
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
    """One load: how many requests were sent in each round, and how many met the limits."""

    load: float
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
    """The highest load whose interval meets the limits, and the lowest one that misses them."""

    met: float
    """NaN if there is none."""
    missed: float
    """NaN if there is none."""
    resolved: bool
    reason: str
    """Why it is not resolved; empty if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search between the loads `bottom` and `top` that begins at `first`."""

    limits: Limits
    first: float
    bottom: float
    top: float
    at_top: str = "all requests arrive at once; use more requests"
    """Why the load cannot be higher, and what to do then."""
    unit: LoadUnit = RATE
    resolution: float = 0.1
    """The search ends when both sides differ by at most this fraction."""
    wide: float = 0.3
    """The result is resolved if both sides differ by at most this fraction."""
    most_points: int = 9

    def next_load(self, points: Sequence[Point]) -> float | None:
        """The load to try after these of the first round, or None at the end.

        Here the fraction alone decides whether a load met the limits; intervals need more rounds.
        """
        met = [p.load for p in points if p.share >= self.limits.share]
        missed = [p.load for p in points if not p.share >= self.limits.share]
        if not points:
            load = min(self.top, max(self.bottom, self.first))
        elif len(points) >= self.most_points:
            return None
        elif not missed:
            load = min(self.top, 2 * max(met))
        elif not (below := [load for load in met if load < min(missed)]):
            load = max(self.bottom, min(missed) / 2)
        elif self._close(max(below), min(missed), self.resolution):
            return None
        else:
            load = sqrt(max(below) * min(missed))
        load = self.unit.rounded(load)
        return None if any(load == p.load for p in points) else load

    def _close(self, low: float, high: float, most: float) -> bool:
        """Whether both differ by at most the fraction `most`, or by one user."""
        return high <= (1 + most) * low or (self.unit != RATE and high - low <= 1)

    def answer(self, points: Sequence[Point]) -> Answer:
        """What the loads of all rounds show together."""
        share = self.limits.share
        met = [p.load for p in points if p.interval[0] >= share]
        missed = [p.load for p in points if p.interval[1] < share]
        highest, lowest = max(met, default=nan), min(missed, default=nan)
        reason = self._why_not(points, highest, lowest)
        return Answer(met=highest, missed=lowest, resolved=not reason, reason=reason)

    def _why_not(self, points: Sequence[Point], highest: float, lowest: float) -> str:
        share, unit = self.limits.share, self.unit
        if not points:
            return f"no {unit.noun} was measured"
        if highest > lowest:
            return (
                f"{unit.said(highest)} met the limits, but a lower {unit.noun} of"
                f" {unit.said(lowest)} missed them; measure again with more requests"
            )
        straddling = ""
        for p in points:
            low, high = p.interval
            outside = p.load < highest or p.load > lowest
            if low < share <= high and not outside and not straddling:
                straddling = (
                    f"at {unit.said(p.load)} {100 * p.share:.0f} % of {sum(p.sent)} requests met"
                    f" the limits (95 % CI {100 * low:.0f} to {100 * high:.0f} %), which does not"
                    f" settle {100 * share:.0f} %; use more requests or rounds"
                )
        if isnan(highest) and isnan(lowest):
            return straddling
        if isnan(lowest):
            every = "all rates" if unit == RATE else "all loads"
            return straddling or (
                f"{every} up to {unit.said(highest)} met the limits, and above"
                f" {unit.said(self.top)} {self.at_top}"
            )
        if isnan(highest):
            lower = " or start with a lower rate_per_s" if unit == RATE else ""
            return straddling or (
                f"even {unit.said(lowest)} missed the limits; raise the limits{lower}"
            )
        if not self._close(highest, lowest, self.wide):
            between = sqrt(highest * lowest)
            return straddling or (
                f"nothing was measured between {load_text(highest)} and {unit.said(lowest)}; start"
                f" there (example: -p {unit.column} {unit.rounded(between):g})"
            )
        return ""
