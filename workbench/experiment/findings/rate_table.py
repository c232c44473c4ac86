"""What the rates of a sweep or search gave: key numbers, and a table as a reader wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from workbench.experiment.findings.clauses import marked, rounds
from workbench.experiment.plan.rates import Rates, kept_up
from workbench.experiment.plan.search import Answer
from workbench.metrics.statistics import three_digits

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["rate_cards", "rate_table"]

Row = Mapping[Any, Any]


def rate_cards(
    rates: Rates | None,
    rows: Sequence[Row],
    found: Mapping[str, Answer],
    failed_gates: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Up to three key numbers of what was asked for, the first arm: its rate, and TTFT at two."""
    mine = [row for row in rows if row["arm"] == rows[0]["arm"] and not isnan(row["ttft_s"])]
    if rates is None or not mine:
        return []
    arm = mine[0]["arm"]
    cards = [_rate_card(rates, mine, found.get(arm))]
    for row in mine if len(mine) == 1 else (mine[0], mine[-1]):
        cards.append(
            {
                "label": f"median TTFT at {row['rate_per_s']:g} requests/s, {arm}",
                "value": 1000 * row["ttft_s"],
                "unit": "ms",
                "low": 1000 * row["ttft_low_s"],
                "high": 1000 * row["ttft_high_s"],
                "note": f"{row['n_requests']} requests, {rounds(row['n_rounds'])}",
                "rests_on": "times",
            }
        )
    return marked(cards, failed_gates)


def _rate_card(rates: Rates, rows: Sequence[Row], answer: Answer | None) -> dict[str, Any]:
    """The answer of a search where it has one, else how fast answers ended at most."""
    arm = rows[0]["arm"]
    if answer is not None and answer.resolved:
        label, value = f"highest rate within the limits, {arm}", answer.met_per_s
        note = f"{rates.limits}; {answer.missed_per_s:g}/s missed them"
    elif all(map(kept_up, rows)):
        top = max(rows, key=lambda row: float(row["offered_per_s"]))
        label, value = f"highest rate offered, {arm}", top["offered_per_s"]
        note = f"answers kept up with it, {rounds(top['n_rounds'])}"
    else:
        top = max(rows, key=lambda row: float(row["achieved_per_s"]))
        label, value = f"answers ended at most, {arm}", top["achieved_per_s"]
        note = f"with {top['offered_per_s']:.3g}/s offered, {rounds(top['n_rounds'])}"
    return {
        "label": label, "value": value, "unit": "/s", "low": nan, "high": nan, "note": note,
        "rests_on": "times",
    }  # fmt: skip


def rate_table(rows: pd.DataFrame, *, limited: bool) -> pd.DataFrame:
    """The frame of `result.rates` with units and intervals in the cells, one row a rate.

    `limited` says that there were TTFT or TPOT limits to keep.
    """
    import pandas as pd

    shown = []
    for row in rows.to_dict("records"):
        cells = {
            "arm": row["arm"],
            "asked for, /s": f"{row['rate_per_s']:g}",
            "offered, /s": _digits(row["offered_per_s"]),
            "ended, /s": _digits(row["achieved_per_s"]),
            "requests": f"{row['n_requests']} in {rounds(row['n_rounds'])}",
        }
        if limited:
            cells["within the limits"] = (
                f"{row['share']:.0%} [{row['share_low']:.0%}, {row['share_high']:.0%}]"
            )
            cells["goodput, /s"] = _digits(row["goodput_per_s"])
        low, high = (1000 * row[f"ttft_{end}_s"] for end in ("low", "high"))
        middle = _digits(1000 * row["ttft_s"])
        few = isnan(low) or isnan(high)
        cells["TTFT p50, ms"] = middle if few else f"{middle} [{_digits(low)}, {_digits(high)}]"
        cells["TTFT p90, ms"] = _digits(1000 * row["ttft_p90_s"])
        cells["TPOT p50, ms"] = _digits(1000 * row["tpot_s"])
        shown.append(cells)
    return pd.DataFrame(shown)


def _digits(value: float) -> str:
    return "not known" if isnan(value) else three_digits(value)
