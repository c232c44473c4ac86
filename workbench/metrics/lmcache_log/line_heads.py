"""The start of a log line: which process wrote it, and when."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

NO_YEAR = 1904
"""The year of a timestamp without one."""
STAMP_BYTES = len("2026-11-21 10:42:29,019")
"""Length of LMCache's own timestamp, before `] LMCache `."""
NO_TIME = np.datetime64("NaT", "us")

_ANSI = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_STAMPS = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
    rb"|\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b:?(?: +\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?)?"
    rb"|\b[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d\b|\[[\w./]+\.py:\d+\]"
    rb"|\\u001b\[[\d;]*m|^\{\"log\":\""
)
"""Parts before a message that change from line to line: times, levels, places."""
_BAR = re.compile(rb"[^|(\[\n]*\d%\|[^|\n]*\|[^\[\]\n]*\[[^\]\n]*\]")
"""A progress bar of tqdm: vLLM's LLM class draws them into the lines of its engine."""
_PROCESS = re.compile(rb"\(([^()]*)pid=(\d+)\)")
_DATA_PARALLEL = re.compile(rb"DP(\d+)")
_RANK = re.compile(rb"rank=(\d+)|(?:PP(\d+)_)?TP(\d+)")


def writer(head: bytes) -> bytes:
    """The writer of a line: process, engine and rank in the engine, separated by tabs.

    `head` is the text before the time or the message. Anything in it that is not a time (a
    container's name, a pid) identifies the process. Data-parallel engines are separate engines with
    their own caches; tensor- and pipeline-parallel workers are ranks of one engine, and so are
    workers with only a pid.
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


_OF_VLLM = re.compile(rb"(\d\d-\d\d) (\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)(?!\d)")
_ISO = re.compile(rb"(\d{4})-(\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)")
_OF_SYSLOG = re.compile(rb"\b([A-Z][a-z]{2} +\d{1,2}) (\d\d:\d\d:\d\d)\b")


def head_time(head: bytes) -> np.datetime64:
    """The time of a line without LMCache's own: vLLM's, a container's or journald's.

    vLLM's is preferred, because it uses the same clock as LMCache's. The year is NO_YEAR if the
    line has none; NaT if it has no time.
    """
    iso, vllm = _ISO.search(head), _OF_VLLM.search(_ISO.sub(b"", head))
    year = iso[1].decode() if iso else NO_YEAR
    clock = vllm.groups() if vllm else iso.groups()[1:] if iso else ()
    with suppress(ValueError):
        if clock:
            day, of_day = clock
            at = datetime.fromisoformat(f"{year}-{day.decode()} {of_day.decode()}")
            return np.datetime64(at, "us")
        if found := _OF_SYSLOG.search(head):
            text = f"{NO_YEAR} {found[1].decode()} {found[2].decode()}"
            return np.datetime64(datetime.strptime(text, "%Y %b %d %H:%M:%S"), "us")
    return NO_TIME


def stamps(codes: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.datetime64]:
    """LMCache's timestamps at these positions; NaT if there is none."""
    written = codes[starts[:, None] + np.arange(STAMP_BYTES)]
    written[written == ord(",")] = ord(".")
    texts = written.view(f"S{STAMP_BYTES}").ravel()
    with suppress(ValueError):
        return texts.astype("datetime64[us]")
    return np.array([_stamp(text) for text in texts.tolist()], "datetime64[us]")


def _stamp(text: bytes) -> np.datetime64:
    with suppress(ValueError):
        return np.datetime64(text.decode("ascii"), "us")
    return NO_TIME
