"""Every connector on real servers: KV moves, the text stays the same, counters say so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import start
from workbench.experiment.plan.arm import Pass
from workbench.experiment.run.launch.isolation import make_state, read_counters
from workbench.metrics.counters import TransferCounters
from workbench.metrics.prometheus import difference
from workbench.serve.connectors import connector
from workbench.serve.deployed import Deployment
from workbench.serve.deployment import launcher_for
from workbench.serve.vllm import EngineSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKENS = 1000
COLD = Pass(name="cold", state="cold")
STORE_WARM = Pass(name="store-warm", state="store-warm")

Ask = Callable[..., Any]


async def over_lmcache(deployment: Deployment, ask: Ask) -> str:
    """Prefill computes a prompt, and decode takes three whole chunks of it from the store."""
    await make_state(deployment, COLD)
    before = await read_counters(deployment)
    cold = await ask(deployment.url, TOKENS, seed=1)
    counted = (await read_counters(deployment)).since(before)
    assert counted.sources["prefill"].computed == TOKENS
    assert counted.sources["decode"].external_hit == 3 * 256
    assert counted.sources["decode"].computed == TOKENS - 3 * 256

    await make_state(deployment, STORE_WARM)
    before = await read_counters(deployment)
    warm = await ask(deployment.url, TOKENS, seed=1)
    counted = (await read_counters(deployment)).since(before)
    assert counted.sources["prefill"].external_hit == 3 * 256
    assert counted.sources["prefill"].engine_hit == 0
    assert warm["choices"][0]["text"] == cold["choices"][0]["text"]

    legs = await deployment.legs()
    assert [leg.error for leg in legs] == ["", ""]
    assert legs[0].prefill_done_s < legs[0].decode_first_byte_s
    return str(cold["choices"][0]["text"])


async def over_nixl(deployment: Deployment, ask: Ask) -> str:
    """Every block goes to each decode instance."""
    before = await read_counters(deployment)
    answers = [await ask(deployment.url, TOKENS, seed=n) for n in (1, 2)]
    after = await read_counters(deployment)
    assert [answer["status"] for answer in answers] == [200, 200]
    for name in ("decode-0", "decode-1"):
        change = difference(before.engines[name], after.engines[name])
        moved = TransferCounters.of([change], connector("nixl").transfer_counters)
        assert moved is not None and moved.failed == 0
        assert moved.bytes_moved >= TOKENS * 768  # bytes per token of the tiny model
    counted = after.since(before)
    assert counted.sources["decode"].computed <= 2
    assert counted.requests == {"prefill": 2, "decode": 2}
    return str(answers[0]["choices"][0]["text"])


async def alone(deployment: Deployment, ask: Ask) -> str:
    """Aggregated instances answer in turn, so that a repeated prompt finds the same one."""
    answers = [await ask(deployment.url, TOKENS, seed=1) for _ in range(4)]
    instances = [leg.decode_instance for leg in await deployment.legs()]
    assert instances == [i.url for i in deployment.instances] * 2
    (text,) = {answer["choices"][0]["text"] for answer in answers}
    return str(text)


async def test_kv_moves_through_every_connector_and_the_text_stays_the_same(
    deployed: Any, ask: Ask
) -> None:
    texts = set()
    for topology, name, look in (
        ("1p1d", "lmcache", over_lmcache),
        ("1p2d", "nixl", over_nixl),
        ("2a", "none", alone),
    ):
        async with deployed(topology, name) as deployment:
            texts.add(await look(deployment, ask))
    assert len(texts) == 1


async def test_the_plain_start_serves_what_the_fork_server_would(
    settings: EngineSettings, tmp_path: Path, ask: Ask
) -> None:
    async with (
        launcher_for(settings, tmp_path, fork=False) as launcher,
        start(launcher, "1p1d", "nixl", settings=settings, logs=tmp_path / "logs") as deployment,
    ):
        assert (await ask(deployment.url, TOKENS, seed=1))["status"] == 200
        assert not (tmp_path / "fork-server.log").exists()
