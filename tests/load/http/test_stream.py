from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.load.http.stream import parse_stream


def text(piece: str, made: int | None = None, **choice: object) -> dict[str, object]:
    """A chunk of /v1/completions; `made` is its running count of completion tokens."""
    return chunk({"index": 0, "text": piece, **choice}, made)


def delta(made: int | None = None, **content: object) -> dict[str, object]:
    """A chunk of /v1/chat/completions."""
    return chunk({"index": 0, "delta": content}, made)


def chunk(choice: dict[str, object], made: int | None) -> dict[str, object]:
    usage = {} if made is None else {"usage": {"prompt_tokens": 9, "completion_tokens": made}}
    return {"id": "cmpl-1", "choices": [choice], **usage}


def sse(*chunks: object, end: bytes = b"\n\n") -> bytes:
    return b"".join(b"data: " + orjson.dumps(each) + end for each in chunks)


DONE = b"data: [DONE]\n\n"
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
    reads = [*enumerate((sse(text("a", 1)), sse(text("b", 2, finish_reason="stop")), DONE))]
    parsed = parse_stream([(float(s), data) for s, data in reads])
    assert parsed.chunk_s == (0.0, 1.0)
    assert parsed.chunk_tokens == (1, 1)
    assert (parsed.text, parsed.finish_reason, parsed.done, parsed.error) == (
        "ab",
        "stop",
        True,
        "",
    )


def test_nothing_is_nothing() -> None:
    parsed = parse_stream([])
    assert (parsed.chunk_s, parsed.text, parsed.done, parsed.error) == ((), "", False, "truncated")
    assert parsed.usage_prompt_tokens == parsed.output_tokens == parsed.cached_tokens == -1


def test_the_last_chunk_has_usage_and_metrics() -> None:
    parsed = parse_stream([(1.0, BODY)])
    assert parsed.usage_prompt_tokens == 9
    assert parsed.output_tokens == 3
    assert parsed.cached_tokens == 4
    assert orjson.loads(parsed.engine_metrics) == {"queue_time_ms": 0.5}
    assert parsed.chunk_s == (1.0, 1.0, 1.0)


def test_an_event_arrives_with_its_last_byte() -> None:
    event = sse(text("a", 1))
    parsed = parse_stream([(1.0, event[:20]), (2.0, event[20:-1]), (3.0, event[-1:] + DONE)])
    assert parsed.chunk_s == (3.0,)


@given(
    cuts=st.lists(st.integers(0, len(BODY)), max_size=30),
    ending=st.sampled_from("\n \r\n \r".split(" ")),
)
def test_splitting_the_body_anywhere_changes_stamps_only(cuts: list[int], ending: str) -> None:
    body = BODY.replace(b"\n", ending.encode())
    edges = [0, *sorted(cuts), len(body)]
    reads = [(float(n), body[a:b]) for n, (a, b) in enumerate(pairwise(edges))]
    parsed, whole = parse_stream(reads), parse_stream([(0.0, BODY)])
    assert parsed.text == whole.text == "a\u00e9\u4e16c"
    assert parsed.chunk_tokens == whole.chunk_tokens == (1, 1, 1)
    assert parsed.engine_metrics == whole.engine_metrics
    assert (parsed.finish_reason, parsed.done, parsed.error) == ("length", True, "")
    # each stamp is that of the first read that reaches to the event's end
    blank = 2 * ending.encode()
    ends = [at + len(blank) for at in range(len(body)) if body.startswith(blank, at)][:3]
    assert parsed.chunk_s == tuple(bisect_left(edges[1:], end) for end in ends)


@given(st.binary(max_size=200), st.sampled_from([b"", b"data: ", b'data: {"choices": ']))
def test_no_bytes_make_it_raise(noise: bytes, start: bytes) -> None:
    parsed = parse_stream([(0.0, start + noise + b"\n\n" + BODY)])
    # BODY is whole, unless the noise says [DONE] before it.
    assert parsed.error in ("", "protocol", "stream_error", "truncated")


def test_comments_blank_lines_other_fields_and_a_byte_order_mark_are_skipped() -> None:
    noise = b"\xef\xbb\xbf: ping\n\n\n\nevent: message\nid: 7\n"
    parsed = parse_stream([(0.0, noise + sse(text("a", 1)) + b": ping\n\n" + DONE)])
    assert (parsed.text, parsed.done, parsed.error) == ("a", True, "")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_may_span_several_data_lines(end: bytes) -> None:
    event = b'data:{"choices":\ndata: [{"text": "a"}]}\n\n'.replace(b"\n", end)
    assert parse_stream([(0.0, event)]).text == "a"


def test_a_lone_carriage_return_ends_a_line() -> None:
    broken = sse(text("lost", 1)).replace(b"data: ", b"data:\r")  # no data, and no known field
    assert parse_stream([(0.0, broken + sse(text("a", 2)) + DONE)]).text == "a"


def test_the_last_blank_line_may_be_missing() -> None:
    parsed = parse_stream([(0.0, sse(text("a", 1)) + b"data: [DONE]")])
    assert parsed.done


