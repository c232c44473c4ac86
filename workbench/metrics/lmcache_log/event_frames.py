"""The events of an LMCache log as frames: typed, dated, with their writers, and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.metrics.lmcache_log.line_heads import NO_YEAR
from workbench.metrics.lmcache_log.lines import FLAGS, LINES, TEXTS
from workbench.metrics.lmcache_log.scan import Columns, Events

if TYPE_CHECKING:
    import pandas as pd

_WRITER = ("process", "engine", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFrames:
    """Events by kind. Each frame has offset, at, process, engine and rank; all but `starts` have a
    request_id, empty if the line names none. A number that the line lacks is NaN."""

    lookups: pd.DataFrame
    """In-process: prompt_tokens, engine_hit_tokens, lmcache_hit_tokens, need_to_load,
    loaded_tokens (as looked up), skipped."""
    resumed: pd.DataFrame
    """The same for requests that had been preempted (mp)."""
    prefetches: pd.DataFrame
    """Lookups with a hit (mp): found_keys, asked_keys, l1_keys, l2_keys, ms."""
    transfers: pd.DataFrame
    """Stored and Retrieved lines: generation, kind, tokens, required, gb, seconds."""
    storings: pd.DataFrame
    """Logged before a store: tokens of the prompt so far."""
    failures: pd.DataFrame
    """Workers that got less than the lookup found: retrieved, expected, missing."""
    starts: pd.DataFrame
    torn: int
    """Lookups with contradictory numbers: another process wrote into their line."""
    dated: bool
    """Whether the timestamps have a year."""


def event_frames(events: Events, files: Mapping[int, str]) -> EventFrames:
    """The frames; `files` maps the offset at which each file begins to its name, if several."""
    import pandas as pd

    frames = {kind: _with_writers(_frame(events.columns[kind], kind), files) for kind in LINES}
    dated = _with_years(frames)
    lookups, torn = _checked(frames["lookups"])
    unsaid = {"prompt_tokens": np.nan, "min_retrieve": np.nan, "pending": False, "bare": False}
    resumed, torn_too = _checked(frames["resumed"].assign(**unsaid))
    moved = [frames[kind].assign(kind=kind) for kind in ("stored", "retrieved")]
    short, lost = frames["short"], frames["lost"]
    short = short.assign(missing=short["expected"] - short["retrieved"])
    return EventFrames(
        lookups=lookups,
        resumed=resumed,
        prefetches=frames["prefetches"],
        transfers=_transfers(pd.concat(moved, ignore_index=True)),
        storings=frames["storings"],
        failures=pd.concat(
            [short, lost.assign(retrieved=np.nan, expected=np.nan)], ignore_index=True
        ),
        starts=frames["starts"],
        torn=torn + torn_too,
        dated=dated,
    )


def _frame(blocks: Sequence[Columns], kind: str) -> pd.DataFrame:
    """The blocks of one kind of event as a frame."""
    import pandas as pd

    if blocks:
        return pd.DataFrame(
            {name: _joined([block[name] for block in blocks]) for name in blocks[0]}
        )
    types: dict[str, Any] = {"offset": np.int64, "at": "datetime64[us]", "writer": str}
    types |= dict.fromkeys(LINES[kind].columns, float) | dict.fromkeys(TEXTS, str)
    types |= dict.fromkeys(FLAGS & {*types}, bool)
    return pd.DataFrame({name: pd.Series([], dtype=kept) for name, kept in types.items()})


def _joined(parts: Sequence[Any]) -> Any:
    """The joined parts of a column: arrays, or texts with a line feed between two events."""
    if not isinstance(parts[0], bytes):
        return np.concatenate(parts)
    return b"\n".join(parts).decode("utf-8", "backslashreplace").split("\n")


def _with_writers(rows: pd.DataFrame, files: Mapping[int, str]) -> pd.DataFrame:
    """`writer` as three columns: process, engine, rank (see `line_heads.writer`).

    With several files, names of processes and engines start with the file's name.
    """
    import pandas as pd

    if files and len(rows):
        file = np.searchsorted([*files], rows["offset"], "right") - 1
        named = pd.Series([f"{name}: " for name in files.values()])[file].set_axis(rows.index)
        tab = rows["writer"].str.partition("\t")
        rows = rows.assign(writer=named + tab[0] + "\t" + named + tab[2])
    codes, writers = pd.factorize(rows["writer"])
    parts = [str(writer).split("\t") for writer in writers]
    columns = {
        name: pd.Series([part[n] for part in parts], dtype=str).take(codes).set_axis(rows.index)
        for n, name in enumerate(_WRITER)
    }
    return rows.drop(columns="writer").assign(**columns)


def _with_years(frames: dict[str, pd.DataFrame]) -> bool:
    """Give times without a year the year of the log's first dated time; False if there is none."""
    bare = {kind: rows["at"].dt.year == NO_YEAR for kind, rows in frames.items()}
    if not any(mask.any() for mask in bare.values()):
        return True
    firsts = [rows["at"][~bare[kind]].min() for kind, rows in frames.items()]
    known = [first.year for first in firsts if first == first]  # NaT is not itself
    if not known:
        return False
    for kind, rows in frames.items():
        at = rows["at"].to_numpy("datetime64[us]")
        months = at.astype("datetime64[M]")
        moved = (months + 12 * (known[0] - NO_YEAR)).astype(at.dtype) + (at - months)
        frames[kind] = rows.assign(at=np.where(bare[kind], moved, at))
    return True


def _checked(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Lookups with the engine's hit and the tokens to load filled in, and how many were damaged.

    A pending lookup has no result: the same request is looked up again. The last number of a line
    may be cut if nothing follows it, unless all lines of the log end with it. A line with
    contradictory numbers was overwritten by another process.
    """
    rows = rows[~rows["pending"]]
    said, prompt = rows["engine_hit_tokens"], rows["prompt_tokens"]
    hit, need, bare = rows["lmcache_hit_tokens"], rows["need_to_load"], rows["bare"]
    # Even if LMCache holds the whole prompt, its last token is computed.
    wanted = hit - (hit == prompt)
    engine = said.fillna(wanted - need)
    sensible = (engine >= 0) & ~(engine > prompt) & ~(hit > prompt)
    sensible &= said.isna() | (need == wanted - said) | (need == (wanted - said).clip(lower=0))
    if not bare.all():
        sensible &= ~bare
    skipped = rows["min_retrieve"].notna()
    kept = rows.assign(
        generation="in-process",
        engine_hit_tokens=engine,
        loaded_tokens=need.clip(lower=0).where(~skipped, 0.0),
        skipped=skipped,
    )
    kept = kept[sensible].drop(columns=["pending", "bare", "min_retrieve"])
    return kept, int((~sensible).sum())


def _transfers(rows: pd.DataFrame) -> pd.DataFrame:
    """Stored and Retrieved lines in the order of the log."""
    in_process = rows["required"].notna()
    rows = rows.assign(
        generation=np.where(in_process, "in-process", "mp"),
        seconds=rows["mp_seconds"].fillna(rows["cost_ms"] / 1000),
    )
    # `Retrieved 256 tokens` alone only repeats a complete line, for the last layer.
    rows = rows[in_process | rows["mp_seconds"].notna()]
    rows = rows.drop(columns=["mp_seconds", "cost_ms"])
    return rows.sort_values("offset", ignore_index=True)
