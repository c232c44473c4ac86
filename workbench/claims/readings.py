"""From the rows of a run to intervals of ratios, exact counts and the noise floor. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import nan
from typing import TYPE_CHECKING

import numpy as np

from workbench.claims.decision import Interval
from workbench.claims.intervals import noise
from workbench.metrics.latency import system_tps
from workbench.metrics.statistics import Ratio, pair, paired_ratio, ratio_of_rounds

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "EQUIVALENCE",
    "counted",
    "latency_ratio",
    "noise_floor",
    "rows_of",
    "saved_percent",
    "throughput_ratio",
]

EQUIVALENCE = 0.90
"""Two one-sided tests at 5 % each are one interval of 90 % (Schuirmann 1987)."""

Side = tuple[str, str]
"""An arm and one of its passes."""


def latency_ratio(
    requests: pd.DataFrame, value: Side, baseline: Side, metric: str, *, confidence: float = 0.95
) -> Interval:
    """`metric` of `value` over that of `baseline`, requests paired within rounds.

    Below 1 `value` is faster. NaN bounds where there are too few rounds.
    """
    sides = pair(rows_of(requests, value), rows_of(requests, baseline), metric)
    return _interval(paired_ratio(sides, confidence=confidence))


def throughput_ratio(
    requests: pd.DataFrame, value: Side, baseline: Side, *, confidence: float = 0.95
) -> Interval:
    """Output tokens per second of a whole pass, `value` over `baseline`, by rounds."""
    ratio = ratio_of_rounds(
        _tps(requests, value), _tps(requests, baseline), confidence=confidence
    )  # fmt: skip
    return _interval(ratio)


def saved_percent(ratio: Interval) -> Interval:
    """How much less, in %, a ratio of times says."""
    return Interval(
        estimate=100 * (1 - ratio.estimate),
        low=100 * (1 - ratio.high),
        high=100 * (1 - ratio.low),
        runs=ratio.runs,
    )


def counted(values: Iterable[float]) -> Interval:
    """An exact count over everything that was counted: from its least to its greatest value.

    NaN where nothing was counted, or something is not known.
    """
    known = np.asarray(list(values), dtype=float)
    if known.size == 0 or np.isnan(known).any():
        return Interval(estimate=nan, low=nan, high=nan, runs=0)
    low, high = float(known.min()), float(known.max())
    # The value that is furthest from none is the one to show.
    return Interval(estimate=max(low, high, key=abs), low=low, high=high, runs=known.size)


def noise_floor(requests: pd.DataFrame, one: str, other: str, metric: str = "ttft_s") -> float:
    """`noise` of two equal arms in single rounds, a ratio - 1; NaN where there are none.

    `metric` is a latency or `system_tps`.
    """
    sides = (one, "cold"), (other, "cold")
    if metric == "system_tps":
        a, b = _tps(requests, sides[0]), _tps(requests, sides[1])
        return noise([a[n] / b[n] for n in a if n in b and a[n] > 0 and b[n] > 0])
    both = pair(rows_of(requests, sides[0]), rows_of(requests, sides[1]), metric)
    logs = np.log(both["value_s"].astype(float)) - np.log(both["baseline_s"].astype(float))
    return noise(np.exp(logs.groupby(both["round"]).mean()))


def rows_of(requests: pd.DataFrame, side: Side) -> pd.DataFrame:
    """The rows of one arm and pass."""
    return requests[(requests["arm"] == side[0]) & (requests["pass"] == side[1])]


def _tps(requests: pd.DataFrame, side: Side) -> dict[int, float]:
    rows = rows_of(requests, side)
    return {int(n): system_tps(rows[rows["round"] == n]) for n in rows["round"].unique()}


def _interval(ratio: Ratio) -> Interval:
    return Interval(estimate=ratio.value, low=ratio.low, high=ratio.high, runs=ratio.rounds)
