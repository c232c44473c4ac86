"""A run of events that are alike says what a JSON parser says of each, or is none."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.load.http import stream
from workbench.load.http.fast_path import texts_alike
from workbench.load.http.stream import parse_stream


def event(text: str, made: int, *, chat: bool = False, **changed: Any) -> bytes:
    """An event in the shape of vLLM 0.32."""
    said = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": None, "stop_reason": None}
    usage = {"prompt_tokens": 9, "total_tokens": 9 + made, "completion_tokens": made}
    chunk = {"id": "cmpl-1", "object": "x", "created": 7, "choices": [choice], "usage": usage}
    return b"data: " + orjson.dumps(chunk | changed) + b"\n\n"


def run(*events: bytes, text: str = "a", made: int = 1) -> list[str]:
    data = events[0].removeprefix(b"data:").removesuffix(b"\n\n")
    return texts_alike(data, events[1:], text=text, made=made, prompt=9)


@pytest.mark.parametrize("chat", [False, True])
def test_events_that_differ_in_text_and_count_are_a_run(chat: bool) -> None:
    said = ["a", " b", "\n", 'say "x"', "caf\u00e9", "back\\slash", "%d", "\U0001f600"]
    events = [event(text, n, chat=chat) for n, text in enumerate(said, start=1)]
    assert run(*events) == said[1:]
    assert run(*events, event("c", 99)) == said[1:]


@pytest.mark.parametrize(
    "other",
    [
        event("b", 3),  # two tokens more
        event("b", 1),
        event("", 2),
        event("b", 2, id="cmpl-2"),
        event("b", 2, error="oops"),
        event("b", 2).replace(b"null", b"nil", 1),
        event("b", 2).replace(b'"finish_reason":null', b'"finish_reason":"stop"'),
        event("b", 2).replace(b'"b"', b'"b","c":"d"'),
        event("b", 2).replace(b'"b"', b'"b\x01"'),
        event("b", 2).replace(b'"b"', b'"\\x"'),
        event("b", 2).replace(b'"b"', b'"\\"'),
        event("b", 2).replace(b'"b"', b'"\xff"'),
        event("b", 2).replace(b'"b"', b'"\\ud800"'),
        event("b", 2).replace(b'"total_tokens":11', b'"total_tokens":"11"'),
        event("b", 2)[:-1],
        event("b", 2).replace(b',"object"', b',\n"object"'),
        b": comment\n\n" + event("b", 2),
        event("b", 2) + event("c", 3),
        b"",
        b"data: [DONE]\n\n",
    ],
)
def test_any_other_event_is_no_part_of_a_run(other: bytes) -> None:
    assert run(event("a", 1), other) == []


def test_texts_that_only_together_are_json_are_none() -> None:
    """`x\\` and `,y` would be one string if their events were joined."""
    broken = [event("b", n).replace(b'"b"', raw) for n, raw in ((2, b'"x\\"'), (3, b'",y"'))]
    assert run(event("a", 1), *broken) == []


def test_a_first_event_that_is_not_what_was_parsed_begins_no_run() -> None:
    assert run(event("a", 1), event("b", 2), text="other") == []
    assert run(event("a", 1), event("b", 2), made=4) == []
    lines = [event("a", n).replace(b',"object"', b',\ndata:"object"') for n in (1, 2)]
    assert run(*lines) == []
    twice = [event("a", n).replace(b'"created":7', b'"text":"b"') for n in (1, 2)]
    assert run(*twice) == []


def cut(body: bytes, rng: random.Random) -> list[bytes]:
    """The body in reads of no regard for its events."""
    at = sorted(rng.choices(range(len(body) + 1), k=rng.randrange(12)))
    return [body[a:b] for a, b in zip([0, *at], [*at, len(body)], strict=True)]


@settings(deadline=None, max_examples=200)
@given(
    texts=st.lists(st.text(max_size=4), min_size=1, max_size=12),
    chat=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_stream_reads_the_same_with_and_without_runs(
    texts: list[str], chat: bool, seed: int
) -> None:
    rng = random.Random(seed)
    events = [event(text, n, chat=chat) for n, text in enumerate(texts, start=1)]
    if rng.random() < 0.5:  # something goes wrong somewhere
        at = rng.randrange(len(events))
        spot = rng.randrange(len(events[at]))
        events[at] = events[at][:spot] + rng.choice([b"", b'"', b"\\", b"\n", b"%d", b"1"]) + (
            events[at][spot + 1 :]
        )  # fmt: skip
    events.append(b'data: {"choices":[{"text":"","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    pieces = events if rng.random() < 0.5 else cut(b"".join(events), rng)
    reads = [(float(n), piece) for n, piece in enumerate(pieces)]
    short = parse_stream(reads)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "texts_alike", lambda *_, **__: [])
        assert parse_stream(reads) == short


READS = {
    "a read each": lambda events: events,
    "one read": lambda events: [b"".join(events)],
    "an event in two": lambda e: [*e[:9], e[9][:40], e[9][40:], *e[10:]],
    "a comment": lambda events: [*events[:9], b": ping\n\n", *events[9:]],
}


@pytest.mark.parametrize("split", READS.values(), ids=READS)
def test_most_of_a_stream_is_read_in_runs(monkeypatch: pytest.MonkeyPatch, split: Any) -> None:
    parsed = []
    monkeypatch.setattr(stream.orjson, "loads", lambda data: parsed.append(1) or json.loads(data))
    events = [event(f" {n}", n) for n in range(1, 101)]
    events.append(b'data: {"choices":[{"text":"","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    found = parse_stream((float(n), piece) for n, piece in enumerate(split(events)))
    assert found.text == "".join(f" {n}" for n in range(1, 101))
    assert (found.output_tokens, found.error) == (100, "")
    assert len(parsed) <= 4  # the first of a run, and the one of another kind


def test_where_each_event_has_a_read_the_body_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    found_alike = stream.texts_alike
    monkeypatch.setattr(
        stream, "texts_alike", lambda *a, **k: looks.append(len(a[1])) or found_alike(*a, **k)
    )
    events = [event(f" {n}", n) for n in range(1, 101)]
    found = parse_stream((float(n), piece) for n, piece in enumerate(events))
    assert found.chunk_s == [float(n) for n in range(100)]
    assert looks == [99]


def test_a_token_whose_text_is_held_back_ends_a_run_and_no_more() -> None:
    assert run(event("a", 1), event("b", 2), event("", 3), event("c", 4)) == ["b"]
