"""An LMCache log of any size as one row per request: who held the tokens, who gets the credit.

The engine's own prefix cache comes first: what it holds is never loaded. LMCache is credited with
what it had beyond that, `max(0, hit - engine hit)`, as far as it arrived: a lookup is a promise,
and a retrieval may fail. Older versions print that difference as "need to load" without the max:
-240 where LMCache held 256 tokens and the engine 496 of 497 by itself.

The multi-process generation says neither the prompt's length nor what the engine held, and nothing
at all of a lookup without a hit: there, hits by tier and transfers are known, rates and credit are
not. Sizes in GB are what LMCache calls so: 1024^3 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from workbench.errors import ParameterError
from workbench.metrics.lmcache_log.block import NO_YEAR
from workbench.metrics.lmcache_log.block_events import KINDS, Events, error_kinds, stream_events
from workbench.metrics.lmcache_log.children import children_for, read_by_children
from workbench.metrics.lmcache_log.keys import KeyCount, count_keys, mp_requests
from workbench.metrics.lmcache_log.lines import LOOKED_FOR
from workbench.metrics.lmcache_log.log_requests import in_process_requests, with_writers
from workbench.metrics.lmcache_log.log_rows import (
    COLUMNS,
    EVENT_COLUMNS,
    event_frame,
    lookup_rows,
    transfer_rows,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LogSummary", "read_log"]

_OF_RETRIEVAL = re.compile(r"(?!.*(?:number of|Num) retrieved|.*failed to load)(?i:.*retriev)")
"""An error of a retrieval that does not say of how many tokens."""
_SHOWN = 60
"""So many characters of an error stand in a doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """What a log says, and what of it could not be read."""

    requests: pd.DataFrame
    """One row per request, in the order of the log. Of its columns, NaN where the log does not say:

    generation (`in-process` or `mp`), request_id, process and engine (who wrote the lookup), at
    (the log's own clock), prompt_tokens, engine_hit_tokens, lmcache_hit_tokens, need_to_load (as
    printed, may be negative), asked_to_load (what the lookup promised beyond the engine's hit),
    loaded_tokens (what of it arrived: LMCache earns it), arrival (how that is known: see
    `in_process_requests`), skipped (too few to be worth loading), asked_tokens (mp: whole chunks
    that were looked up), l1_keys, l2_keys, l1_tokens, l2_tokens, stored_tokens, retrieved_tokens,
    seconds and gb_per_s of the retrieval, lookup_s, lookups (how often the request was looked up).
    """
    transfers: pd.DataFrame
    """One row per Stored or Retrieved line: generation, kind, request_id, process, engine, rank,
    at, tokens, required, gb, seconds."""
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
    keys: KeyCount = field(default_factory=KeyCount)
    """What a key and a line stand for (mp only)."""
    dated: bool = True
    """Whether the log says the year of its times; where it does not, they are of NO_YEAR."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """LMCache's errors and warnings of lost KV, the most frequent first."""
    doubts: tuple[str, ...] = ()

    @property
    def credit(self) -> dict[str, float]:
        """Prompt tokens by who served them, over the requests of which the log says it all.

        `engine`, `lmcache` and `computed`; `idle` are tokens of LMCache that the engine had too,
        `lost` those that were to be loaded and did not arrive. NaN without such a request.
        """
        rows = self.requests
        known = rows[rows["engine_hit_tokens"].notna() & rows["prompt_tokens"].notna()]
        if known.empty:
            return dict.fromkeys(("engine", "lmcache", "computed", "idle", "lost"), nan)
        engine, loaded = known["engine_hit_tokens"].sum(), known["loaded_tokens"].sum()
        return {
            "engine": float(engine),
            "lmcache": float(loaded),
            "computed": float(known["prompt_tokens"].sum() - engine - loaded),
            "idle": float(known[["lmcache_hit_tokens", "engine_hit_tokens"]].min(axis=1).sum()),
            "lost": float((known["asked_to_load"] - known["loaded_tokens"]).clip(lower=0).sum()),
        }

    def moved(self, kind: str, generation: str = "") -> float:
        """Tokens `stored` or `retrieved`; NaN where the log does not show how many workers tell it.

        Ranks of an engine do the same: of those stored the one that has most counts, of those
        retrieved the one that has least. Engines add up.
        """
        total = 0.0
        rows = self.transfers[self.transfers["kind"] == kind]
        for name in {*rows["generation"]} & {generation or name for name in rows["generation"]}:
            mine = rows[rows["generation"] == name]
            if name == "mp":
                workers = self.keys.storing if kind == "stored" else self.keys.retrieving
                total += float(mine["tokens"].sum()) / workers if workers else nan
            else:
                by_rank = mine.groupby(["engine", "rank"])["tokens"].sum().groupby(level="engine")
                each = by_rank.max() if kind == "stored" else by_rank.min()
                total += float(each.sum())
        return total


