"""The link rate above which a PD split is faster than instances that move no KV.

A request that moves its KV over a link of rate r takes base + bytes / r. One that moves none does
not depend on r. So the excess of the split over its baseline is a straight line over 1 / r. Between
two measured rates the line through both is used. Beyond them the slope comes from the bytes alone,
which is an extrapolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Literal

Kind = Literal["measured", "extrapolated", "always", "never", "unclear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPoint:
    """The result of one measured link."""

    gbit_s: float
    ratio: float
    """Baseline / split: above 1 the split is faster."""
    low: float
    high: float
    slope: float
    """By how much each second per Gbit adds to the excess: Gbit of a request / baseline time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """The link rate above which the split is faster."""

    gbit_s: float
    """0 for always, infinite for never, NaN where it is unclear."""
    low: float
    """Its 95 % interval; NaN without one."""
    high: float
    kind: Kind
    """`measured`: between two measured links. `extrapolated`: beyond them."""


def crossing(points: Sequence[LinkPoint]) -> Crossing:
    """The link rate below which the split stops being faster, from at least one point."""
    rows = sorted(points, key=lambda point: 1 / point.gbit_s)
    gbit_s, kind = _root([(point, point.ratio) for point in rows])
    known = not any(isnan(point.low) or isnan(point.high) for point in rows)
    return Crossing(
        gbit_s=gbit_s,
        # With the highest ratio of the interval, a slower link is enough.
        low=_root([(point, point.high) for point in rows])[0] if known else nan,
        high=_root([(point, point.low) for point in rows])[0] if known else nan,
        kind=kind,
    )


def excess_at(points: Sequence[LinkPoint], gbit_s: float) -> float:
    """The excess of the split over its baseline at any link rate, as a fraction."""
    rows = sorted(points, key=lambda point: 1 / point.gbit_s)
    xs, es = [1 / p.gbit_s for p in rows], [1 / p.ratio - 1 for p in rows]
    x = 1 / gbit_s
    if x <= xs[0]:
        return es[0] + (x - xs[0]) * rows[0].slope
    if x >= xs[-1]:
        return es[-1] + (x - xs[-1]) * rows[-1].slope
    n = next(n for n in range(1, len(xs)) if x <= xs[n])
    return es[n - 1] + (x - xs[n - 1]) * (es[n] - es[n - 1]) / (xs[n] - xs[n - 1])


def _root(rows: Sequence[tuple[LinkPoint, float]]) -> tuple[float, Kind]:
    """The rate at which the excess is 0, of points from the fastest link to the slowest."""
    xs = [1 / point.gbit_s for point, _ in rows]
    es = [1 / ratio - 1 for _, ratio in rows]
    if any(isnan(e) for e in es):
        return nan, "unclear"
    signs = [e > 0 for e in es]
    if signs != sorted(signs):  # slower on a faster link: noise, or something else changed
        return nan, "unclear"
    if signs[0]:
        x = xs[0] - es[0] / rows[0][0].slope
        return (1 / x, "extrapolated") if x > 0 else (inf, "never")
    if not signs[-1]:
        slope = rows[-1][0].slope
        return (1 / (xs[-1] - es[-1] / slope), "extrapolated") if slope > 0 else (0.0, "always")
    n = signs.index(True)
    x = xs[n - 1] - es[n - 1] * (xs[n] - xs[n - 1]) / (es[n] - es[n - 1])
    return 1 / x, "measured"
