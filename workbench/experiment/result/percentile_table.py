"""Percentiles as a reader wants them: a row per kind and metric, a column per percentile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from workbench.metrics.gates.gate_table import spoil
from workbench.metrics.statistics import three_digits

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["no_p99", "percentile_table", "without_struck", "without_tails"]

_NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "icl_s": "ICL"}


def percentile_table(found: pd.DataFrame) -> pd.DataFrame:
    """The table of `metrics.percentiles` in milliseconds: `123 [110, 140]`, and n.

    A percentile of too few values is not shown, but how many it needs.
    """
    import pandas as pd

    index = [*found.columns[: found.columns.get_loc("metric")], "metric", "n"]
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in found.assign(metric=found["metric"].map(_NAMES) + ", ms").to_dict("records"):
        cells = rows.setdefault(tuple(row[name] for name in index), {})
        ends = (row["value_s"], row["low_s"], row["high_s"])
        cells[f"p{100 * row['quantile']:g}"] = _cell(*ends, row["note"])
    return pd.DataFrame([dict(zip(index, key, strict=True)) | rows[key] for key in rows])


def no_p99(gates: Iterable[Mapping[str, Any]]) -> str:
    """Why no p99 may be printed: the client itself was late. Empty where it may."""
    for gate in gates:
        if gate["name"] == "client kept up" and gate["outcome"] != "PASS":
            return f"gate 'client kept up' is {gate['outcome']}: {gate['sentence']}"
    return ""


def without_tails(found: pd.DataFrame) -> pd.DataFrame:
    """The percentiles without those that gates take away; their notes say so.

    Gates that failed (`attrs["failed_gates"]`) take p99 and single gaps of the passes that they
    touch, and a client of which it is not known whether it kept up (`attrs["no_p99"]`) p99.
    """
    far = found["quantile"] >= 0.99
    if why := found.attrs["no_p99"]:
        _withhold(found, far, why.split("'")[1])
    for name in found["pass"].unique():
        does = spoil(found.attrs["failed_gates"], "tails", passes={str(name)})
        if does.struck:
            tails = (far | found["metric"].eq("icl_s")) & found["pass"].eq(name)
            _withhold(found, tails, does.gates[0])
    return found


def without_struck(found: pd.DataFrame) -> pd.DataFrame:
    """The percentiles without those of passes whose times a failed gate strikes; notes say so.

    For a table of plain text, in which nothing can be struck out.
    """
    found = found.copy()
    for name in found["pass"].unique():
        does = spoil(found.attrs["failed_gates"], "times", passes={str(name)})
        if does.struck:
            _withhold(found, found["pass"].eq(name), does.gates[0])
    return found


def _withhold(found: pd.DataFrame, rows: pd.Series[bool], gate: str) -> None:
    found.loc[rows, ["value_s", "low_s", "high_s"]] = nan
    found.loc[rows, "note"] = f"withheld ({gate})"


def _cell(value_s: float, low_s: float, high_s: float, note: str) -> str:
    if isnan(low_s):
        return note.replace("needs n >= ", "needs n of ")
    value, low, high = (three_digits(1000 * seconds) for seconds in (value_s, low_s, high_s))
    return f"{value} [{low}, {high}]"
