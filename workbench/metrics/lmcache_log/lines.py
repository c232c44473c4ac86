"""What LMCache's log lines look like, in both generations, and how they are found in a text.

In-process (LMCacheConnectorV1: the lines stand in vLLM's own log) and multi-process ("mp": most
stand in the log of `lmcache server`). The formats were read from the sources of LMCache 0.3 to
0.5.6 and of vLLM's own copy of the in-process one, whose lines carry vLLM's time instead of
LMCache's; only the mp generation has been run here.

A number counts only where the line goes on behind it: one that a cut has shortened would be a
wrong number.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = [
    "CHUNK",
    "ERROR",
    "EVICTED",
    "FAILED",
    "LEVEL",
    "LOOKED_FOR",
    "LOOKUP",
    "OF_REQUEST",
    "PREFETCH",
    "REQUEST",
    "RESUMED",
    "RETRIEVED",
    "SHORT",
    "STAMP_BYTES",
    "STARTED",
    "STORED",
    "STORING",
    "WORKERS",
    "head_time",
    "whole_lines",
    "writer",
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
    rb"(?: < min_retrieve #,| |(?=([\n\r\x1b\\\"]))))())?",
)
"""Request, prompt, engine's hit, `None` (no answer yet), hit, minus, need to load, min_retrieve,
and `bare`: the line's end, a colour or a JSON string's end stands at once behind the last
number."""
_OTHER = rb"(?! [a-np-su-z])"
"""A number of something else than tokens: `Retrieved 33 memory objects`."""
STORED = _line(
    rb"Stored (\d{1,15}+)",
    _OTHER,
    rb"(?: (?:tokens in ~ seconds|out of total # tokens",
    _COST,
    rb")())?",
)
RETRIEVED = _line(
    rb"Retrieved (\d{1,15}+)",
    _OTHER,
    rb"(?: (?:tokens in ~ seconds|tokens(?= \(| ?\x1b|\r?\n)|out of # ",
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
STORING = _line(rb"Storing KV cache for \d+ out of # tokens \([^)\n]{0,60}\) for request (\S+)()")
"""Told before a store, with the prompt so far: of it all once the prompt has been computed."""
EVICTED = re.compile(
    rb"(L[12])(?: memory)? usage [\d.]+ above watermark [\d.]+; triggering eviction"
)
CHUNK = re.compile(rb"chunk_size'?[=:] ?(\d{1,9})(?=[,\s})])")
WORKERS = re.compile(rb"Registered [^\n]{0,200}?world_size=(\d{1,4})\)")
"""An instance that registers with `lmcache server`: each chunk is one key for each of so many."""
STARTED = (b"Starting StoreController", b"LMCache initialized for role KVConnectorRole.SCHEDULER")
REQUEST = re.compile(rb"\[req_id=([^\]\s]+)(?: [^\]]*)?\] $")
SHORT = _line(rb"Num retrieved tokens: #(?:, num expected tokens: #(?=\D)())?")
"""A worker that got fewer tokens than the lookup had promised. Its request, where a version names
it, stands in the line before (OF_REQUEST)."""
OF_REQUEST = re.compile(rb"Request (\S+?)The number of retrieved tokens is less")
FAILED = _line(rb"Request (\S+) failed to load #(?: tokens across())?")
_COLOUR = rb"(?:\x1b\[[0-9;]*m)?"
ERROR = re.compile(
    rb"(?:LMCache (?:ERROR|CRITICAL):" + _COLOUR + rb" ?|(?:ERROR|CRITICAL) [\d-]+ [\d:.]+ "
    rb"\[\S*(?:vllm_v1_adapter|lmcache|cache_engine)\S*\] )([^\n\r\x1b]{1,200})"
    rb"|LMCache WARNING:" + _COLOUR + rb" ([^\n\r\x1b]{0,100}?(?:failed to load|can't be retrieved|"
    rb"unhealthy|timed out)[^\n\r\x1b]{0,100})"
)
"""What LMCache says of a failure: the message of an error, or of a warning about lost KV."""

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


_STAMPS = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
    rb"|\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b:?(?: +\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?)?"
    rb"|\b[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d\b|\[[\w./]+\.py:\d+\]"
    rb"|\\u001b\[[\d;]*m|^\{\"log\":\""
)
"""What changes from line to line in what stands before a message: times, levels, places."""
_BAR = re.compile(rb"[^|(\[\n]*\d%\|[^|\n]*\|[^\[\]\n]*\[[^\]\n]*\]")
"""A progress bar of tqdm: vLLM's LLM class draws them into the lines of its engine."""
_PROCESS = re.compile(rb"\(([^()]*)pid=(\d+)\)")
_DATA_PARALLEL = re.compile(rb"DP(\d+)")
_RANK = re.compile(rb"rank=(\d+)|(?:PP(\d+)_)?TP(\d+)")


def writer(head: bytes) -> bytes:
    """Who wrote a line: its process, its engine and its rank in that, with tabs between.

    `head` is what stands before the time or the message. Processes differ by anything in it that
    is no time (a container's name, a pid). Data-parallel engines are engines, each with its own
    cache; tensor- and pipeline-parallel workers are ranks of one engine, and so are workers that
    have nothing but a pid.
    """
    if b"%|" in head:
        head = _BAR.sub(b"", head)
    plain = b" ".join(_STAMPS.sub(b"", _ANSI.sub(b"", head)).split())
    plain = plain.partition(b"[] LMCache")[0].rstrip(b" [")
    found = _PROCESS.search(plain)
    if not found:
        return b"\t".join((plain, (plain + b" DP0").strip(), b""))
    name, pid = found.groups()
    numbers, engine = _RANK.search(name), _DATA_PARALLEL.search(name)
    rank = b"-".join(filter(None, numbers.groups())) if numbers else b""
    if not rank and b"orker" in name:
        rank = b"pid " + pid
    outside = (plain[: found.start()] + plain[found.end() :]).strip()
    label = (outside + b" DP" + (engine[1] if engine else b"0")).strip()
    return b"\t".join((plain, label, rank))


_MONTHS = {name: n for n, name in enumerate(
    b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1)}  # fmt: skip
_OF_VLLM = re.compile(rb"(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(?!\d)")
_ISO = re.compile(rb"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?")
_OF_SYSLOG = re.compile(rb"\b([A-Z][a-z]{2}) +(\d{1,2}) (\d\d):(\d\d):(\d\d)\b")


def head_time(head: bytes) -> tuple[int, ...] | None:
    """The time of a line without LMCache's own: vLLM's, a container's or journald's.

    (year, month, day, hour, minute, second, microsecond), with year 0 where it is not written.
    vLLM's comes first: it is of the same clock as LMCache's.
    """
    for pattern, text in ((_OF_VLLM, _ISO.sub(b"", head)), (_ISO, head), (_OF_SYSLOG, head)):
        found = pattern.search(text)
        if found:
            parts = [*found.groups(), b""][: 7 if pattern is _ISO else 6]
            fraction = parts.pop() or b""
            if pattern is _OF_SYSLOG:
                parts[0] = b"%d" % _MONTHS.get(parts[0], 0)
            dated = _ISO.search(head) if pattern is _OF_VLLM else None
            year = () if pattern is _ISO else (int(dated[1]) if dated else 0,)
            return (*year, *map(int, parts), int(fraction.ljust(6, b"0")[:6]))
    return None
