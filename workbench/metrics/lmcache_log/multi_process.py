"""Multi-process LMCache logs keys, once per worker; this derives tokens from them.

`12/44 retained keys`, then `Retrieved 768 tokens` four times: 4 keys a chunk of 256, 4 workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, nan
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.metrics.lmcache_log.event_frames import EventFrames

if TYPE_CHECKING:
    import pandas as pd

_AGREE = 0.5
"""Fraction of the lookups that must agree."""
_SURE, _CLEAR = 0.25, 0.8
"""Fraction of retrievals that must match a lookup, and how close the next best may come. Not all
match, because the engine may have held a part itself."""
_LINES = 5000
_IN_FLIGHT = 16
"""Limit of lookups that wait for their retrieval at a time."""
_MOST_KEYS = 1024
_TOGETHER = np.timedelta64(100, "ms")
"""Workers of one instance log the same transfer within this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCount:
    """Meaning of the keys and lines of a log; 0 or NaN if the log does not show it."""

    tokens_per_key: float = nan
    keys_per_chunk: int = 0
    retrieving: int = 0
    """Workers that log each retrieval."""
    storing: int = 0
    """Workers that log each store."""


def count_keys(
    frames: EventFrames, *, chunk: int, registered: set[int], ranks: int = 0
) -> KeyCount:
    """Keys per chunk and workers per instance, as far as the log shows them.

    A chunk is one key per worker that keeps its own part of the KV (and per kind of layer of a
    hybrid model), and each worker logs the same Stored or Retrieved line. `chunk` is the chunk in
    tokens (0 if unknown), `registered` holds the workers of registered instances, `ranks` is the
    user's number of workers (0 to derive it).
    """
    named = ranks or (next(iter(registered)) if len(registered) == 1 else 0)
    moved = frames.transfers[frames.transfers["generation"] == "mp"]
    retrieved = moved[moved["kind"] == "retrieved"]
    lookups = frames.prefetches.sort_values("offset")
    common = 0
    for name in ("found_keys", "asked_keys"):
        common = gcd(common, *map(int, lookups[name].unique()))
    stored = moved[moved["kind"] == "stored"]
    lines = _Lines.of(lookups, retrieved)
    # Tokens move in whole chunks: if the log names no chunk, their common divisor replaces it.
    unit = chunk or gcd(*map(int, moved["tokens"].unique()))
    keys = _keys(lines, common, unit) if unit else 0
    workers = _workers(lines, keys, unit)
    if chunk and not keys:
        keys = named or _by_stores(lookups, stored, common, chunk) or int(common == 1)
    if chunk and ranks and keys % ranks and workers != ranks:
        keys = ranks  # the user's number, unless the log shows both
    retrieving = ranks or workers or named or (1 if keys == 1 else 0)
    return KeyCount(
        tokens_per_key=unit / keys if keys else nan,
        keys_per_chunk=keys if chunk else 0,
        retrieving=retrieving,
        storing=_storing(stored, ranks or retrieving),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lines:
    """Retrievals and the lookups before them, for the first lines of a log."""

    found: NDArray[np.int64]
    """Keys that each lookup found."""
    tokens: NDArray[np.int64]
    """Tokens of each Retrieved line."""
    recent: NDArray[np.int64]
    """For each line its latest lookups, the last first; -1 if there is none."""

    @classmethod
    def of(cls, lookups: pd.DataFrame, retrieved: pd.DataFrame) -> _Lines:
        some = retrieved[retrieved["tokens"] > 0].head(_LINES)
        at = lookups["offset"].to_numpy(np.int64)
        before = np.searchsorted(at, some["offset"].to_numpy(np.int64))
        return cls(
            found=lookups["found_keys"].to_numpy(np.int64),
            tokens=some["tokens"].to_numpy(np.int64),
            recent=(before[:, None] - 1 - np.arange(_IN_FLIGHT)).clip(-1),
        )

    def owner(self, keys: int, unit: int) -> NDArray[np.int64]:
        """The latest lookup that found exactly what each line retrieved, else -1."""
        if not len(self.found):
            return np.full(len(self.tokens), -1)
        fits = self.found[self.recent] * unit == keys * self.tokens[:, None]
        fits &= self.recent >= 0
        owner = self.recent[np.arange(len(fits)), fits.argmax(axis=1)]
        return np.where(fits.any(axis=1), owner, -1)


def _keys(lines: _Lines, common: int, unit: int) -> int:
    """Keys per `unit` tokens with which lookups and retrievals agree most often."""
    if not len(lines.tokens) or not len(lines.found):
        return 0
    best = int(lines.found.max()) * unit // int(lines.tokens.max())  # no more than was found
    shares = {
        keys: float((lines.owner(keys, unit) >= 0).mean())
        for keys in range(1, min(common, best, _MOST_KEYS) + 1)
        if common % keys == 0
    }
    ranked = sorted(shares, key=lambda keys: -shares[keys])
    if not ranked or shares[ranked[0]] < _SURE:
        return 0
    if len(ranked) > 1 and shares[ranked[1]] > _CLEAR * shares[ranked[0]]:
        return 0
    return ranked[0]


def _workers(lines: _Lines, keys: int, unit: int) -> int:
    """Lines per retrieval, judged by those that can belong to one lookup only."""
    owner = lines.owner(keys, unit) if keys else np.array([], np.int64)
    if not (owner >= 0).any():
        return 0
    counts = np.bincount(owner[owner >= 0], minlength=len(lines.found))
    alone = counts > 0
    for away in range(1, _IN_FLIGHT):
        same = lines.found[away:] == lines.found[:-away]
        alone[away:] &= ~same
        alone[:-away] &= ~same
    # If lookups and retrievals alternate, the lines after each lookup are its own.
    turns = counts > 0
    turns[1:] &= counts[:-1] > 0
    for mine in (alone, turns):
        sizes, often = np.unique(counts[mine], return_counts=True)
        if len(sizes) and often.max() >= _AGREE * often.sum():
            return int(sizes[often.argmax()])
    return 0


def _by_stores(lookups: pd.DataFrame, stored: pd.DataFrame, common: int, chunk: int) -> int:
    """Keys per chunk, if only one number makes most lookups as long as a stored prompt."""
    lengths = stored["tokens"].unique()
    asked = lookups["asked_keys"].to_numpy() * chunk
    fit = [keys for keys in range(1, min(common, _MOST_KEYS) + 1)
           if common % keys == 0 and np.isin(asked / keys, lengths).mean() >= _AGREE]  # fmt: skip
    return fit[0] if len(fit) == 1 else 0


def _storing(stored: pd.DataFrame, workers: int) -> int:
    """How many workers log each store: all, or one of them (if KV is the same on each)."""
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
    """One row per lookup with a hit, in keys, and in tokens if the tokens per key are known."""
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
