from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import httpx
import pytest

from workbench.load.http.kernel_stamps import KernelClock
from workbench.load.http.transport import StampingTransport


@pytest.fixture(params=[None, KernelClock], ids=["user stamps", "kernel stamps"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    clock = request.param and request.param.begin()
    transport = StampingTransport(clock=clock)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        yield client
    if clock:
        clock.close()


async def ask(client: httpx.AsyncClient, vllm: Any, max_tokens: int = 3) -> httpx.Response:
    return await client.post(
        f"{vllm.url}/v1/completions", json={"prompt": [1, 2], "max_tokens": max_tokens}
    )


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_the_body_is_that_of_stock_httpx(
    client: httpx.AsyncClient, vllm: Any, framing: str
) -> None:
    vllm.plays(framing=framing)
    async with httpx.AsyncClient(trust_env=False) as stock:
        expected = await ask(stock, vllm)
    response = await ask(client, vllm)
    assert response.status_code == 200
    assert response.headers == expected.headers
    assert response.content == expected.content
    assert b"".join(response.extensions["reads"]) == expected.content


async def test_one_connection_serves_many_requests(client: httpx.AsyncClient, vllm: Any) -> None:
    for _ in range(5):
        await ask(client, vllm)
    assert (len(vllm.seen), vllm.accepts) == (5, 1)


@pytest.mark.parametrize("options", [{"piece_bytes": 1}, {"trailer": True}, {"status": 503}])
async def test_a_connection_is_kept_after_any_complete_response(
    client: httpx.AsyncClient, vllm: Any, options: dict[str, Any]
) -> None:
    vllm.plays(**options)
    await ask(client, vllm)
    await ask(client, vllm)
    assert vllm.accepts == 1


async def test_requests_in_flight_have_a_connection_each(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(first_s=0.05)
    await asyncio.gather(*(ask(client, vllm) for _ in range(3)))
    assert vllm.accepts == 3
    await ask(client, vllm)
    assert vllm.accepts == 3


async def test_the_connection_that_was_used_last_is_used_next(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(gap_s=0.03)
    await asyncio.gather(ask(client, vllm, max_tokens=1), ask(client, vllm, max_tokens=3))
    last = vllm.ports[[body["max_tokens"] for _, _, body in vllm.seen].index(3)]
    await ask(client, vllm, max_tokens=1)
    assert vllm.ports[2] == last


async def test_closing_the_client_closes_its_connections(vllm: Any) -> None:
    async with httpx.AsyncClient(transport=StampingTransport()) as client:
        await ask(client, vllm)
    done, pending = await asyncio.wait(vllm.tasks, timeout=1)
    assert (len(done), len(pending)) == (1, 0)


async def test_a_closing_server_gets_a_new_connection_each_time(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(framing="close")
    await ask(client, vllm)
    await ask(client, vllm)
    assert vllm.accepts == 2


@pytest.mark.parametrize("moment", ["after", "on_reuse"])
async def test_a_stale_connection_is_replaced_once(
    client: httpx.AsyncClient, vllm: Any, moment: str
) -> None:
    await ask(client, vllm)
    vllm.plays(hangs_up=moment)
    for _ in range(3):
        assert (await ask(client, vllm)).status_code == 200
    assert len(vllm.seen) == 4


async def test_a_new_connection_that_is_hung_up_is_not_tried_again(
    client: httpx.AsyncClient,
) -> None:
    accepts = 0

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepts
        accepts += 1
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await client.post(f"http://127.0.0.1:{port}/")
    assert accepts == 1


async def test_stamps_lie_between_the_servers_write_and_now(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(first_s=0.03)
    begin_s = monotonic()
    extensions = (await ask(client, vllm)).extensions
    assert begin_s <= extensions["sent_s"] <= vllm.read_s[0]
    assert extensions["sent_s"] <= extensions["head_s"] == extensions["stamps"][0]
    first_s = next(
        stamp for stamp, data in zip(extensions["stamps"], extensions["reads"], strict=True) if data
    )
    assert vllm.first_token_s[0] <= first_s <= monotonic()
    assert extensions["stamps"] == sorted(extensions["stamps"])
    assert extensions["finished"].done()


async def test_a_large_body_arrives_whole(client: httpx.AsyncClient, vllm: Any) -> None:
    ids = list(range(600_000))  # 4 MB: more than a socket takes at once
    await client.post(f"{vllm.url}/v1/completions", json={"prompt": ids, "max_tokens": 1})
    assert vllm.seen[0][2]["prompt"] == ids


async def test_reading_piece_by_piece_ends_with_the_failure(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(ending="reset")
    pieces = []
    body = {"prompt": [1], "max_tokens": 3}
    async with client.stream("POST", f"{vllm.url}/v1/completions", json=body) as response:
        with pytest.raises(httpx.ReadError):
            async for piece in response.aiter_raw():
                pieces.append(piece)
    assert b"t0" in b"".join(pieces)


async def test_leaving_a_response_early_ends_its_connection(
    client: httpx.AsyncClient, vllm: Any
) -> None:
    vllm.plays(ending="hang")
    body = {"prompt": [1], "max_tokens": 3}
    async with client.stream("POST", f"{vllm.url}/v1/completions", json=body):
        pass
    await asyncio.wait_for(vllm.left.wait(), 20)
    vllm.plays()
    assert (await ask(client, vllm)).status_code == 200
    assert vllm.accepts == 2


async def test_cancelling_before_the_head_ends_the_connection(client: httpx.AsyncClient) -> None:
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.read()
        left.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get(f"http://127.0.0.1:{port}/")
        await asyncio.wait_for(left.wait(), 20)


async def test_nobody_listens(client: httpx.AsyncClient, closed_port: int) -> None:
    with pytest.raises(httpx.ConnectError, match=f"cannot connect to 127.0.0.1:{closed_port}"):
        await client.get(f"http://127.0.0.1:{closed_port}/")


async def test_a_connection_that_is_not_accepted_times_out(client: httpx.AsyncClient) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        with pytest.raises(httpx.ConnectTimeout, match=r"in 0\.05 s"):
            await client.get(
                f"http://127.0.0.1:{address[1]}/", timeout=httpx.Timeout(None, connect=0.05)
            )
        for filler in fillers:
            filler.close()


async def test_another_scheme_is_refused_with_a_sentence(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.UnsupportedProtocol, match="speaks http and https"):
        await client.get("ftp://127.0.0.1/")


async def test_a_host_name_will_do(client: httpx.AsyncClient, vllm: Any) -> None:
    vllm.url = vllm.url.replace("127.0.0.1", "localhost")
    await ask(client, vllm)
    assert vllm.seen[0][1]["host"].startswith("localhost:")
