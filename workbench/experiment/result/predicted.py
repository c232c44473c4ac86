"""Predictions and their profile, as result.json and the page show them (docs/whatif.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import TYPE_CHECKING

from workbench.metrics.statistics import Number, three_digits

if TYPE_CHECKING:
    import pandas as pd

UNCHECKED = "not checked here"
GOAL = 0.15
"""Largest error of a held-out pass that supports a prediction; a larger one refutes it."""
_BRACKETS = "Brackets: 91 % prediction interval."
METRICS = {
    "ttft_s": ("TTFT", 1000, "ms"),
    "tpot_s": ("TPOT", 1000, "ms"),
    "e2e_s": ("E2E", 1000, "ms"),
    "system_tps": ("throughput", 1, "tok/s"),
    "goodput": ("within limits", 100, "%"),
}
"""Name, factor and unit of each predicted number. Times are medians."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRow:
    """One fitted part of the profile, with the measured times."""

    part: str
    """`prefill`, `decode step` or `transfer`."""
    formula: str
    """Its terms with their coefficients."""
    residual: Number
    """Median of |measured / fitted - 1|."""
    limit: Number
    """With a residual above this, no profile is made."""
    ranges: Mapping[str, tuple[Number, Number]]
    """The smallest and largest measured value of each input."""
    measured_s: tuple[Number, ...]
    fitted_s: tuple[Number, ...]
    """The fit for each measured time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnErrorRow:
    """Prediction errors of a profile on a cold pass of its own 1a, which is not fitted."""

    pass_name: str
    ttft_error: Number
    """predicted / measured - 1 of the median; `tpot_error` likewise."""
    tpot_error: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRow:
    """One metric of a cold pass that was measured but not profiled, and its prediction."""

    arm: str
    topology: str
    rate_per_s: Number
    """0 in a closed loop, and for a trace."""
    n_requests: int
    """Requests per round."""
    metric: str
    """`ttft_s`, `tpot_s` and `e2e_s`: the median over requests; `system_tps`: mean of rounds."""
    measured: Number
    value: Number
    """The prediction."""
    low: Number
    high: Number
    error: Number
    """value / measured - 1; null if gates make the measured times not valid."""
    note: str
    """Why there is no prediction or error."""
    arrivals: str = "closed"
    """Kind of arrivals: `closed`, `poisson`, `trace`, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedRow:
    """One predicted metric of a topology's cold pass; a refused topology has one row, no metric."""

    topology: str
    rate_per_s: Number
    """The offered rate; in a closed loop the simulated throughput, null if that is unknown."""
    utilisation: Number
    """`rate_per_s` / the highest rate of the bottleneck."""
    highest_per_s: Number
    """The highest rate of the bottleneck, by the closed form; null if refused before that."""
    bottleneck: str
    metric: str
    """As in `held_out`, and `goodput`: the fraction of requests within the limits."""
    value: Number
    low: Number
    """`low` and `high`: a 91 % prediction interval."""
    high: Number
    checked: bool
    """Whether held-out passes with the same kind of load support it: error at most 15 %."""
    refused: str
    """Why nothing is predicted."""
    error: Number = nan
    """The largest error of the held-out passes with the same kind of load; null without one."""


def check_words(error: float) -> str:
    """`checked: +3.1 %`, `refuted here: +185.2 %`, or `not checked here` (NaN)."""
    if isnan(error):
        return UNCHECKED
    return f"{_verdict(error)}: {100 * error:+.1f} %"


def _verdict(error: float) -> str:
    return "checked" if within_goal(error) else "refuted here"


def within_goal(error: float) -> bool:
    """Whether an error, as it is shown, reaches the goal; False for NaN."""
    return round(abs(error), 3) <= GOAL


def prediction_lines(
    profile: str, held_out: Sequence[HeldOutRow], predicted: Sequence[PredictedRow]
) -> Iterator[str]:
    """Markdown: a heading, and a sentence about the tables below; nothing without predictions."""
    if not profile:
        return
    yield "## Predictions"
    if not predicted:
        yield profile
    elif held_out:
        yield (
            "Some topologies were held out: measured, but not profiled. The first table compares"
            " them with their predictions, the second has all predictions, and the last shows how"
            " well the profile is fitted."
        )
    else:
        yield (
            "No topology was held out (measured but not profiled), so all predictions in the first"
            f" table are {UNCHECKED}. The last table shows how well the profile is fitted."
        )


