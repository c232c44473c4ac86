"""What the runs of a kernel prove of a fair comparison, and the words for where they ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.claims.decision import MIN_RUNS, Interval
from workbench.claims.recipe import Curve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workbench.claims.recipe import Setting
    from workbench.claims.rows import Rows

__all__ = ["curve", "left_out", "proven", "state", "times", "truth", "where"]


def proven(rows: Rows) -> dict[str, str]:
    """Checks that hold by the way in which kernels are run."""
    return {
        "same_dtype": "pass",
        "same_batch_and_concurrency": "pass",
        "warm_up_excluded": "pass",
        "interleaved_run_order": "pass",
        "unit_and_iteration_accounting": "pass",
        "provenance_raw_log": "pass",
        "replicated_runs_with_ci": state(rows.runs >= MIN_RUNS),
    }


def where(rows: Rows, setting: Setting) -> str:
    """The end of a sentence: on what, in how many runs, and what a run is."""
    threads = rows.results[0]["threads"]
    on = f"{threads} thread of {setting.hardware}" if threads == 1 else setting.hardware
    return f"on {on}, {rows.runs} runs, each a fresh process"


def state(holds: bool) -> str:
    """As CHECKS are answered."""
    return "pass" if holds else "fail"


def truth(holds: bool) -> Interval:
    """Yes or no as an interval of a boolean effect."""
    value = float(holds)
    return Interval(estimate=value, low=value, high=value, runs=1)


def times(interval: Interval, factor: float) -> Interval:
    """In another unit."""
    return Interval(
        estimate=interval.estimate * factor,
        low=interval.low * factor,
        high=interval.high * factor,
        runs=interval.runs,
    )


def curve(title: str, x: str, y: str, rows: list[dict[str, Any]]) -> Curve:
    """A Curve of the rows that `workbench.claims.intervals.points` makes."""
    import pandas as pd

    columns = ["series", "x", "value", "low", "high"]
    return Curve(title=title, x=x, y=y, points=pd.DataFrame(rows, columns=columns))


def left_out(what: str, values: Iterable[int]) -> tuple[str, ...]:
    """The doubt for cells that the budget had no room for."""
    missing = ", ".join(f"{value:,}" for value in sorted(values))
    return (f"The budget had no room for {what} {missing}.",) if missing else ()
