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
from collections.abc import Iterator
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
    for stored, pattern in ((True, _STORED), (False, _RETRIEVED)):
        _scan_transfers(data, base, ranks, found, pattern, stored=stored)
    for match, start in _matches(_PREFETCH, data, found):
        at, rank, _ = _place(data, start, ranks)
        hits, asked, l1, l2, ms, request, _ = match.groups()
        row = (at, rank, base + start, request or b"", int(hits), int(asked), int(l1), int(l2))
        found.prefetches.append((*row, float(ms)))
    for match, start in _matches(_RESUMED, data, found):
        at, rank, _ = _place(data, start, ranks)
        request, engine, hit, need, _ = match.groups()
        known = (-1, int(engine), int(hit), int(need), -1)
        found.resumed.append((at, rank, base + start, False, request, *known))
    if b"; triggering eviction" in data:  # looking for the pattern itself would be slow
        found.evictions = Counter(tier.decode() for tier in _EVICTED.findall(data))
    found.chunk_tokens = {int(size) for size in _CHUNK.findall(data) if int(size)}
    found.starts = sum(data.count(line) for line in _STARTED)
    return found


def _scan_lookups(data: bytes, base: int, ranks: dict[bytes, str], found: Block) -> None:
    add = found.lookups.append
    for match, start in _matches(_LOOKUP, data, found):
        request, total, engine, none, hit, minus, need, least, _ = match.groups()
        if none:
            continue  # the answer was not there yet: the same request is asked again
        end = match.end()
        after = match.string[end : end + 1]
        bare = after != b" " and least is None
        if bare and after not in (b"\n", b"\r", b"\x1b"):
            found.cut += 1
            continue
        at, rank, _ = _place(data, start, ranks)
        said_engine = -1 if engine is None else int(engine)
        difference = -int(need) if minus else int(need)
        row = (at, rank, base + start, bare, request, int(total), said_engine, int(hit))
        add((*row, difference, -1 if least is None else int(least)))


def _scan_transfers(
    data: bytes,
    base: int,
    ranks: dict[bytes, str],
    found: Block,
    pattern: re.Pattern[bytes],
    *,
    stored: bool,
) -> None:
    add = found.transfers.append
    for match, start in _matches(pattern, data, found):
        tokens, mp_seconds, required, gb, ms, _ = match.groups()
        if mp_seconds is None and required is None:
            continue  # `Retrieved 256 tokens`: the last layer's echo of a line that has it all
        at, rank, before = _place(data, start, ranks)
        place = (at, rank, base + start)
        if required is None:
            add((*place, b"", stored, True, int(tokens), -1.0, float(mp_seconds)))
            continue
        named = _REQUEST.search(before)
        request = named[1] if named else b""
        cost = (-1.0, -1.0) if gb is None else (float(gb), float(ms) / 1000)
        add((*place, request, stored, False, int(tokens), *cost))


def _matches(
    pattern: re.Pattern[bytes], data: bytes, found: Block
) -> Iterator[tuple[re.Match[bytes], int]]:
    """The whole matches and where they start; a line that only begins as one is counted as cut.

    A colour inside the text hides a line at first: it is read again without.
    """
    whole = pattern.groups
    for match in pattern.finditer(data):
        start = match.start()
        if match.lastindex == whole:
            yield match, start
            continue
        line = data[start : data.find(b"\n", start) + 1 or len(data)]
        again = pattern.match(_ANSI.sub(b"", line)) if b"\x1b" in line else None
        if again and again.lastindex == whole:
            yield again, start
        elif b"LMCache" in data[data.rfind(b"\n", 0, start) + 1 : start + len(line)]:
            found.cut += 1


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
