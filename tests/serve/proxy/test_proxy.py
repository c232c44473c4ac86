"""The proxy between a real HTTP client and simulated instances that are real HTTP servers."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.odd_server import Asked, http, odd_server
from workbench.serve.proxy.proxy import DECODE_SHIFT_HEADER, INDEX_HEADER, Routes, create_app

COMPLETIONS = "/v1/completions"
ASKED = {
    "model": "tiny",
    "prompt": [1, 2, 3],
    "max_tokens": 8,
    "min_tokens": 4,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}
PARAMS = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[3, 4]],
    "remote_engine_id": "engine-7",
    "remote_request_id": "cmpl-1",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
    "transfer_mode": "pull",
}
STREAM = (
    b'data: {"choices":[{"text":"a"}]}\n\n',
    b'data: {"choices":[{"text":"\xc3\xa9"}]}\r\n\r\n',
    b": a comment\n\ndata:  [DONE]\n\n",
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Instance:
    """A simulated vLLM server: notes what it is asked, then does what `answer` says."""

    def __init__(self, answer: Handler) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.request_ids: list[str] = []
        self.peers: set[tuple[str, int]] = set()
        self.cancelled = asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/{kind:.*}", self._serve)
        app.router.add_get("/v1/models", self._models)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.raw.append(await request.read())
        self.bodies.append(json.loads(self.raw[-1]))
        self.request_ids.append(request.headers["X-Request-Id"])
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})


async def prefilled(_request: web.Request) -> web.Response:
    return web.json_response({"choices": [{}], "kv_transfer_params": None})


async def prefilled_for_nixl(_request: web.Request) -> web.Response:
    metrics = {"queue_time_ms": 1.5, "time_to_first_token_ms": None}
    return web.json_response({"kv_transfer_params": PARAMS, "metrics": metrics})


async def streamed(request: web.Request) -> web.StreamResponse:
    out = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await out.prepare(request)
    for chunk in STREAM:
        await out.write(chunk)
    return out


async def hanging(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("nobody cancelled this request")


def answering(status: int, body: str) -> Handler:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    return answer


def breaking_after(*chunks: bytes, content_type: str = "text/event-stream") -> Handler:
    """Sends the head and some chunks, then the connection is gone."""

    async def answer(request: web.Request) -> web.StreamResponse:
        out = web.StreamResponse(headers={"Content-Type": content_type})
        await out.prepare(request)
        for chunk in chunks:
            await out.write(chunk)
        assert request.transport is not None
        request.transport.close()
        return out

    return answer


class Bench:
    """Starts instances and proxies for a test, and stops them after it."""

    def __init__(self) -> None:
        self._servers: list[TestServer] = []
        self._clients: list[TestClient[web.Request, web.Application]] = []

    async def instances(self, n: int, answer: Handler) -> list[Instance]:
        made = [Instance(answer) for _ in range(n)]
        for instance in made:
            await instance.server.start_server()
            self._servers.append(instance.server)
        return made

    async def proxy(
        self, *, mode: str = "lmcache", prefill: list[str] | None = None, decode: list[str]
    ) -> TestClient[web.Request, web.Application]:
        app = create_app(mode=mode, prefill=prefill or [], decode=decode)  # type: ignore[arg-type]
        client = TestClient(TestServer(app))
        await client.start_server()
        self._clients.append(client)
        return client

    async def pair(
        self, prefill: Handler, decode: Handler, *, mode: str = "lmcache"
    ) -> tuple[TestClient[web.Request, web.Application], Instance, Instance]:
        (p,) = await self.instances(1, prefill)
        (d,) = await self.instances(1, decode)
        return await self.proxy(mode=mode, prefill=[p.url], decode=[d.url]), p, d

    async def stop(self) -> None:
        for running in (*self._clients, *self._servers):
            await running.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.stop()


async def legs_of(client: TestClient[web.Request, web.Application]) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = await (await client.get("/legs")).json()
    return answer


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# --- a request that goes well


async def test_both_legs_of_a_request(bench: Bench) -> None:
    client, prefill, decode = await bench.pair(prefilled, streamed)
    answer = await client.post(COMPLETIONS, json=ASKED, headers={"X-Request-Id": "r-1"})
    assert (answer.status, await answer.read()) == (200, b"".join(STREAM))
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["X-Request-Id"] == "r-1"
    leg = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 1, "ignore_eos": True}
    assert prefill.bodies == [leg | {"stream": False}]
    assert decode.bodies == [ASKED]
    assert prefill.request_ids == decode.request_ids == ["r-1"]


async def test_decode_gets_the_clients_own_bytes(bench: Bench) -> None:
    client, _, decode = await bench.pair(prefilled, streamed)
    body = b'{ "prompt" : "\\u00e9\xc3\xa9",  "temperature": 1e-1, "max_tokens":2}'
    await client.post(COMPLETIONS, data=body)
    assert decode.raw == [body]


async def test_chat_limits_both_names_of_the_token_limit(bench: Bench) -> None:
    client, prefill, decode = await bench.pair(prefilled, streamed)
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 9}
    await client.post("/v1/chat/completions", json=asked)
    assert prefill.bodies == [
        asked | {"max_completion_tokens": 1, "max_tokens": 1, "stream": False}
    ]
    assert decode.bodies == [asked]


async def test_chunks_pass_as_they_arrive(bench: Bench) -> None:
    """The second chunk is only made once the client holds the first: nothing is held back."""
    go_on = asyncio.Event()

    async def stepwise(request: web.Request) -> web.StreamResponse:
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        for chunk in (b"data: half an ev", b"ent\n\n"):
            await out.write(chunk)
            await go_on.wait()
        return out

    client, _, _ = await bench.pair(prefilled, stepwise)
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert await answer.content.readany() == b"data: half an ev"
    go_on.set()
    assert await answer.read() == b"ent\n\n"


async def test_large_prompt_passes(bench: Bench) -> None:
    client, prefill, decode = await bench.pair(prefilled, streamed)
    prompt = list(range(400_000))  # 2.7 MB: above aiohttp's own limit of 1 MB
    answer = await client.post(COMPLETIONS, json=ASKED | {"prompt": prompt})
    assert answer.status == 200
    assert prefill.bodies[0]["prompt"] == decode.bodies[0]["prompt"] == prompt


async def test_connections_to_instances_are_kept(bench: Bench) -> None:
    client, prefill, decode = await bench.pair(prefilled, streamed)
    for _ in range(5):
        await (await client.post(COMPLETIONS, json=ASKED)).read()
    assert len(prefill.peers) == len(decode.peers) == 1


# --- nixl


async def test_nixl_carries_the_transfer_parameters_over(bench: Bench) -> None:
    client, prefill, decode = await bench.pair(prefilled_for_nixl, streamed, mode="nixl")
    assert await (await client.post(COMPLETIONS, json=ASKED)).read() == b"".join(STREAM)
    assert prefill.bodies[0]["kv_transfer_params"] == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
    assert decode.bodies == [ASKED | {"kv_transfer_params": PARAMS}]


async def test_nixl_never_prefills_twice(bench: Bench) -> None:
    """The decode leg is not tried where the prefill's answer has nothing to hand over."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"kv_transfer_params": None})

    client, prefill, decode = await bench.pair(answer, streamed, mode="nixl")
    answered = await client.post(COMPLETIONS, json=ASKED)
    error = (await answered.json())["error"]
    assert answered.status == 502
    assert error["message"].startswith(f"prefill instance {prefill.url} returned no transfer")
    assert decode.bodies == []


