"""Single requests explained: engine hit, LMCache hit, need to load, and what was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.metrics.lmcache_log.log_summary import LogSummary

if TYPE_CHECKING:
    import pandas as pd

LEVELS = (
    "**Engine hit**: prompt tokens in the engine's own prefix cache, which is always asked first.",
    "**LMCache hit**: prompt tokens that LMCache holds, whether the engine needs them or not.",
    "**Need to load** = LMCache hit - engine hit: the tokens that only LMCache holds. It is"
    " negative if the engine holds more than LMCache. Old versions log that number, new ones 0.",
    "**Loaded**: need-to-load tokens that arrived in the engine. Only these count as served by"
    " LMCache.",
)
"""The four numbers of a request, in the order in which they arise."""


def explained(served: pd.DataFrame) -> list[str]:
    """The four numbers, then one request of a live run for each sign of its need to load."""
    rows = served[served["need"].notna() & (served["held"] > 0)]
    first = rows[~np.sign(rows["need"]).duplicated()].sort_values("need")
    return [
        *(LEVELS if len(first) else ()),
        *(
            f"Example ({row['arm']}, {row['pass']}): "
            + _numbers(
                prompt=row["prompt_tokens"],
                held=row["held"],
                engine=row["engine"],
                need=row["need"],
                loaded=row["l1"] + row["l2"],
            )
            for _, row in first.iterrows()
        ),
    ]


def examples(summary: LogSummary) -> list[str]:
    """The same for a log, where a load that did not arrive is one more kind."""
    rows = summary.requests.assign(sign=np.sign(summary.requests["need_to_load"].astype(float)))
    rows["lost"] = rows["loaded_tokens"] < rows["asked_to_load"]
    first = rows[~rows.duplicated(["sign", "lost"])].sort_values(["need_to_load", "lost"])
    return [
        *(LEVELS if len(first) else ()),
        *(f"Example: {_logged(row)}" for _, row in first.iterrows()),
    ]


def _logged(row: pd.Series) -> str:
    if np.isnan(row["engine_hit_tokens"]):
        what = "tokens" if row["lmcache_hit_tokens"] == row["lmcache_hit_tokens"] else "keys"
        l1, l2 = (float(row[f"{tier}_{what}"]) for tier in ("l1", "l2"))
        return (
            f"LMCache hit {l1 + l2:,.0f} {what} ({l1:,.0f} in L1, {l2:,.0f} in L2). LMCache's"
            " multi-process mode does not log the engine hit, so need to load is unknown."
        )
    return _numbers(
        prompt=row["prompt_tokens"],
        held=row["lmcache_hit_tokens"],
        engine=row["engine_hit_tokens"],
        need=row["need_to_load"],
        loaded=row["loaded_tokens"],
        arrival=str(row["arrival"]),
        skipped=row["skipped"] is True,
    )


def _numbers(
    *,
    prompt: float,
    held: float,
    engine: float,
    need: float,
    loaded: float,
    arrival: str = "",
    skipped: bool = False,
) -> str:
    """`held` is the LMCache hit, `need` what LMCache logged, `loaded` what arrived."""
    last = " - 1 (the last token is always computed)" if held == prompt else ""
    difference = held - engine - bool(last)
    logged = "" if need == difference else f" (logged as {need:,.0f})"
    if not held:
        outcome = "Nothing was loaded"
    elif difference <= 0:
        outcome = "Nothing was loaded, because the engine already had these tokens"
    elif skipped:
        outcome = "Not loaded, because this is below LMCache's min_retrieve setting"
    elif arrival == "silent":
        outcome = "No log line confirms the load, so it does not count as served by LMCache"
    elif arrival == "looked up":
        outcome = "The log has no Retrieved lines, so all of these tokens are assumed to be loaded"
    elif loaded < difference:
        outcome = f"{f'Only {loaded:,.0f}' if loaded else 'None'} of these tokens arrived"
    else:
        outcome = "All of these tokens were loaded"
    computed = prompt - engine - loaded
    were = "token was" if computed == 1 else "tokens were"
    return (
        f"{prompt:,.0f}-token prompt, engine hit {engine:,.0f}, LMCache hit {held:,.0f}, need to"
        f" load {held:,.0f} - {engine:,.0f}{last} = {difference:,.0f}{logged}. {outcome};"
        f" {computed:,.0f} {were} computed."
    )
