"""One request and its record, over connections of both kinds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from math import isnan
from time import monotonic
from typing import Any

import orjson
import pytest

from tests.odd_server import Asked, odd_server
from workbench.load.http import transport
from workbench.load.http.client import ask, record_of
from workbench.load.http.kernel_stamps import KernelClock
from workbench.load.http.request import Endpoint, RequestForm, request_body
from workbench.load.http.response import Response
from workbench.load.http.transport import Transport
from workbench.load.workload.workload import Request
from workbench.records import RequestRecord

REQUEST = Request(index=5, prompt_ids=[16, 17, 18], max_tokens=3, ideal_reuse_tokens=2)
Send = Callable[..., Coroutine[Any, Any, RequestRecord]]


@pytest.fixture(params=[None, KernelClock], ids=["user stamps", "kernel stamps"])
async def send(request: pytest.FixtureRequest) -> AsyncIterator[Send]:
    """Sends to a URL, and keeps a transport to each; the record of a cancelled one goes to
    `cancelled`."""
    clock = request.param and request.param.begin()
    known: dict[str, Transport] = {}
    async with AsyncExitStack() as stack:

        async def send(
            url: str,
            sent: Request = REQUEST,
            request_id: str = "run-5",
            cancelled: list[RequestRecord] | None = None,
            **options: Any,
        ) -> RequestRecord:
            endpoint = Endpoint(base_url=url, model="tiny", **options)
            if url not in known:
                opened = Transport(endpoint.origin, clock=clock)
                known[url] = await stack.enter_async_context(opened)
            outgoing = endpoint.outgoing(sent, request_id)
            response = Response(outgoing.limit_bytes)
            try:
                await known[url].send(outgoing, response)
            except asyncio.CancelledError:
                if cancelled is not None:
                    cancelled.append(record_of(outgoing, response, 0.0))
                raise
            return record_of(outgoing, response, 0.0)

        yield send
    if clock:
        clock.close()


async def test_a_success(send: Send, vllm: Any) -> None:
    vllm.plays(first_s=0.03, gap_s=0.02)
    began_s = monotonic()
    record = await send(vllm.url)
    assert record.ok
    assert (record.index, record.request_id) == (5, "run-5")
    assert (record.prompt_tokens, record.ideal_reuse_tokens, record.max_tokens) == (3, 2, 3)
    assert (record.http_status, record.finish_reason) == (200, "length")
    assert (record.usage_prompt_tokens, record.output_tokens, record.cached_tokens) == (3, 3, 7)
    assert record.text == " t0\u00e9 t1\u00e9 t2\u00e9"
    assert record.chunk_tokens == (1, 1, 1)
    assert orjson.loads(record.engine_metrics)["time_to_first_token_ms"] == 1.5
    times = [began_s, record.sent_s, record.head_s, *record.chunk_s, record.stream_end_s]
    assert times == sorted(times)
    assert len(set(record.chunk_s)) > 1
    assert record.sent_s <= vllm.asked[0].read_s <= vllm.first_token_s[0] <= record.chunk_s[0]


async def test_alone_it_has_a_connection_and_an_id_of_its_own(vllm: Any) -> None:
    endpoint = Endpoint(base_url=vllm.url, model="tiny")
    before_s = monotonic()
    records = [await ask(REQUEST, endpoint) for _ in range(2)]
    assert all(record.ok and before_s <= record.scheduled_s <= record.sent_s for record in records)
    assert records[0].request_id != records[1].request_id
    assert vllm.accepts == 2


async def test_an_early_role_chunk_is_not_the_first_token(send: Send, vllm: Any) -> None:
    vllm.plays(first_s=0.05)
    record = await send(vllm.url, replace(REQUEST, messages=({"role": "user", "content": "hi"},)))
    assert vllm.asked[0].path == "/v1/chat/completions"
    assert record.ok
    assert record.text == " t0\u00e9 t1\u00e9 t2\u00e9"
    assert len(record.chunk_s) == 3
    assert record.chunk_s[0] - record.head_s > 0.02


async def test_a_late_finish_is_no_token(send: Send, vllm: Any) -> None:
    vllm.plays(finish_s=0.06)
    record = await send(vllm.url)
    assert record.ok
    assert len(record.chunk_s) == 3
    assert record.stream_end_s - record.chunk_s[-1] > 0.02


async def test_several_tokens_per_chunk(send: Send, vllm: Any) -> None:
    vllm.plays(tokens_per_chunk=2)
    assert (await send(vllm.url)).chunk_tokens == (2, 1)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"piece_bytes": 1}, True),
        ({"piece_bytes": 7}, True),
        ({"trailer": True}, True),
        ({"framing": "length"}, True),
        ({"framing": "close"}, False),
    ],
)
async def test_framing_and_splitting_change_nothing(
    send: Send, vllm: Any, options: dict[str, Any], kept: bool
) -> None:
    vllm.plays(**options)
    for _ in range(2):
        record = await send(vllm.url)
        assert record.ok
        assert record.text == " t0\u00e9 t1\u00e9 t2\u00e9"
        assert record.chunk_tokens == (1, 1, 1)
        assert not isnan(record.stream_end_s)
    assert vllm.accepts == (1 if kept else 2)


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ("error", "stream_error", "EngineCore encountered an issue."),
        ("truncated", "truncated", "without finish_reason"),
        ("cut", "truncated", "before the response ended"),
        ("reset", "reset", "lost"),
        ("hang", "timeout", "did not end within 0.25 s"),
    ],
)
async def test_a_failure_keeps_what_had_arrived(
    send: Send, vllm: Any, ending: str, error: str, message: str
) -> None:
    vllm.plays(ending=ending, after=2)
    record = await send(vllm.url, timeout_s=0.25)
    assert record.error == error
    assert message in record.error_message
    assert record.text == " t0\u00e9 t1\u00e9"
    assert len(record.chunk_s) == 2
    assert record.http_status == 200
    assert record.sent_s <= record.head_s <= record.chunk_s[0]
    vllm.plays()
    assert (await send(vllm.url)).ok  # on whatever connection


async def test_a_refusal_has_its_status_and_message(send: Send, vllm: Any) -> None:
    vllm.plays(status=503)
    for _ in range(2):
        record = await send(vllm.url)
        assert (record.error, record.error_message) == ("http_503", "no room")
        assert (record.http_status, record.chunk_s) == (503, ())
    assert vllm.accepts == 1


async def test_a_key_that_the_server_quotes_is_not_kept(send: Send, vllm: Any) -> None:
    vllm.plays(status=401)
    record = await send(vllm.url, headers={"authorization": "Bearer room"})
    assert (record.error, record.error_message) == ("http_401", "no [key]")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nobody_listens(send: Send, closed_port: int, scheme: str) -> None:
    record = await send(f"{scheme}://127.0.0.1:{closed_port}")
    assert record.error == "connect"
    assert f"cannot connect to 127.0.0.1:{closed_port}" in record.error_message
    assert (record.http_status, isnan(record.sent_s)) == (0, True)


async def test_a_connection_that_is_not_accepted_times_out(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT_S", 0.05)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        record = await send(f"http://127.0.0.1:{address[1]}")
        for filler in fillers:
            filler.close()
    assert record.error == "connect"
    assert "in 0.05 s" in record.error_message


async def test_a_cancelled_request_is_recorded_and_still_cancelled(send: Send, vllm: Any) -> None:
    vllm.plays(ending="hang", after=2)
    records: list[RequestRecord] = []
    task = asyncio.create_task(send(vllm.url, cancelled=records))
    await vllm.hangs()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(record.error, record.text) for record in records] == [
        ("cancelled", " t0\u00e9 t1\u00e9")
    ]
    await asyncio.wait_for(vllm.left.wait(), 20)  # and the server was told
    vllm.plays()
    assert (await send(vllm.url)).ok
    assert vllm.accepts == 2


async def test_a_server_without_an_answer_is_left_at_the_timeout(send: Send) -> None:
    async def silent(asked: Asked) -> None:
        await asked.reader.read()

    async with odd_server(silent) as server:
        record = await send(server.url, timeout_s=0.05)
    assert (record.error, record.http_status) == ("timeout", 0)


async def test_the_first_token_that_usage_has_as_part_of_the_prompt_is_the_clients(
    send: Send, vllm: Any
) -> None:
    """The server counts the prompt and the token from prefill, and one answer token less."""
    form = RequestForm(first_token_from_prefill=True)
    vllm.plays(added_prompt_tokens=1)
    record = await send(vllm.url, form=form)
    assert (record.usage_prompt_tokens, record.output_tokens) == (3, 4)
    vllm.plays()
    as_it_is = await send(vllm.url, form=form)
    assert (as_it_is.usage_prompt_tokens, as_it_is.output_tokens) == (3, 3)


async def test_the_connection_that_was_used_last_is_used_next(send: Send, vllm: Any) -> None:
    vllm.plays(gap_s=0.03)
    brief = replace(REQUEST, max_tokens=1)
    await asyncio.gather(send(vllm.url, brief), send(vllm.url))
    last = next(asked.client_port for asked in vllm.asked if asked.json["max_tokens"] == 3)
    await send(vllm.url, brief)
    assert vllm.asked[2].client_port == last


async def test_leaving_a_transport_closes_its_connections(vllm: Any) -> None:
    assert (await ask(REQUEST, Endpoint(base_url=vllm.url, model="tiny"))).ok
    async with asyncio.timeout(20):
        while not vllm.asked[0].reader.at_eof():
            await asyncio.sleep(0)


@pytest.mark.parametrize(("moment", "accepts"), [("after", 3), ("on_reuse", 4)])
async def test_a_stale_connection_is_replaced_once(
    send: Send, vllm: Any, moment: str, accepts: int
) -> None:
    await send(vllm.url)
    vllm.plays(hangs_up=moment)
    for _ in range(3):
        record = await send(vllm.url)
        assert record.ok
        assert record.sent_s <= record.head_s
    assert vllm.accepts == accepts


async def test_a_new_connection_that_is_hung_up_is_not_tried_again(send: Send) -> None:
    async with odd_server(b"", reads=False) as server:
        assert (await send(server.url)).error == "reset"
    assert server.accepts == 1


async def test_a_large_body_arrives_whole(send: Send, vllm: Any) -> None:
    long = replace(REQUEST, prompt_ids=list(range(600_000)))  # 4 MB: more than a socket takes
    assert (await send(vllm.url, long)).ok
    assert vllm.asked[0].json == orjson.loads(request_body(long, model="tiny"))


async def test_a_host_name_will_do(send: Send, vllm: Any) -> None:
    await send(vllm.url.replace("127.0.0.1", "localhost"))
    assert vllm.asked[0].headers["host"].startswith("localhost:")