# --- routing


def test_routes_pair_by_index_and_shift_the_decode_side() -> None:
    routes = Routes(prefill=("http://p0", "http://p1"), decode=("http://d0", "http://d1"))
    assert routes.at(0) == ("http://p0", "http://d0")
    assert routes.at(5) == ("http://p1", "http://d1")
    assert routes.at(5, shift=1) == ("http://p1", "http://d0")
    aggregated = Routes(decode=("http://a0", "http://a1", "http://a2"))
    assert aggregated.at(4) == ("", "http://a1")
    assert aggregated.at(4, shift=2) == ("", "http://a0")


async def test_index_decides_the_pair_in_any_order(bench: Bench) -> None:
    prefill = await bench.instances(2, prefilled)
    decode = await bench.instances(3, streamed)
    client = await bench.proxy(prefill=[p.url for p in prefill], decode=[d.url for d in decode])
    for index, shift in [(4, 0), (0, 0), (4, 0), (4, 1), (5, 3)]:
        headers = {INDEX_HEADER: str(index), DECODE_SHIFT_HEADER: str(shift)}
        await client.post(COMPLETIONS, json=ASKED, headers=headers)
    met = [
        (leg["index"], leg["prefill_instance"], leg["decode_instance"])
        for leg in await legs_of(client)
    ]
    assert met == [
        (4, prefill[0].url, decode[1].url),
        (0, prefill[0].url, decode[0].url),
        (4, prefill[0].url, decode[1].url),
        (4, prefill[0].url, decode[2].url),
        (5, prefill[1].url, decode[2].url),
    ]


