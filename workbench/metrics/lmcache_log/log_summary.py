"""An LMCache log of any size as one row per request: who held the tokens, who gets the credit.

Sizes in GB are what LMCache calls so: 1024^3 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from workbench.errors import ParameterError
from workbench.metrics.lmcache_log.event_frames import EventFrames, event_frames
from workbench.metrics.lmcache_log.in_process import in_process_requests
from workbench.metrics.lmcache_log.multi_process import KeyCount, count_keys, mp_requests
from workbench.metrics.lmcache_log.parallel_scan import children_for, scan_by_children
from workbench.metrics.lmcache_log.scan import Counts, Events, scan_stream

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "generation", "request_id", "process", "engine", "at", "offset", "prompt_tokens",
    "engine_hit_tokens", "lmcache_hit_tokens", "need_to_load", "asked_to_load", "loaded_tokens",
    "arrival", "skipped", "asked_tokens", "l1_keys", "l2_keys", "l1_tokens", "l2_tokens",
    "stored_tokens", "retrieved_tokens", "seconds", "gb_per_s", "lookup_s", "lookups",
)  # fmt: skip
_OF_RETRIEVAL = re.compile(r"(?!.*(?:number of|Num) retrieved|.*failed to load)(?i:.*retriev)")
"""An error of a retrieval that does not say of how many tokens."""
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")

Cause = Literal[
    "empty", "compressed", "not text", "nothing of LMCache",
    "retrievals failed", "errors", "hit without a retrieval", "ranks without a retrieval",
    "no line of a retrieval", "id came again",
    "lines cut", "not UTF-8", "restarted", "chunks differ", "transfer without a request",
    "no year", "no time", "runs backwards",
    "no lookups without a hit", "lookups of part of a chunk", "chunk unknown", "keys unknown",
]  # fmt: skip
"""Why a log, or what is concluded from it, is in doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDoubt:
    """A cause of doubt, and of how many lines, requests or starts; 0 where that says nothing."""

    cause: Cause
    count: int = 0
    tokens: float = 0.0
    """Tokens that did not arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Prompt tokens by who served them, over the requests of which the log says it all.

    The engine's own cache comes first: what it holds is never loaded. LMCache is credited with
    `max(0, hit - engine hit)` as far as it arrived: a lookup is a promise, and a retrieval may
    fail. NaN where no request says it, as in the mp generation, which logs neither the prompt's
    length nor what the engine held.
    """

    engine: float = nan
    lmcache: float = nan
    computed: float = nan
    idle: float = nan
    """Of LMCache's, those that the engine had too."""
    lost: float = nan
    """Those that were to be loaded and did not arrive."""

    @property
    def total(self) -> float:
        """All prompt tokens."""
        return self.engine + self.lmcache + self.computed


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
    counts: Counts
    """Size, lines, lines that were cut, evictions, chunks, errors."""
    matching: int = 0
    """Lines that were understood."""
    keys: KeyCount = field(default_factory=KeyCount)
    """What a key and a line stand for (mp only)."""
    dated: bool = True
    """Whether the log says the year of its times; where it does not, they are of NO_YEAR."""
    doubts: tuple[LogDoubt, ...] = ()

    @property
    def credited(self) -> pd.DataFrame:
        """The requests of which the log says who served their tokens."""
        rows = self.requests
        return rows[rows["engine_hit_tokens"].notna() & rows["prompt_tokens"].notna()]

    @property
    def credit(self) -> Credit:
        """Who served the tokens of those requests."""
        known = self.credited
        if known.empty:
            return Credit()
        engine, loaded = known["engine_hit_tokens"].sum(), known["loaded_tokens"].sum()
        return Credit(
            engine=float(engine),
            lmcache=float(loaded),
            computed=float(known["prompt_tokens"].sum() - engine - loaded),
            idle=float(known[["lmcache_hit_tokens", "engine_hit_tokens"]].min(axis=1).sum()),
            lost=float((known["asked_to_load"] - known["loaded_tokens"]).clip(lower=0).sum()),
        )

    def moved(self, kind: str, generation: str = "") -> float:
        """Tokens `stored` or `retrieved`; NaN where the log does not show how many workers tell it.

        Ranks of an engine do the same: of those stored the one that has most counts, of those
        retrieved the one that has least. Engines add up.
        """
        total = 0.0
        rows = self.transfers[self.transfers["kind"] == kind]
        for name, mine in rows.groupby("generation"):
            if generation and name != generation:
                continue
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
    events, files = Events(), dict[int, str]()
    for file in logs:
        if len(logs) > 1:
            files[events.counts.size_bytes] = str(file)
        events.add(_events(file), offset=events.counts.size_bytes)
    return _summary(events, ranks, files)


