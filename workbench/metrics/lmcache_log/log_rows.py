"""From the events of an LMCache log to one row per request, and what a row means in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.metrics.lmcache_log.block import Columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLUMNS",
    "EVENT_COLUMNS",
    "event_frame",
    "explain",
    "lookup_rows",
    "transfer_rows",
]

_LOOKUPS = (
    "at", "writer", "offset", "bare", "request_id", "prompt_tokens", "engine_hit_tokens",
    "lmcache_hit_tokens", "need_to_load", "min_retrieve",
)  # fmt: skip
EVENT_COLUMNS: dict[str, tuple[str, ...]] = {
    "lookups": _LOOKUPS,
    "resumed": _LOOKUPS,
    "prefetches": (
        "at", "writer", "offset", "request_id", "found_keys", "asked_keys", "l1_keys", "l2_keys",
        "ms",
    ),
    "transfers": (
        "at", "writer", "offset", "request_id", "stored", "mp", "tokens", "required", "gb",
        "seconds",
    ),
    "storings": ("at", "writer", "offset", "request_id", "tokens"),
    "failures": (
        "at", "writer", "offset", "request_id", "retrieved", "expected", "missing",
    ),
    "starts": ("at", "writer", "offset"),
}  # fmt: skip
"""What the events of a `lmcache_block.Block` hold, by kind."""

COLUMNS = (
    "generation", "request_id", "process", "engine", "at", "offset", "prompt_tokens",
    "engine_hit_tokens", "lmcache_hit_tokens", "need_to_load", "asked_to_load", "loaded_tokens",
    "arrival", "skipped", "asked_tokens", "l1_keys", "l2_keys", "l1_tokens", "l2_tokens",
    "stored_tokens", "retrieved_tokens", "seconds", "gb_per_s", "lookup_s", "lookups",
)  # fmt: skip


def lookup_rows(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Lookups with the engine's hit and the credit filled in, and how many made no sense.

    A last number may be cut where nothing follows it, and other lines of the log name the place in
    the source there. A line whose numbers contradict one another was written into.
    """
    rows = rows.astype(dict.fromkeys(_LOOKUPS[5:], float))
    said, prompt = (rows[n].where(rows[n] >= 0) for n in ("engine_hit_tokens", "prompt_tokens"))
    hit, need = rows["lmcache_hit_tokens"], rows["need_to_load"]
    # The last token of a prompt that LMCache holds entirely is computed all the same.
    wanted = hit - (hit == prompt)
    engine = said.fillna(wanted - need)
    bare = rows["bare"].astype(bool)
    sensible = (engine >= 0) & ~(engine > prompt) & ~(hit > prompt)
    sensible &= said.isna() | (need == wanted - said) | (need == (wanted - said).clip(lower=0))
    if not bare.all():
        sensible &= ~bare
    skipped = rows["min_retrieve"] >= 0
    loaded = need.clip(lower=0).where(~skipped, 0.0)
    kept = rows.assign(
        generation="in-process",
        prompt_tokens=prompt,
        engine_hit_tokens=engine,
        loaded_tokens=loaded,
        skipped=skipped,
    )
    return kept[sensible].drop(columns=["bare", "min_retrieve"]), int((~sensible).sum())


def transfer_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Stored and Retrieved lines: generation, kind, request_id, engine, rank, tokens and so on."""
    rows = rows.astype(dict.fromkeys(("tokens", "required", "gb", "seconds"), float))
    return rows.assign(
        generation=rows["mp"].map({True: "mp", False: "in-process"}).astype(str),
        kind=rows["stored"].map({True: "stored", False: "retrieved"}).astype(str),
        gb=rows["gb"].where(rows["gb"] >= 0),
        seconds=rows["seconds"].where(rows["seconds"] >= 0),
    ).drop(columns=["mp", "stored"])


def event_frame(blocks: Sequence[Columns], columns: Sequence[str]) -> pd.DataFrame:
    """Events of one kind, whose columns came by block, as a frame."""
    import pandas as pd

    if not blocks:
        empty = pd.DataFrame(columns=list(columns), dtype=object)
        return empty.astype({"at": "datetime64[us]", "offset": "int64"})
    return pd.DataFrame({name: _joined([block[name] for block in blocks]) for name in columns})


def _joined(parts: Sequence[NDArray[Any] | bytes]) -> Any:
    texts = [part for part in parts if isinstance(part, bytes)]
    if not texts:
        return np.concatenate(parts)
    text = b"\n".join(texts)
    return text.decode("utf-8", "backslashreplace").split("\n")


def explain(row: Mapping[str, Any]) -> str:
    """Why a request's "need to load" is what it is, and who is credited, in one sentence.

    `row` is a row of `LogSummary.requests`.
    """
    hit, engine, need = (_number(row, name) for name in
                         ("lmcache_hit_tokens", "engine_hit_tokens", "need_to_load"))  # fmt: skip
    if isnan(engine):
        what = "tokens" if hit == hit else "keys"
        l1, l2 = (_number(row, f"{tier}_{what}") for tier in ("l1", "l2"))
        return (
            f"LMCache found {l1 + l2:,.0f} {what}, {l1:,.0f} of them in L1 and {l2:,.0f} in L2."
            " What the engine held itself this generation does not log, so its counters must say"
            " how much was needed."
        )
    prompt = _number(row, "prompt_tokens")
    if not hit:
        return (
            f"LMCache held none of the {prompt:,.0f} tokens, the engine itself {engine:,.0f}:"
            f" nothing was loaded and {prompt - engine:,.0f} were computed."
        )
    last = " - 1 (the last token is always computed)" if hit == prompt else ""
    difference = hit - engine - bool(last)
    text = (
        f"LMCache held {hit:,.0f} tokens, the engine itself {engine:,.0f} of {prompt:,.0f}: need to"
        f" load = {hit:,.0f} - {engine:,.0f}{last} = {difference:,.0f}"
    )
    if difference <= 0:
        printed = "" if need == difference else f" (printed as {need:,.0f})"
        return f"{text}{printed}, so nothing was loaded and LMCache earns no credit."
    if row.get("skipped") is True:
        return f"{text}, too few to be worth a load by its settings: LMCache earns no credit."
    loaded = _number(row, "loaded_tokens")
    if row.get("arrival") == "silent":
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


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return nan if value is None else float(value)
