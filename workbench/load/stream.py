"""What a streamed answer says: server-sent events parsed in bulk, after the stream has ended.

How the bytes were split into reads decides when something arrived, never what it means.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import orjson

__all__ = ["ParsedStream", "error_message", "parse_stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedStream:
    """The stream's content; the fields that `records.RequestRecord` has too mean the same."""

    chunk_s: tuple[float, ...]
    chunk_tokens: tuple[int, ...]
    text: str
    """Reasoning, content and tool calls in the order of their arrival."""
    finish_reason: str
    done: bool
    """Did `data: [DONE]` arrive?"""
    usage_prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    engine_metrics: str
    error: str
    """`stream_error`, `protocol` (an event that is not the JSON of a chunk), or empty."""
    error_message: str


def parse_stream(reads: Iterable[tuple[float, bytes]]) -> ParsedStream:
    """Parse a body given as (arrival in seconds, bytes) of each read, in order.

    An event arrived with its last byte. A chunk carries tokens if it has content, reasoning or a
    tool call, or if its usage counts more completion tokens than before: an engine that holds back
    half a character sends empty text for a token that it has made. A role-only or empty chunk
    carries none. `chunk_tokens` is known only if each of those chunks has a usage.
    What came before an error is kept; what comes after it is not read.
    """
    stamps, pieces = zip(*reads, strict=True) if (reads := list(reads)) else ((), ())
    body, ends = b"".join(pieces), list(accumulate(map(len, pieces)))
    seen = _Seen()
    for end, data in _events(body):
        if data.strip() == b"[DONE]":
            seen.done = True
            break
        try:
            seen.take(stamps[bisect_left(ends, end)], orjson.loads(data))
        except orjson.JSONDecodeError:
            if end < len(body):  # else it was cut short, and the missing finish tells
                seen.error, seen.message = "protocol", f"an event is not JSON: {_start(data)}"
        except (AttributeError, KeyError, TypeError, ValueError):
            seen.error, seen.message = "protocol", f"an event is not a chunk: {_start(data)}"
        if seen.error:
            break
    return ParsedStream(
        chunk_s=tuple(seen.chunk_s),
        chunk_tokens=() if -1 in seen.chunk_tokens else tuple(seen.chunk_tokens),
        text="".join(seen.texts),
        finish_reason=seen.finish_reason,
        done=seen.done,
        usage_prompt_tokens=seen.prompt_tokens,
        output_tokens=seen.output_tokens,
        cached_tokens=seen.cached_tokens,
        engine_metrics=seen.engine_metrics,
        error=seen.error,
        error_message=seen.message,
    )


class _Seen:
    """What the chunks so far have said."""

    def __init__(self) -> None:
        self.chunk_s: list[float] = []
        self.chunk_tokens: list[int] = []
        self.texts: list[str] = []
        self.finish_reason = self.engine_metrics = self.error = self.message = ""
        self.done = False
        self.prompt_tokens = self.output_tokens = self.cached_tokens = -1

    def take(self, stamp_s: float, chunk: dict[str, Any]) -> None:
        """Add a chunk. Raises an error of Python's own when it is not in the shape of one."""
        if chunk.get("error") or chunk.get("object") == "error":
            self.error, self.message = "stream_error", _message(chunk)
            return
        before = max(0, self.output_tokens)
        usage = chunk.get("usage")
        if usage:
            details = usage.get("prompt_tokens_details") or {}
            self.prompt_tokens = int(usage.get("prompt_tokens", self.prompt_tokens))
            self.output_tokens = int(usage.get("completion_tokens", self.output_tokens))
            self.cached_tokens = int(details.get("cached_tokens", self.cached_tokens))
        if chunk.get("metrics"):
            self.engine_metrics = orjson.dumps(chunk["metrics"]).decode()
        for choice in (chunk.get("choices") or ())[:1]:  # n is 1; a usage chunk has none
            texts = _generated(choice)
            made = max(0, self.output_tokens - before) if usage else -1
            # A rise tells of a token only if the count was there all along.
            if texts or (made > 0 and -1 not in self.chunk_tokens):
                self.texts += texts
                self.chunk_s.append(stamp_s)
                self.chunk_tokens.append(made)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if self.finish_reason in ("abort", "error"):
            self.error = "stream_error"
            self.message = f"the engine ended the request, finish_reason {self.finish_reason!r}"


def error_message(body: bytes) -> str:
    """The message of an error body, in OpenAI's, vLLM's or FastAPI's shape, or its start."""
    try:
        return _message(orjson.loads(body))
    except (orjson.JSONDecodeError, AttributeError):
        return _start(body)


def _message(answer: dict[str, Any]) -> str:
    error = answer.get("error") or answer
    message = error if isinstance(error, str) else error.get("message") or error.get("detail")
    return str(message or answer)[:500]


def _start(body: bytes) -> str:
    return body[:500].decode(errors="replace").strip()


_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def _events(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Each event's data with the offset just behind the event (WHATWG HTML, 9.2.6).

    What follows the last blank line counts as an event too: some servers leave out the last one.
    """
    start = len(_BYTE_ORDER_MARK) if body.startswith(_BYTE_ORDER_MARK) else 0
    for end in _event_ends(body):
        event = body[start:end]
        if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2:
            yield end, event[5:]  # one line, as nearly always
        else:
            lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
            if lines:
                yield end, b"\n".join(lines)
        start = end


def _event_ends(body: bytes) -> Iterator[int]:
    if b"\r" in body:
        yield from (match.end() for match in _EVENT_END.finditer(body))
    else:
        end = 0
        while (at := body.find(b"\n\n", end)) >= 0:
            end = at + 2
            yield end
    yield len(body)


def _generated(choice: dict[str, Any]) -> list[str]:
    """The pieces of generated text in a choice, none of them empty."""
    if text := choice.get("text"):
        return [str(text)]
    delta = choice.get("delta") or {}
    calls = [call.get("function") or {} for call in delta.get("tool_calls") or ()]
    pieces = [
        delta.get("reasoning") or delta.get("reasoning_content"),
        delta.get("content"),
        *(call.get(key) for call in calls for key in ("name", "arguments")),
    ]
    return [str(piece) for piece in pieces if piece]