def _events(log: Path | str | BinaryIO) -> Events:
    try:
        with open(log, "rb") if isinstance(log, str | Path) else nullcontext(log) as file:
            children = children_for(file)
            return scan_by_children(file, children) if children else scan_stream(file)
    except OSError as error:
        raise ParameterError(
            f"log_file {str(log)!r} cannot be read ({error.strerror}); give the path of a vLLM or"
            " `lmcache server` log, e.g. logs/vllm.log"
        ) from error


def _summary(events: Events, ranks: int, files: Mapping[int, str]) -> LogSummary:
    """`files` are the names of several files, by the offset at which each begins."""
    import pandas as pd

    frames, counts = event_frames(events, files), events.counts
    lookups, prefetches, resumed = frames.lookups, frames.prefetches, frames.resumed
    keys = count_keys(frames, chunk=counts.chunk, registered=counts.workers, ranks=ranks)
    parts = []
    if len(lookups):
        failing = any(map(_OF_RETRIEVAL.match, counts.errors))
        parts.append(in_process_requests(frames, failing=failing))
    if len(prefetches):
        parts.append(mp_requests(prefetches, keys))
    if len(resumed):
        wanted = resumed["loaded_tokens"]
        parts.append(resumed.assign(generation="mp", asked_to_load=wanted, arrival="looked up"))
    requests = pd.concat(parts or [lookups]).sort_values("offset", ignore_index=True)
    counts.cut += frames.torn
    summary = LogSummary(
        requests=requests.reindex(columns=list(_COLUMNS)),
        transfers=frames.transfers,
        counts=counts,
        matching=sum(map(len, (lookups, resumed, prefetches, frames.transfers, frames.failures))),
        keys=keys,
        dated=frames.dated,
    )
    return replace(summary, doubts=tuple(_doubts(summary, frames, files)))


def _doubts(
    summary: LogSummary, frames: EventFrames, files: Mapping[int, str]
) -> Iterator[LogDoubt]:
    requests, transfers, log = summary.requests, summary.transfers, summary.counts
    if not summary.matching:
        yield LogDoubt(cause=_why_nothing(log))

    # Where what was looked up is not what arrived, or may not be.
    told = requests["arrival"].isin(("retrieved", "some ranks"))
    lost = requests[told & (requests["loaded_tokens"] < requests["asked_to_load"])]
    missing = float((lost["asked_to_load"] - lost["loaded_tokens"]).sum())
    unnamed = (transfers["request_id"] == "") & (transfers["generation"] != "mp")
    in_process = requests[requests["prompt_tokens"].notna()]
    most = frames.starts["engine"].value_counts().max() if len(frames.starts) else 0
    counts: dict[Cause, int] = {
        "retrievals failed": len(lost),
        "errors": log.error_kinds.total(),
        "hit without a retrieval": int((requests["arrival"] == "silent").sum()),
        "ranks without a retrieval": int((requests["arrival"] == "some ranks").sum()),
        "no line of a retrieval": int((requests["arrival"] == "looked up").sum()),
        "id came again": int(in_process["request_id"].duplicated().sum()),
        "lines cut": log.cut,
        "not UTF-8": log.undecodable,
        "restarted": int(most) if most > 1 else 0,
        "chunks differ": len(log.chunk_tokens) if len(log.chunk_tokens) > 1 else 0,
        "transfer without a request": int(unnamed.sum()),
    }
    for cause, count in counts.items():
        if count:
            tokens = missing if cause == "retrievals failed" else 0.0
            yield LogDoubt(cause=cause, count=count, tokens=tokens)

    if not summary.dated:
        yield LogDoubt(cause="no year")
    elif len(requests) and requests["at"].isna().all():
        yield LogDoubt(cause="no time")
    file = np.searchsorted([*files], requests["offset"], "right")
    if (requests["at"].groupby(file).diff().dt.total_seconds() < -1).any():
        yield LogDoubt(cause="runs backwards")

    if len(frames.prefetches):
        yield LogDoubt(cause="no lookups without a hit")
        keys = summary.keys.keys_per_chunk
        if keys and (frames.prefetches["asked_keys"] % keys).any():
            yield LogDoubt(cause="lookups of part of a chunk")
        if isnan(summary.keys.tokens_per_key):
            yield LogDoubt(cause="keys unknown" if log.chunk else "chunk unknown")


def _why_nothing(log: Counts) -> Cause:
    """Why a log has nothing for us."""
    if not log.size_bytes:
        return "empty"
    if log.magic.startswith(_COMPRESSED):
        return "compressed"
    if log.zeros > 0.001 * log.size_bytes or log.undecodable > 0.01 * log.size_bytes:
        return "not text"
    return "nothing of LMCache"
