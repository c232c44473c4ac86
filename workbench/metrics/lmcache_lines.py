"""What LMCache's log lines look like, in both generations, and how they are found in a text.

In-process (LMCacheConnectorV1: the lines stand in vLLM's own log) and multi-process ("mp": most
stand in the log of `lmcache server`). The formats were read from the sources of LMCache 0.3 to
0.5.6; only the mp generation has been run here.

A number counts only where the line goes on behind it: one that a cut has shortened would be a
wrong number.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = [
    "CHUNK",
    "EVICTED",
    "LEVEL",
    "LOOKED_FOR",
    "LOOKUP",
    "PREFETCH",
    "REQUEST",
    "RESUMED",
    "RETRIEVED",
    "STAMP_BYTES",
    "STARTED",
    "STORED",
    "rank",
    "whole_lines",
]

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
LOOKUP = _line(
    rb"Reqid: (?:(\S+), Total tokens #(?:, Inference Engine computed tokens: #)?,",
    rb" LMCache hit tokens: (?:(None)|#, (?:but )?need to load: (-)?#",
    rb"(?: < min_retrieve #,| |(?=([\n\r\x1b]))))())?",
)
"""Request, prompt, engine's hit, `None` (no answer yet), hit, minus, need to load, min_retrieve,
and `bare`: the line's end or a colour stands at once behind the last number."""
STORED = _line(rb"Stored #(?: (?:tokens in ~ seconds|out of total # tokens", _COST, rb")())?")
RETRIEVED = _line(
    rb"Retrieved #(?: (?:tokens in ~ seconds|tokens(?= \(| ?\x1b|\r?\n)|out of # ",
    rb"(?:required tokens \(from \d+ total tokens\)|out of total \d+ tokens)",
    _COST,
    rb")())?",
)
PREFETCH = _line(
    rb"Prefetch request completed(?: \(L1\+L2\): #/# (?:retained keys|prefix hits)",
    rb" \(# L1, # L2\) in ~ ms \((?:external_request_id=([^,\s]*), )?",
    rb"prefetch_request_id=-?\d+\)())?",
)
RESUMED = _line(rb"<resume-load>(?: req=(\S+) apc=# lmcache=# load=#(?=\s|\x1b)())?")
EVICTED = re.compile(
    rb"(L[12])(?: memory)? usage [\d.]+ above watermark [\d.]+; triggering eviction"
)
CHUNK = re.compile(rb"chunk_size'?[=:] ?(\d{1,9})(?=[,\s})])")
STARTED = (b"Starting StoreController", b"LMCache initialized for role KVConnectorRole.SCHEDULER")
REQUEST = re.compile(rb"\[req_id=([^\]\s]+)(?: [^\]]*)?\] $")
_RANKS = (re.compile(rb"(?:rank=|TP)(\d+)"), re.compile(rb"DP(\d+)"), re.compile(rb"(pid=\d+)"))
"""What tells the writers of a line apart, the best first."""

LEVEL = b"] LMCache "
"""Stands behind the time of each of LMCache's lines."""
STAMP_BYTES = len("2026-11-21 10:42:29,019")


def whole_lines(
    pattern: re.Pattern[bytes], data: bytes
) -> tuple[list[int], list[tuple[Any, ...]], int]:
    """Where the pattern's lines stand, what they say (its groups), and how many were cut."""
    last, starts, groups, cut = pattern.groups, list[int](), list[tuple[Any, ...]](), 0
    for match in pattern.finditer(data):
        whole = match if match.lastindex == last else _again(match, data)
        if whole is not None:
            starts.append(match.start())
            groups.append(whole.groups())
        else:
            cut += _is_ours(match, data)
    return starts, groups, cut


def _again(match: re.Match[bytes], data: bytes) -> re.Match[bytes] | None:
    """A line that only begins as one of ours, read without the colours within; None for a cut."""
    line = data[match.start() : data.find(b"\n", match.start()) + 1 or len(data)]
    again = match.re.match(_ANSI.sub(b"", line)) if b"\x1b" in line else None
    return again if again and again.lastindex == match.re.groups else None


def _is_ours(match: re.Match[bytes], data: bytes) -> bool:
    start = data.rfind(b"\n", 0, match.start()) + 1
    return b"LMCache" in data[start : data.find(b"\n", match.start()) + 1 or len(data)]


def rank(head: bytes) -> bytes:
    """`1` from `Worker_DP0_TP1` or `rank=1`, else of the data-parallel engine, else the pid.

    `head` is what stands before the time of a line; empty where it says nothing.
    """
    plain = _ANSI.sub(b"", head)
    found = next(filter(None, (pattern.search(plain) for pattern in _RANKS)), None)
    return found[1] if found else b""
