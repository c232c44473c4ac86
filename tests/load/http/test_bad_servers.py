"""Servers that answer badly: each ends as a record of its class, and none as no record."""

from __future__ import annotations

import asyncio
import socket
from math import isnan
from typing import Any

import pytest

from tests.odd_server import Answer, Asked, chunked, http, odd_server
from workbench.load.drive.driver import drive
from workbench.load.http import request, transport
from workbench.load.http.client import ask
from workbench.load.http.request import Endpoint
from workbench.load.http.response import HEAD_BYTES
from workbench.load.workload.arrivals import closed
from workbench.load.workload.workload import Request, short
from workbench.records import RequestRecord

REQUEST = Request(index=5, prompt_ids=[16, 17, 18], max_tokens=3, ideal_reuse_tokens=2)
EVENT = b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n'
FINISH = b'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
OOPS = b"data: oops\n\n:\n\n"


async def record_from(answer: Answer, *, reads: bool = True) -> RequestRecord:
    """That of one request to a server that answers so and hangs up."""
    async with odd_server(answer, reads=reads) as server:
        return await ask(REQUEST, Endpoint(base_url=server.url, model="tiny", timeout_s=5.0))


@pytest.mark.parametrize(
    ("sent", "error", "message"),
    [
        (b"", "reset", "closed the connection before sending a response"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Le",
            "reset",
            "closed the connection within the response headers",
        ),
        (b"HTTP/1.1 102 Processing\r\n\r\n", "reset", "within the response headers"),
        (
            b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
            "protocol",
            "not HTTP/1.1",
        ),
        (
            http("307 Temporary Redirect", b"", "Location: http://127.0.0.1:1/v1"),
            "http_307",
            "Temporary Redirect; the server redirects: Location http://127.0.0.1:1/v1",
        ),
        (
            http("401 No", b'{"error": "Unauthorized"}', "WWW-Authenticate: Bearer"),
            "http_401",
            "Unauthorized; the server requires an API key: WWW-Authenticate Bearer",
        ),
        (
            http("429 Slow", b'{"error": {"message": "busy"}}', "Retry-After: 30"),
            "http_429",
            "busy; the server asks to retry later: Retry-After 30",
        ),
        (http("500 Oh", b'{"error": {"message": "no CUDA"}}'), "http_500", "no CUDA"),
        (http("500 Oh", b"<html><p>nginx</p></html>"), "http_500", "nginx"),
        (http("500 Oh", b""), "http_500", "Internal Server Error"),
        (http("599 Oh", b""), "http_599", "status 599 without a message"),
        (http("500 Oh", b"x" * 100_000), "http_500", "x" * 500),
        (http("500 Oh", b"no")[:-1], "http_500", "n"),
        (http("200 OK", b"<html>Log in</html>"), "protocol", "is not an event stream: Log in"),
        (
            http("200 OK", EVENT + b'data: {"error": {"message": "dead"}}\n\n' + FINISH),
            "stream_error",
            "dead",
        ),
        (http("200 OK", EVENT), "truncated", "without finish_reason and without [DONE]"),
        (http("200 OK", EVENT + FINISH)[:-80], "truncated", "before the response ended"),
        (http("200 OK", EVENT + b"data: \xff\n\n" + FINISH), "protocol", "not JSON"),
        (http("200 OK", OOPS), "protocol", "not JSON"),
        (http("200 OK", b"{}"), "protocol", "is not an event stream"),
        (http("200 OK", b"data: {oops"), "truncated", "without finish_reason"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "protocol",
            "not HTTP/1.1",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "protocol", "not HTTP/1.1"),
    ],
)
async def test_each_has_its_class_and_says_why(sent: bytes, error: str, message: str) -> None:
    record = await record_from(sent)
    assert record.error == error
    assert message in record.error_message
    assert len(record.error_message) < 800
    assert not isnan(record.sent_s)


@pytest.mark.parametrize("early", ["100 Continue", "102 Processing", "103 Early Hints"])
async def test_what_comes_before_the_answer_is_not_the_answer(early: str) -> None:
    hints = f"HTTP/1.1 {early}\r\nContent-Length: 9\r\n\r\n".encode() * 3
    record = await record_from(hints + http("200 OK", EVENT + FINISH))
    assert (record.error, record.text, record.http_status) == ("", "a", 200)


