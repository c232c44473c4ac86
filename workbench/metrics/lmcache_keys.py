"""The multi-process generation counts keys and logs workers: from both to tokens.

A chunk of tokens is one key for each worker of an instance that keeps its own part of the KV (and
for each kind of layer of a hybrid model), and each worker logs the same Stored or Retrieved line.
The log itself shows how many: `12/44 retained keys` of chunks of 256 tokens, and then four times
`Retrieved 768 tokens`, are 4 keys a chunk and 4 workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, nan
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KeyCount", "count_keys", "mp_requests"]

_AGREE = 0.5
"""The share of the pairs of a lookup and its retrieval that has to agree."""
_MOST_KEYS = 1024
_TOGETHER = np.timedelta64(100, "ms")
"""Workers of one instance log the same transfer within so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCount:
    """What the keys and lines of a log stand for; 0 or NaN where it does not show."""

    tokens_per_key: float = nan
    keys_per_chunk: int = 0
    retrieving: int = 0
    """Workers that log each retrieval."""
    storing: int = 0
    """Workers that log each store."""


def count_keys(
    prefetches: pd.DataFrame,
    transfers: pd.DataFrame,
    *,
    chunk: int,
    registered: set[int],
    ranks: int = 0,
) -> KeyCount:
    """Keys of a chunk, and workers of an instance, as far as a log shows them.

    `chunk` is the chunk in tokens (0 if unknown), `registered` are the workers of instances that
    registered. `ranks` is what the user says, 0 for what the log shows.
    """
    named = ranks or (next(iter(registered)) if len(registered) == 1 else 0)
    moved = transfers[transfers["generation"] == "mp"].sort_values("offset")
    retrieved = moved[moved["kind"] == "retrieved"]
    lookups = prefetches.sort_values("offset")
    common = 0
    for name in ("found_keys", "asked_keys"):
        common = gcd(common, *map(int, lookups[name].unique()))
    ratio, workers = _pairs(lookups, retrieved, common, chunk)
    stored = moved[moved["kind"] == "stored"]
    keys = 0
    if chunk:
        keys = round(chunk / ratio) if ratio == ratio else (1 if common == 1 else named)
        keys = keys or _by_stores(lookups, stored, common, chunk)
        if ranks and keys % ranks and workers != ranks:
            keys = ranks  # what the user says, unless the log shows both
        ratio = chunk / keys if keys else nan
    retrieving = ranks or workers or named or (1 if keys == 1 else 0)
    return KeyCount(
        tokens_per_key=ratio,
        keys_per_chunk=keys,
        retrieving=retrieving,
        storing=_storing(stored, ranks or retrieving),
    )


def _pairs(
    lookups: pd.DataFrame, retrieved: pd.DataFrame, common: int, chunk: int
) -> tuple[float, int]:
    """Tokens of a key, and workers that log a retrieval, from retrievals behind their lookups."""
    if lookups.empty or retrieved.empty:
        return nan, 0
    at = lookups["offset"].to_numpy(np.int64)
    which = np.searchsorted(at, retrieved["offset"].to_numpy(np.int64)) - 1
    tokens = retrieved["tokens"].to_numpy()[which >= 0]
    which = which[which >= 0]
    counts = np.bincount(which, minlength=len(at))
    least, most = np.full(len(at), np.inf), np.zeros(len(at))
    np.minimum.at(least, which, tokens)
    np.maximum.at(most, which, tokens)
    # Lookups that do not wait beside others: the retrievals behind them are theirs.
    alone = (counts > 0) & (least == most) & (most > 0) & np.r_[True, counts[:-1] > 0]
    alone &= lookups["found_keys"].to_numpy() > 0
    found = lookups["found_keys"].to_numpy()
    if not alone.any():
        alone = (counts > 0) & (least == most) & (most > 0) & (found > 0)
    ratios = most[alone] / found[alone]
    if chunk:
        per_chunk = chunk / ratios
        right = np.isclose(per_chunk, per_chunk.round()) & (common % per_chunk.round() == 0)
        ratios = ratios[right]
    if not len(ratios):
        return nan, 0
    values, times = np.unique(ratios, return_counts=True)
    # What the engine had itself was found and not retrieved: of equally frequent, most a key.
    best = len(times) - 1 - int(times[::-1].argmax())
    if times[best] < _AGREE * alone.sum():
        return nan, 0
    counted, often = np.unique(counts[alone], return_counts=True)
    workers = int(counted[often.argmax()])
    return float(values[best]), workers if often.max() >= _AGREE * alone.sum() else 0


def _by_stores(lookups: pd.DataFrame, stored: pd.DataFrame, common: int, chunk: int) -> int:
    """Keys a chunk, if only one number makes most lookups as long as something that was stored."""
    lengths = stored["tokens"].unique()
    asked = lookups["asked_keys"].to_numpy() * chunk
    fit = [keys for keys in range(1, min(common, _MOST_KEYS) + 1)
           if common % keys == 0 and np.isin(asked / keys, lengths).mean() >= _AGREE]  # fmt: skip
    return fit[0] if len(fit) == 1 else 0


def _storing(stored: pd.DataFrame, workers: int) -> int:
    """How many workers log each store: all, or (where KV is the same on each) one of them."""
    if stored.empty:
        return workers or 1
    if workers and (stored["tokens"].value_counts() % workers == 0).all():
        return workers
    at, tokens = stored["at"].to_numpy("datetime64[us]"), stored["tokens"].to_numpy()
    first = np.r_[True, ~(np.diff(at) <= _TOGETHER) | (tokens[1:] != tokens[:-1])]
    sizes = np.diff(np.r_[np.flatnonzero(first), len(first)])
    if workers:
        return workers if np.median(sizes) % workers == 0 else 1
    return gcd(*sizes.tolist()) if len(sizes) > 1 else 1


def mp_requests(rows: pd.DataFrame, keys: KeyCount) -> pd.DataFrame:
    """One row per lookup that found something, in keys, and in tokens where a key's are known."""
    tokens = keys.tokens_per_key
    return rows.assign(
        generation="mp",
        lmcache_hit_tokens=rows["found_keys"] * tokens,
        asked_tokens=rows["asked_keys"] * tokens,
        l1_tokens=rows["l1_keys"] * tokens,
        l2_tokens=rows["l2_keys"] * tokens,
        lookup_s=rows["ms"] / 1000,
        lookups=1,
        arrival="",
    )
