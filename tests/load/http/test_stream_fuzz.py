"""100,000 streams that went wrong on their way: never a crash, never a success that is none.

A wrong success is one whose text or count of tokens is not what a second, simple reader finds in
the same bytes, or one of a stream without both finish_reason and [DONE]. The second reader is
slow and goes line by line with Python's json; it shares no code with the parser.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import pytest

from workbench.load.http.stream import ParsedStream, parse_stream

STREAMS = 100_000
Events = list[dict[str, Any]]
Mutation = Callable[[random.Random, bytes], bytes]

TEXTS = [
    "a", " the", "\u00e9", "\u4e16\u754c", "\U0001f600", "", 'quote " and \\', "\n\n", "data: x",
]  # fmt: skip
COMMENTS = [
    b": ping", b":\xff", b"event: message", b"id: 7", b"retry: 5", b"data", b"\xef\xbb\xbf",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 0.5, 1e30, -(2**63), 2**63, 2**31, "", "7", "x", [], {}, [1],
    ["a"], [[]], [{}], [None], {"a": 1}, {"text": "a"}, {"content": 5}, {"message": "dead"},
]  # fmt: skip
JUNK = [
    b"{", b"}", b"{oops}", b"[]", b"5", b"null", b'"text"', b'{"choices": [}', b"[" * 5000,
    b'{"a":' * 3000, b'{"choices": [{"text": "\xff"}]}', b'{"choices": [{"text": "\\ud800"}]}',
    b'{"usage": {"completion_tokens": 1e999}}', b'{"usage": {"completion_tokens": NaN}}',
    b'{"usage": {"completion_tokens": 99999999999999999999999}}', b"[DONE", b"[DONE]", b"\x00",
]  # fmt: skip
ERRORS = [
    b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}',
    b'data: {"error": "no room"}', b'data: {"error": {}}', b'data: {"object": "error"}',
    b'event: error\ndata: {"message": "no room"}', b'event:error\ndata: {"choices": []}',
    b'data: {"choices": [], "error": 5}', b'data: {"choices": [{"finish_reason": "abort"}]}',
]  # fmt: skip


def stream(rng: random.Random) -> Events:
    """The events of a good answer: completions or chat, usage in each chunk, at the end, never."""
    chat, usage = rng.random() < 0.5, rng.choice(["each", "last", "never"])
    events: Events = [{"choices": [{"delta": {"role": "assistant"}}]}] if chat else []
    made = 0
    for _ in range(rng.randint(1, 5)):
        text, made = rng.choice(TEXTS), made + rng.randint(1, 3)
        call = {"index": 0, "function": {"name": "look", "arguments": text}}
        kinds: list[dict[str, Any]] = [
            {"content": text}, {"reasoning": text}, {"reasoning_content": text, "content": None},
            {"tool_calls": [call]}, {"content": [{"type": "text", "text": text}]},
            {"reasoning_details": [{"type": "reasoning.text", "text": text}]},
        ]  # fmt: skip
        choice: dict[str, Any] = {"delta": rng.choice(kinds)} if chat else {"text": text}
        events.append({"id": "1", "choices": [choice | {"index": 0, "finish_reason": None}]})
        if usage == "each":
            events[-1]["usage"] = {"prompt_tokens": 9, "completion_tokens": made}
    events[-1]["choices"][0]["finish_reason"] = rng.choice(["stop", "length"])
    if usage != "never":
        details = {"prompt_tokens_details": {"cached_tokens": 4}}
        counts = {"prompt_tokens": 9, "completion_tokens": made} | details
        events.append({"choices": [], "usage": counts, "metrics": {"queue_time_ms": 0.5}})
    return events


def sent(events: Events) -> bytes:
    return b"".join(b"data: %b\n\n" % orjson.dumps(e) for e in events) + b"data: [DONE]\n\n"


def cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def lost_piece(rng: random.Random, body: bytes) -> bytes:
    at = rng.randrange(len(body))
    return body[:at] + body[at + rng.choice([1, 2, 5, 50, 500]) :]


def piece_twice(rng: random.Random, body: bytes) -> bytes:
    at = rng.randrange(len(body))
    return body[:at] + body[at : at + rng.choice([1, 3, 30, 300])] + body[at:]


def bytes_swapped(rng: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randint(1, 3)):
        a, b = rng.randrange(len(body)), rng.randrange(len(body))
        changed[a], changed[b] = changed[b], changed[a]
    return bytes(changed)


def bytes_replaced(rng: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(body))] = rng.choice(b'\xff\xc3\x80\x00\r\n:"{}[],0-d ')
    return bytes(changed)


def other_ends_of_lines(rng: random.Random, body: bytes) -> bytes:
    ends = [b"\n", b"\r\n", b"\r"]
    if rng.random() < 0.5:
        return body.replace(b"\n", rng.choice(ends))
    return re.sub(rb"\n", lambda _: rng.choice(ends), body)


def between_events(rng: random.Random, body: bytes, piece: bytes) -> bytes:
    places = [match.end() for match in re.finditer(rb"\n\n", body)]
    at = rng.choice([0, *places])
    return body[:at] + piece + b"\n\n" + body[at:]


def junk_event(rng: random.Random, body: bytes) -> bytes:
    return between_events(rng, body, b"data: " + rng.choice(JUNK))


def error_event(rng: random.Random, body: bytes) -> bytes:
    return between_events(rng, body, rng.choice(ERRORS))


def comment(rng: random.Random, body: bytes) -> bytes:
    return between_events(rng, body, rng.choice(COMMENTS))


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        return []
    return [(value, key) for key, _ in pairs] + [s for _, each in pairs for s in spots(each)]


def wrong_type(rng: random.Random, body: bytes) -> bytes:
    """One field of one event becomes something else, or goes. The body has to be a good one."""
    lines = body.split(b"\n\n")
    chosen = rng.randrange(len(lines) - 2)  # not [DONE], nor the end
    event = orjson.loads(lines[chosen][6:])
    container, key = rng.choice(spots(event))
    if rng.random() < 0.2:
        del container[key]
    else:
        container[key] = rng.choice(VALUES)
    lines[chosen] = b"data: " + json.dumps(event, ensure_ascii=False).encode()
    return b"\n\n".join(lines)


def without_end(rng: random.Random, body: bytes) -> bytes:
    """Neither finish_reason nor [DONE]: whatever else it holds, it must not be a success."""
    lost = re.sub(rb'"finish_reason":"\w+"', b'"finish_reason":null', body)
    return lost.replace(b"data: [DONE]\n\n", b"")


def as_it_was(rng: random.Random, body: bytes) -> bytes:
    return body


MUTATIONS: list[Mutation] = [
    cut, lost_piece, piece_twice, bytes_swapped, bytes_replaced, other_ends_of_lines, junk_event,
    error_event, comment, without_end, as_it_was,
]  # fmt: skip


class Bad(Exception):
    """What the second reader says to a stream that is no good answer."""


def joined(value: Any) -> str:
    """A text, a part that has one, or a list of texts and parts."""
    if isinstance(value, dict):
        names = ("text", "thinking", "reasoning", "summary", "refusal", "content")
        return "".join(joined(value[name]) for name in names if value.get(name))
    return value if isinstance(value, str) else "".join(map(joined, value or ()))


def second_reader(body: bytes) -> tuple[str, int]:
    """Text and output tokens of a good answer, read the slow way."""
    text, tokens, finish, lines = "", -1, "", []
    *whole, rest = re.split(rb"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf"))
    for line in [*whole, *([rest] if rest else []), None]:
        if line:
            lines.append(line)
            continue
        data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))
        named = any(re.fullmatch(rb"event: ?error", line) for line in lines)
        lines = []
        if data.strip() == b"[DONE]":
            if not finish and not text and tokens < 1:
                raise Bad("nothing was said")
            return text, tokens
        if not data.strip():
            continue
        if named:
            raise Bad("an error")
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            if line is None and finish:
                continue  # cut after all that counts was said
            raise Bad("no JSON") from None
        if type(event) is not dict or event.get("error") or event.get("object") == "error":
            raise Bad("an error, or no chunk")
        usage, choices = event.get("usage"), event.get("choices")
        if usage is not None:
            if type(usage) is not dict:
                raise Bad("usage")
            count = usage.get("completion_tokens")
            if count is not None:
                if type(count) is not int:
                    raise Bad("count")
                tokens = count
        elif type(choices) is not list:
            raise Bad("choices")
        if len(choices or []) > 1:
            raise Bad("two answers")
        for choice in choices or []:
            parts = [choice.get("text") or ""]
            if not parts[0]:
                delta = choice.get("delta") or {}
                names = ("reasoning", "reasoning_content", "reasoning_details")
                thoughts = [joined(delta[name]) for name in names if delta.get(name)]
                parts = [*filter(None, thoughts), ""][:1]
                parts.append(joined(delta.get("content") or ""))
                for call in delta.get("tool_calls") or []:
                    function = call.get("function") or {}
                    parts += [function.get("name") or "", function.get("arguments") or ""]
            text += "".join(parts)
            finish = choice.get("finish_reason") or finish
    if not finish:
        raise Bad("no end")
    return text, tokens


def check(body: bytes, parsed: ParsedStream, last_stamp: float) -> None:
    assert parsed.error in ("", "stream_error", "protocol", "truncated")
    assert bool(parsed.error) == bool(parsed.error_message)
    assert len(parsed.error_message) < 600
    assert len(parsed.chunk_tokens) in (0, len(parsed.chunk_s))
    assert parsed.chunk_s == sorted(parsed.chunk_s)
    assert not parsed.chunk_s or parsed.chunk_s[-1] <= last_stamp
    # What a file of records can hold: text that is UTF-8, counts of 64 bits.
    (parsed.text + parsed.error_message + parsed.engine_metrics).encode()
    counts = (parsed.usage_prompt_tokens, parsed.output_tokens, parsed.cached_tokens)
    assert all(-1 <= count < 2**31 for count in (*counts, *parsed.chunk_tokens))
    if not parsed.error:
        assert parsed.done or parsed.finish_reason
        assert (parsed.text, parsed.output_tokens) == second_reader(body)


def gone_wrong(
    rng: random.Random, bodies: list[bytes]
) -> tuple[list[Mutation], bytes, list[tuple[float, bytes]]]:
    """One of the streams with a mutation or two: which, its bytes, and those split into reads."""
    mutations = [wrong_type] if rng.random() < 0.25 else [rng.choice(MUTATIONS)]
    mutations += rng.choices(MUTATIONS, k=rng.random() < 0.2)
    body = rng.choice(bodies)
    for mutation in mutations:
        body = mutation(rng, body) or b"\n"
    edges = [0, *sorted(rng.choices(range(len(body) + 1), k=rng.choice([0, 1, 3]))), len(body)]
    return mutations, body, [(float(n), body[a:b]) for n, (a, b) in enumerate(pairwise(edges))]


def test_the_short_way_of_usual_chunks_is_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    bodies = [sent(stream(rng)) for _ in range(500)]
    streams = [gone_wrong(rng, bodies)[2] for _ in range(10_000)]
    usual, taken = ParsedStream.usual, 0

    def counted(seen: ParsedStream, stamp_s: float, chunk: Any) -> bool:
        nonlocal taken
        took = usual(seen, stamp_s, chunk)
        taken += took
        return took

    monkeypatch.setattr(ParsedStream, "usual", counted)
    short = [parse_stream(reads) for reads in streams]
    monkeypatch.setattr(ParsedStream, "usual", lambda *_: False)
    assert short == [parse_stream(reads) for reads in streams]
    assert taken > 500  # chunks that the short way takes are among them


def test_no_stream_crashes_the_parser_or_is_a_wrong_success() -> None:
    rng = random.Random(20261125)
    bodies = [sent(stream(rng)) for _ in range(500)]
    outcomes: Counter[tuple[str, str]] = Counter()
    for _ in range(STREAMS):
        mutations, body, reads = gone_wrong(rng, bodies)
        names = [mutation.__name__ for mutation in mutations]
        try:
            parsed = parse_stream(reads)
            check(body, parsed, reads[-1][0])
        except Exception as error:
            raise AssertionError(f"{' and '.join(names)}: {reads!r}") from error
        outcomes[" and ".join(names), parsed.error] += 1
    # The mutations have to bite, and leave something to be right about.
    errors = Counter[str]()
    for (_, error), times in outcomes.items():
        errors[error] += times
    assert min(errors[error] for error in ("", "stream_error", "protocol", "truncated")) > 2000
    assert outcomes["as_it_was", ""] > 2000
    assert outcomes["as_it_was", "protocol"] == outcomes["as_it_was", "stream_error"] == 0
    assert outcomes["without_end", ""] == 0
