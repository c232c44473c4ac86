"""Mooncake's way from prefill to decode: both are asked at once, here as the proxy does it."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.serve.simulated.pair import Pair, simulated_deployment
from workbench.metrics.counters import TransferCounters
from workbench.serve.processes.ports import unused_ports
from workbench.serve.simulated import peers
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, TOKEN_BYTES
from workbench.serve.simulated.peers import Period


def read(text: str, folder: Path) -> TransferCounters | None:
    """What the workbench reads of a log."""
    log = folder / "prefill-0.log"
    log.write_text(text)
    return TransferCounters.logged([log])


def test_a_line_of_the_log_is_what_the_workbench_reads(tmp_path: Path):
    period = Period(took_s=[0.1, 0.3], moved_bytes=[2**20, 2**21], failed=1, expired=3)
    counted = read(f"KV Transfer metrics: {period.line()}\n", tmp_path)
    assert counted is not None
    assert (counted.transfers, counted.failed, counted.expired) == (2, 1, 3)
    assert counted.bytes_moved == 3 * 2**20
    assert "Avg xfer time (ms)=200.0, P90 xfer time (ms)=280.0" in period.line()


def test_an_idle_period_has_no_line():
    assert Period().line() == ""
    assert Period(failed_receptions=1).line().endswith("recvs=1, Num KV expired reqs=0")


class Both:
    """The instances of a 1p1d, asked as the proxy asks them."""

    def __init__(self, pair: Pair, client: httpx.AsyncClient, bootstrap_url: str) -> None:
        self.prefill, self.decode = (instance.url for instance in pair.deployment.instances)
        self._client, self.bootstrap_url = client, bootstrap_url

    async def leg(self, url: str, **transfer: Any) -> httpx.Response:
        tokens = 1 if url == self.prefill else 4
        body = {"prompt": [7] * 600, "max_tokens": tokens, "kv_transfer_params": transfer}
        return await self._client.post(f"{url}/v1/completions", json=body)

    async def prefilled(self, transfer_id: str) -> httpx.Response:
        return await self.leg(self.prefill, do_remote_decode=True, transfer_id=transfer_id)

    async def decoded(self, transfer_id: str, **changed: Any) -> httpx.Response:
        (engine,) = (await self._client.get(f"{self.bootstrap_url}/query")).json().values()
        where = {
            "remote_bootstrap_addr": self.bootstrap_url,
            "remote_engine_id": engine["engine_id"],
        }
        given = where | {"transfer_id": transfer_id} | changed
        return await self.leg(self.decode, do_remote_prefill=True, **given)

    async def frees(self, url: str) -> bool:
        answer = await self._client.post(f"{url}/reset_prefix_cache")
        return bool(answer.json()["success"])


@pytest.fixture
async def both(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A transfer may take one second, and half a second more if nobody answers."""
    monkeypatch.setattr(peers, "NO_ANSWER_S", 0.5)
    env = {"VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": "1", "VLLM_LOG_STATS_INTERVAL": "0.1"}
    async with (
        simulated_deployment("1p1d", "mooncake", extra_env=tuple(env.items())) as pair,
        httpx.AsyncClient(timeout=10, trust_env=False) as client,
    ):
        plan = pair.deployment.plan
        assert plan is not None
        proxy = next(spec for spec in plan.processes if spec.role == "proxy")
        bootstrap_url = proxy.args[proxy.args.index("--bootstrap") + 1]
        yield Both(pair, client, bootstrap_url)


@pytest.mark.parametrize("first", ["prefill", "decode"])
async def test_whichever_comes_first_waits_for_the_other(
    both: Both, first: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    legs = {"prefill": both.prefilled, "decode": both.decoded}
    waiting = asyncio.create_task(legs.pop(first)("t"))
    await asyncio.sleep(0.2)
    assert waiting.done() == (first == "prefill")
    (later,) = legs.values()
    answers = [await later("t"), await waiting]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert await both.frees(both.prefill) and await both.frees(both.decode)
    await asyncio.sleep(0.2)  # a period of the log
    counted = read(capsys.readouterr().out, tmp_path)
    assert counted is not None and (counted.transfers, counted.failed) == (1, 0)
    assert round(counted.bytes_moved / (BLOCK_TOKENS * TOKEN_BYTES), 1) == 5  # 600 tokens


async def test_decode_gives_up_when_the_time_is_over(
    both: Both, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    answer = await both.decoded("never prefilled")
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "InternalServerError")
    await asyncio.sleep(0.2)
    counted = read(capsys.readouterr().out, tmp_path)
    assert counted is not None and counted.failed == 1
    assert counted.reason == "Timeout waiting for P side ready."
    assert await both.frees(both.decode)


async def test_prefill_frees_what_nobody_fetches(
    both: Both, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    await both.prefilled("t")
    assert not await both.frees(both.prefill)
    await asyncio.sleep(1.2)
    assert await both.frees(both.prefill)
    counted = read(capsys.readouterr().out, tmp_path)
    assert counted is not None and counted.expired == 1


async def test_a_wrong_bootstrap_address_is_noticed_at_once(
    both: Both, capsys: pytest.CaptureFixture[str]
):
    wrong = f"http://127.0.0.1:{next(unused_ports())}"
    began_s = time.monotonic()
    assert (await both.decoded("t", remote_bootstrap_addr=wrong)).status_code == 500
    assert time.monotonic() - began_s < 1
    assert f"not found from bootstrap server {wrong}" in capsys.readouterr().out


async def test_an_engine_of_an_earlier_start_is_waited_for_beyond_the_timeout(
    both: Both, capsys: pytest.CaptureFixture[str]
):
    """Which is why the proxy asks the bootstrap server again and again."""

    async def query(_request: web.Request) -> web.Response:
        worker = {"0": {"0": both.prefill.replace("http", "tcp")}}
        return web.json_response({"0": {"engine_id": "earlier", "worker_addr": worker}})

    app = web.Application()
    app.router.add_get("/query", query)
    async with TestServer(app) as old:
        url = str(old.make_url("")).rstrip("/")
        began_s = time.monotonic()
        late = {"remote_bootstrap_addr": url, "remote_engine_id": "earlier"}
        legs = await asyncio.gather(both.prefilled("t"), both.decoded("t", **late))
    assert [leg.status_code for leg in legs] == [200, 500]
    assert time.monotonic() - began_s > 1.4
    assert "transfer failed" in capsys.readouterr().out
    assert (await asyncio.gather(both.prefilled("u"), both.decoded("u")))[1].status_code == 200


async def test_a_client_that_leaves_does_not_free_blocks_that_are_written_to(both: Both):
    waiting = asyncio.create_task(both.decoded("t"))
    await asyncio.sleep(0.2)
    waiting.cancel()
    await asyncio.sleep(0.1)
    assert not await both.frees(both.decode)
    await both.prefilled("t")
    await asyncio.sleep(0.1)
    assert await both.frees(both.decode)
