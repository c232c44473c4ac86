"""One block of an LMCache log, searched: its events by kind, in columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import compress, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.metrics.lmcache_log.lines import (
    CHUNK,
    ERROR,
    EVICTED,
    FAILED,
    LEVEL,
    LOOKUP,
    OF_REQUEST,
    PREFETCH,
    REQUEST,
    RESUMED,
    RETRIEVED,
    SHORT,
    STAMP_BYTES,
    STARTED,
    STORED,
    STORING,
    WORKERS,
    head_time,
    whole_lines,
    writer,
)

__all__ = ["NO_YEAR", "Block", "Columns", "error_kind", "scan"]

NO_YEAR = 1904
"""The year of a time that is written without one."""
_HEAD_BYTES = 300
_ERROR_KINDS = 50

Columns = dict[str, NDArray[Any] | bytes]
"""Events of one kind. Texts are one piece with a line feed between two events, which none holds."""

_STAMP = np.frombuffer(b"yyyy-mm-dd HH:MM:SS,fff", np.uint8)
_PARTS = b"ymdHMSf"
_WEIGHTS = np.zeros((len(_STAMP), len(_PARTS)), np.int32)
"""What a digit at each place of a time of day is worth, in each of its parts."""
for _part, _letter in enumerate(_PARTS):
    _places = np.flatnonzero(_STAMP == _letter)
    _WEIGHTS[_places, _part] = 10 ** np.arange(len(_places))[::-1]
_IS_DIGIT = _WEIGHTS.any(axis=1)


@dataclass(slots=True)
class Block:
    """What one block of a log holds.

    Each kind of `events` has `offset` (its byte of the log), `at`, `writer` (see
    `lmcache_lines.writer`), `request_id` and, with -1 for what a line does not say: `lookups`, and
    `resumed` (of requests that had been preempted, in the engine's log) bare, prompt_tokens,
    engine_hit_tokens, lmcache_hit_tokens, need_to_load, min_retrieve; `prefetches` found_keys,
    asked_keys, l1_keys, l2_keys, ms; `transfers` stored, mp, tokens, required, gb, seconds;
    `failures` (a worker got less than was looked up) retrieved, expected, missing; `storings`
    tokens (of the prompt so far); `starts` nothing more. A kind without an event is left out.
    """

    events: dict[str, Columns] = field(default_factory=dict)
    lines: int = 0
    cut: int = 0
    """Lines that begin as one of ours and do not end as one."""
    evictions: Counter[str] = field(default_factory=Counter)
    """Times that the eviction of `L1` or `L2` was triggered."""
    errors: Counter[str] = field(default_factory=Counter)
    """LMCache's errors: the first message of each kind, and how many there are of it."""
    chunk_tokens: set[int] = field(default_factory=set)
    workers: set[int] = field(default_factory=set)
    """Workers of the instances that registered with `lmcache server`."""


def scan(data: bytes, base: int, heads: dict[bytes, bytes]) -> Block:
    """Every event of `data`, which begins at byte `base` of the log.

    `heads` remembers what the beginning of a line says of its process; give the same one each time.
    """
    text, found = _Text(data, base, heads), Block()
    found.lines = len(text.begins) - 1
    kinds = {"lookups": _lookups, "prefetches": _prefetches, "transfers": _transfers}
    # Seldom there: to ask whether they are is faster than to look for them with a pattern.
    if b"Storing KV cache for " in data:
        kinds["storings"] = _storings
    if b"<resume-load>" in data:
        kinds["resumed"] = _resumed
    short, warned = b"num expected tokens: " in data, text.warned()
    if short or (warned and b" failed to load " in data):
        kinds["failures"] = _failures
    for kind, read in kinds.items():
        columns, cut = read(text)
        found.cut += cut
        if columns:
            found.events[kind] = columns
    if b"; triggering eviction" in data:
        found.evictions = Counter(tier.decode() for tier in EVICTED.findall(data))
    if b"chunk_size" in data:
        found.chunk_tokens = {int(size) for size in CHUNK.findall(data) if int(size)}
    if b"world_size" in data:
        found.workers = {int(count) for count in WORKERS.findall(data) if int(count)}
    if any(line in data for line in STARTED):
        starts = [match.start() for line in STARTED for match in re.finditer(re.escape(line), data)]
        found.events["starts"] = text.place(starts) | {"request_id": b"\n" * (len(starts) - 1)}
    if short or warned:
        found.errors = _errors(data)
    return found


class _Text:
    """A block of log, and where in it lines begin and times end."""

    def __init__(self, data: bytes, base: int, heads: dict[bytes, bytes]) -> None:
        self.data, self.base, self.heads = data, base, heads
        self.codes = np.frombuffer(data, np.uint8)
        self.begins = np.concatenate(([0], np.flatnonzero(self.codes == ord("\n")) + 1))
        levels = np.flatnonzero(self.codes[: -len(LEVEL)] == LEVEL[0])
        for place, code in enumerate(LEVEL):
            levels = levels[self.codes[levels + place] == code]
        # In front stands one that cannot be, for lines that have none before them.
        self.levels = np.concatenate(([-1], levels))

    def warned(self) -> bool:
        """Whether any of LMCache's lines is a warning or worse."""
        behind = np.minimum(self.levels[1:] + len(LEVEL), len(self.codes) - 1)
        return bool(np.isin(self.codes[behind], np.frombuffer(b"WEC", np.uint8)).any())

    def lines(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the lines begin that hold the bytes `starts`."""
        return self.begins[np.searchsorted(self.begins, starts, "right") - 1]

    def place(self, starts: Sequence[int]) -> Columns:
        """Offset, time and writer, as far as the beginnings of the lines say them."""
        at = np.array(starts)
        begins = self.lines(at)
        if b"\r" in self.data:  # a progress bar is drawn again and again before the line
            drawn = map(self.data.rfind, repeat(b"\r"), begins.tolist(), at.tolist())
            begins = np.maximum(begins, np.fromiter(drawn, np.int64, len(at)) + 1)
        ends = self.levels[np.searchsorted(self.levels, at - len(LEVEL), "right") - 1] - STAMP_BYTES
        told = ends >= begins
        times = np.full(len(at), "NaT", "datetime64[us]")
        times[told] = _times(self.codes, ends[told])
        told &= ~np.isnat(times)  # written in another way
        ends[~told] = np.minimum(at, begins + _HEAD_BYTES)[~told]
        for n in np.flatnonzero(~told).tolist():
            times[n] = _head_time(self.data[begins[n] : ends[n]])
        writers = map(self._writer, begins.tolist(), ends.tolist())
        return {"offset": at + self.base, "at": times, "writer": b"\n".join(writers)}

    def _writer(self, begin: int, end: int) -> bytes:
        head = self.data[begin:end]
        found = self.heads.get(head)
        if found is None:
            found = writer(head)
            if len(self.heads) < 10_000:  # a torn log may have a new beginning in each line
                self.heads[head] = found
        return found


def _head_time(head: bytes) -> np.datetime64:
    """The time in what stands before a message, of NO_YEAR where it has no year; else NaT."""
    said = head_time(head)
    if said:
        year, month, day, hour, minute, second, micros = said
        with suppress(ValueError):
            time = datetime(year or NO_YEAR, month, day, hour, minute, second, micros)
            return np.datetime64(time, "us")
    return np.datetime64("NaT", "us")


def _times(codes: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.datetime64]:
    """The times of day written from `starts` on; NaT where none is."""
    written = codes[starts[:, None] + np.arange(STAMP_BYTES)]
    digits = written - np.uint8(ord("0"))
    right = np.where(_IS_DIGIT, digits <= 9, written == _STAMP).all(axis=1)
    year, month, day, hour, minute, second, ms = (digits.astype(np.int32) @ _WEIGHTS).T
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    right &= (month >= 1) & (month <= 12) & (days.astype("datetime64[M]") == months)
    right &= (hour < 24) & (minute < 60) & (second < 60)
    of_day = ((hour * 60 + minute) * 60 + second).astype(np.int64) * 1000 + ms
    times = days.astype("datetime64[us]") + of_day.astype("timedelta64[ms]")
    return np.where(right, times, np.datetime64("NaT", "us"))


def _lookups(text: _Text) -> tuple[Columns, int]:
    starts, said, cut = whole_lines(LOOKUP, text.data)
    # None: the answer was not there yet, and the same request is asked again.
    if any(groups[3] for groups in said):
        known = [groups[3] is None for groups in said]
        starts, said = list(compress(starts, known)), list(compress(said, known))
    if not starts:
        return {}, cut
    request, total, engine, _, hit, minus, need, least, bare, _ = zip(*said, strict=True)
    needed = _counts(need)
    return text.place(starts) | {
        "request_id": b"\n".join(request),
        "bare": np.array([sign is not None for sign in bare]),
        "prompt_tokens": _counts(total),
        "engine_hit_tokens": _counts(engine),
        "lmcache_hit_tokens": _counts(hit),
        "need_to_load": np.where([sign is None for sign in minus], needed, -needed),
        "min_retrieve": _counts(least),
    }, cut


def _resumed(text: _Text) -> tuple[Columns, int]:
    starts, said, cut = whole_lines(RESUMED, text.data)
    if not starts:
        return {}, cut
    request, engine, hit, need, _ = zip(*said, strict=True)
    unsaid = np.full(len(starts), -1)
    return text.place(starts) | {
        "request_id": b"\n".join(request),
        "bare": unsaid > 0,
        "prompt_tokens": unsaid,
        "engine_hit_tokens": _counts(engine),
        "lmcache_hit_tokens": _counts(hit),
        "need_to_load": _counts(need),
        "min_retrieve": unsaid,
    }, cut


def _prefetches(text: _Text) -> tuple[Columns, int]:
    starts, said, cut = whole_lines(PREFETCH, text.data)
    if not starts:
        return {}, cut
    found, asked, l1, l2, ms, request, _ = zip(*said, strict=True)
    return text.place(starts) | {
        "request_id": b"\n".join(name or b"" for name in request),
        "found_keys": _counts(found),
        "asked_keys": _counts(asked),
        "l1_keys": _counts(l1),
        "l2_keys": _counts(l2),
        "ms": _measures(ms),
    }, cut


def _transfers(text: _Text) -> tuple[Columns, int]:
    starts, said, cut = whole_lines(STORED, text.data)
    stored = len(starts)
    back, said_back, cut_back = whole_lines(RETRIEVED, text.data)
    # `Retrieved 256 tokens` alone is the last layer's echo of a line that has it all.
    whole = [groups[1] is not None or groups[2] is not None for groups in said_back]
    starts, said = starts + list(compress(back, whole)), said + list(compress(said_back, whole))
    if not starts:
        return {}, cut + cut_back
    tokens, mp_seconds, required, gb, ms, _ = zip(*said, strict=True)
    mp, cost_ms = np.array([count is None for count in required]), _measures(ms)
    names = [b""] * len(starts)
    begins = text.lines(np.array(starts)).tolist()
    for n in np.flatnonzero(~mp).tolist():
        named = REQUEST.search(text.data[begins[n] : starts[n]])
        if named:
            names[n] = named[1]
    return text.place(starts) | {
        "request_id": b"\n".join(names),
        "stored": np.arange(len(starts)) < stored,
        "mp": mp,
        "tokens": _counts(tokens),
        "required": _counts(required),
        "gb": _measures(gb),
        "seconds": np.where(mp, _measures(mp_seconds), np.where(cost_ms < 0, -1.0, cost_ms / 1000)),
    }, cut + cut_back


def _storings(text: _Text) -> tuple[Columns, int]:
    starts, said, cut = whole_lines(STORING, text.data)
    if not starts:
        return {}, cut
    tokens, request, _ = zip(*said, strict=True)
    return text.place(starts) | {
        "request_id": b"\n".join(request),
        "tokens": _counts(tokens),
    }, cut


def _failures(text: _Text) -> tuple[Columns, int]:
    short, said_short, cut = whole_lines(SHORT, text.data)
    failed, said_failed, cut_failed = whole_lines(FAILED, text.data)
    starts = short + failed
    if not starts:
        return {}, cut + cut_failed
    return text.place(starts) | {
        "request_id": b"\n".join(
            [*(_request_before(text, at) for at in short), *(groups[0] for groups in said_failed)]
        ),
        "retrieved": _counts([*(groups[0] for groups in said_short), *[None] * len(failed)]),
        "expected": _counts([*(groups[1] for groups in said_short), *[None] * len(failed)]),
        "missing": _counts([*[None] * len(short), *(groups[1] for groups in said_failed)]),
    }, cut + cut_failed


def _request_before(text: _Text, start: int) -> bytes:
    """The request of a worker's "Num retrieved tokens", from the line before it; else empty."""
    begin = text.data.rfind(b"\n", 0, start)
    before = text.data.rfind(b"\n", 0, max(begin, 0)) + 1
    named = OF_REQUEST.search(text.data, before, max(begin, 0))
    return named[1] if named else b""


_PLACE = re.compile(rb" ?\([\w./-]+:\d+(?::[\w.]+)?\) *$")
_CHANGING = re.compile(r"\S*\d\S*")


def error_kind(message: str) -> str:
    """A message without its numbers and ids."""
    return _CHANGING.sub("#", message)


def _errors(data: bytes) -> Counter[str]:
    """Errors by kind, under the first message of each: they differ in numbers and ids only."""
    firsts, counts = dict[str, str](), Counter[str]()
    for error, warning in ERROR.findall(data):
        message = _PLACE.sub(b"", error or warning).decode("utf-8", "replace").strip()
        kind = error_kind(message)
        if kind in firsts or len(firsts) < _ERROR_KINDS:
            counts[firsts.setdefault(kind, message)] += 1
    return counts


def _counts(said: Iterable[bytes | None]) -> NDArray[np.int64]:
    return np.array([-1 if count is None else int(count) for count in said])


def _measures(said: Iterable[bytes | None]) -> NDArray[np.float64]:
    return np.array([-1.0 if measure is None else float(measure) for measure in said])