@pytest.mark.parametrize(
    "first",
    [
        delta(0, role="assistant", content=""),
        delta(0, role="assistant"),
        delta(None, content=""),
        delta(None, role="assistant", content=None),
        text("", 0),
        text(""),
    ],
)
def test_a_role_only_or_empty_chunk_is_no_token(first: dict[str, object]) -> None:
    parsed = parse_stream([(1.0, sse(first)), (2.0, sse(delta(1, content="a")))])
    assert parsed.chunk_s == (2.0,)


@pytest.mark.parametrize(
    "first",
    [
        delta(1, content="a"),
        delta(1, reasoning="hm"),
        delta(1, reasoning_content="hm"),
        delta(1, tool_calls=[{"index": 0, "function": {"name": "look", "arguments": ""}}]),
        delta(1, tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
        delta(1, tool_calls=[{"type": "custom", "custom": {"name": "run", "input": "ls"}}]),
        delta(1, function_call={"name": "look", "arguments": ""}),
        delta(1, refusal="I can"),
        delta(1, thinking="hm"),
    ],
)
def test_content_reasoning_and_tool_calls_are_tokens(first: dict[str, object]) -> None:
    parsed = parse_stream([(1.0, sse(first)), (2.0, sse(delta(2, content="b")))])
    assert parsed.chunk_s == (1.0, 2.0)


TEXT_PART = {"type": "text", "text": "hm"}


@pytest.mark.parametrize(
    "said",
    [
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": ""}]},
        {"content": [TEXT_PART]},
        {"content": [{"type": "thinking", "thinking": [TEXT_PART]}]},
        {"content": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]},
        {"reasoning": "hm", "reasoning_content": "hm", "reasoning_details": [TEXT_PART]},
    ],
)
def test_reasoning_under_other_names_and_lists_of_parts_are_tokens(said: dict[str, object]) -> None:
    reads = [
        (1.0, sse(delta(role="assistant", content=""))),
        (2.0, sse(delta(**said))),
        (3.0, sse(delta(content="b"))),
    ]
    parsed = parse_stream(reads)
    assert (parsed.error, parsed.text, parsed.chunk_s) == ("truncated", "hmb", (2.0, 3.0))


@pytest.mark.parametrize(
    "said",
    [
        {"content": []},
        {"reasoning_details": []},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAA"}]},
        {"thinking_blocks": [{"type": "thinking", "signature": "c2ln"}]},
    ],
)
def test_parts_without_a_text_are_no_token(said: dict[str, object]) -> None:
    parsed = parse_stream([(1.0, sse(delta(**said))), (2.0, sse(delta(content="b")))])
    assert parsed.chunk_s == (2.0,)


def test_a_message_in_one_event_is_an_answer_in_one_chunk() -> None:
    whole = chunk({"index": 0, "message": {"content": "abc"}, "finish_reason": "stop"}, 3)
    parsed = parse_stream([(1.0, sse(whole) + DONE)])
    assert (parsed.text, parsed.chunk_s, parsed.chunk_tokens) == ("abc", (1.0,), (3,))


WHOLE = b"""{"id": "x", "choices": [{"index": 0, "message": {"content": "a b c"},
 "finish_reason": "length"}], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}"""


def test_an_answer_that_is_no_stream_is_one_chunk_that_came_with_its_last_byte() -> None:
    """As from a gateway that takes `stream` and sends the whole answer as JSON."""
    parsed = parse_stream([(1.0, WHOLE[:60]), (2.0, WHOLE[60:])])
    assert (parsed.error, parsed.text, parsed.finish_reason) == ("", "a b c", "length")
    assert (parsed.chunk_s, parsed.chunk_tokens, parsed.output_tokens) == ((2.0,), (3,), 3)
    assert parse_stream([(1.0, WHOLE[:60])]).error == "protocol"
    assert parse_stream([(1.0, WHOLE + WHOLE)]).error == "protocol"


@pytest.mark.parametrize("together", [True, False])
def test_two_answers_in_one_stream_are_an_error(together: bool) -> None:
    one, other = text("a", 1)["choices"][0], text("b", 1, index=1)["choices"][0]  # type: ignore[index]
    chunks = [{"choices": [one, other]}] if together else [chunk(one, 1), chunk(other, 1)]
    parsed = parse_stream([(1.0, sse(*chunks) + DONE)])
    assert (parsed.error, parsed.text) == ("protocol", "" if together else "a")
    assert "ask for one, with n 1" in parsed.error_message


def test_an_empty_chunk_whose_count_rises_is_a_token_of_half_a_character() -> None:
    parsed = parse_stream([(1.0, sse(text("", 1))), (2.0, sse(text("\u4e16", 3)))])
    assert parsed.chunk_s == (1.0, 2.0)
    assert parsed.chunk_tokens == (1, 2)


def test_a_finish_of_its_own_is_no_token() -> None:
    parsed = parse_stream([(1.0, sse(text("a", 1))), (2.0, sse(text("", 1, finish_reason="stop")))])
    assert parsed.chunk_s == (1.0,)
    assert parsed.finish_reason == "stop"


