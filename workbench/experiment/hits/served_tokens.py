"""Which cache served each prompt token: request rows joined with the store's log and counters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.metrics.latency import succeeded
from workbench.metrics.lmcache_log.log_summary import LogSummary, read_log
from workbench.serve.connectors.lmcache import STORE

if TYPE_CHECKING:
    import pandas as pd

_SOURCES = {
    "computed": "source=local_compute",
    "engine": "source=local_cache_hit",
    "loaded": "source=external_kv_transfer",
}
_STORE = {
    "requested": "requested_tokens",
    "claimed": "hit_tokens",
    "claimed_l1": "hit_l1_tokens",
    "claimed_l2": "hit_l2_tokens",
    "written_chunks": "written_chunks",
    "evicted_chunks": "evicted_chunks",
    "dropped_chunks": "dropped_chunks",
    "tier_chunks": "tier_chunks",
}
"""Columns, and the field of `StoreCounters` that each holds."""
_VLLM_SUFFIX = re.compile(r"^cmpl-(.+)-\d+-[0-9a-f]{8}$")
"""vLLM turns a client's request id into `cmpl-<id>-<prompt number>-<eight random digits>`."""


def store_logs(
    folder: Path, requests: pd.DataFrame, *, workers: int = 1
) -> dict[tuple[str, int], LogSummary]:
    """The store's log of every arm and round that has one; `workers` per instance wrote it."""
    found = {}
    for arm, number in requests[["arm", "round"]].drop_duplicates().itertuples(index=False):
        path = folder / "logs" / f"round-{number}" / arm.replace(" ", "-") / "store.log"
        if path.exists():
            summary = read_log(path)
            if isnan(summary.keys.tokens_per_key):  # the log alone does not show it
                summary = read_log(path, ranks=workers)
            found[str(arm), int(number)] = summary
    return found


def served(requests: pd.DataFrame, logs: Mapping[tuple[str, int], LogSummary]) -> pd.DataFrame:
    """One row per completed request, in tokens: engine, l1, l2, computed, held, idle, need, ideal.

    For requests sent one at a time, so that a retrieval belongs to the lookup before it. `held` is
    the LMCache hit, `idle` the part that was not needed, because the engine had it too. `ideal` is
    what an infinite cache would have served. `need` is LMCache's "need to load" as older versions
    log it: negative if the engine held more; NaN without a store's log. A request without a line in
    that log had no LMCache hit.
    """
    import pandas as pd

    rows = requests[succeeded(requests) & requests["cached_tokens"].ge(0)]
    columns = ["arm", "round", "pass", "index", "request_id", "prompt_tokens", "cached_tokens"]
    rows = rows.sort_values("sent_s")[[*columns, "ideal_reuse_tokens", "ttft_s"]]
    found = []
    for key, summary in logs.items():
        said = _by_request(summary)
        found.append(said.assign(arm=key[0], round=key[1]))
    lines = pd.concat(found) if found else pd.DataFrame(columns=["arm", "round", "request_id"])
    joined = rows.merge(lines, on=["arm", "round", "request_id"], how="left")
    joined = joined.reindex(columns=[*rows.columns, "held", "l2_held", "retrieved"])
    has_log = pd.Series(
        [key in logs for key in zip(joined["arm"], joined["round"], strict=True)],
        index=joined.index, dtype=bool,
    )  # fmt: skip
    for name in ("held", "l2_held", "retrieved"):
        joined[name] = joined[name].astype(float).fillna(0.0).where(has_log, 0.0)
    cached = joined["cached_tokens"].astype(float)
    loaded = np.minimum(joined["retrieved"], cached)
    engine = cached - loaded
    whole = joined["held"] == joined["prompt_tokens"]
    # The disk tier holds the part of a prefix after the part in memory.
    l2 = np.minimum(joined["l2_held"], loaded)
    return joined.assign(
        engine=engine,
        l1=loaded - l2,
        l2=l2,
        computed=joined["prompt_tokens"] - cached,
        idle=(joined["held"] - whole - loaded).clip(lower=0),
        need=(joined["held"] - whole - engine).where(has_log),
        ideal=joined["ideal_reuse_tokens"],
    ).drop(columns=["l2_held", "retrieved", "ideal_reuse_tokens"])