def held_out_table(rows: Sequence[HeldOutRow]) -> pd.DataFrame:
    """A row per held-out arm; a cell is `+6.1 % (measured 331, predicted 351 [334, 419])`."""
    import pandas as pd

    table: dict[str, dict[str, str]] = {}
    for row in rows:
        name, factor = _head(row.metric)
        cells = table.setdefault(
            row.arm,
            {"arm": row.arm, "load": _load(row), "requests": str(row.n_requests)},
        )
        both = f"measured {three_digits(factor * row.measured)}"
        if found := _interval(row, factor):
            both += f", predicted {found}"
        error = f"{100 * row.error:+.1f} % ({both})"
        cells[name] = both if isnan(row.error) else error
        cells["note"] = row.note
    frame = pd.DataFrame([*table.values()])
    if frame.empty or not frame["note"].any():
        frame = frame.drop(columns="note", errors="ignore")
    else:
        frame = frame[[*frame.columns.drop("note"), "note"]]
    frame.attrs["caption"] = f"Prediction errors, predicted / measured - 1. {_BRACKETS}"
    return frame


def _head(metric: str) -> tuple[str, float]:
    """The header of a metric, with its unit, and the factor of its values."""
    name, factor, unit = METRICS[metric]
    return f"{name}, {unit}", factor


def prediction_table(rows: Sequence[PredictedRow]) -> pd.DataFrame:
    """A row per topology: its predictions with their intervals, and the errors of their checks."""
    import pandas as pd

    table: dict[str, dict[str, str]] = {}
    errors: dict[str, list[float]] = {}
    for row in rows:
        if not isnan(row.error):
            errors.setdefault(row.topology, []).append(row.error)
    for row in rows:
        busy, most = row.utilisation, row.highest_per_s
        cells = table.setdefault(row.topology, {"topology": row.topology})
        if row.refused:
            cells["check"] = row.refused
            continue
        cells["highest rate, req/s"] = f"{three_digits(most)} ({row.bottleneck})"
        cells["utilisation"] = "-" if isnan(busy) else f"{100 * busy:.0f} %"
        if isnan(row.value):
            continue
        name, factor = _head(row.metric)
        cells[name] = _interval(row, factor)
        own = errors.get(row.topology)
        if own:  # each number has its own error
            cells[name] += f", {check_words(row.error)}"
        cells["check"] = _verdict(max(own, key=abs)) if own else UNCHECKED
    if not table:
        return pd.DataFrame()
    frame = pd.DataFrame([*table.values()]).fillna("-")
    frame = frame[[*frame.columns.drop("check"), "check"]]
    frame.attrs["caption"] = (
        f"Predicted cold passes. {_BRACKETS} Checked or refuted: largest error of held-out passes"
        f" with the same load (refuted: above {100 * GOAL:.0f} %)."
    )
    return frame


def fit_table(rows: Sequence[FitRow]) -> pd.DataFrame:
    """A row per fitted part: formula, residual, number of measured times, and its valid range."""
    import pandas as pd

    frame = pd.DataFrame(
        [
            {
                "part": row.part,
                "fit": row.formula,
                "median residual": f"{100 * row.residual:.1f} % (limit {100 * row.limit:.0f} %)",
                "measured times": f"{len(row.measured_s):,}",
                "valid for": range_text(row.ranges),
            }
            for row in rows
        ]
    )
    frame.attrs["caption"] = "Times of each part of a request, as fitted to the profile."
    return frame


def own_error_table(rows: Sequence[OwnErrorRow]) -> pd.DataFrame:
    """A row per cold pass of the profile's own 1a: the prediction errors of its medians."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "1a": row.pass_name,
                "TTFT, prediction error": f"{100 * row.ttft_error:+.1f} %",
                "TPOT, prediction error": f"{100 * row.tpot_error:+.1f} %",
            }
            for row in rows
        ]
    )


_INPUTS = {"batch": "sequences", "kv_tokens": "KV tokens", "others": "other transfers"}
_MB = 1e6


def range_text(ranges: Mapping[str, tuple[float, float]]) -> str:
    """`1,000 to 4,000 tokens`, `1 to 16 sequences, 1,016 to 36,751 KV tokens`, `1.5 to 6.1 MB`"""
    return ", ".join(_range(name, low, high) for name, (low, high) in ranges.items())


def _range(name: str, low: float, high: float) -> str:
    if name == "bytes":
        first, last, unit = three_digits(low / _MB), three_digits(high / _MB), "MB"
    else:
        first, last, unit = f"{low:,.0f}", f"{high:,.0f}", _INPUTS.get(name, name)
    return f"{first}{f' to {last}' * (first != last)} {unit}"


def _load(row: HeldOutRow) -> str:
    if row.rate_per_s:
        return f"{row.rate_per_s:g} req/s"
    return "closed loop" if row.arrivals == "closed" else row.arrivals


def _interval(row: HeldOutRow | PredictedRow, factor: float) -> str:
    """`351 [334, 419]`; empty without a prediction."""
    value, low, high = (three_digits(factor * each) for each in (row.value, row.low, row.high))
    return "" if isnan(row.value) else f"{value} [{low}, {high}]"
