"""The events of an LMCache log of any size, searched block by block without keeping its text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from workbench.metrics.lmcache_log.line_heads import STAMP_BYTES, head_time, stamps, writer
from workbench.metrics.lmcache_log.lines import (
    CHUNK,
    ERROR,
    EVICTED,
    FLAGS,
    LINES,
    MEASURES,
    OF_REQUEST,
    REQUEST,
    TEXTS,
    WORKERS,
    Line,
    whole_lines,
)

BLOCK_BYTES = 8 << 20
_LEVEL = b"] LMCache "
"""Follows the time in each of LMCache's lines."""
_HEAD_BYTES = 300
_MOST_HEADS = 10_000
_ERROR_KINDS = 50

Columns = dict[str, Any]
"""Events of one kind: `offset` (byte in the log), `at`, `writer` (see `line_heads.writer`), and the
values of the line, NaN for a missing number. A column is an array; a column of texts is one text
with a line feed between two events."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """Counts over a whole log."""

    size_bytes: int = 0
    lines: int = 0
    cut: int = 0
    """LMCache lines that were cut or overwritten by another process, and left out."""
    undecodable: int = 0
    """Byte sequences that are not UTF-8."""
    zeros: int = 0
    magic: bytes = b""
    """The first four bytes."""
    evictions: Counter[str] = field(default_factory=Counter)
    """How often eviction from `L1` or `L2` was triggered."""
    chunk_tokens: set[int] = field(default_factory=set)
    """Chunk sizes that the log names."""
    workers: set[int] = field(default_factory=set)
    """Workers of the instances that registered with `lmcache server`."""
    error_kinds: Counter[str] = field(default_factory=Counter)
    first_errors: dict[str, str] = field(default_factory=dict)
    """The first message of each kind."""

    def add(self, part: Counts) -> None:
        """Add the counts of the next part of the log."""
        for name in ("size_bytes", "lines", "cut", "undecodable", "zeros"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.magic = self.magic or part.magic
        self.evictions += part.evictions
        self.chunk_tokens |= part.chunk_tokens
        self.workers |= part.workers
        self.error_kinds += part.error_kinds
        self.first_errors = part.first_errors | self.first_errors

    @property
    def chunk(self) -> int:
        """LMCache's chunk in tokens; 0 if the log names none or several."""
        return next(iter(self.chunk_tokens)) if len(self.chunk_tokens) == 1 else 0

    @property
    def errors(self) -> dict[str, int]:
        """LMCache's errors and warnings of lost KV: the first message of each kind and its count,
        the most frequent first."""
        return {self.first_errors[kind]: count for kind, count in self.error_kinds.most_common()}


@dataclass(slots=True, kw_only=True)
class Events:
    """Events by kind of line (see `lines.LINES`), as columns of each block."""

    columns: dict[str, list[Columns]] = field(default_factory=lambda: {kind: [] for kind in LINES})
    counts: Counts = field(default_factory=Counts)

    def add(self, part: Events, *, offset: int = 0) -> None:
        """Add the next part of the log; its offsets count from `offset` on."""
        for kind, blocks in part.columns.items():
            self.columns[kind] += [block | {"offset": block["offset"] + offset} for block in blocks]
        self.counts.add(part.counts)


def scan_stream(file: BinaryIO) -> Events:
    """All events of a file that can only be read from front to back."""
    events, base, heads = Events(), 0, dict[bytes, bytes]()
    for data in _blocks(file):
        events.add(scan(data, base, heads))
        base += len(data)
    return events


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The file, cut after the last line that ends in each BLOCK_BYTES; longer lines are cut."""
    rest = b""
    while data := file.read(BLOCK_BYTES):
        end = data.rfind(b"\n") + 1 or len(data)
        yield rest + data[:end]
        rest = data[end:]
    if rest:
        yield rest


def scan(data: bytes, base: int, heads: dict[bytes, bytes]) -> Events:
    """Every event of `data`, which begins at byte `base` of the log.

    `heads` caches the writer by the start of a line; pass the same one each time.
    """
    text, found = _Text(data, base, heads), Events()
    found.counts = counts = Counts(
        size_bytes=len(data),
        lines=len(text.begins) - 1,
        undecodable=0 if data.isascii() else data.decode("utf-8", "replace").count("\ufffd"),
        zeros=data.count(0) if b"\0" in data else 0,
        magic=data[:4],
    )
    warned = text.warned()
    for kind, line in LINES.items():
        if line.warns and not warned:
            continue
        if not line.marks or any(mark in data for mark in line.marks):
            columns, cut = _events(text, kind, line)
            counts.cut += cut
            if columns:
                found.columns[kind].append(columns)
    if b"; triggering eviction" in data:
        counts.evictions.update(tier.decode() for tier in EVICTED.findall(data))
    if b"chunk_size" in data:
        counts.chunk_tokens = {int(size) for size in CHUNK.findall(data) if int(size)}
    if b"world_size" in data:
        counts.workers = {int(count) for count in WORKERS.findall(data) if int(count)}
    if warned or found.columns["short"]:
        _count_errors(data, counts)
    return found


def _events(text: _Text, kind: str, line: Line) -> tuple[Columns, int]:
    starts, said, cut = whole_lines(line.pattern, text.data)
    if not starts:
        return {}, cut
    columns = text.place(starts)
    for name, values in zip(line.columns, zip(*said, strict=True), strict=False):
        if name in TEXTS:
            columns[name] = b"\n".join(value or b"" for value in values)
        elif name in FLAGS:
            columns[name] = np.array([value is not None for value in values])
        else:
            number = float if name in MEASURES else int  # which reads bytes in half the time
            said_or_nan = [np.nan if value is None else number(value) for value in values]
            columns[name] = np.array(said_or_nan, float)
    if kind in ("stored", "retrieved"):
        columns["request_id"] = b"\n".join(_requests_in_line(text, starts, columns["required"]))
    elif kind == "short":
        columns["request_id"] = b"\n".join(_request_before(text.data, start) for start in starts)
    return columns, cut


def _requests_in_line(text: _Text, starts: list[int], required: Any) -> list[bytes]:
    """The request named in the line before each start; empty if there is none."""
    names = [b""] * len(starts)
    begins = text.lines(np.array(starts)).tolist()
    for n in np.flatnonzero(~np.isnan(required)).tolist():  # mp lines never name one
        if named := REQUEST.search(text.data[begins[n] : starts[n]]):
            names[n] = named[1]
    return names


def _request_before(data: bytes, start: int) -> bytes:
    """The request of a worker's "Num retrieved tokens", from the line before it; else empty."""
    begin = max(data.rfind(b"\n", 0, start), 0)
    named = OF_REQUEST.search(data, data.rfind(b"\n", 0, begin) + 1, begin)
    return named[1] if named else b""