def credited(served: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """The rows, with those without a store's log filled from the servers' counters of the pass.

    Cached tokens are engine hits if nothing was loaded in the pass, and LMCache's if the engine
    itself had no hit. If both had hits, or no counter exists, the split is unknown.
    """
    keys = ["arm", "round", "pass"]
    joined = served[keys].merge(counts, on=keys, how="left").set_axis(served.index)
    silent = served["need"].isna()
    loaded, engine = joined["loaded"], joined["engine"]
    by_l1 = silent & (loaded > 0) & (engine == 0) & (joined["claimed_l2"] == 0)
    by_l2 = silent & (loaded > 0) & (engine == 0) & (joined["claimed_l1"] == 0)
    unknown = silent & ~(loaded == 0) & ~by_l1 & ~by_l2
    cached = served["cached_tokens"].astype(float)
    rows = served.copy()
    rows.loc[by_l1 | by_l2, "engine"] = 0.0
    rows.loc[by_l1, ["l1", "held"]] = np.column_stack([cached[by_l1]] * 2)
    rows.loc[by_l2, ["l2", "held"]] = np.column_stack([cached[by_l2]] * 2)
    rows.loc[unknown, ["engine", "l1", "l2", "held", "idle"]] = nan
    return rows


def _by_request(summary: LogSummary) -> pd.DataFrame:
    """The client's request_id, held, l2_held and retrieved tokens of each lookup."""
    import pandas as pd

    lookups = summary.requests.sort_values("offset")
    retrieved = summary.transfers[summary.transfers["kind"] == "retrieved"]
    which = np.searchsorted(lookups["offset"].to_numpy(), retrieved["offset"].to_numpy()) - 1
    tokens = np.zeros(len(lookups))
    owned = which >= 0
    np.add.at(tokens, which[owned], retrieved["tokens"].to_numpy()[owned])
    tokens /= max(1, summary.keys.retrieving)
    names = [_VLLM_SUFFIX.sub(r"\1", name) for name in lookups["request_id"]]
    return pd.DataFrame(
        {
            "request_id": pd.Series(names, dtype=str),
            "held": lookups["lmcache_hit_tokens"].to_numpy(float),
            "l2_held": lookups["l2_tokens"].to_numpy(float),
            "retrieved": tokens,
        }
    )


def pass_counts(counters: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, round and pass: the engine's and the store's counters.

    computed, engine and loaded are prompt tokens of the engine; requested and claimed (claimed_l1,
    claimed_l2) are tokens of LMCache's lookups and hits, the rest its chunks. NaN for a counter
    that went backwards (a restarted server) or that no server has; the store exports a counter only
    from its first addition on, so a missing one is 0.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for key, group in counters.groupby(["arm", "round", "pass"], sort=False):
        row: dict[str, Any] = dict(zip(("arm", "round", "pass"), key, strict=True))
        engines = group[group["series"] == "vllm:prompt_tokens_by_source_total"]
        for name, label in _SOURCES.items():
            mine = engines[engines["labels"].str.split(",").map(lambda have, x=label: x in have)]
            row[name] = _change(mine)
        store = group[group["instance"] == "store"]
        for name, field in _STORE.items():
            one = store[store["series"] == STORE.counters[field]]
            row[name] = nan if store.empty else (0.0 if one.empty else _change(one))
        rows.append(row)
    return pd.DataFrame(rows, columns=["arm", "round", "pass", *_SOURCES, *_STORE])


def _change(rows: pd.DataFrame) -> float:
    """Sum after minus sum before; NaN without rows, or if a series went backwards."""
    if rows.empty:
        return nan
    values = rows.pivot_table(
        index=["instance", "labels"], columns="when", values="value", aggfunc="sum"
    ).reindex(columns=["before", "after"])
    change = values["after"] - values["before"].fillna(0.0)
    return float(change.sum(skipna=False)) if (change >= 0).all() else nan


def log_tokens(summary: LogSummary) -> pd.DataFrame:
    """A log's requests as rows of `served`; NaN for what the log does not show."""
    rows = summary.requests
    return rows.assign(
        arm="log",
        round=0,
        index=range(len(rows)),
        **{"pass": rows["generation"]},
        engine=rows["engine_hit_tokens"],
        l1=rows["loaded_tokens"].where(rows["l1_tokens"].isna(), rows["l1_tokens"]),
        l2=rows["l2_tokens"].where(rows["l2_keys"].notna(), 0.0),
        computed=rows["prompt_tokens"] - rows["engine_hit_tokens"] - rows["loaded_tokens"],
        held=rows["lmcache_hit_tokens"],
        idle=rows[["lmcache_hit_tokens", "engine_hit_tokens"]].min(axis=1, skipna=False),
        need=rows["need_to_load"],
        cached_tokens=rows["engine_hit_tokens"] + rows["loaded_tokens"],
        ideal=nan,
    )
