from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from math import isnan
from typing import Any

import httpx
import orjson
import pytest

from workbench.errors import ParameterError
from workbench.load.http.client import open_client, stream_completion
from workbench.load.http.outgoing import request_body
from workbench.load.http.request_form import RequestForm
from workbench.load.workload.workload import Request, short
from workbench.records import RequestRecord

REQUEST = Request(index=5, prompt_ids=[16, 17, 18], max_tokens=3, ideal_reuse_tokens=2)


@pytest.fixture(params=["stamping", "stock"])
async def client(request: pytest.FixtureRequest, vllm: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Both kinds have to give the same records; https has the stock one."""
    opened = (
        open_client(vllm.url)
        if request.param == "stamping"
        else httpx.AsyncClient(timeout=None, trust_env=False)
    )
    async with opened as client:
        yield client


async def send(
    client: httpx.AsyncClient, url: str, request: Request = REQUEST, **options: Any
) -> RequestRecord:
    return await stream_completion(client, request, base_url=url, model="tiny", **options)


async def test_a_success(client: httpx.AsyncClient, vllm: Any) -> None:
    vllm.plays(gap_s=0.02)
    record = await send(client, vllm.url, request_id="run-5")
    assert record.ok
    assert (record.index, record.request_id) == (5, "run-5")
    assert (record.prompt_tokens, record.ideal_reuse_tokens, record.max_tokens) == (3, 2, 3)
    assert (record.http_status, record.finish_reason) == (200, "length")
    assert (record.usage_prompt_tokens, record.output_tokens, record.cached_tokens) == (3, 3, 7)
    assert record.text == " t0\u00e9 t1\u00e9 t2\u00e9"
    assert record.chunk_tokens == (1, 1, 1)
    assert orjson.loads(record.engine_metrics)["time_to_first_token_ms"] == 1.5
    times = [record.scheduled_s, record.sent_s, record.head_s, *record.chunk_s, record.stream_end_s]
    assert times == sorted(times)
    assert len(set(record.chunk_s)) > 1


async def test_what_the_server_is_sent(client: httpx.AsyncClient, vllm: Any) -> None:
    await send(
        client,
        vllm.url + "/",
        request_id="run-5",
        decode_shift=1,
        headers={"Authorization": "Bearer key"},
    )
    path, headers, body = vllm.seen[0]
    assert path == "/v1/completions"
    assert headers["x-request-id"] == "run-5"
    assert headers["x-workbench-index"] == "5"
    assert headers["x-workbench-decode-shift"] == "1"
    assert headers["authorization"] == "bearer key"  # the server lowers all
    assert headers["accept-encoding"] == "identity"
    assert body == orjson.loads(request_body(REQUEST, model="tiny"))


async def test_the_cookie_of_one_request_does_not_go_with_the_next(vllm: Any) -> None:
    async with open_client(vllm.url) as client:
        for _ in range(2):
            assert (await send(client, vllm.url)).ok
    assert ["cookie" in headers for _, headers, _ in vllm.seen] == [False, False]


async def test_without_a_shift_there_is_no_header(client: httpx.AsyncClient, vllm: Any) -> None:
    await send(client, vllm.url)
    await send(client, vllm.url)
    headers = [seen[1] for seen in vllm.seen]
    assert "x-workbench-decode-shift" not in headers[0]
    assert headers[0]["x-request-id"] != headers[1]["x-request-id"]


async def test_ttft_is_the_servers_delay(client: httpx.AsyncClient, vllm: Any) -> None:
    vllm.plays(first_s=0.08)
    await send(client, vllm.url)  # connects
    record = await send(client, vllm.url)
    ttft_s = record.chunk_s[0] - record.sent_s
    true_s = vllm.first_token_s[1] - vllm.read_s[1]
    assert true_s <= ttft_s < true_s + 0.2  # generous: the server shares this loop and core


async def test_an_early_role_chunk_is_not_the_first_token(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(first_s=0.05)
    messages = [{"role": "user", "content": "hello"}]
    record = await send(client, vllm.url, replace(REQUEST, messages=tuple(messages)))
    path, _, body = vllm.seen[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == messages
    assert "prompt" not in body
    assert record.ok
    assert record.text == " t0\u00e9 t1\u00e9 t2\u00e9"
    assert len(record.chunk_s) == 3
    assert record.chunk_s[0] - record.head_s > 0.02


async def test_a_late_finish_is_no_token(client: httpx.AsyncClient, vllm: Any) -> None:
    vllm.plays(finish_s=0.06)
    record = await send(client, vllm.url)
    assert record.ok
    assert len(record.chunk_s) == 3
    assert record.stream_end_s - record.chunk_s[-1] > 0.02


async def test_several_tokens_per_chunk(client: httpx.AsyncClient, vllm: Any) -> None:
    vllm.plays(tokens_per_chunk=2)
    assert (await send(client, vllm.url)).chunk_tokens == (2, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"piece_bytes": 1},
        {"piece_bytes": 7},
        {"framing": "length"},
        {"framing": "close"},
        {"trailer": True},
    ],
)
async def test_framing_and_splitting_change_nothing(
    client: httpx.AsyncClient, vllm: Any, options: dict[str, Any]
) -> None:
    vllm.plays(**options)
    record = await send(client, vllm.url)
    assert record.ok
    assert record.text == " t0\u00e9 t1\u00e9 t2\u00e9"
    assert record.chunk_tokens == (1, 1, 1)
    assert not isnan(record.stream_end_s)


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ("error", "stream_error", "EngineCore encountered an issue."),
        ("truncated", "truncated", "without finish_reason"),
        ("cut", "truncated", ""),
        ("reset", "reset", ""),
        ("hang", "timeout", "no end after 0.25 s"),
    ],
)
async def test_a_failure_keeps_what_had_arrived(
    client: httpx.AsyncClient, vllm: Any, ending: str, error: str, message: str
) -> None:
    vllm.plays(ending=ending, after=2)
    record = await send(client, vllm.url, timeout_s=0.25)
    assert record.error == error
    assert message in record.error_message
    assert record.text == " t0\u00e9 t1\u00e9"
    assert len(record.chunk_s) == 2
    assert record.http_status == 200
    assert record.sent_s <= record.head_s <= record.chunk_s[0]


async def test_a_refusal_has_its_status_and_message(client: httpx.AsyncClient, vllm: Any) -> None:
    vllm.plays(status=503)
    record = await send(client, vllm.url)
    assert (record.error, record.error_message) == ("http_503", "no room")
    assert record.http_status == 503
    assert record.chunk_s == ()


async def test_a_key_that_the_server_quotes_is_not_kept(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(status=401)
    record = await send(client, vllm.url, headers={"Authorization": "Bearer room"})
    assert (record.error, record.error_message) == ("http_401", "no [key]")


async def test_nobody_listens(client: httpx.AsyncClient, closed_port: int) -> None:
    record = await send(client, f"http://127.0.0.1:{closed_port}")
    assert record.error == "connect"
    assert record.http_status == 0
    assert isnan(record.sent_s)
    assert not isnan(record.scheduled_s)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "reset"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\ndata: {oops", "truncated"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\ndata: oops\n\n:\n\n", "protocol"),
        (b"HTTP/1.1 429 Slow\r\nContent-Length: 4\r\n\r\nslow", "http_429"),
    ],
)
async def test_servers_that_are_not_vllm(answer: bytes, error: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(request_body(REQUEST, model="tiny")))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with open_client(url) as client:
            record = await send(client, url)
    assert record.error == error
    assert record.error_message
    assert not isnan(record.sent_s)


async def test_all_was_said_before_the_server_hung_up(vllm: Any) -> None:
    """A chunked body without its last chunk, but with [DONE]: nothing of the answer is missing."""
    body = b'data: {"choices": [{"text": "a", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(request_body(REQUEST, model="tiny")))
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%b\r\n" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with open_client(url) as client:
            record = await send(client, url)
    assert record.ok
    assert record.text == "a"


async def test_a_cancelled_request_is_recorded_and_still_cancelled(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(ending="hang", after=2)
    records: list[RequestRecord] = []
    task = asyncio.create_task(send(client, vllm.url, on_record=records.append))
    await vllm.hangs()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [record.error for record in records] == ["cancelled"]
    assert records[0].text == " t0\u00e9 t1\u00e9"
    await asyncio.wait_for(vllm.left.wait(), 20)  # and the server was told


async def test_the_record_goes_to_the_callback_too(client: httpx.AsyncClient, vllm: Any) -> None:
    records: list[RequestRecord] = []
    record = await send(client, vllm.url, on_record=records.append)
    assert records == [record]


async def test_a_body_built_before_is_sent_as_it_is(client: httpx.AsyncClient, vllm: Any) -> None:
    other = request_body(short(salt="s").requests[0], model="other")
    await send(client, vllm.url, body=other)
    assert vllm.seen[0][2] == orjson.loads(other)


def test_a_base_url_without_scheme_or_host_is_refused() -> None:
    for url in ("127.0.0.1:8000", "ftp://x", "http://", ""):
        with pytest.raises(ParameterError, match="write it like http://127"):
            open_client(url)


async def test_an_https_server_that_is_none_is_a_connect_failure(closed_port: int) -> None:
    url = f"https://127.0.0.1:{closed_port}"
    async with open_client(url) as client:
        assert (await send(client, url)).error == "connect"


async def test_the_first_token_that_usage_has_as_part_of_the_prompt_is_the_clients(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    """The server counts the prompt and the token from prefill, and one answer token less."""
    form = RequestForm(first_token_from_prefill=True)
    vllm.plays(added_prompt_tokens=1)
    record = await send(client, vllm.url, form=form)
    assert (record.usage_prompt_tokens, record.output_tokens) == (3, 4)
    vllm.plays()
    as_it_is = await send(client, vllm.url, REQUEST, form=form)
    assert (as_it_is.usage_prompt_tokens, as_it_is.output_tokens) == (3, 3)