async def test_without_an_index_it_deals_in_turn(bench: Bench) -> None:
    instances = await bench.instances(3, streamed)
    client = await bench.proxy(mode="none", decode=[i.url for i in instances])
    for _ in range(6):
        await client.post(COMPLETIONS, json=ASKED)
    assert [len(i.bodies) for i in instances] == [2, 2, 2]
    legs = await legs_of(client)
    assert {leg["index"] for leg in legs} == {-1}
    assert len({leg["request_id"] for leg in legs}) == 6


@pytest.mark.parametrize("header", [INDEX_HEADER, DECODE_SHIFT_HEADER])
async def test_a_header_that_is_no_number_is_refused(bench: Bench, header: str) -> None:
    client, prefill, _ = await bench.pair(prefilled, streamed)
    answer = await client.post(COMPLETIONS, json=ASKED, headers={header: "-1"})
    assert answer.status == 400
    assert (
        f"{header} must be an integer from 0, got '-1'" in (await answer.json())["error"]["message"]
    )
    assert prefill.bodies == []


@pytest.mark.parametrize(("body", "said"), [(b"{", "invalid JSON"), (b"[1]", "got a list")])
async def test_a_body_that_is_no_object_is_refused(bench: Bench, body: bytes, said: str) -> None:
    client, prefill, _ = await bench.pair(prefilled, streamed)
    answer = await client.post(COMPLETIONS, data=body)
    assert answer.status == 400
    assert said in (await answer.json())["error"]["message"]
    assert prefill.bodies == [] and await legs_of(client) == []


# --- aggregated instances: one leg


async def test_aggregated_instance_gets_one_leg_with_the_body_as_it_is(bench: Bench) -> None:
    (instance,) = await bench.instances(1, streamed)
    client = await bench.proxy(mode="none", decode=[instance.url + "/"])
    body = json.dumps(ASKED, indent=1).encode()
    answer = await client.post(COMPLETIONS, data=body, headers={INDEX_HEADER: "7"})
    assert await answer.read() == b"".join(STREAM)
    assert instance.raw == [body]
    (leg,) = await legs_of(client)
    assert (leg["prefill_instance"], leg["decode_instance"]) == ("", instance.url)
    assert leg["prefill_sent_s"] is leg["prefill_done_s"] is None


# --- stamps


async def test_stamps_are_in_order_and_on_the_monotonic_clock(bench: Bench) -> None:
    client, prefill, decode = await bench.pair(prefilled_for_nixl, streamed, mode="nixl")
    before_s = time.monotonic()
    headers = {INDEX_HEADER: "3", "X-Request-Id": "r-3"}
    await (await client.post(COMPLETIONS, json=ASKED, headers=headers)).read()
    (leg,) = await legs_of(client)
    assert (leg["request_id"], leg["index"], leg["error"]) == ("r-3", 3, "")
    assert (leg["prefill_instance"], leg["decode_instance"]) == (prefill.url, decode.url)
    assert json.loads(leg["prefill_engine_metrics"])["queue_time_ms"] == 1.5
    names = (
        "received_s", "prefill_sent_s", "prefill_done_s",
        "decode_sent_s", "decode_head_s", "decode_first_byte_s", "decode_done_s",
    )  # fmt: skip
    stamps = [before_s, *(leg[name] for name in names), time.monotonic()]
    assert stamps == sorted(stamps)


async def test_legs_are_told_once(bench: Bench) -> None:
    client, _, _ = await bench.pair(prefilled, streamed)
    await (await client.post(COMPLETIONS, json=ASKED)).read()
    assert len(await legs_of(client)) == 1
    assert await legs_of(client) == []


