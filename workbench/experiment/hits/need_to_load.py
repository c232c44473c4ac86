"""Why a request's "need to load" was what it was, and who is credited, in one sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.metrics.lmcache_log.log_summary import LogSummary

if TYPE_CHECKING:
    import pandas as pd


def explained(served: pd.DataFrame) -> list[str]:
    """One request of a live run for each sign of its need to load."""
    rows = served[served["need"].notna() & (served["held"] > 0)]
    first = rows[~np.sign(rows["need"]).duplicated()].sort_values("need")
    return [
        f"{row['arm']}, {row['pass']}: "
        + _credit(
            prompt=row["prompt_tokens"],
            held=row["held"],
            engine=row["engine"],
            need=row["need"],
            loaded=row["l1"] + row["l2"],
        )
        for _, row in first.iterrows()
    ]


def examples(summary: LogSummary) -> list[str]:
    """The same of a log's requests; of the mp generation, which does not say it, one as it is.

    A load that did not arrive is one more kind.
    """
    rows = summary.requests.assign(sign=np.sign(summary.requests["need_to_load"].astype(float)))
    rows["lost"] = rows["loaded_tokens"] < rows["asked_to_load"]
    first = rows[~rows.duplicated(["sign", "lost"])].sort_values(["need_to_load", "lost"])
    return [
        _found(row)
        if np.isnan(row["engine_hit_tokens"])
        else _credit(
            prompt=row["prompt_tokens"],
            held=row["lmcache_hit_tokens"],
            engine=row["engine_hit_tokens"],
            need=row["need_to_load"],
            loaded=row["loaded_tokens"],
            silent=row["arrival"] == "silent",
            skipped=row["skipped"] is True,
        )
        for _, row in first.iterrows()
    ]


def _found(row: pd.Series) -> str:
    what = "tokens" if row["lmcache_hit_tokens"] == row["lmcache_hit_tokens"] else "keys"
    l1, l2 = (float(row[f"{tier}_{what}"]) for tier in ("l1", "l2"))
    return (
        f"LMCache found {l1 + l2:,.0f} {what}, {l1:,.0f} of them in L1 and {l2:,.0f} in L2."
        " What the engine held itself this generation does not log, so its counters must say"
        " how much was needed."
    )


def _credit(
    *,
    prompt: float,
    held: float,
    engine: float,
    need: float,
    loaded: float,
    silent: bool = False,
    skipped: bool = False,
) -> str:
    """`held` is what LMCache had of the prompt, `need` what it printed, `loaded` what arrived."""
    if not held:
        return (
            f"LMCache held none of the {prompt:,.0f} tokens, the engine itself {engine:,.0f}:"
            f" nothing was loaded and {prompt - engine:,.0f} were computed."
        )
    last = " - 1 (the last token is always computed)" if held == prompt else ""
    difference = held - engine - bool(last)
    text = (
        f"LMCache held {held:,.0f} tokens, the engine itself {engine:,.0f} of {prompt:,.0f}: need"
        f" to load = {held:,.0f} - {engine:,.0f}{last} = {difference:,.0f}"
    )
    if difference <= 0:
        printed = "" if need == difference else f" (printed as {need:,.0f})"
        return f"{text}{printed}, so nothing was loaded and LMCache earns no credit."
    if skipped:
        return f"{text}, too few to be worth a load by its settings: LMCache earns no credit."
    if silent:
        return f"{text}. No line says that they arrived, so LMCache earns no credit."
    if not loaded:
        return (
            f"{text}, but none of them arrived: LMCache earns no credit, and {prompt - engine:,.0f}"
            " were computed."
        )
    lost = f" {loaded:,.0f} arrived," if loaded < difference else ""
    return (
        f"{text},{lost} which LMCache is credited with; {prompt - engine - loaded:,.0f} were"
        " computed."
    )
