"""An answer is the same however it was split into reads, and whenever they are unframed."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.load.http.response import Response

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\n0\r\n\r\n\r\n9\r\ndata: x\n\n\r\n0\r\nX-Note: end\r\n\r\n"
)
"""The body holds what looks like the end of a chunked body, and a trailer follows it."""
COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n0\r\n\r\ndata: x\n\n"
BODY = b"0\r\n\r\ndata: x\n\n"


def fed(*reads: bytes, then: str = "", limit_bytes: int = 2**20) -> Response:
    """A response after these reads, at 1.0, 2.0, ... s; `then` its connection is lost, or it is
    looked at after a second of silence."""

    async def feed() -> Response:
        answer = Response(limit_bytes)
        for number, data in enumerate(reads, start=1):
            answer.feed(data, float(number))
        if then == "lost":
            answer.lost(None)
        elif then == "look":
            answer.look()
        return answer

    return asyncio.run(feed())


@pytest.mark.parametrize("message", [CHUNKED, COUNTED])
def test_a_response_in_one_read(message: bytes) -> None:
    answer = fed(message)
    assert (answer.status, answer.head_s) == (200, 1.0)
    assert (answer.stamps, answer.reads) == ([1.0], [BODY])
    assert answer.finished.done()
    assert answer.keep_alive


@settings(deadline=None)  # another program may take the core for a moment
@given(
    message=st.sampled_from([CHUNKED, COUNTED]),
    cuts=st.lists(st.integers(1, len(COUNTED) - 1), max_size=8, unique=True),
)
def test_however_it_is_split_it_ends_with_its_last_byte(message: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(message)]
    reads = [message[a:b] for a, b in pairwise(edges)]
    assert not fed(*reads[:-1]).finished.done()
    answer = fed(*reads)
    assert answer.finished.done()
    assert b"".join(answer.reads) == BODY
    assert len(answer.stamps) == len(answer.reads) == len(reads)


def test_the_head_has_the_time_of_its_last_byte() -> None:
    assert fed(COUNTED[:20], COUNTED[20:30], COUNTED[30:]).head_s == 3.0


def test_a_trailer_is_no_header() -> None:
    assert fed(CHUNKED).headers == [(b"Transfer-Encoding", b"chunked")]


def test_an_early_hint_is_not_the_response() -> None:
    answer = fed(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + COUNTED)
    assert answer.status == 200
    assert answer.headers == [(b"content-length", b"14")]
    assert answer.reads == [BODY]


@pytest.mark.parametrize(
    ("message", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (COUNTED + b"surplus", False),
        (COUNTED + COUNTED, False),
        (CHUNKED + CHUNKED, False),
    ],
)
def test_whether_the_connection_may_be_used_again(message: bytes, keep_alive: bool) -> None:
    answer = fed(message)
    assert answer.finished.done() and not answer.error
    assert answer.keep_alive is keep_alive
    assert answer.reads[0] in (b"", BODY)


def test_a_body_without_length_ends_with_the_connection() -> None:
    answer = fed(b"HTTP/1.1 200 OK\r\n\r\nhalf", b" and half", then="lost")
    assert answer.finished.done() and not answer.error
    assert b"".join(answer.reads) == b"half and half"
    assert len(answer.stamps) == len(answer.reads) == 3  # the end is a read of nothing


def test_what_came_before_a_failure_is_kept() -> None:
    answer = fed(CHUNKED[:-1], then="lost")
    assert answer.reads == [BODY]
    assert answer.status == 200


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT, END = b"9\r\ndata: x\n\n\r\n", b"0\r\n\r\n"


def test_reads_of_one_event_each_are_unframed_together() -> None:
    waiting = fed(HEAD, *[EVENT] * 20)
    assert (len(waiting.stamps), waiting.reads) == (21, [b""])
    assert fed(HEAD, *[EVENT] * 40).reads == [b"", *[b"data: x\n\n"] * 32]
    answer = fed(HEAD, *[EVENT] * 40, END)
    assert answer.reads == [b"", *[b"data: x\n\n"] * 40, b""]
    assert answer.stamps == [float(n) for n in range(1, 43)]
    assert answer.finished.done() and answer.keep_alive


def test_what_has_waited_is_not_lost_with_the_connection() -> None:
    answer = fed(HEAD, EVENT, EVENT, then="lost")
    assert answer.error == "truncated"
    assert answer.reads == [b"", b"data: x\n\n", b"data: x\n\n"]
    assert len(answer.stamps) == 3


def test_a_broken_chunk_that_ends_like_an_event_is_found_when_it_is_looked_at() -> None:
    answer = fed(HEAD, EVENT, b"zz\r\ndata: x\n\n\r\n", EVENT, then="look")
    assert answer.error == "protocol"
    assert len(answer.stamps) == len(answer.reads) == 4


@pytest.mark.parametrize("last", [END, EVENT + END])
def test_the_end_is_found_at_once(last: bytes) -> None:
    answer = fed(HEAD, EVENT, last)
    assert answer.finished.done() and not answer.error
    assert answer.keep_alive


@pytest.mark.parametrize("last", [END + EVENT, EVENT + END + EVENT])
def test_an_end_that_ends_like_an_event_is_found_when_it_is_looked_at(last: bytes) -> None:
    answer = fed(HEAD, EVENT, last, then="look")
    assert answer.finished.done() and not answer.error
    assert not answer.keep_alive
    assert answer.reads == [b"", b"data: x\n\n", b"data: x\n\n" * last.startswith(EVENT)]
    assert len(answer.stamps) == 3


def test_more_than_the_limit_is_found_with_the_lot() -> None:
    assert not fed(HEAD, *[EVENT] * 31, limit_bytes=200).ended
    assert fed(HEAD, *[EVENT] * 32, limit_bytes=200).error == "too_large"
