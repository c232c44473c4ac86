"""Patterns of LMCache's log lines: in-process (in vLLM's own log) and multi-process ("mp").

Taken from the sources of LMCache 0.3 to 0.5.6 and vLLM's own copy; only mp has been run here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

LOOKED_FOR = '"LMCache hit tokens: ..., need to load: ..." or "Stored ... tokens"'
"""Examples of lines that a useful log has."""


@dataclass(frozen=True, slots=True)
class Line:
    """A kind of line: a pattern whose named groups are the columns of its events.

    The empty group at the pattern's end matches only a complete line, because a number that was cut
    short would be wrong.
    """

    pattern: re.Pattern[bytes]
    marks: tuple[bytes, ...] = ()
    """Bytes of a rare line: looking for them first is faster than a search."""
    warns: bool = False
    """The line occurs only if LMCache logged a warning or worse."""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.pattern.groupindex)


def _line(*parts: bytes, marks: tuple[bytes, ...] = (), warns: bool = False) -> Line:
    """`#` stands for a count and `~` for a measure, with a plausible number of digits."""
    text = b"".join(parts).replace(b"#", rb"\d{1,15}").replace(b"~", rb"\d{1,12}(?:\.\d{1,12})?")
    return Line(re.compile(text), marks, warns)


_COST = rb"(?:\. size: (?P<gb>~) (?:GB|gb), cost (?P<cost_ms>~) ms)?"
_OTHER = rb"(?! [a-np-su-z])"
"""Excludes counts of other things: `Retrieved 33 memory objects`."""

_STARTED = (b"Starting StoreController", b"LMCache initialized for role KVConnectorRole.SCHEDULER")

LINES = {
    # `pending` has no result yet. `bare`: the end of the line or of a JSON string, or a colour,
    # follows the last number directly.
    "lookups": _line(
        rb"Reqid: (?:(?P<request_id>\S+), Total tokens (?P<prompt_tokens>#)",
        rb"(?:, Inference Engine computed tokens: (?P<engine_hit_tokens>#))?,",
        rb" LMCache hit tokens: (?:(?P<pending>None)|(?P<lmcache_hit_tokens>#),",
        rb" (?:but )?need to load: (?P<need_to_load>-?#)",
        rb"(?: < min_retrieve (?P<min_retrieve>#),| |(?=(?P<bare>[\n\r\x1b\\\"]))))())?",
    ),
    # Of a request that had been preempted, in the engine's log (mp).
    "resumed": _line(
        rb"<resume-load>(?: req=(?P<request_id>\S+) apc=(?P<engine_hit_tokens>#)",
        rb" lmcache=(?P<lmcache_hit_tokens>#) load=(?P<need_to_load>#)(?=\s|\x1b)())?",
        marks=(b"<resume-load>",),
    ),
    "prefetches": _line(
        rb"Prefetch request completed(?: \(L1\+L2\): (?P<found_keys>#)/(?P<asked_keys>#)",
        rb" (?:retained keys|prefix hits) \((?P<l1_keys>#) L1, (?P<l2_keys>#) L2\)",
        rb" in (?P<ms>~) ms \((?:external_request_id=(?P<request_id>[^,\s]*), )?",
        rb"prefetch_request_id=-?\d+\)())?",
    ),
    "stored": _line(
        rb"Stored (?P<tokens>\d{1,15}+)",
        _OTHER,
        rb"(?: (?:tokens in (?P<mp_seconds>~) seconds|out of total (?P<required>#) tokens",
        _COST,
        rb")())?",
    ),
    "retrieved": _line(
        rb"Retrieved (?P<tokens>\d{1,15}+)",
        _OTHER,
        rb"(?: (?:tokens in (?P<mp_seconds>~) seconds|tokens(?= \(| ?\x1b|\r?\n)",
        rb"|out of (?P<required>#)",
        rb" (?:required tokens \(from \d+ total tokens\)|out of total \d+ tokens)",
        _COST,
        rb")())?",
    ),
    # Logged before a store, with the prompt so far: the whole prompt once it is computed.
    "storings": _line(
        rb"Storing KV cache for \d+ out of (?P<tokens>#) tokens \([^)\n]{0,60}\)",
        rb" for request (?P<request_id>\S+)()",
        marks=(b"Storing KV cache for ",),
    ),
    # A worker that got fewer tokens than the lookup found.
    "short": _line(
        rb"Num retrieved tokens: (?P<retrieved>#)",
        rb"(?:, num expected tokens: (?P<expected>#)(?=\D)())?",
        marks=(b"num expected tokens: ",),
    ),
    "lost": _line(
        rb"Request (?P<request_id>\S+) failed to load (?P<missing>#)(?: tokens across())?",
        marks=(b" failed to load ",),
        warns=True,
    ),
    "starts": _line(
        rb"(?:",
        b"|".join(map(re.escape, _STARTED)),
        rb")()",
        marks=_STARTED,
    ),
}  # fmt: skip
TEXTS = {"request_id"}
FLAGS = {"pending", "bare"}
MEASURES = {"ms", "mp_seconds", "gb", "cost_ms"}
"""Columns that are not counts."""

EVICTED = re.compile(
    rb"(L[12])(?: memory)? usage [\d.]+ above watermark [\d.]+; triggering eviction"
)
CHUNK = re.compile(rb"chunk_size'?[=:] ?(\d{1,9})(?=[,\s})])")
WORKERS = re.compile(rb"Registered [^\n]{0,200}?world_size=(\d{1,4})\)")
"""An instance that registers with `lmcache server`: each chunk is one key per worker."""
REQUEST = re.compile(rb"\[req_id=([^\]\s]+)(?: [^\]]*)?\] $")
"""The text before `Stored` and `Retrieved` in versions that name the request."""
OF_REQUEST = re.compile(rb"Request (\S+?)The number of retrieved tokens is less")
"""The same for `short`, in the line before."""

_COLOUR = rb"(?:\x1b\[[0-9;]*m)?"
ERROR = re.compile(
    rb"(?:LMCache (?:ERROR|CRITICAL):" + _COLOUR + rb" ?|(?:ERROR|CRITICAL) [\d-]+ [\d:.]+ "
    rb"\[\S*(?:vllm_v1_adapter|lmcache|cache_engine)\S*\] )([^\n\r\x1b]{1,200})"
    rb"|LMCache WARNING:" + _COLOUR + rb" ([^\n\r\x1b]{0,100}?(?:failed to load|can't be retrieved|"
    rb"unhealthy|timed out)[^\n\r\x1b]{0,100})"
)
"""LMCache's failures: the message of an error, or of a warning about lost KV."""

_ANSI = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")


def whole_lines(
    pattern: re.Pattern[bytes], data: bytes
) -> tuple[list[int], list[tuple[Any, ...]], int]:
    """Positions and groups of the pattern's complete lines, and how many were cut."""
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
    """An incomplete match, tried again without colours; None if the line was cut."""
    line = data[match.start() : data.find(b"\n", match.start()) + 1 or len(data)]
    again = match.re.match(_ANSI.sub(b"", line)) if b"\x1b" in line else None
    return again if again and again.lastindex == match.re.groups else None


def _is_ours(match: re.Match[bytes], data: bytes) -> bool:
    start = data.rfind(b"\n", 0, match.start()) + 1
    return b"LMCache" in data[start : data.find(b"\n", match.start()) + 1 or len(data)]
