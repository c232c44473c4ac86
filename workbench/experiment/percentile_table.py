"""Percentiles as a reader wants them: a row per kind and metric, a column per percentile."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from workbench.metrics.statistics import three_digits

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["percentile_table"]

_NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "icl_s": "ICL"}


def percentile_table(found: pd.DataFrame) -> pd.DataFrame:
    """The table of `metrics.percentiles` in milliseconds: `123 [110, 140]`, and n.

    A percentile of too few values is not shown, but how many it needs.
    """
    kind = list(found.columns[: found.columns.get_loc("metric")])
    cells = zip(found["value_s"], found["low_s"], found["high_s"], found["note"], strict=True)
    shown = found.assign(
        metric=found["metric"].map(_NAMES) + ", ms",
        column=[f"p{100 * q:g}" for q in found["quantile"]],
        cell=[_cell(*cell) for cell in cells],
    )
    index = [*kind, "metric", "n"]
    wide = shown.pivot_table(
        index=index, columns="column", values="cell", aggfunc="first", sort=False
    )
    return wide.reset_index().rename_axis(columns=None)


def _cell(value_s: float, low_s: float, high_s: float, note: str) -> str:
    if isnan(low_s):
        return note.replace("needs n >= ", "needs n of ")
    value, low, high = (three_digits(1000 * seconds) for seconds in (value_s, low_s, high_s))
    return f"{value} [{low}, {high}]"
