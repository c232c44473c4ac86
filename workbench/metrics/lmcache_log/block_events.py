"""The events of an LMCache log of any size, gathered in blocks: what is kept is never its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from workbench.metrics.lmcache_log.block import Columns, error_kind, scan

__all__ = ["BLOCK_BYTES", "KINDS", "Events", "block_events", "error_kinds", "stream_events"]

BLOCK_BYTES = 8 << 20
KINDS = ("lookups", "resumed", "prefetches", "transfers", "storings", "failures", "starts")


@dataclass(slots=True)
class Events:
    """Events by kind, as columns of each block, and what is counted on the way.

    `undecodable` are places that are not UTF-8, `zeros` zero bytes, `magic` the first four bytes.
    """

    columns: dict[str, list[Columns]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    size_bytes: int = 0
    lines: int = 0
    cut: int = 0
    undecodable: int = 0
    zeros: int = 0
    magic: bytes = b""
    evictions: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    chunk_tokens: set[int] = field(default_factory=set)
    workers: set[int] = field(default_factory=set)

    def move(self, by: int) -> None:
        """Count offsets from so many bytes before the log."""
        for blocks in self.columns.values():
            for block in blocks:
                offset = block["offset"]
                assert not isinstance(offset, bytes)
                block["offset"] = offset + by

    def add(self, part: Events) -> None:
        """Take in what follows in the log."""
        for kind, found in part.columns.items():
            self.columns[kind] += found
        self.magic = self.magic or part.magic
        for name in ("size_bytes", "lines", "cut", "undecodable", "zeros"):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.evictions += part.evictions
        self.errors += part.errors
        self.chunk_tokens |= part.chunk_tokens
        self.workers |= part.workers


def block_events(data: bytes, base: int, heads: dict[bytes, bytes]) -> Events:
    """Those of one block, which begins at byte `base`; `heads` as `scan` wants it."""
    block = scan(data, base, heads)
    return Events(
        columns={kind: [columns] for kind, columns in block.events.items()},
        size_bytes=len(data),
        lines=block.lines,
        cut=block.cut,
        undecodable=0 if data.isascii() else data.decode("utf-8", "replace").count("\ufffd"),
        zeros=data.count(0) if b"\0" in data else 0,
        magic=data[:4],
        evictions=block.evictions,
        errors=block.errors,
        chunk_tokens=block.chunk_tokens,
        workers=block.workers,
    )


def error_kinds(errors: Counter[str]) -> dict[str, int]:
    """Errors of several blocks by kind, under the first message of each, the most frequent first.

    Sorting is stable, so of equally frequent ones the first in the log stands first.
    """
    firsts, counts = dict[str, str](), Counter[str]()
    for message, count in errors.items():
        counts[firsts.setdefault(error_kind(message), message)] += count
    return dict(counts.most_common())


def stream_events(file: BinaryIO) -> Events:
    """All of a file that can only be read from front to back."""
    events, base, heads = Events(), 0, dict[bytes, bytes]()
    for data in _blocks(file):
        events.add(block_events(data, base, heads))
        base += len(data)
    return events


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The file, cut behind the last line that ends in each BLOCK_BYTES; longer lines are cut."""
    rest = b""
    while data := file.read(BLOCK_BYTES):
        end = data.rfind(b"\n") + 1 or len(data)
        yield rest + data[:end]
        rest = data[end:]
    if rest:
        yield rest