def read_log(log: Path | str | BinaryIO | Sequence[Path | str], *, ranks: int = 0) -> LogSummary:
    """Read a log as a stream: what is kept is its rows, never its text.

    Several files are read one after the other, and whoever wrote one is another process.
    `ranks` is the number of workers of an instance (tensor parallel), 0 for what the log shows: the
    mp generation counts one key for each of them and chunk.

    Raises ParameterError where `log` is a path that cannot be read; a file with nothing to read
    gives an empty summary with a doubt that says what it is.
    """
    logs = log if isinstance(log, Sequence) and not isinstance(log, str) else [log]
    if len(logs) == 1:
        return _summary(_events(logs[0]), ranks, {})
    events, files = Events(), {}
    for file in logs:
        part = _events(file)
        part.move(events.size_bytes)
        files[events.size_bytes] = str(file)
        events.add(part)
    return _summary(events, ranks, files)


def _events(log: Path | str | BinaryIO) -> Events:
    try:
        with open(log, "rb") if isinstance(log, str | Path) else nullcontext(log) as file:
            children = children_for(file)
            return read_by_children(file, children) if children else stream_events(file)
    except OSError as error:
        raise ParameterError(
            f"log_file {str(log)!r} cannot be read ({error.strerror}); give the path of a vLLM or"
            " `lmcache server` log, e.g. logs/vllm.log"
        ) from error


def _summary(events: Events, ranks: int, files: Mapping[int, str]) -> LogSummary:
    """`files` are the names of several files, by the offset at which each begins."""
    import pandas as pd

    frames = {
        kind: with_writers(event_frame(events.columns[kind], EVENT_COLUMNS[kind]), files)
        for kind in KINDS
    }
    dated = _with_years(frames)
    lookups, torn = lookup_rows(frames["lookups"])
    resumed, torn_too = lookup_rows(frames["resumed"])
    prefetches, transfers = frames["prefetches"], transfer_rows(frames["transfers"])
    sizes = events.chunk_tokens
    chunk = next(iter(sizes)) if len(sizes) == 1 else 0
    keys = count_keys(prefetches, transfers, chunk=chunk, registered=events.workers, ranks=ranks)
    parts = [lookups]
    if len(lookups):
        parts.append(
            in_process_requests(
                lookups,
                transfers,
                frames["storings"],
                frames["failures"],
                frames["starts"],
                failing=any(_OF_RETRIEVAL.match(message) for message in events.errors),
            )
        )
    if len(prefetches):
        parts.append(mp_requests(prefetches, keys))
    if len(resumed):
        wanted = resumed["loaded_tokens"]
        parts.append(resumed.assign(generation="mp", asked_to_load=wanted, arrival="looked up"))
    requests = pd.concat(parts[1:] or parts).sort_values("offset", ignore_index=True)
    requests = requests.reindex(columns=list(COLUMNS))
    matching = sum(map(len, (lookups, resumed, prefetches, transfers, frames["failures"])))
    cut = events.cut + torn + torn_too
    summary = LogSummary(
        requests=requests,
        transfers=transfers,
        size_bytes=events.size_bytes,
        lines=events.lines,
        matching=matching,
        cut=cut,
        undecodable=events.undecodable,
        evictions=dict(events.evictions),
        chunk_tokens=chunk,
        keys=keys,
        dated=dated,
        errors=error_kinds(events.errors),
    )
    doubts = [] if matching else [_what_it_is(events)]
    doubts += _arrival_doubts(summary)
    doubts += _doubts(events, summary, frames["starts"], files)
    if len(prefetches):
        doubts += _mp_doubts(summary, prefetches, ranks)
    return replace(summary, doubts=tuple(doubts))


