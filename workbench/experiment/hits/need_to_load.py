"""Single requests explained: engine hit, LMCache hit, need to load, and what was loaded."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LEVELS = (
    "**Engine hit**: prompt tokens found in the engine's own prefix cache. The engine looks there"
    " first.",
    "**LMCache hit**: prompt tokens that LMCache holds, whether the engine needs them or not.",
    "**Need to load** = LMCache hit - engine hit: the tokens that only LMCache holds. It is"
    " negative if the engine holds more than LMCache. Old LMCache versions log the negative number;"
    " new ones log 0.",
    "**Loaded**: the part of need to load that the engine received. Only these count as served by"
    " LMCache.",
)
"""The four numbers of a request, in the order in which they arise."""


_GENERATIONS = {"in-process": "LMCache inside vLLM", "mp": "LMCache server"}
"""What LMCache's log says of how it runs, in words."""


def place(arm: str, pass_name: str) -> str:
    """Arm and pass for a reader; of a log, how LMCache ran."""
    return _GENERATIONS.get(pass_name, pass_name) if arm == "log" else f"{arm}, {pass_name}"


def explained(rows: pd.DataFrame) -> list[str]:
    """The four numbers, then one request for each sign of its need to load.

    `rows` are those of `served_tokens.served` that a store's log explains, or `log_tokens`. A load
    that failed is one more kind.
    """
    loaded = rows["l1"] + rows["l2"]
    rows = rows.assign(loaded=loaded, sign=np.sign(rows["need"].astype(float)))
    rows["lost"] = loaded < rows["asked_to_load"] if "asked_to_load" in rows else False
    first = rows[~rows.duplicated(["sign", "lost"])].sort_values(["need", "lost"])
    said = [
        f"Example ({place(row['arm'], row['pass'])}): {_numbers(row)}"
        for _, row in first.iterrows()
    ]
    return [*LEVELS, *said] if said else []


def _numbers(row: pd.Series) -> str:
    prompt, held, engine, need, loaded = (
        float(row[name]) for name in ("prompt_tokens", "held", "engine", "need", "loaded")
    )
    if isnan(engine):
        what = "keys" if isnan(held) else "tokens"
        l1, l2 = (float(row[f"{tier}_{what}"]) for tier in ("l1", "l2"))
        return (
            f"LMCache hit {l1 + l2:,.0f} {what} ({l1:,.0f} in L1, {l2:,.0f} in L2). LMCache's"
            " multi-process mode does not log the engine hit, so need to load is unknown."
        )
    last = " - 1 (the last token is always computed)" if held == prompt else ""
    difference = held - engine - bool(last)
    logged = "" if need == difference else f" (logged as {need:,.0f})"
    if not held:
        outcome = "Nothing was loaded"
    elif difference <= 0:
        outcome = "Nothing was loaded, because the engine already had these tokens"
    elif row.get("skipped") is True:
        outcome = "Nothing was loaded, because this is below LMCache's min_retrieve setting"
    elif row.get("arrival") == "silent":
        outcome = "No log line confirms the load, so it does not count as served by LMCache"
    elif row.get("arrival") == "looked up":
        outcome = (
            "The log has no Retrieved lines, so all of these tokens are assumed to have been loaded"
        )
    elif loaded < difference:
        outcome = f"{f'Only {loaded:,.0f}' if loaded else 'None'} of these tokens were loaded"
    else:
        outcome = f"All {difference:,.0f} were loaded"
    computed = prompt - engine - loaded
    were = "token was" if computed == 1 else "tokens were"
    return (
        f"{prompt:,.0f}-token prompt, engine hit {engine:,.0f}, LMCache hit {held:,.0f}, need to"
        f" load {held:,.0f} - {engine:,.0f}{last} = {difference:,.0f}{logged}. {outcome};"
        f" {computed:,.0f} {were} computed."
    )
