"""Fast path for runs of events that differ only in text and token count, as most do.

Parsing each as JSON costs more than all other work per token. Here the first event of a run is
split at its text and counts, and the following ones must have the same bytes in between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat

import orjson

_CUT = re.compile(
    rb'(.*?"(?:text|content)": ?")((?:[^"\\]|\\.)*)(".*"usage": ?\{"prompt_tokens": ?)([0-9]+)'
    rb'(, ?"total_tokens": ?)([0-9]+)(, ?"completion_tokens": ?)([0-9]+)(.*)',
    re.DOTALL,
)
_KEY = re.compile(rb'"(?:text|content|prompt_tokens|total_tokens|completion_tokens)":')
_CONTROLS = bytes(range(0x20))


def texts_alike(
    data: bytes, following: Sequence[bytes], *, text: str, made: int, prompt: int
) -> list[str]:
    """The texts of the pieces of a body that are each one event like `data`, up to the first other.

    `data` is that of the event before them; it has been parsed, and said `text`, `made` completion
    tokens and `prompt` prompt tokens. Each of theirs has some text, and counts one token more than
    the one before. The pieces have no carriage return.
    """
    cut = _CUT.fullmatch(data)
    if not cut or len(_KEY.findall(data)) != 4 or b"\n" in data:
        return []
    before, said, *_ = cut.groups()
    counts = [int(number) for number in cut.group(4, 6, 8)]
    if _texts([said]) != [text] or counts != [prompt, prompt + made, made]:
        return []
    opening = b"data:" + before
    behind = b"%b%d%b\0%b\0%b\n\n" % (cut[3], prompt, cut[5], cut[7], cut[9])
    begun = [*map(bytes.startswith, following, repeat(opening)), False].index(False)
    rests = _rests(behind, prompt, made, begun)
    alike = [*map(bytes.endswith, following[:begun], rests), False].index(False)
    start = len(opening)
    raw = [piece[start : -len(rest)] for piece, rest in zip(following[:alike], rests, strict=False)]
    if b"" in raw:  # a token whose text is held back
        raw = raw[: raw.index(b"")]
    return _texts(raw) if raw else []


@lru_cache(maxsize=8)
def _rests(behind: bytes, prompt: int, made: int, events: int) -> list[bytes]:
    """The bytes after the text of each event; `behind` has a zero byte for each count.

    Cached, since prompts of one length have the same counts.
    """
    counted = behind.replace(b"%", b"%%").replace(b"\0", b"%d")
    return [counted % (prompt + n, n) for n in range(made + 1, made + 1 + events)]


def _texts(raw: list[bytes]) -> list[str]:
    """Decode JSON string bodies; [] if any is invalid."""
    plain = raw if b"\\" not in b"".join(raw) else [text for text in raw if b"\\" not in text]
    joined = b"\n".join(plain)
    controls = len(joined) - len(joined.translate(None, _CONTROLS))
    if b'"' in joined or controls != max(0, len(plain) - 1):
        return []
    try:
        lines = joined.decode().split("\n")
        if plain is raw:
            return lines
        rest = iter(lines)
        return [orjson.loads(b'"%b"' % text) if b"\\" in text else next(rest) for text in raw]
    except ValueError:
        return []
