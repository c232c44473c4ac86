"""From the raw rows of a measurement to intervals over runs.

A run's value is the median of its rows; the interval is a t interval over runs, of logarithms
where values are ratios or times. Rows: quantity, arm, cell, run, order, value, unit.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.claims.decision import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from numpy.typing import ArrayLike

__all__ = [
    "counted",
    "gained_percent",
    "mean_of_runs",
    "noise",
    "noise_floor",
    "of_runs",
    "points",
    "ratios",
]

CONFIDENCE = 0.95


def of_runs(
    table: pd.DataFrame, quantity: str, arm: str, *, cells: Iterable[str] | None = None
) -> pd.DataFrame:
    """The medians of an arm: one row for each cell, one column for each run."""
    rows = table[(table["quantity"] == quantity) & (table["arm"] == arm)]
    medians = rows.groupby(["cell", "run"], sort=False)["value"].median().unstack("run")
    return medians if cells is None else medians.reindex(list(cells))


def mean_of_runs(values: ArrayLike, *, cells: int = 1, confidence: float = CONFIDENCE) -> Interval:
    """The geometric mean of positive values over runs, with its interval.

    `cells` of one claim share the error: 1 - 5 % / cells (Bonferroni, never wider than Holm's
    first step allows). NaN ends under two runs: no interval, no verdict. A NaN is a run that is
    missing; a value that is not positive has no place in the mean, and leaving it out would tilt
    the rest, so that all is NaN.
    """
    given = np.asarray(values, dtype=float)
    kept = given[~np.isnan(given)]
    if len(kept) == 0 or not ((kept > 0) & np.isfinite(kept)).all():
        return Interval(estimate=nan, low=nan, high=nan, runs=len(kept))
    logs = np.log(kept)
    middle = float(logs.mean())
    if len(kept) < 2:
        return Interval(estimate=exp(middle), low=nan, high=nan, runs=len(kept))
    from scipy.special import stdtrit

    tail = (1 - confidence) / 2 / cells
    reach = float(stdtrit(len(kept) - 1, 1 - tail)) * float(logs.std(ddof=1)) / len(kept) ** 0.5
    return Interval(
        estimate=exp(middle), low=exp(middle - reach), high=exp(middle + reach), runs=len(kept)
    )


def ratios(
    table: pd.DataFrame,
    quantity: str,
    *,
    over: str,
    under: str,
    cells: Iterable[str] | None = None,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Arm `over` divided by arm `under`, paired by run, for each cell that both have.

    `confidence` is 0.9 for a claim of no change (two one-sided tests), else 0.95.
    """
    pairs = of_runs(table, quantity, over, cells=cells) / of_runs(
        table, quantity, under, cells=cells
    )
    pairs = pairs.dropna(how="all")
    return {
        str(cell): replace(
            mean_of_runs(values.to_numpy(float), cells=len(pairs), confidence=confidence),
            cell=str(cell),
        )
        for cell, values in pairs.iterrows()
    }


def gained_percent(ratio: Interval) -> Interval:
    """How much more, in %, a ratio says; below 1 it is less than 0."""
    return Interval(
        estimate=100 * (ratio.estimate - 1),
        low=100 * (ratio.low - 1),
        high=100 * (ratio.high - 1),
        runs=ratio.runs,
    )


def noise(values: ArrayLike) -> float:
    """The noise floor: 95 % of how far ratios of equal arms are from 1, as a ratio - 1.

    0.25 is a factor of 1.25, either way. NaN where no ratio is known.
    """
    logs = np.abs(np.log(np.asarray(values, dtype=float)))
    logs = logs[np.isfinite(logs)]
    return float(np.expm1(np.quantile(logs, 0.95))) if len(logs) else nan


def noise_floor(table: pd.DataFrame, quantity: str, *, one: str, other: str) -> float:
    """`noise` of two equal arms, over all cells and runs."""
    pairs = of_runs(table, quantity, one) / of_runs(table, quantity, other)
    return noise(pairs.to_numpy(float))


def counted(values: Sequence[float]) -> Interval:
    """What was counted has no noise: its interval is from the least to the greatest count."""
    return Interval(
        estimate=float(np.median(values)), low=float(min(values)), high=float(max(values)),
        runs=len(values),
    )  # fmt: skip


def points(
    series: str, intervals: Mapping[str, Interval], x: Mapping[str, float | str]
) -> list[dict[str, Any]]:
    """Rows of a Curve: `x` says where each cell stands."""
    return [
        {
            "series": series, "x": x[cell], "value": interval.estimate,
            "low": interval.low, "high": interval.high,
        }
        for cell, interval in intervals.items()
        if cell in x
    ]  # fmt: skip
