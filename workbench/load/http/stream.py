"""Parse a streamed response: server-sent events in bulk, after the stream has ended.

The split into socket reads decides arrival times only, never the content.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

import orjson

from workbench.load.http.fast_path import texts_alike
from workbench.load.http.refusal import error_message, first_words, message_of

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_ENDS_BLANK = re.compile(_EVENT_END.pattern + rb"\Z")
_NAMED_ERROR = re.compile(rb"event: ?error$")
_MOST_TOKENS = 2**31 - 1
_TWO_ANSWERS = "the stream has more than one choice per request; set n to 1 on the server"
_THOUGHTS = (
    *("reasoning", "reasoning_content", "reasoning_details", "reasoning_text"),
    *("thinking", "thinking_blocks"),
)
"""Names of reasoning fields; of several, the first with text is used."""
_PARTS = ("text", "thinking", "reasoning", "summary", "refusal", "content")
"""Fields that hold the text of a part in a list."""
_FEW = 4
"""Too few reads to be worth another pass."""
_RUNS = 8
"""Looks for runs of events that are alike in one stream; each looks at all that is left."""


def parse_stream(reads: Iterable[tuple[float, bytes]]) -> ParsedStream:
    """Parse a body given as (arrival in seconds, bytes) of each read, in order.

    An event arrived with its last byte. A chunk carries tokens if it has content, reasoning or a
    tool call, or if its usage counts more completion tokens than before: an engine that holds back
    half a character sends empty text for a token that it has made. A role-only or empty chunk
    carries none. `chunk_tokens` is known only if each of those chunks has a usage.
    What came before an error is kept; what comes after it is not read. A value of another type
    than the field has (a number as text, a count below zero) is an error, never converted.
    """
    arrived, seen = _Arrived(reads), ParsedStream()
    body = arrived.body
    events, runs = events_of(body, 0), 0 if b"\r" in body else _RUNS
    while not seen.error and (event := next(events, None)) is not None:
        end, data, named_error = event
        if not data.startswith((b" {", b"{")):
            said = data.strip()
            if said == b"[DONE]":
                seen.done = True
                break
            if not said:
                continue
        if named_error:
            seen.fails("stream_error", error_message(data))
            break
        try:
            chunk = orjson.loads(data)
            if not seen.usual(stamp_s := arrived.stamp_s(end), chunk):
                seen.take(stamp_s, chunk)
            elif runs:
                runs -= 1
                events = events_of(body, seen.go_on(data, end, arrived))
        except orjson.JSONDecodeError:
            # An event without its blank line was cut short, and the missing finish tells.
            if end < len(body) or _ENDS_BLANK.search(body[-4:]):
                seen.fails("protocol", f"an event is not JSON: {first_words(data)}")
        except (AttributeError, TypeError, RecursionError):
            seen.fails("protocol", f"an event is not a completion chunk: {first_words(data)}")
    if not seen.error and not seen.done and not seen.chunk_s:
        seen.take_whole(arrived)
    if not seen.error and not seen.finish_reason and not (seen.done and seen.chunk_s):
        seen.fails(*_without_end(body, seen.done))
    if -1 in seen.chunk_tokens:
        seen.chunk_tokens = []
    return seen


def events_of(body: bytes, start: int) -> Iterator[tuple[int, bytes, bool]]:
    """The offset just behind each server-sent event (WHATWG HTML, 9.2.6), its data, and whether it
    is named `error`.

    Those from `start` on, which is 0 or behind an event. What follows the last blank line counts
    as an event too: some servers leave out the last one.
    """
    if not start and body.startswith(_BYTE_ORDER_MARK):
        start = len(_BYTE_ORDER_MARK)
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


class _Arrived:
    """A body, and when each part of it arrived."""

    def __init__(self, reads: Iterable[tuple[float, bytes]]) -> None:
        known = list(reads)
        self.stamps, self.reads = [stamp for stamp, _ in known], [read for _, read in known]
        self.body, self.ends = b"".join(self.reads), list(accumulate(map(len, self.reads)))

    def stamp_s(self, end: int) -> float:
        """When the byte before this offset arrived."""
        return self.stamps[bisect_left(self.ends, end)]


@dataclass(slots=True)
class ParsedStream:
    """What the chunks have said; the fields that `records.RequestRecord` has too mean the same."""

    chunk_s: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    """Until the stream has been parsed -1 for a chunk that does not say."""
    texts: list[str] = field(default_factory=list)
    """Reasoning, content and tool calls in the order of their arrival."""
    answer_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    done: bool = False
    """Did `data: [DONE]` arrive?"""
    usage_prompt_tokens: int = -1
    output_tokens: int = -1
    cached_tokens: int = -1
    engine_metrics: str = ""
    error: str = ""
    """`stream_error`, `protocol` (an event that is not the JSON of a chunk), `truncated`, or empty.

    `truncated` is a stream with neither finish_reason nor [DONE], or with [DONE] and nothing else.
    """
    error_message: str = ""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def fails(self, error: str, message: str) -> None:
        """Take no more: it is an error of this class."""
        self.error, self.error_message = error, message

    def usual(self, stamp_s: float, chunk: Any) -> bool:
        """Add a chunk as nearly all are, the short way: some text, one token more, nothing else.

        False, and nothing is added, for any other. A test holds this to `take`.
        """
        try:
            (choice,) = chunk["choices"]
            usage = chunk["usage"]
            made, prompt = usage["completion_tokens"], usage["prompt_tokens"]
            if "text" in choice:
                text = choice["text"]
            else:
                delta = choice["delta"]
                text = delta["content"]
                if len(delta) != 1:
                    return False
            if (
                made != max(0, self.output_tokens) + 1
                or type(made) is not int
                or type(prompt) is not int
                or type(text) is not str
                or not text
                or not 0 <= prompt <= _MOST_TOKENS
                or choice["finish_reason"] is not None
                or choice.get("index")
                or chunk.get("object") == "error"
                or choice.get("token_ids") is not None
                or usage.get("prompt_tokens_details") is not None
                or "error" in chunk
                or "metrics" in chunk
            ):
                return False
        except (AttributeError, KeyError, TypeError, ValueError):
            return False
        self.output_tokens, self.usage_prompt_tokens = made, prompt
        self.texts.append(text)
        self.chunk_s.append(stamp_s)
        self.chunk_tokens.append(1)
        return True

    def go_on(self, data: bytes, end: int, arrived: _Arrived) -> int:
        """Add the usual chunks that follow one which is `data` and ends there; their end."""
        at = bisect_left(arrived.ends, end) + 1
        if arrived.ends[at - 1] == end:  # as nearly always: a read for each event
            found = len(self._alike(data, reads := arrived.reads[at:], arrived.stamps[at:]))
            if found:
                data, end = reads[found - 1][5:-2], arrived.ends[at + found - 1]
            if len(reads) - found < _FEW:
                return end
        events = [event + b"\n\n" for event in arrived.body[end:].split(b"\n\n")[:-1]]
        ends = [end + length for length in accumulate(map(len, events))]
        found = len(self._alike(data, events, map(arrived.stamp_s, ends)))
        return ends[found - 1] if found else end

    def _alike(self, data: bytes, pieces: Sequence[bytes], stamps_s: Iterable[float]) -> list[str]:
        """Add those of the pieces that are like `data`, up to the first other."""
        text, made, prompt = self.texts[-1], self.output_tokens, self.usage_prompt_tokens
        texts = texts_alike(data, pieces, text=text, made=made, prompt=prompt)
        self.texts += texts
        self.chunk_s += islice(stamps_s, len(texts))
        self.chunk_tokens += [1] * len(texts)
        self.output_tokens += len(texts)
        return texts

    def take_whole(self, arrived: _Arrived) -> None:
        """Add a response that is one JSON object, from a server that does not stream.

        It counts as one chunk that arrived with its last byte; any other body is ignored.
        """
        body = arrived.body.removeprefix(_BYTE_ORDER_MARK).strip()
        if not body.startswith(b"{"):
            return
        try:
            answer = orjson.loads(body)
            if answer.get("choices"):
                self.take(arrived.stamp_s(len(arrived.body)), answer)
        except orjson.JSONDecodeError:
            return
        except (AttributeError, TypeError, RecursionError):
            self.fails("protocol", f"the response is not a stream: {first_words(body)}")

    def take(self, stamp_s: float, chunk: dict[str, Any]) -> None:
        """Add a chunk. Raises AttributeError or TypeError when it is not in the shape of one."""
        if chunk.get("error") not in (None, "", False) or chunk.get("object") == "error":
            self.fails("stream_error", message_of(chunk))
            return
        choices, usage = chunk.get("choices"), chunk.get("usage")
        if choices is None and usage is not None:
            choices = []
        if not isinstance(choices, list):
            raise TypeError("no list of choices")
        before = max(0, self.output_tokens)
        if usage is not None:
            details = usage.get("prompt_tokens_details")
            self.usage_prompt_tokens = _count(usage.get("prompt_tokens"), self.usage_prompt_tokens)
            self.output_tokens = _count(usage.get("completion_tokens"), self.output_tokens)
            if details is not None:
                self.cached_tokens = _count(details.get("cached_tokens"), self.cached_tokens)
        if chunk.get("metrics"):
            self.engine_metrics = orjson.dumps(chunk["metrics"]).decode()
        for choice in choices[:1]:  # n is 1; a usage chunk has none
            if choice.get("index") or len(choices) > 1:
                self.fails("protocol", _TWO_ANSWERS)
                return
            finish_reason, texts = _text(choice.get("finish_reason")), _generated(choice)
            # A count that falls tells nothing of its chunk.
            made = self.output_tokens - before if usage and self.output_tokens >= before else -1
            self.answer_ids += _ids(choice.get("token_ids"))
            # A rise tells of a token only if the count was there all along.
            if texts or (made > 0 and -1 not in self.chunk_tokens):
                self.texts += texts
                self.chunk_s.append(stamp_s)
                self.chunk_tokens.append(made)
            self.finish_reason = finish_reason or self.finish_reason
        if self.finish_reason in ("abort", "error"):
            why = f"the engine ended the request, finish_reason {self.finish_reason!r}"
            self.fails("stream_error", why)


def _count(value: Any, before: int) -> int:
    """A number of tokens, or the one known before where the server says null."""
    if value is None:
        return before
    if type(value) is not int or not 0 <= value <= _MOST_TOKENS:
        raise TypeError("not a number of tokens")
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _without_end(body: bytes, done: bool) -> tuple[str, str]:
    """(error, message) of a stream without a regular end."""
    if done:
        return "truncated", "the stream ended with [DONE] and without a token"
    start = body.removeprefix(_BYTE_ORDER_MARK).lstrip()[:5]
    if start and not start.startswith((b"data", b"event", b"id", b"retry", b":")):
        return "protocol", f"the response is not an event stream: {error_message(body)}"
    return "truncated", "the stream ended without finish_reason and without [DONE]"


def _generated(choice: dict[str, Any]) -> list[str]:
    """The pieces of generated text in a choice, none of them empty."""
    if isinstance(text := choice.get("text"), str) and text:
        return [text]
    delta = choice.get("delta")
    if delta is None:
        delta = choice.get("message")  # a gateway may send the whole answer as one event
    pieces = [_text(text)]
    if delta is not None:
        pieces.append(next(filter(None, (_said(delta.get(name)) for name in _THOUGHTS)), ""))
        pieces += [_said(delta.get("content")), _text(delta.get("refusal"))]
        calls = [*(delta.get("tool_calls") or ()), {"function": delta.get("function_call")}]
        for call in calls:
            for named in (call.get("function"), call.get("custom")):
                if named is not None:
                    asked = (named.get(key) for key in ("name", "arguments", "input"))
                    pieces += map(_text, asked)
    return [piece for piece in pieces if piece]


def _said(value: Any) -> str:
    """A text, or those of a part or of a list of parts: `[{"type": "text", "text": "a"}]`."""
    if isinstance(value, list):
        return "".join(map(_said, value))
    if isinstance(value, dict):
        return "".join(_said(value[name]) for name in _PARTS if value.get(name))
    return _text(value)


def _ids(found: Any) -> list[int]:
    """Token ids as a list; raises TypeError for anything else but None."""
    if found is None:
        return []
    if not isinstance(found, list) or any(type(number) is not int for number in found):
        raise TypeError("token ids are a list of whole numbers")
    return found
