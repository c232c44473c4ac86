"""What a body says, whatever its reads; what an event is worth; what is an error."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.load.http.stream import ParsedStream, events_of, parse_stream

DONE = b"data: [DONE]\n\n"


def text(piece: str, made: int | None = None, **choice: object) -> dict[str, object]:
    """A chunk of /v1/completions; `made` is its running count of completion tokens."""
    return chunk({"index": 0, "text": piece, **choice}, made)


def delta(made: int | None = None, **content: object) -> dict[str, object]:
    """A chunk of /v1/chat/completions."""
    return chunk({"index": 0, "delta": content}, made)


def chunk(choice: dict[str, object], made: int | None) -> dict[str, object]:
    usage = {} if made is None else {"usage": {"prompt_tokens": 9, "completion_tokens": made}}
    return {"id": "cmpl-1", "choices": [choice], **usage}


def sse(*chunks: object) -> bytes:
    return b"".join(b"data: %b\n\n" % orjson.dumps(each) for each in chunks)


def parsed(*reads: bytes) -> ParsedStream:
    """What these reads say, which arrive at 1.0, 2.0, ... s."""
    return parse_stream((float(n), read) for n, read in enumerate(reads, 1))


USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
    "metrics": {"queue_time_ms": 0.5},
}
BODY = (
    sse(text("a", 1), text("\u00e9\u4e16", 2), text("c", 3, finish_reason="length"), USAGE) + DONE
)


def test_one_event_per_read() -> None:
    found = parsed(sse(text("a", 1)), sse(text("b", 2, finish_reason="stop")), DONE)
    assert (found.chunk_s, found.chunk_tokens) == ([1.0, 2.0], [1, 1])
    assert (found.text, found.finish_reason, found.done, found.error) == ("ab", "stop", True, "")


def test_nothing_is_nothing() -> None:
    found = parsed()
    assert (found.chunk_s, found.text, found.done, found.error) == ([], "", False, "truncated")
    assert found.usage_prompt_tokens == found.output_tokens == found.cached_tokens == -1


def test_the_last_chunk_has_usage_and_metrics() -> None:
    found = parsed(BODY)
    assert (found.usage_prompt_tokens, found.output_tokens, found.cached_tokens) == (9, 3, 4)
    assert orjson.loads(found.engine_metrics) == {"queue_time_ms": 0.5}
    assert found.chunk_s == [1.0, 1.0, 1.0]


def test_an_event_arrives_with_its_last_byte() -> None:
    event = sse(text("a", 1))
    assert parsed(event[:20], event[20:-1], event[-1:] + DONE).chunk_s == [3.0]


@given(
    cuts=st.lists(st.integers(0, len(BODY)), max_size=30),
    ending=st.sampled_from("\n \r\n \r".split(" ")),
)
def test_splitting_the_body_anywhere_changes_stamps_only(cuts: list[int], ending: str) -> None:
    body = BODY.replace(b"\n", ending.encode())
    edges = [0, *sorted(cuts), len(body)]
    found = parse_stream((float(n), body[a:b]) for n, (a, b) in enumerate(pairwise(edges)))
    whole = parsed(BODY)
    assert found.text == whole.text == "a\u00e9\u4e16c"
    assert found.chunk_tokens == whole.chunk_tokens == [1, 1, 1]
    assert found.engine_metrics == whole.engine_metrics
    assert (found.finish_reason, found.done, found.error) == ("length", True, "")
    # each stamp is that of the first read that reaches to the event's end
    blank = 2 * ending.encode()
    ends = [at + len(blank) for at in range(len(body)) if body.startswith(blank, at)][:3]
    assert found.chunk_s == [bisect_left(edges[1:], end) for end in ends]


@given(st.binary(max_size=200), st.sampled_from([b"", b"data: ", b'data: {"choices": ']))
def test_no_bytes_make_it_raise(noise: bytes, start: bytes) -> None:
    # BODY is whole, unless the noise says [DONE] before it.
    assert parsed(start + noise + b"\n\n" + BODY).error in (
        "", "protocol", "stream_error", "truncated",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [(9, b" a", False), (18, b" b", False)]),
        (b"data: a\r\n\r\ndata: b\r\r", [(11, b" a", False), (20, b" b", False)]),
        (b"data: a\n\ndata: b", [(9, b" a", False), (16, b" b", False)]),
        (b"\xef\xbb\xbfdata: a\n\n", [(12, b" a", False)]),
        (b": waiting\n\nid: 7\ndata: a\ndata: b\n\n", [(34, b" a\n b", False)]),
        (b"data:a\rdata: b\r\r", [(16, b"a\n b", False)]),
        (b"event: error\ndata: no room\n\n", [(28, b" no room", True)]),
        (b"data:\rlost\n\n\n\nevent: message\nid: 7\n", [(12, b"", False)]),
        (b"", []),
    ],
)
def test_events_end_behind_their_blank_line(
    body: bytes, events: list[tuple[int, bytes, bool]]
) -> None:
    assert list(events_of(body, 0)) == events


@pytest.mark.parametrize(
    "first",
    [
        delta(0, role="assistant", content=""),
        delta(0, role="assistant"),
        delta(None, content=""),
        delta(None, role="assistant", content=None),
        text("", 0),
        text(""),
        delta(content=[]),
        delta(reasoning_details=[]),
        delta(reasoning_details=[{"type": "reasoning.encrypted", "data": "gAAA"}]),
        delta(thinking_blocks=[{"type": "thinking", "signature": "c2ln"}]),
    ],
)
def test_a_role_only_or_empty_chunk_is_no_token(first: dict[str, object]) -> None:
    assert parsed(sse(first), sse(delta(1, content="a"))).chunk_s == [2.0]


PART = {"type": "text", "text": "hm"}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"content": "hm"}, "hm"),
        ({"reasoning": "hm"}, "hm"),
        ({"reasoning_content": "hm"}, "hm"),
        ({"thinking": "hm"}, "hm"),
        ({"refusal": "hm"}, "hm"),
        ({"tool_calls": [{"index": 0, "function": {"name": "look", "arguments": ""}}]}, "look"),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, "{"),
        ({"tool_calls": [{"type": "custom", "custom": {"name": "run", "input": "ls"}}]}, "runls"),
        ({"function_call": {"name": "look", "arguments": ""}}, "look"),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "hm", "index": 0}]}, "hm"),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}, "hm"),
        ({"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": ""}]}, "hm"),
        ({"content": [PART]}, "hm"),
        ({"content": [{"type": "thinking", "thinking": [PART]}]}, "hm"),
        ({"content": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]}, "hm"),
        ({"reasoning": "hm", "reasoning_content": "hm", "reasoning_details": [PART]}, "hm"),
    ],
)
def test_content_reasoning_and_tool_calls_are_tokens(said: dict[str, object], found: str) -> None:
    role, end = sse(delta(role="assistant", content="")), sse(delta(content="b"))
    answer = parsed(role, sse(delta(**said)), end)
    assert (answer.error, answer.text, answer.chunk_s) == ("truncated", f"{found}b", [2.0, 3.0])


WHOLE = b"""{"id": "x", "choices": [{"index": 0, "message": {"content": "a b c"},
 "finish_reason": "length"}], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}"""


def test_a_whole_answer_as_one_event_or_as_no_stream_is_one_chunk() -> None:
    """As from a gateway that takes `stream` and sends the whole answer as JSON."""
    for reads in (
        [b"data: " + WHOLE.replace(b"\n", b"")[:60], WHOLE.replace(b"\n", b"")[60:] + b"\n\n"],
        [WHOLE[:60], WHOLE[60:]],
    ):
        found = parsed(*reads)
        assert (found.error, found.text, found.finish_reason) == ("", "a b c", "length")
        assert (found.chunk_s, found.chunk_tokens, found.output_tokens) == ([2.0], [3], 3)
    assert parsed(WHOLE[:60]).error == parsed(WHOLE + WHOLE).error == "protocol"


@pytest.mark.parametrize("together", [True, False])
def test_two_answers_in_one_stream_are_an_error(together: bool) -> None:
    one, other = text("a", 1)["choices"][0], text("b", 1, index=1)["choices"][0]  # type: ignore[index]
    chunks = [{"choices": [one, other]}] if together else [chunk(one, 1), chunk(other, 1)]
    found = parsed(sse(*chunks) + DONE)
    assert (found.error, found.text) == ("protocol", "" if together else "a")


COUNTS: dict[str, tuple[list[dict[str, object]], list[float], list[int]]] = {
    "half a character": ([text("", 1), text("\u4e16", 3)], [1.0, 2.0], [1, 2]),
    "a finish of its own": ([text("a", 1), text("", 1, finish_reason="stop")], [1.0], [1]),
    "a total with the finish": ([text("a"), text("", 5, finish_reason="stop")], [1.0], []),
    "several tokens in a chunk": ([text("abc", 3), text("de", 5)], [1.0, 2.0], [3, 2]),
    "no usage": ([text("a"), text("b")], [1.0, 2.0], []),
    "no usage in one": ([text("a", 1), text("b")], [1.0, 2.0], []),
    "a count that falls": ([text("abc", 3), text("d", 1)], [1.0, 2.0], []),
    "usage once at the end": ([text("a"), text("b", finish_reason="stop"), USAGE], [1.0, 2.0], []),
}


@pytest.mark.parametrize("case", COUNTS)
def test_tokens_of_a_chunk_are_what_its_count_has_risen(case: str) -> None:
    chunks, arrived_s, tokens = COUNTS[case]
    found = parsed(*map(sse, chunks))
    assert (found.chunk_s, found.chunk_tokens) == (arrived_s, tokens)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": None},
    ],
)
def test_a_usage_of_null_says_nothing(usage: Any) -> None:
    found = parsed(sse(text("a") | {"usage": usage}, text("b", finish_reason="stop")) + DONE)
    assert (found.error, found.text, found.chunk_tokens) == ("", "ab", [])
    assert found.usage_prompt_tokens == found.output_tokens == found.cached_tokens == -1


FINISHED = sse(text("a", 1, finish_reason="stop"))
ENDS: dict[str, tuple[bytes, str, str]] = {
    "no [DONE] behind a finish": (FINISHED, "", "a"),
    "the last blank line missing": (sse(text("a", 1)) + DONE.strip(), "", "a"),
    "[DONE] and nothing else": (DONE, "truncated", ""),
    "a finish without a token": (sse(text("", 0, finish_reason="stop")) + DONE, "", ""),
    "neither": (sse(text("a", 1)), "truncated", "a"),
    "an event cut": (sse(text("a", 1)) + sse(text("b", 2))[:-10], "truncated", "a"),
    "cut behind the finish": (FINISHED + b"data: {oops", "", "a"),
    "no JSON behind the finish": (FINISHED + b"data: {oops\n\n", "protocol", "a"),
    "a page": (b"<html><h1>Please log in</h1></html>", "protocol", ""),
    "aborted": (sse(text("a", 1), text("", 1, finish_reason="abort")) + DONE, "stream_error", "a"),
    "no error said as null": (sse(text("a", 1) | {"error": None}) + DONE, "", "a"),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_a_stream_may_end(case: str) -> None:
    body, error, said = ENDS[case]
    found = parsed(body)
    assert (found.error, found.text) == (error, said)


@pytest.mark.parametrize(
    "event",
    [
        b"{oops}",
        b"5",
        b"{}",
        b'{"message": "no such model"}',
        b'{"choices": [5]}',
        b'{"choices": {"text": "b"}}',
        b'{"choices": [{"text": 5}]}',
        b'{"choices": [{"delta": {"content": [5]}}]}',
        b'{"choices": [{"text": "b", "finish_reason": 1}]}',
        b'{"choices": [{"delta": {"content": [{"text": 5}]}}]}',
        b'{"choices": [{"delta": {"content": %b}}]}' % (b'[{"text":' * 400 + b"1" + b"}]" * 400),
        b'{"usage": "many"}',
        b'{"usage": {"completion_tokens": "5"}}',
        b'{"usage": {"completion_tokens": -5}}',
        b'{"usage": {"completion_tokens": 1e30}}',
        b'{"usage": {"completion_tokens": 123456789012345678901234567890}}',
        b'{"choices": [], "metrics": %b}' % (b"[" * 900 + b"]" * 900),
    ],
)
def test_an_event_that_is_no_chunk_is_an_error(event: bytes) -> None:
    found = parsed(sse(text("a", 1)) + b"data: " + event + b"\n\n" + DONE)
    assert (found.error, found.text) == ("protocol", "a")


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b'data: {"error": {"message": "no room", "code": 500}}', "no room"),
        (b'data: {"error": 5}', "5"),
        (b'data: {"error": {}}', "error"),
        (b'data: {"object": "error"}', "error"),
        (b'event: error\ndata: {"message": "no room"}', "no room"),
    ],
)
def test_an_error_is_one_in_any_shape_and_keeps_what_came_before(
    event: bytes, message: str
) -> None:
    found = parsed(sse(text("a", 1)), event + b"\n\n" + sse(text("b", 2)) + DONE)
    assert (found.error, found.text, found.chunk_s) == ("stream_error", "a", [1.0])
    assert message in found.error_message
