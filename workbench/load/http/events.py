"""The server-sent events of a body that has arrived (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["BYTE_ORDER_MARK", "ENDS_BLANK", "events_of"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
ENDS_BLANK = re.compile(_EVENT_END.pattern + rb"\Z")
_NAMED_ERROR = re.compile(rb"event: ?error$")


def events_of(body: bytes, start: int) -> Iterator[tuple[int, bytes, bool]]:
    """The offset just behind each event, its data, and whether it is named `error`.

    Those from `start` on, which is 0 or behind an event. What follows the last blank line counts
    as an event too: some servers leave out the last one.
    """
    if not start and body.startswith(BYTE_ORDER_MARK):
        start = len(BYTE_ORDER_MARK)
    if b"\r" not in body:
        while start < len(body):
            stop = body.find(b"\n\n", start)
            event = body[start : stop if stop >= 0 else None]
            start = stop + 2 if stop >= 0 else len(body)
            if event[:5] == b"data:" and b"\n" not in event:
                yield start, event[5:], False  # one line, as nearly always
            elif event:
                yield from _lines_of(start, event)
        return
    for match in _EVENT_END.finditer(body):
        yield from _lines_of(match.end(), body[start : match.end()])
        start = match.end()
    yield from _lines_of(len(body), body[start:])


def _lines_of(end: int, event: bytes) -> Iterator[tuple[int, bytes, bool]]:
    lines = event.splitlines()
    data = [line[5:] for line in lines if line.startswith(b"data:")]
    if data:
        yield end, b"\n".join(data), any(_NAMED_ERROR.match(line) for line in lines)
