"""Both legs at once (connector mooncake): decode waits for prefill, and neither hangs alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.serve.proxy.test_proxy import (
    ASKED,
    COMPLETIONS,
    STREAM,
    Bench,
    Handler,
    Instance,
    answering,
    closed_port,
    hanging,
    legs_of,
    prefilled,
    streamed,
)
from workbench.serve.proxy import legs as proxy_legs
from workbench.serve.proxy.proxy import create_app


class Mooncake(Bench):
    """A prefill and a decode instance, and a bootstrap server that names `engines`."""

    def __init__(self) -> None:
        super().__init__()
        self.engines: dict[str, Any] = {"0": {"engine_id": "engine-1", "worker_addr": {}}}

    async def legs(self, prefill: Handler, decode: Handler) -> tuple[Any, Instance, Instance]:
        (p,), (d,) = await self.instances(1, prefill), await self.instances(1, decode)
        app = web.Application()
        app.router.add_get("/query", self._query)
        self.bootstrap = TestServer(app)
        await self.bootstrap.start_server()
        self._servers.append(self.bootstrap)
        return await self.behind([p.url], [d.url], [str(self.bootstrap.make_url(""))]), p, d

    async def behind(
        self, prefill: list[str], decode: list[str], bootstrap: list[str]
    ) -> TestClient[web.Request, web.Application]:
        app = create_app(mode="mooncake", prefill=prefill, decode=decode, bootstrap=bootstrap)
        client = TestClient(TestServer(app))
        await client.start_server()
        self._clients.append(client)
        return client

    async def _query(self, _request: web.Request) -> web.Response:
        return web.json_response(self.engines)


@pytest.fixture
async def bench() -> AsyncIterator[Mooncake]:
    bench = Mooncake()
    yield bench
    await bench.stop()


async def streamed_head_first(request: web.Request) -> web.StreamResponse:
    """As vLLM: the head at once, and no byte while it waits for prefill."""
    out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await out.prepare(request)
    await asyncio.sleep(60)
    raise AssertionError("nobody cancelled this request")


async def test_both_legs_run_at_once_with_one_transfer_id(bench: Mooncake) -> None:
    decoding = asyncio.Event()

    async def prefilled_while_decode_waits(request: web.Request) -> web.Response:
        await asyncio.wait_for(decoding.wait(), timeout=5)
        return await prefilled(request)

    async def decoded(request: web.Request) -> web.StreamResponse:
        decoding.set()
        return await streamed(request)

    client, prefill, decode = await bench.legs(prefilled_while_decode_waits, decoded)
    answer = await client.post(COMPLETIONS, json=ASKED, headers={"X-Request-Id": "r-1"})
    assert (answer.status, await answer.read()) == (200, b"".join(STREAM))
    asked, waits = (i.bodies[0]["kv_transfer_params"] for i in (prefill, decode))
    assert asked == {
        "do_remote_decode": True, "do_remote_prefill": False, "transfer_id": asked["transfer_id"],
    }  # fmt: skip
    assert waits == {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "remote_bootstrap_addr": str(bench.bootstrap.make_url("")).rstrip("/"),
        "remote_engine_id": "engine-1",
        "transfer_id": asked["transfer_id"],
    }
    assert (prefill.bodies[0]["max_tokens"], decode.bodies[0]["max_tokens"]) == (1, 8)
    assert prefill.request_ids == decode.request_ids == ["r-1"]
    (leg,) = await legs_of(client)
    assert leg["at_once"] and not leg["error"]
    assert leg["prefill_sent_s"] < leg["decode_sent_s"] < leg["prefill_done_s"]
    assert leg["decode_done_s"] is not None


async def test_a_restarted_instance_is_another_engine(
    bench: Mooncake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_legs, "LOOKUP_PERIOD_S", 0.01)
    client, _, decode = await bench.legs(prefilled, streamed)
    for engine in ("engine-1", "engine-2"):
        bench.engines = {"0": {"engine_id": engine, "worker_addr": {}}}
        await asyncio.sleep(0.2)
        await (await client.post(COMPLETIONS, json=ASKED)).read()
    params = [body["kv_transfer_params"] for body in decode.bodies]
    assert [each["remote_engine_id"] for each in params] == ["engine-1", "engine-2"]
    assert len({each["transfer_id"] for each in params}) == 2


@pytest.mark.parametrize(("status", "passed"), [(500, 502), (400, 400)])
@pytest.mark.parametrize("waiting", [hanging, streamed_head_first])
async def test_a_prefill_that_fails_ends_the_decode_that_waits_for_it(
    bench: Mooncake, waiting: Handler, status: int, passed: int
) -> None:
    decoding = asyncio.Event()

    async def refused(_request: web.Request) -> web.Response:
        await asyncio.wait_for(decoding.wait(), timeout=5)
        return web.Response(status=status, text="out of blocks")

    async def decoded(request: web.Request) -> web.StreamResponse:
        decoding.set()
        return await waiting(request)

    client, prefill, decode = await bench.legs(refused, decoded)
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert answer.status == passed
    error = (await answer.json())["error"]
    assert error["message"] == f"prefill instance {prefill.url} responded {status}: out of blocks"
    await asyncio.wait_for(decode.cancelled.wait(), timeout=5)
    (leg,) = await legs_of(client)
    assert leg["error"] == error["message"]


async def test_an_engine_is_forgotten_when_its_bootstrap_server_is_gone(
    bench: Mooncake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_legs, "LOOKUP_PERIOD_S", 0.01)
    client, _, decode = await bench.legs(hanging, streamed)
    await bench.bootstrap.close()
    await asyncio.sleep(0.2)
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert answer.status == 502 and decode.bodies == []
    assert "did not respond: Connection refused" in (await answer.json())["error"]["message"]


async def test_a_dead_prefill_instance_is_named_at_once(bench: Mooncake) -> None:
    _, _, decode = await bench.legs(prefilled, streamed_head_first)
    gone = f"http://127.0.0.1:{closed_port()}"
    client = await bench.behind([gone], [decode.url], [f"http://127.0.0.1:{closed_port()}"])
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert answer.status == 502
    message = (await answer.json())["error"]["message"]
    assert message.startswith(f"prefill instance {gone} ") and "Connection refused" in message


async def test_a_decode_that_fails_ends_the_prefill(bench: Mooncake) -> None:
    client, prefill, decode = await bench.legs(hanging, answering(503, "no engine"))
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert answer.status == 502
    message = (await answer.json())["error"]["message"]
    assert message == f"decode instance {decode.url} responded 503: no engine"
    await asyncio.wait_for(prefill.cancelled.wait(), timeout=5)


async def test_a_wrong_bootstrap_address_is_named(bench: Mooncake) -> None:
    _, prefill, decode = await bench.legs(hanging, streamed)
    wrong = f"http://127.0.0.1:{closed_port()}"
    client = await bench.behind([prefill.url], [decode.url], [wrong])
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert answer.status == 502
    assert (await answer.json())["error"]["message"] == (
        f"prefill instance {prefill.url} (bootstrap server {wrong}) did not respond: Connection"
        " refused"
    )
    assert decode.bodies == []


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ({}, "names 0 engines; each prefill instance must be one engine"),
        ({"0": {"engine_id": "a"}, "1": {"engine_id": "b"}}, "names 2 engines"),
        ({"detail": "Not Found"}, "names no engine; start the instance with MooncakeConnector"),
    ],
)
async def test_a_bootstrap_server_without_its_engine_is_named(
    bench: Mooncake, engines: dict[str, Any], said: str
) -> None:
    bench.engines = engines
    client, _, decode = await bench.legs(hanging, streamed)
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert answer.status == 502 and said in (await answer.json())["error"]["message"]
    assert decode.bodies == []


async def test_a_client_that_leaves_ends_both_legs(bench: Mooncake) -> None:
    client, prefill, decode = await bench.legs(hanging, hanging)
    with pytest.raises(TimeoutError):
        await client.post(COMPLETIONS, json=ASKED, timeout=aiohttp.ClientTimeout(total=0.3))
    for instance in (prefill, decode):
        await asyncio.wait_for(instance.cancelled.wait(), timeout=5)
    (leg,) = await legs_of(client)
    assert leg["error"].startswith("decode cancelled")


async def test_a_prefill_response_behind_the_decode_is_waited_for(bench: Mooncake) -> None:
    decoded = asyncio.Event()

    async def late(_request: web.Request) -> web.Response:
        await asyncio.wait_for(decoded.wait(), timeout=5)
        await asyncio.sleep(0.05)
        return web.json_response({"metrics": {"queue_time_ms": 1.0}})

    async def decode_first(request: web.Request) -> web.StreamResponse:
        out = await streamed(request)
        decoded.set()
        return out

    client, _, _ = await bench.legs(late, decode_first)
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert await answer.read() == b"".join(STREAM)
    (leg,) = await legs_of(client)
    assert leg["prefill_done_s"] > leg["decode_done_s"]
    assert json.loads(leg["prefill_engine_metrics"]) == {"queue_time_ms": 1.0}


async def test_a_prefill_that_fails_behind_the_first_byte_spoils_no_answer(
    bench: Mooncake,
) -> None:
    first_byte = asyncio.Event()

    async def failing(_request: web.Request) -> web.Response:
        await asyncio.wait_for(first_byte.wait(), timeout=5)
        return web.Response(status=500, text="died")

    async def slow(request: web.Request) -> web.StreamResponse:
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        for chunk in STREAM:
            await out.write(chunk)
            await asyncio.sleep(0.05)
            first_byte.set()
        return out

    client, prefill, _ = await bench.legs(failing, slow)
    answer = await client.post(COMPLETIONS, json=ASKED)
    assert (answer.status, await answer.read()) == (200, b"".join(STREAM))
    (leg,) = await legs_of(client)
    assert leg["error"] == f"prefill instance {prefill.url} responded 500: died"
