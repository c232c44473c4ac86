"""An LMCache log of any size as one row per request: who held the tokens, who gets the credit.

The engine's own prefix cache comes first: what it holds is never loaded. LMCache is credited with
what it had beyond that, `max(0, hit - engine hit)`. Older versions print that difference as "need
to load" without the max: -240 where LMCache held 256 tokens and the engine 496 of 497 by itself.

The multi-process generation says neither the prompt's length nor what the engine held, and nothing
at all of a lookup without a hit: there, hits by tier and transfers are known, rates and credit are
not. Sizes in GB are what LMCache calls so: 1024^3 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from workbench.errors import ParameterError
from workbench.metrics.lmcache_children import children_for, read_by_children
from workbench.metrics.lmcache_events import KINDS, Events, stream_events
from workbench.metrics.lmcache_lines import LOOKED_FOR
from workbench.metrics.lmcache_rows import (
    COLUMNS,
    EVENT_COLUMNS,
    event_frame,
    in_process_requests,
    lookup_rows,
    mp_requests,
    transfer_rows,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LogSummary", "read_log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """What a log says, and what of it could not be read."""

    requests: pd.DataFrame
    """One row per request, in the order of the log. Of its columns, NaN where the log does not say:

    generation (`in-process` or `mp`), request_id, rank, at (the log's own clock), prompt_tokens,
    engine_hit_tokens, lmcache_hit_tokens, need_to_load (as printed, may be negative),
    loaded_tokens (what LMCache earns), skipped (too few to be worth loading), asked_tokens (mp:
    whole chunks that were looked up), l1_chunks, l2_chunks, stored_tokens, retrieved_tokens,
    seconds and gb_per_s of the retrieval, lookup_s, lookups (how often the request was looked up).
    """
    transfers: pd.DataFrame
    """One row per Stored or Retrieved line: generation, kind, request_id, rank, at, tokens, gb,
    seconds."""
    size_bytes: int = 0
    lines: int = 0
    matching: int = 0
    """Lines that were understood."""
    cut: int = 0
    """Lines of LMCache that were cut, or written into by another process: left out."""
    undecodable: int = 0
    """Places that are not UTF-8."""
    evictions: Mapping[str, int] = field(default_factory=dict)
    """How often the eviction of `L1` and `L2` was triggered (mp only)."""
    chunk_tokens: int = 0
    """LMCache's chunk as the log gives it; 0 where it does not."""
    doubts: tuple[str, ...] = ()

    @property
    def credit(self) -> dict[str, float]:
        """Prompt tokens by who served them, over the requests of which the log says it all.

        `engine`, `lmcache` and `computed`; `idle` are tokens that LMCache held in vain, since the
        engine had them too. NaN without such a request.
        """
        rows = self.requests
        known = rows[rows["engine_hit_tokens"].notna() & rows["prompt_tokens"].notna()]
        if known.empty:
            return dict.fromkeys(("engine", "lmcache", "computed", "idle"), nan)
        engine, loaded = known["engine_hit_tokens"].sum(), known["loaded_tokens"].sum()
        return {
            "engine": float(engine),
            "lmcache": float(loaded),
            "computed": float(known["prompt_tokens"].sum() - engine - loaded),
            "idle": float((known["lmcache_hit_tokens"] - known["loaded_tokens"]).sum()),
        }


def read_log(log: Path | str | BinaryIO, *, ranks: int = 1) -> LogSummary:
    """Read a log as a stream: what is kept is its rows, never its text.

    `ranks` is the number of workers of an instance (tensor parallel): the mp generation counts one
    key for each of them and chunk. Raises ParameterError where `log` is a path that cannot be
    read; a file with nothing to read gives an empty summary with a doubt that says what it is.
    """
    try:
        with open(log, "rb") if isinstance(log, str | Path) else nullcontext(log) as file:
            children = children_for(file)
            events = read_by_children(file, children) if children else stream_events(file)
    except OSError as error:
        raise ParameterError(
            f"log_file {str(log)!r} cannot be read ({error.strerror}); give the path of a vLLM or"
            " `lmcache server` log, e.g. logs/vllm.log"
        ) from error
    return _summary(events, ranks)


def _summary(events: Events, ranks: int) -> LogSummary:
    import pandas as pd

    frames = {kind: event_frame(events.columns[kind], EVENT_COLUMNS[kind]) for kind in KINDS}
    lookups, torn = lookup_rows(frames["lookups"])
    resumed, torn_too = lookup_rows(frames["resumed"])
    prefetches, transfers = frames["prefetches"], transfer_rows(frames["transfers"])
    sizes = events.chunk_tokens
    chunk = next(iter(sizes)) if len(sizes) == 1 else 0
    parts = [lookups]
    if len(lookups):
        parts.append(in_process_requests(lookups, transfers))
    if len(prefetches):
        parts.append(mp_requests(prefetches, chunk, ranks))
    if len(resumed):
        parts.append(resumed.assign(generation="mp"))
    requests = pd.concat(parts[1:] or parts).sort_values("offset", ignore_index=True)
    matching = len(lookups) + len(resumed) + len(prefetches) + len(transfers)
    cut = events.cut + torn + torn_too
    doubts = [] if matching else [_what_it_is(events)]
    doubts += _doubts(events, requests, transfers, cut)
    if len(prefetches):
        doubts += _mp_doubts(prefetches, chunk, ranks)
    return LogSummary(
        requests=requests.reindex(columns=list(COLUMNS)),
        transfers=transfers,
        size_bytes=events.size_bytes,
        lines=events.lines,
        matching=matching,
        cut=cut,
        undecodable=events.undecodable,
        evictions=dict(events.evictions),
        chunk_tokens=chunk,
        doubts=tuple(doubts),
    )


def _doubts(events: Events, requests: pd.DataFrame, transfers: pd.DataFrame, cut: int) -> list[str]:
    doubts = []
    if cut:
        doubts.append(
            f"{cut:,} {'lines' if cut > 1 else 'line'} of LMCache cut short, or written into by"
            " another process: left out."
        )
    if events.undecodable:
        doubts.append(f"{events.undecodable:,} places of the log are not UTF-8.")
    if events.starts > 1:
        doubts.append(
            f"LMCache started {events.starts} times in this log: what its memory held before a"
            " restart was lost, or several servers write into one log."
        )
    if len(events.chunk_tokens) > 1:
        sizes = ", ".join(map(str, sorted(events.chunk_tokens)))
        doubts.append(
            f"The log names chunks of {sizes} tokens, so several servers write into it: chunks are"
            " not turned into tokens."
        )
    unnamed = int(((transfers["request_id"] == "") & (transfers["generation"] != "mp")).sum())
    if unnamed:
        doubts.append(
            f"{unnamed:,} Stored or Retrieved lines name no request (an older version): they count"
            " in totals only."
        )
    if (requests["at"].diff().dt.total_seconds() < -1).any():
        doubts.append("Times in the log run backwards: it was joined from several logs.")
    return doubts


def _mp_doubts(prefetches: pd.DataFrame, chunk: int, ranks: int) -> list[str]:
    doubts = [
        "This generation logs no lookup that found nothing, and not what the engine held: the log"
        " alone gives no hit rate and no credit. The counters of the servers do."
    ]
    if (prefetches["asked_keys"] % ranks).any():
        doubts.append(
            f"Lookups are not whole multiples of {ranks} keys, so log_ranks {ranks} is not the"
            " number of workers of an instance."
        )
    if not chunk:
        doubts.append(
            "The log does not say how long a chunk is: chunks are not turned into tokens."
        )
    return doubts


def _what_it_is(events: Events) -> str:
    """Why a log has nothing for us."""
    wanted = f"looked for {', '.join(LOOKED_FOR)}"
    if not events.size_bytes:
        return f"The log is empty; {wanted}. LMCache logs them at level INFO."
    if events.magic.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")):
        return "The log is compressed: unpack it first, e.g. with gunzip, zstd -d or unzip."
    if events.zeros > 0.001 * events.size_bytes or events.undecodable > 0.01 * events.size_bytes:
        return f"The file is not text ({events.size_bytes:,} bytes); {wanted}."
    return (
        f"None of its {events.lines:,} lines is one of LMCache's that count tokens; {wanted}."
        " They stand in the log of vLLM (in-process) or of `lmcache server`, at level INFO."
    )
