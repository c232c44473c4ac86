"""What LMCache's log lines look like, in both generations, and how a block of log is searched.

In-process (LMCacheConnectorV1: the lines stand in vLLM's own log) and multi-process ("mp": most
stand in the log of `lmcache server`). The formats were read from the sources of LMCache 0.3 to
0.5.6; only the mp generation has been run here.

A number counts only where the line goes on behind it: one that a cut has shortened would be a
wrong number.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LOOKED_FOR", "Block", "scan"]

LOOKED_FOR = (
    '"Reqid: ..., LMCache hit tokens: ..., need to load: ..."',
    '"Stored ... tokens" and "Retrieved ... tokens"',
    '"Prefetch request completed (L1+L2): ..."',
)
"""The lines that a log must have to be of use, for a sentence."""

_ANSI = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")


def _line(*parts: bytes) -> re.Pattern[bytes]:
    """A pattern in which `#` is a count and `~` a measure, no longer than a number can be."""
    text = b"".join(parts)
    return re.compile(
        text.replace(b"#", rb"(\d{1,15})").replace(b"~", rb"(\d{1,12}(?:\.\d{1,12})?)")
    )


# The empty group at the end of each pattern matches only where the line has all that belongs to it.
_COST = rb"(?:\. size: ~ (?:GB|gb), cost ~ ms)?"
_LOOKUP = _line(
    rb"Reqid: (?:(\S+), Total tokens #(?:, Inference Engine computed tokens: #)?,",
    rb" LMCache hit tokens: (?:(None)|#, (?:but )?need to load: (-)?#(?: < min_retrieve #,)?)())?",
)
_STORED = _line(rb"Stored #(?: (?:tokens in ~ seconds|out of total # tokens", _COST, rb")())?")
_RETRIEVED = _line(
    rb"Retrieved #(?: (?:tokens in ~ seconds|tokens(?= \(| ?\x1b|\r?\n)|out of # ",
    rb"(?:required tokens \(from \d+ total tokens\)|out of total \d+ tokens)",
    _COST,
    rb")())?",
)
_PREFETCH = _line(
    rb"Prefetch request completed(?: \(L1\+L2\): #/# (?:retained keys|prefix hits)",
    rb" \(# L1, # L2\) in ~ ms \((?:external_request_id=([^,\s]*), )?",
    rb"prefetch_request_id=-?\d+\)())?",
)
_RESUMED = _line(rb"<resume-load>(?: req=(\S+) apc=# lmcache=# load=#(?=\s|\x1b)())?")
_EVICTED = re.compile(
    rb"(L[12])(?: memory)? usage [\d.]+ above watermark [\d.]+; triggering eviction"
)
_CHUNK = re.compile(rb"chunk_size'?[=:] ?(\d{1,9})(?=[,\s})])")
_STARTED = (b"Starting StoreController", b"LMCache initialized for role KVConnectorRole.SCHEDULER")
_REQUEST = re.compile(rb"\[req_id=([^\]\s]+)(?: [^\]]*)?\] $")
_RANKS = (re.compile(rb"(?:rank=|TP)(\d+)"), re.compile(rb"DP(\d+)"), re.compile(rb"(pid=\d+)"))
"""What tells the writers of a line apart, the best first."""

_BEFORE_LEVEL = b"] LMCache "
_STAMP_BYTES = len("2026-11-21 10:42:29,019")

Event = tuple[Any, ...]


@dataclass(slots=True)
class Block:
    """What one block of a log holds: rows by kind, each beginning with where it stands.

    `lookups`: at, rank, offset, bare, request id, prompt, engine hit (-1: not said), hit, need to
    load, min_retrieve (-1: not said). `prefetches`: at, rank, offset, request id, keys found,
    keys asked, in L1, in L2, ms. `transfers`: at, rank, offset, request id, stored?, mp?, tokens,
    GB (-1: not said), seconds (-1: not said).
    """

    lookups: list[Event] = field(default_factory=list)
    prefetches: list[Event] = field(default_factory=list)
    transfers: list[Event] = field(default_factory=list)
    resumed: list[Event] = field(default_factory=list)
    """As `lookups`; of a request that had been preempted, in the engine's log."""
    cut: int = 0
    """Lines that begin as one of ours and do not end as one."""
    evictions: Counter[str] = field(default_factory=Counter)
    """Times that the eviction of `L1` or `L2` was triggered."""
    starts: int = 0
    chunk_tokens: set[int] = field(default_factory=set)