def _with_years(frames: dict[str, pd.DataFrame]) -> bool:
    """Give times without a year that of the log's first time that has one; False if none has."""
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


def _arrival_doubts(summary: LogSummary) -> list[str]:
    """Where what was looked up is not what arrived, or may not be."""
    doubts, rows = [], summary.requests
    lost = rows[(rows["arrival"].isin(("retrieved", "some ranks")))
                & (rows["loaded_tokens"] < rows["asked_to_load"])]  # fmt: skip
    if len(lost):
        tokens = (lost["asked_to_load"] - lost["loaded_tokens"]).sum()
        doubts.append(
            f"{_count(len(lost), 'retrieval')} failed: {tokens:,.0f} tokens were found in LMCache"
            " and did not arrive. They count as computed."
        )
    if summary.errors:
        total = sum(summary.errors.values())
        shown = " and ".join(
            f"“{shorten(message, _SHOWN, placeholder='…')}”" for message in [*summary.errors][:2]
        )
        more = ", for example" if len(summary.errors) > 2 else ""
        doubts.append(f"LMCache logged {_count(total, 'error')}{more}: {shown}.")
    for arrival, sentence in (
        ("silent", "{} with a hit and without a Retrieved line: LMCache gets no credit for what it"
         " found."),
        ("some ranks", "In {} not every rank logged what it retrieved: the others' count"
         " is taken."),
        ("looked up", "The log has no Retrieved line for {}: LMCache's share is what was"
         " looked up, not what arrived."),
    ):  # fmt: skip
        count = int((rows["arrival"] == arrival).sum())
        if count:
            doubts.append(sentence.format(_count(count, "request")))
    mine = rows[rows["prompt_tokens"].notna()]
    reused = int(mine["request_id"].duplicated().sum())
    if reused:
        doubts.append(
            f"{_count(reused, 'request id')} came again, from another process or after a restart:"
            " each counts as a request of its own."
        )
    return doubts


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _doubts(
    events: Events, summary: LogSummary, starts: pd.DataFrame, files: Mapping[int, str]
) -> list[str]:
    doubts, cut = [], summary.cut
    requests, transfers = summary.requests, summary.transfers
    if cut:
        doubts.append(
            f"{cut:,} {'lines' if cut > 1 else 'line'} of LMCache cut short, or written into by"
            " another process: left out."
        )
    if events.undecodable:
        doubts.append(f"{events.undecodable:,} places of the log are not UTF-8.")
    most = starts["engine"].value_counts().max() if len(starts) else 0
    if most > 1:
        doubts.append(
            f"LMCache started {most} times in this log: what its memory held before a restart was"
            " lost, or several servers write into one log."
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
            f"{unnamed:,} Stored or Retrieved lines name no request (an older version): stored"
            " tokens count in totals only."
        )
    if not summary.dated:
        doubts.append("The times in the log have no year.")
    elif len(requests) and requests["at"].isna().all():
        doubts.append("The log's lines have no time: when anything happened is not known.")
    file = np.searchsorted([*files], requests["offset"], "right")
    if (requests["at"].groupby(file).diff().dt.total_seconds() < -1).any():
        doubts.append("Times in the log run backwards: it was joined from several logs.")
    return doubts


def _mp_doubts(summary: LogSummary, prefetches: pd.DataFrame, ranks: int) -> list[str]:
    doubts = [
        "This generation logs no lookup that found nothing, and not what the engine held: the log"
        " alone gives no hit rate and no credit. The counters of the servers do."
    ]
    keys = summary.keys.keys_per_chunk
    if keys and (prefetches["asked_keys"] % keys).any():
        doubts.append(
            f"Lookups are not whole multiples of {keys} keys a chunk: several instances of"
            " different size use this server, or log_ranks is wrong."
        )
    if not summary.chunk_tokens and isnan(summary.keys.tokens_per_key):
        doubts.append("The log does not say how long a chunk is: keys are not turned into tokens.")
    elif isnan(summary.keys.tokens_per_key):
        doubts.append(
            "How many keys a chunk has is not clear from the log, so tokens are not known: give the"
            " workers of an instance (-p log_ranks 4)."
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
