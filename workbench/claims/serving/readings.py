"""Intervals of ratios and the noise of identical arms, from the rows of a run. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.claims.verdict.decision import Interval
from workbench.metrics.latency import system_tps
from workbench.metrics.statistics import Ratio, noise_floor, pair, paired_ratio, ratio_of_rounds

if TYPE_CHECKING:
    import pandas as pd

EQUIVALENCE = 0.90
"""Two one-sided tests at 5 % use one interval of 90 % (Schuirmann 1987)."""

Side = tuple[str, str]
"""An arm and one of its passes."""


def latency_ratio(
    requests: pd.DataFrame, value: Side, baseline: Side, metric: str, *, confidence: float = 0.95
) -> Interval:
    """`metric` of `value` over `baseline`, paired by request and round; below 1 is faster."""
    sides = pair(rows_of(requests, value), rows_of(requests, baseline), metric)
    return _interval(paired_ratio(sides, confidence=confidence))


def throughput_ratio(
    requests: pd.DataFrame, value: Side, baseline: Side, *, confidence: float = 0.95
) -> Interval:
    """Output tokens per second of a whole pass, `value` over `baseline`, by rounds."""
    sides = (_tps(requests, side) for side in (value, baseline))
    return _interval(ratio_of_rounds(*sides, confidence=confidence))


def noise_of_rounds(requests: pd.DataFrame, one: str, other: str, metric: str = "ttft_s") -> float:
    """The noise floor of two identical arms by rounds, for a latency or `system_tps`."""
    sides = (one, "cold"), (other, "cold")
    if metric == "system_tps":
        a, b = (_tps(requests, side) for side in sides)
        return noise_floor([a[n] / b[n] for n in a if n in b and a[n] > 0 and b[n] > 0])
    both = pair(rows_of(requests, sides[0]), rows_of(requests, sides[1]), metric)
    logs = np.log(both["value_s"].astype(float)) - np.log(both["baseline_s"].astype(float))
    return noise_floor(np.exp(logs.groupby(both["round"]).mean()))


def rows_of(requests: pd.DataFrame, side: Side) -> pd.DataFrame:
    """The rows of one arm and pass."""
    return requests[(requests["arm"] == side[0]) & (requests["pass"] == side[1])]


def _tps(requests: pd.DataFrame, side: Side) -> dict[int, float]:
    rows = rows_of(requests, side)
    return {int(n): system_tps(rows[rows["round"] == n]) for n in rows["round"].unique()}


def _interval(ratio: Ratio) -> Interval:
    return Interval(estimate=ratio.value, low=ratio.low, high=ratio.high, runs=ratio.rounds)