def scan(data: bytes, base: int, ranks: dict[bytes, str]) -> Block:
    """Every event of `data`, which begins at byte `base` of the log.

    `ranks` remembers what the beginning of a line says of its process; give the same one each time.
    """
    found = Block()
    _scan_lookups(data, base, ranks, found)
    _scan_transfers(data, base, ranks, found, _STORED, stored=True)
    _scan_transfers(data, base, ranks, found, _RETRIEVED, stored=False)
    for match in _PREFETCH.finditer(data):
        start = match.start()
        whole = match if match.lastindex == _PREFETCH.groups else _again(match, data, found)
        if whole is not None:
            at, rank, _ = _place(data, start, ranks)
            hits, asked, l1, l2, ms, request, _ = whole.groups()
            keys = (int(hits), int(asked), int(l1), int(l2))
            found.prefetches.append((at, rank, base + start, request or b"", *keys, float(ms)))
    # Seldom there: to ask whether they are is faster than to look for them with a pattern.
    if b"<resume-load>" in data:
        _scan_resumed(data, base, ranks, found)
    if b"; triggering eviction" in data:
        found.evictions = Counter(tier.decode() for tier in _EVICTED.findall(data))
    if b"chunk_size" in data:
        found.chunk_tokens = {int(size) for size in _CHUNK.findall(data) if int(size)}
    found.starts = sum(data.count(line) for line in _STARTED)
    return found


def _scan_lookups(data: bytes, base: int, ranks: dict[bytes, str], found: Block) -> None:
    add, groups = found.lookups.append, _LOOKUP.groups
    for first in _LOOKUP.finditer(data):
        match = first if first.lastindex == groups else _again(first, data, found)
        if match is None:
            continue
        request, total, engine, none, hit, minus, need, least, _ = match.groups()
        if none:
            continue  # the answer was not there yet: the same request is asked again
        start, end = first.start(), match.end()
        after = match.string[end : end + 1]
        bare = after != b" " and least is None
        if bare and after not in (b"\n", b"\r", b"\x1b"):
            found.cut += 1
            continue
        at, rank, _ = _place(data, start, ranks)
        add(
            (
                at,
                rank,
                base + start,
                bare,
                request,
                int(total),
                -1 if engine is None else int(engine),
                int(hit),
                -int(need) if minus else int(need),
                -1 if least is None else int(least),
            )
        )


def _scan_transfers(
    data: bytes,
    base: int,
    ranks: dict[bytes, str],
    found: Block,
    pattern: re.Pattern[bytes],
    *,
    stored: bool,
) -> None:
    add, groups = found.transfers.append, pattern.groups
    for first in pattern.finditer(data):
        match = first if first.lastindex == groups else _again(first, data, found)
        if match is None:
            continue
        tokens, mp_seconds, required, gb, ms, _ = match.groups()
        start = first.start()
        if required is not None:
            at, rank, before = _place(data, start, ranks)
            named = _REQUEST.search(before)
            request = named[1] if named else b""
            cost = (-1.0, -1.0) if gb is None else (float(gb), float(ms) / 1000)
            add((at, rank, base + start, request, stored, False, int(tokens), *cost))
        elif mp_seconds is not None:
            at, rank, _ = _place(data, start, ranks)
            add((at, rank, base + start, b"", stored, True, int(tokens), -1.0, float(mp_seconds)))
        # Else `Retrieved 256 tokens`: the last layer's echo of a line that has it all.


def _scan_resumed(data: bytes, base: int, ranks: dict[bytes, str], found: Block) -> None:
    for first in _RESUMED.finditer(data):
        match = first if first.lastindex == _RESUMED.groups else _again(first, data, found)
        if match is not None:
            at, rank, _ = _place(data, first.start(), ranks)
            request, engine, hit, need, _ = match.groups()
            known = (-1, int(engine), int(hit), int(need), -1)
            found.resumed.append((at, rank, base + first.start(), False, request, *known))


def _again(match: re.Match[bytes], data: bytes, found: Block) -> re.Match[bytes] | None:
    """A line that only begins as one of ours, read without the colours within; None for a cut."""
    start = match.start()
    line = data[start : data.find(b"\n", start) + 1 or len(data)]
    again = match.re.match(_ANSI.sub(b"", line)) if b"\x1b" in line else None
    if again and again.lastindex == match.re.groups:
        return again
    found.cut += b"LMCache" in data[data.rfind(b"\n", 0, start) + 1 : start + len(line)]
    return None


def _place(data: bytes, start: int, ranks: dict[bytes, str]) -> tuple[bytes, str, bytes]:
    """Time and rank that a line's beginning gives (empty where it does not), and that beginning."""
    before = data[data.rfind(b"\n", 0, start) + 1 : start]
    level = before.rfind(_BEFORE_LEVEL)
    if level < _STAMP_BYTES:
        return b"", "", before
    at, head = before[level - _STAMP_BYTES : level], before[: level - _STAMP_BYTES]
    rank = ranks.get(head)
    if rank is None:
        rank = _rank(head)
        if len(ranks) < 10_000:  # a torn log may have a new beginning in each line
            ranks[head] = rank
    return at, rank, before


def _rank(head: bytes) -> str:
    """`1` from `Worker_DP0_TP1` or `rank=1`, else of the data-parallel engine, else the pid."""
    plain = _ANSI.sub(b"", head)
    found = next(filter(None, (pattern.search(plain) for pattern in _RANKS)), None)
    return found[1].decode() if found else ""
