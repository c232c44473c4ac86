"""A run of events that are alike says what a JSON parser says of each, or is none."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.load import stream
from workbench.load.alike import Run, run_after
from workbench.load.stream import parse_stream


def event(text: str, made: int, *, chat: bool = False, **changed: Any) -> bytes:
    """An event in the shape of vLLM 0.32."""
    said = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": None, "stop_reason": None}
    usage = {"prompt_tokens": 9, "total_tokens": 9 + made, "completion_tokens": made}
    chunk = {"id": "cmpl-1", "object": "x", "created": 7, "choices": [choice], "usage": usage}
    return b"data: " + orjson.dumps(chunk | changed) + b"\n\n"


def run(*events: bytes, text: str = "a", made: int = 1) -> Run:
    body = b"".join(events)
    data = events[0].removeprefix(b"data:").removesuffix(b"\n\n")
    return run_after(data, len(events[0]), body, text=text, made=made, prompt=9)


@pytest.mark.parametrize("chat", [False, True])
def test_events_that_differ_in_text_and_count_are_a_run(chat: bool) -> None:
    said = ["a", " b", "\n", 'say "x"', "caf\u00e9", "back\\slash", "%d", "\U0001f600"]
    events = [event(text, n, chat=chat) for n, text in enumerate(said, start=1)]
    found = run(*events)
    assert found.texts == said[1:]
    lengths = [len(event) for event in events]
    assert found.ends == [sum(lengths[: n + 1]) for n in range(1, len(events))]


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
        b": comment\n\n" + event("b", 2),
        b"data: [DONE]\n\n",
    ],
)
def test_any_other_event_is_no_part_of_a_run(other: bytes) -> None:
    assert run(event("a", 1), other) == Run([], [])


def test_texts_that_only_together_are_json_are_none() -> None:
    """`x\\` and `,y` would be one string if their events were joined."""
    broken = [event("b", n).replace(b'"b"', raw) for n, raw in ((2, b'"x\\"'), (3, b'",y"'))]
    assert run(event("a", 1), *broken) == Run([], [])


def test_a_first_event_that_is_not_what_was_parsed_begins_no_run() -> None:
    assert run(event("a", 1), event("b", 2), text="other") == Run([], [])
    assert run(event("a", 1), event("b", 2), made=4) == Run([], [])
    twice = [event("a", n).replace(b'"created":7', b'"text":"b"') for n in (1, 2)]
    assert run(*twice) == Run([], [])


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
    reads = [(float(n), piece) for n, piece in enumerate(events)]
    short = parse_stream(reads)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "run_after", lambda *_, **__: Run([], []))
        assert parse_stream(reads) == short


def test_most_of_a_stream_is_read_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr(stream.orjson, "loads", lambda data: parsed.append(1) or json.loads(data))
    events = [event(f" {n}", n) for n in range(1, 101)]
    events.append(b'data: {"choices":[{"text":"","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    found = parse_stream((float(n), piece) for n, piece in enumerate(events))
    assert found.text == "".join(f" {n}" for n in range(1, 101))
    assert found.chunk_s == tuple(float(n) for n in range(100))
    assert (found.output_tokens, found.error) == (100, "")
    assert len(parsed) == 3  # the first, the last before another kind, and that one