# --- legs that fail


@pytest.mark.parametrize(
    ("answer", "status", "what"),
    [
        (answering(500, "out of luck"), 500, "responded 500: out of luck"),
        (answering(200, "<html>"), 200, "responded 200, but the body must be a JSON object"),
        (
            breaking_after(b'{"choi'),
            200,
            "ended its response early: the connection closed before the response ended",
        ),
    ],
)
async def test_a_prefill_that_fails_is_named_and_decode_is_not_asked(
    bench: Bench, answer: Handler, status: int, what: str
) -> None:
    client, prefill, decode = await bench.pair(answer, streamed)
    answered = await client.post(COMPLETIONS, json=ASKED)
    error = (await answered.json())["error"]
    message = error.pop("message")
    assert message.startswith(f"prefill instance {prefill.url} {what}")
    assert error == {
        "type": "leg_failed", "leg": "prefill", "instance": prefill.url, "status": status
    }  # fmt: skip
    assert (answered.status, decode.bodies) == (502, [])
    (leg,) = await legs_of(client)
    assert (leg["error"], leg["decode_sent_s"]) == (message, None)


async def test_an_instances_own_4xx_passes_with_its_sentence(bench: Bench) -> None:
    refusal = json.dumps({"error": {"message": "maximum context length is 24576", "code": 400}})
    client, _, decode = await bench.pair(prefilled, answering(400, refusal))
    answer = await client.post(COMPLETIONS, json=ASKED)
    error = (await answer.json())["error"]
    assert (answer.status, error["leg"], error["status"]) == (400, "decode", 400)
    assert error["message"] == (
        f"decode instance {decode.url} responded 400: maximum context length is 24576"
    )


@pytest.mark.parametrize("leg", ["prefill", "decode"])
async def test_a_leg_that_refuses_the_connection_is_named_with_the_reason(
    bench: Bench, leg: str
) -> None:
    (alive,) = await bench.instances(1, prefilled if leg == "decode" else streamed)
    urls = {"prefill": alive.url, "decode": alive.url, leg: f"http://127.0.0.1:{closed_port()}"}
    client = await bench.proxy(prefill=[urls["prefill"]], decode=[urls["decode"]])
    answer = await client.post(COMPLETIONS, json=ASKED)
    error = (await answer.json())["error"]
    assert (answer.status, error["leg"], error["instance"]) == (502, leg, urls[leg])
    assert error["status"] is None
    assert error["message"] == f"{leg} instance {urls[leg]} did not respond: Connection refused"


@pytest.mark.parametrize(
    ("chunks", "closing"), [(STREAM[:2], b""), ((), b""), ((b'data: {"choi',), b"\n\n")]
)
async def test_a_stream_that_breaks_ends_with_an_error_event(
    bench: Bench, chunks: tuple[bytes, ...], closing: bytes
) -> None:
    client, _, decode = await bench.pair(prefilled, breaking_after(*chunks))
    answer = await client.post(COMPLETIONS, json=ASKED)
    got = await answer.read()
    passed, _, event = got.rpartition(b"data: ")
    assert answer.status == 200
    # A half event is closed off, so that the error is an event of its own.
    assert passed == b"".join(chunks) + closing
    error = json.loads(event)["error"]
    assert event.endswith(b"\n\n")
    assert (error["leg"], error["instance"], error["status"]) == ("decode", decode.url, 200)
    assert "ended its response early" in error["message"]
    (leg,) = await legs_of(client)
    assert leg["error"].startswith(f"decode instance {decode.url} ended its response early")
    assert leg["decode_done_s"] is None


async def test_a_plain_answer_that_breaks_is_seen_as_broken(bench: Bench) -> None:
    half = breaking_after(b'{"choi', content_type="application/json")
    client, _, _ = await bench.pair(prefilled, half)
    answer = await client.post(COMPLETIONS, json=ASKED | {"stream": False})
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()
    (leg,) = await legs_of(client)
    assert "ended its response early" in leg["error"]


# --- clients that leave