class _Text:
    """A block of the log, with the positions where lines begin and times end."""

    def __init__(self, data: bytes, base: int, heads: dict[bytes, bytes]) -> None:
        self.data, self.base, self.heads = data, base, heads
        self.codes = np.frombuffer(data, np.uint8)
        self.begins = np.concatenate(([0], np.flatnonzero(self.codes == ord("\n")) + 1))
        levels = np.flatnonzero(self.codes[: -len(_LEVEL)] == _LEVEL[0])
        for place, code in enumerate(_LEVEL):
            levels = levels[self.codes[levels + place] == code]
        # An impossible first position serves lines without a time before them.
        self.levels = np.concatenate(([-1], levels))

    def warned(self) -> bool:
        """Whether any of LMCache's lines is a warning or worse."""
        behind = np.minimum(self.levels[1:] + len(_LEVEL), len(self.codes) - 1)
        return bool(np.isin(self.codes[behind], np.frombuffer(b"WEC", np.uint8)).any())

    def lines(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the lines with the bytes `starts` begin."""
        return self.begins[np.searchsorted(self.begins, starts, "right") - 1]

    def place(self, starts: Sequence[int]) -> Columns:
        """Offset, time and writer, as far as the starts of the lines show them."""
        at = np.array(starts)
        begins = self.lines(at)
        if b"\r" in self.data:  # a progress bar is drawn again and again before the line
            drawn = map(self.data.rfind, repeat(b"\r"), begins.tolist(), at.tolist())
            begins = np.maximum(begins, np.fromiter(drawn, np.int64, len(at)) + 1)
        behind = np.searchsorted(self.levels, at - len(_LEVEL), "right") - 1
        ends = self.levels[behind] - STAMP_BYTES
        told = ends >= begins
        times = np.full(len(at), "NaT", "datetime64[us]")
        times[told] = stamps(self.codes, ends[told])
        told &= ~np.isnat(times)  # another format
        ends[~told] = np.minimum(at, begins + _HEAD_BYTES)[~told]
        for n in np.flatnonzero(~told).tolist():
            times[n] = head_time(self.data[begins[n] : ends[n]])
        writers = map(self._writer, begins.tolist(), ends.tolist())
        return {"offset": at + self.base, "at": times, "writer": b"\n".join(writers)}

    def _writer(self, begin: int, end: int) -> bytes:
        head = self.data[begin:end]
        found = self.heads.get(head)
        if found is None:
            found = writer(head)
            if len(self.heads) < _MOST_HEADS:  # a damaged log may have a new start in each line
                self.heads[head] = found
        return found


_PLACE = re.compile(rb" ?\([\w./-]+:\d+(?::[\w.]+)?\) *$")
_CHANGING = re.compile(r"\S*\d\S*")


def _count_errors(data: bytes, counts: Counts) -> None:
    """Count errors by kind: errors of one kind differ only in numbers and ids."""
    for error, warning in ERROR.findall(data):
        message = _PLACE.sub(b"", error or warning).decode("utf-8", "replace").strip()
        kind = _CHANGING.sub("#", message)
        if kind in counts.first_errors or len(counts.first_errors) < _ERROR_KINDS:
            counts.first_errors.setdefault(kind, message)
            counts.error_kinds[kind] += 1