async def test_a_server_that_hangs_up_before_it_has_read() -> None:
    assert (await record_from(b"", reads=False)).error == "reset"


async def test_all_was_said_before_the_server_hung_up() -> None:
    """A chunked body without its last chunk, but with [DONE]: nothing of the answer is missing."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    record = await record_from(head + chunked(EVENT + FINISH))
    assert (record.error, record.text) == ("", "a")


async def endless(asked: Asked, start: bytes, piece: bytes) -> None:
    await asked.write(start)
    while True:
        await asked.write(piece)


@pytest.mark.parametrize(
    "start_and_piece",
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"long" * 1000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 50),
    ],
)
async def test_a_head_without_end(start_and_piece: tuple[bytes, bytes]) -> None:
    record = await record_from(lambda asked: endless(asked, *start_and_piece))
    assert record.error == "too_large"
    assert f"headers exceeded {HEAD_BYTES:,} bytes" in record.error_message
    assert record.http_status == 0


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"Content-Length: 2147483648\r\n\r\n", EVENT * 100),
        (b"\r\n", EVENT * 100),
        (b"Transfer-Encoding: chunked\r\n\r\n", chunked(EVENT) * 100),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: and more\r\n" * 100),
    ],
)
async def test_an_answer_without_end_is_kept_up_to_a_limit(
    head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "SPARE_BYTES", 50_000)
    sent_bytes = 0

    async def pour(asked: Asked) -> None:
        nonlocal sent_bytes
        await asked.write(b"HTTP/1.1 200 OK\r\n" + head)
        while True:
            await asked.write(piece)
            sent_bytes += len(piece)

    record = await record_from(pour)
    assert record.error == "too_large"
    assert "exceeded 62,336 bytes" in record.error_message  # 4,096 and 16 more for each of 3
    assert len(record.text) <= 62_288 // len(EVENT) + 300_000 // len(EVENT)  # one read beyond it
    assert sent_bytes < 8e6  # the client hung up; the rest was in the sockets


async def test_an_end_with_something_behind_it_is_found_in_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "_LOOK_S", 0.05)

    async def babble(asked: Asked) -> None:
        await asked.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(EVENT))
        await asyncio.sleep(0.02)
        await asked.write(chunked(EVENT + FINISH) + b"0\r\n\r\n" + chunked(EVENT))
        await asked.reader.read()

    record = await record_from(babble)
    assert (record.error, record.text) == ("", "aa")


async def test_an_error_without_end_is_still_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "SPARE_BYTES", 50_000)
    record = await record_from(
        lambda asked: endless(asked, b"HTTP/1.1 500 Oh\r\n\r\n", b"no CUDA " * 1000)
    )
    assert record.error == "http_500"
    assert record.error_message.startswith("no CUDA no CUDA")


async def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    record = await ask(REQUEST, Endpoint(base_url="http://gpu-node-7:8000", model="tiny"))
    assert record.error == "connect"
    assert "gpu-node-7:8000" in record.error_message
    assert "Name or service not known" in record.error_message


async def test_a_name_that_cannot_be_one() -> None:
    endpoint = Endpoint(base_url=f"http://{'x' * 64}.invalid", model="tiny")
    assert (await ask(REQUEST, endpoint)).error == "connect"


async def test_no_record_is_lost_when_every_answer_is_bad() -> None:
    answers = [b"", b"HTTP/1.1 2", http("500 Oh", b""), http("200 OK", EVENT + b"data: 5\n\n")]

    async def bad(asked: Asked) -> None:
        await asked.write(answers.pop())

    workload = short(requests=4, prompt_tokens=32, output_tokens=3, salt="run")
    async with odd_server(bad, reads=False) as server:
        run = await drive(workload, closed(1), base_url=server.url, model="tiny")
    assert [record.index for record in run.records] == [0, 1, 2, 3]
    assert all(record.error for record in run.records)