@pytest.mark.parametrize("leg", ["prefill", "decode"])
async def test_a_client_that_leaves_ends_the_leg(bench: Bench, leg: str) -> None:
    handlers = {"prefill": prefilled, "decode": streamed, leg: hanging}
    client, prefill, decode = await bench.pair(handlers["prefill"], handlers["decode"])
    with pytest.raises(TimeoutError):
        await client.post(COMPLETIONS, json=ASKED, timeout=aiohttp.ClientTimeout(total=0.1))
    instance = prefill if leg == "prefill" else decode
    await asyncio.wait_for(instance.cancelled.wait(), timeout=5)
    (record,) = await legs_of(client)
    assert record["error"].startswith(f"{leg} cancelled")


async def test_a_client_that_leaves_in_mid_stream_ends_the_decode(bench: Bench) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        while True:
            await out.write(b"data: x\n\n")
            await asyncio.sleep(0.001)

    client, _, decode = await bench.pair(prefilled, endless)
    answer = await client.post(COMPLETIONS, json=ASKED)
    await answer.content.readany()
    answer.close()
    await asyncio.wait_for(decode.cancelled.wait(), timeout=5)
    (leg,) = await legs_of(client)
    assert leg["error"].startswith("decode cancelled")
    assert leg["decode_first_byte_s"] is not None


# --- kept connections


async def test_a_kept_connection_that_the_server_closed_costs_no_request() -> None:
    """The race: an idle connection is closed in the moment the next request is written to it."""

    async def once_per_connection(asked: Asked) -> None:
        await asked.write(http("200 OK", {}))
        await asked.reader.read(1)  # the next request has come
        asked.writer.transport.abort()

    async with odd_server(once_per_connection) as server:
        async with TestClient(TestServer(create_app(mode="none", decode=[server.url]))) as client:
            for _ in range(3):
                answer = await client.post(COMPLETIONS, data=b"{}")
                assert (answer.status, await answer.read()) == (200, b"{}")
            assert [leg["error"] for leg in await legs_of(client)] == ["", "", ""]
    assert len(server.asked) == 3


async def test_a_new_connection_that_breaks_is_not_tried_again() -> None:
    """An instance that dies on a request must not get it twice."""

    async def dies(asked: Asked) -> None:
        asked.writer.transport.abort()

    async with odd_server(dies) as server:
        async with TestClient(TestServer(create_app(mode="none", decode=[server.url]))) as client:
            answer = await client.post(COMPLETIONS, data=b"{}")
            assert answer.status == 502
            assert "did not respond" in (await answer.json())["error"]["message"]
    assert len(server.asked) == 1


# --- beside the requests


async def test_health_models_and_stats(bench: Bench) -> None:
    client, _, _ = await bench.pair(prefilled, answering(503, "no"))
    assert (await (await client.get("/health")).json())["status"] == "ok"
    assert (await (await client.get("/v1/models")).json())["data"] == [{"id": "tiny"}]
    await client.post(COMPLETIONS, json=ASKED)
    stats = await (await client.get("/stats")).json()
    assert (stats["requests"], stats["failed"]) == (1, 1)
    assert 0 < stats["cpu_s"] and 0 < stats["uptime_s"]


async def test_models_of_a_dead_instance_is_a_named_failure(bench: Bench) -> None:
    client = await bench.proxy(mode="none", decode=[f"http://127.0.0.1:{closed_port()}"])
    answer = await client.get("/v1/models")
    assert answer.status == 502
    assert (await answer.json())["error"]["leg"] == "decode"


def test_as_a_program_it_serves_and_ends_on_sigterm() -> None:
    url = f"http://127.0.0.1:{(port := closed_port())}"
    command = [sys.executable, "-m", "workbench.serve.proxy.proxy", "--mode", "none"]
    command += ["--port", str(port), "--decode", "http://127.0.0.1:1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        try:
            # It waits 0, 0.5, 1, 2 ... seconds between its tries to connect.
            with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
                assert client.get(f"{url}/health").json() == {"status": "ok", "mode": "none"}
            second = subprocess.run(command, capture_output=True, text=True, timeout=20)
            assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
            assert second.returncode == 1 and "Traceback" not in second.stderr
            program.terminate()
            assert program.wait(5) == 0
        finally:
            program.kill()
        assert program.stderr is not None and program.stderr.read() == ""
