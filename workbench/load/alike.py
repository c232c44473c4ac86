"""Runs of events that differ only in their text and their count, as nearly all of a stream do.

A JSON parser takes each of them apart into objects that nobody looks at, which costs more than all
else that is done for a token. Here the first of a run is cut at its text and its counts; those that
follow are held to the same bytes in between. An event that agrees is the first one with another
text and counts one higher. Anything else ends the run, and is parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

__all__ = ["Run", "run_after"]

_CUT = re.compile(
    rb'(.*?"(?:text|content)": ?")((?:[^"\\]|\\.)*)(".*"usage": ?\{"prompt_tokens": ?)([0-9]+)'
    rb'(, ?"total_tokens": ?)([0-9]+)(, ?"completion_tokens": ?)([0-9]+)(.*)',
    re.DOTALL,
)
_KEY = re.compile(rb'"(?:text|content|prompt_tokens|total_tokens|completion_tokens)":')
_CONTROL = re.compile(rb"[\x00-\x1f]")


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive events, each with some text and one token more than the one before."""

    texts: list[str]
    ends: list[int]
    """The offset just behind each event, its blank line included."""


def run_after(data: bytes, end: int, body: bytes, *, text: str, made: int, prompt: int) -> Run:
    """The events behind `end` that are like `data`, an empty run where there are none.

    `data` is that of an event which ends there; it has been parsed, and said `text`, `made`
    completion tokens and `prompt` prompt tokens. The body has no carriage return.
    """
    cut = _CUT.fullmatch(data)
    if not cut or len(_KEY.findall(data)) != 4:
        return Run([], [])
    before, said, *_ = cut.groups()
    counts = [int(number) for number in cut.group(4, 6, 8)]
    if _texts([said]) != [text] or counts != [prompt, prompt + made, made]:
        return Run([], [])
    behind = b"%b%d%b\0%b\0%b\n\n" % (cut[3], prompt, cut[5], cut[7], cut[9])
    behind = behind.replace(b"%", b"%%").replace(b"\0", b"%d")
    opening = b"data:" + before
    first, *pieces = body[end:].split(opening)
    texts, ends = [], []
    for piece in pieces if not first else ():
        made += 1
        rest = behind % (prompt + made, made)
        if not piece.endswith(rest):
            break
        end += len(opening) + len(piece)
        texts.append(piece[: -len(rest)])
        ends.append(end)
    decoded = _texts(texts) if texts else []
    return Run(decoded, ends if decoded else [])


def _texts(raw: list[bytes]) -> list[str]:
    """What JSON strings say, given without their quotes; nothing if one is none, or is empty."""
    plain = raw if b"\\" not in b"".join(raw) else [text for text in raw if b"\\" not in text]
    joined = b"\n".join(plain)
    controls = len(_CONTROL.findall(joined))
    if b"" in raw or b'"' in joined or controls != max(0, len(plain) - 1):
        return []
    try:
        lines = joined.decode().split("\n")
        if plain is raw:
            return lines
        rest = iter(lines)
        return [orjson.loads(b'"%b"' % text) if b"\\" in text else next(rest) for text in raw]
    except ValueError:
        return []
