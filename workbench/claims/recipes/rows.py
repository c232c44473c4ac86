"""The rows of a recipe's runs, and intervals over runs.

A run's value is the median of its rows; the interval is a t interval over runs, of logarithms for
ratios and times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import nan
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.claims.recipes.recipe import Curve, Outcome, Setting
from workbench.claims.verdict.decision import MIN_RUNS, Interval, difference
from workbench.claims.verdict.verdict import Measurement, by_construction, known, state
from workbench.metrics.statistics import noise_floor, t_interval

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

COLUMNS = ("quantity", "arm", "cell", "run", "order", "value", "unit", "steady")
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What the runs of one recipe returned."""

    table: pd.DataFrame
    """Columns COLUMNS, one row for each value of each run."""
    results: tuple[Mapping[str, Any], ...]
    """What each run returned, without its rows."""
    doubts: tuple[str, ...]

    @property
    def runs(self) -> int:
        """Runs of the arm with the fewest."""
        return int(self.table.groupby("arm")["run"].nunique().min())

    def of(self, quantity: str) -> pd.DataFrame:
        """The rows of one quantity."""
        return self.table[self.table["quantity"] == quantity]

    def medians(
        self, quantity: str, arm: str, *, cells: Iterable[str] | None = None
    ) -> pd.DataFrame:
        """The medians of an arm: one row for each cell, one column for each run."""
        rows = self.of(quantity)
        grouped = rows[rows["arm"] == arm].groupby(["cell", "run"], sort=False)
        medians = grouped["value"].median().unstack("run")
        return medians if cells is None else medians.reindex(list(cells))

    def ratios(
        self,
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
        one, other = (self.medians(quantity, arm, cells=cells) for arm in (over, under))
        pairs = (one / other).dropna(how="all")
        found = means(pairs, cells=len(pairs), confidence=confidence)
        return {cell: replace(interval, cell=cell) for cell, interval in found.items()}

    def noise(self, quantity: str, *, one: str, other: str) -> float:
        """The noise floor of two identical arms, over all cells and runs."""
        pairs = self.medians(quantity, one) / self.medians(quantity, other)
        return noise_floor(pairs.to_numpy(float))

    def outcome(
        self,
        measurements: Mapping[str, Measurement],
        says: str,
        *,
        floor: float | None = None,
        checks: Mapping[str, str] = MappingProxyType({}),
        curves: tuple[Curve, ...] = (),
        doubts: tuple[str, ...] = (),
    ) -> Outcome:
        """What was measured, with its rows, and the checks that all launches pass.

        `floor` is the noise floor of identical arms, if the recipe has them.
        """
        found = by_construction(
            "same_dtype", "same_batch_and_concurrency", "warm_up_excluded",
            "interleaved_run_order", "unit_and_iteration_accounting", "provenance_raw_log",
        ) | {"replicated_runs_with_ci": state(self.runs >= MIN_RUNS)}  # fmt: skip
        if floor is not None:
            says += f" Identical arms differ by {difference(floor)}."
            found["aa_noise_floor"] = known(floor)
        return Outcome(
            measurements=measurements, table=self.table, says=says, checks={**found, **checks},
            curves=curves, doubts=(*self.doubts, *doubts),
        )  # fmt: skip

    def where(self, setting: Setting) -> str:
        """For the end of a sentence: the hardware and the number of runs."""
        threads = self.results[0]["threads"]
        on = f"{threads} thread of {setting.hardware}" if threads == 1 else setting.hardware
        return f"on {on}, {self.runs} launches of each arm in fresh processes"


def row(
    quantity: str,
    arm: str,
    cell: str,
    value: float,
    unit: str,
    *,
    order: int = 0,
    steady: bool = True,
) -> dict[str, Any]:
    """One value of a run, as a launch returns it."""
    return {
        "quantity": quantity, "arm": arm, "cell": cell, "order": order, "value": value,
        "unit": unit, "steady": steady,
    }  # fmt: skip


def means(
    frame: pd.DataFrame, *, cells: int = 1, confidence: float = CONFIDENCE
) -> dict[str, Interval]:
    """`mean_of_runs` of each row of a frame of cells and runs."""
    return {
        str(cell): mean_of_runs(values.to_numpy(float), cells=cells, confidence=confidence)
        for cell, values in frame.iterrows()
    }


def mean_of_runs(values: ArrayLike, *, cells: int = 1, confidence: float = CONFIDENCE) -> Interval:
    """The geometric mean of positive values over runs, with its interval.

    `cells` of one claim share the error: 1 - 5 % / cells (Bonferroni, Holm's first step). Without
    two runs the ends are NaN. A NaN value is a missing run; a value that is not positive makes all
    NaN, since leaving it out would bias the mean.
    """
    given = np.asarray(values, dtype=float)
    kept = given[~np.isnan(given)]
    if len(kept) == 0 or not ((kept > 0) & np.isfinite(kept)).all():
        return Interval(estimate=nan, low=nan, high=nan, runs=len(kept))
    estimate, low, high = np.exp(t_interval(np.log(kept), 1 - (1 - confidence) / cells)).tolist()
    return Interval(estimate=estimate, low=low, high=high, runs=len(kept))