def test_a_total_that_comes_with_the_finish_is_no_token() -> None:
    parsed = parse_stream([(1.0, sse(text("a"))), (2.0, sse(text("", 5, finish_reason="stop")))])
    assert parsed.chunk_s == (1.0,)
    assert parsed.output_tokens == 5


def test_several_tokens_in_a_chunk_are_counted() -> None:
    parsed = parse_stream([(0.0, sse(text("abc", 3), text("de", 5)))])
    assert parsed.chunk_tokens == (3, 2)
    assert parsed.output_tokens == 5


def test_without_usage_in_each_chunk_the_tokens_are_not_known() -> None:
    assert parse_stream([(0.0, sse(text("a"), text("b")))]).chunk_tokens == ()
    assert parse_stream([(0.0, sse(text("a", 1), text("b")))]).chunk_tokens == ()


def test_an_error_event_keeps_what_came_before() -> None:
    error = {"error": {"message": "EngineCore encountered an issue.", "code": 500}}
    parsed = parse_stream([(1.0, sse(text("a", 1))), (2.0, sse(error) + DONE)])
    assert parsed.error == "stream_error"
    assert parsed.error_message == "EngineCore encountered an issue."
    assert (parsed.text, parsed.chunk_s) == ("a", (1.0,))


def test_an_aborted_request_is_an_error() -> None:
    parsed = parse_stream([(1.0, sse(text("a", 1), text("", 1, finish_reason="abort")) + DONE)])
    assert parsed.error == "stream_error"
    assert "abort" in parsed.error_message


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
    parsed = parse_stream([(1.0, sse(text("a", 1)) + b"data: " + event + b"\n\n" + DONE)])
    assert parsed.error == "protocol"
    assert parsed.text == "a"


@pytest.mark.parametrize("error", [b'{"error": 5}', b'{"error": {}}', b'{"object": "error"}'])
def test_an_error_is_one_in_any_shape(error: bytes) -> None:
    parsed = parse_stream([(1.0, sse(text("a", 1)) + b"data: " + error + b"\n\n" + DONE)])
    assert parsed.error == "stream_error"


def test_an_event_named_error_is_one_whatever_its_data() -> None:
    named = b'event: error\ndata: {"message": "no room"}\n\n'
    parsed = parse_stream([(1.0, sse(text("a", 1)) + named + DONE)])
    assert (parsed.error, parsed.error_message) == ("stream_error", "no room")


def test_no_error_said_as_null_is_none() -> None:
    parsed = parse_stream([(1.0, sse(text("a", 1) | {"error": None}) + DONE)])
    assert parsed.error == ""


def test_a_usage_of_null_says_nothing() -> None:
    nothing = {"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": None}
    for usage in (None, {}, nothing):
        chunks = sse(text("a") | {"usage": usage}, text("b", finish_reason="stop"))
        parsed = parse_stream([(0.0, chunks + DONE)])
        assert (parsed.error, parsed.text, parsed.chunk_tokens) == ("", "ab", ())
        assert parsed.usage_prompt_tokens == parsed.output_tokens == parsed.cached_tokens == -1


def test_usage_may_come_once_at_the_end() -> None:
    parsed = parse_stream([(0.0, sse(text("a"), text("b", finish_reason="stop"), USAGE) + DONE)])
    assert (parsed.output_tokens, parsed.cached_tokens, parsed.chunk_tokens) == (3, 4, ())


def test_done_may_be_missing_behind_a_finish() -> None:
    parsed = parse_stream([(0.0, sse(text("a", 1), text("b", 2, finish_reason="stop")))])
    assert (parsed.error, parsed.done, parsed.output_tokens) == ("", False, 2)


def test_a_count_that_falls_tells_no_tokens_of_a_chunk() -> None:
    parsed = parse_stream([(0.0, sse(text("abc", 3), text("d", 1)) + DONE)])
    assert (parsed.error, parsed.chunk_tokens) == ("", ())


def test_done_without_a_token_is_no_success() -> None:
    assert parse_stream([(0.0, DONE)]).error == "truncated"
    assert parse_stream([(0.0, sse(text("", 0, finish_reason="stop")) + DONE)]).error == ""


def test_a_page_instead_of_a_stream_is_told() -> None:
    parsed = parse_stream([(0.0, b"<html><h1>Please log in</h1></html>")])
    assert parsed.error == "protocol"
    assert parsed.error_message == "the answer is no event stream: Please log in"


def test_a_whole_event_that_is_no_json_is_an_error_also_at_the_end() -> None:
    finished = sse(text("a", 1, finish_reason="stop"))
    assert parse_stream([(0.0, finished + b"data: {oops\n\n")]).error == "protocol"
    assert parse_stream([(0.0, finished + b"data: {oops")]).error == ""  # cut after the finish


def test_an_event_cut_at_the_end_is_left_to_the_missing_finish() -> None:
    parsed = parse_stream([(1.0, sse(text("a", 1)) + sse(text("b", 2))[:-10])])
    assert (parsed.error, parsed.done, parsed.text) == ("truncated", False, "a")
