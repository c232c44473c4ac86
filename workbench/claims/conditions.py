"""What runs of kernels and engines prove of a fair comparison, and the words for where they ran."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from workbench.claims.claim import BUILT_IN, Bound
from workbench.claims.decision import MIN_RUNS, Interval
from workbench.claims.recipe import Curve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workbench.claims.recipe import Setting
    from workbench.claims.rows import Rows

__all__ = [
    "by_construction",
    "curve",
    "known",
    "left_out",
    "limits",
    "proven",
    "state",
    "times",
    "truth",
    "where",
]


def by_construction(*names: str) -> dict[str, str]:
    """Checks that no run can fail, since one program runs all sides from one job.

    Of the job only the field that names an arm differs; model, number formats, shapes, batches and
    prompts are the same fields for all, and one function takes every time. This is a statement
    about our own code, not a finding: docs/claims.md says which checks are of this kind.
    """
    return dict.fromkeys(names, BUILT_IN)


def proven(rows: Rows) -> dict[str, str]:
    """What holds for kernels and engines alike: by construction, but for the runs, counted."""
    return by_construction(
        "same_dtype", "same_batch_and_concurrency", "warm_up_excluded", "interleaved_run_order",
        "unit_and_iteration_accounting", "provenance_raw_log",
    ) | {"replicated_runs_with_ci": state(rows.runs >= MIN_RUNS)}  # fmt: skip


def where(rows: Rows, setting: Setting) -> str:
    """The end of a sentence: on what, in how many runs, and what a run is."""
    threads = rows.results[0]["threads"]
    on = f"{threads} thread of {setting.hardware}" if threads == 1 else setting.hardware
    return f"on {on}, {rows.runs} runs, each a fresh process"


def state(holds: bool) -> str:
    """As CHECKS are answered."""
    return "pass" if holds else "fail"


def known(*values: float) -> str:
    """pass where each value is a number; unknown where one could not be measured."""
    return "pass" if all(map(isfinite, values)) else "unknown"


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


def limits(setting: Setting, **reached: float) -> tuple[Bound, ...]:
    """What our own numbers mean as a rate of the GPU, which no run can exceed, by limit.

    Of a CPU no ceiling is known: what its caches give is above that of its memory.
    """
    if setting.platform == "cpu":
        return ()
    return tuple(
        Bound(limit=limit, gpu=setting.hardware, value=value) for limit, value in reached.items()
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
