"""An LMCache log of any size as one row per request: which cache held and served its tokens.

Sizes in GB are LMCache's: 1024^3 bytes.
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
"""A retrieval error without a number of tokens."""
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")

Cause = Literal[
    "empty", "compressed", "not text", "nothing of LMCache",
    "retrievals failed", "errors", "hit without a retrieval", "ranks without a retrieval",
    "no line of a retrieval", "id came again",
    "lines cut", "not UTF-8", "restarted", "chunks differ", "transfer without a request",
    "no year", "no time", "runs backwards",
    "no lookups without a hit", "lookups of part of a chunk", "chunk unknown", "keys unknown",
]  # fmt: skip
"""Reasons to doubt a log, or conclusions from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDoubt:
    """A cause of doubt, and its number of lines, requests or starts (0 if meaningless)."""

    cause: Cause
    count: int = 0
    tokens: float = 0.0
    """Tokens that did not arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Prompt tokens by the cache that served them, over the requests that the log shows completely.

    The engine's own cache comes first: tokens in it are never loaded. LMCache served
    `max(0, LMCache hit - engine hit)`, as far as it arrived: a retrieval may fail after the lookup.
    NaN if no request shows it, as in mp, which logs neither prompt length nor engine hit.
    """

    engine: float = nan
    lmcache: float = nan
    computed: float = nan
    idle: float = nan
    """Tokens cached in LMCache, but not needed, because the engine had them too."""
    lost: float = nan
    """Tokens to load that did not arrive."""

    @property
    def total(self) -> float:
        """All prompt tokens."""
        return self.engine + self.lmcache + self.computed


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """The content of a log, and what of it could not be read."""

    requests: pd.DataFrame
    """One row per request, in the order of the log. Columns, NaN if the log lacks the value:

    generation (`in-process` or `mp`), request_id, process and engine (writer of the lookup), at
    (log time), prompt_tokens, engine_hit_tokens, lmcache_hit_tokens, need_to_load (as logged, may
    be negative), asked_to_load (need to load, not negative), loaded_tokens (what of it arrived),
    arrival (how that is known: see `in_process_requests`), skipped (fewer than min_retrieve),
    asked_tokens (mp: whole chunks that were looked up), l1_keys, l2_keys, l1_tokens, l2_tokens,
    stored_tokens, retrieved_tokens, seconds and gb_per_s of the retrieval, lookup_s, lookups (how
    often the request was looked up).
    """
    transfers: pd.DataFrame
    """One row per Stored or Retrieved line: generation, kind, request_id, process, engine, rank,
    at, tokens, required, gb, seconds."""
    counts: Counts
    """Size, lines, lines that were cut, evictions, chunks, errors."""
    matching: int = 0
    """Lines that were understood."""
    keys: KeyCount = field(default_factory=KeyCount)
    """Tokens per key and workers per line (mp only)."""
    dated: bool = True
    """Whether the timestamps have a year; if not, it is NO_YEAR."""
    doubts: tuple[LogDoubt, ...] = ()

    @property
    def credited(self) -> pd.DataFrame:
        """The requests for which the log shows the engine hit and the prompt length."""
        rows = self.requests
        return rows[rows["engine_hit_tokens"].notna() & rows["prompt_tokens"].notna()]

    @property
    def credit(self) -> Credit:
        """The tokens of those requests by the cache that served them."""
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
        """Tokens `stored` or `retrieved`; NaN if the number of workers that log it is unknown.

        Ranks of an engine move the same tokens: the rank with most stored and the rank with least
        retrieved tokens counts. Engines add up.
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
    """Read a log as a stream; its rows are kept, its text is not.

    Several files are read one after the other, each as the log of other processes. `ranks` is the
    number of workers per instance (tensor parallel), 0 to derive it from the log: mp counts one key
    per worker and chunk.

    Raises ParameterError for a path that cannot be read. A file without LMCache lines gives an
    empty summary whose doubt says what the file is.
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
            f"log_file {str(log)!r} cannot be read ({error.strerror}). Give the log of vLLM or"
            " `lmcache server` (example: -p log_file logs/vllm.log)"
        ) from error


def _summary(events: Events, ranks: int, files: Mapping[int, str]) -> LogSummary:
    """`files` maps the offset at which each file begins to its name, if there are several."""
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
    """Why a log has no usable lines."""
    if not log.size_bytes:
        return "empty"
    if log.magic.startswith(_COMPRESSED):
        return "compressed"
    if log.zeros > 0.001 * log.size_bytes or log.undecodable > 0.01 * log.size_bytes:
        return "not text"
    return "nothing of LMCache"
