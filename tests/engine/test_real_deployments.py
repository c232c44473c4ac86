"""Every connector on real servers: KV moves, the text stays the same, counters say so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.experiment.plan.plan import Pass
from workbench.experiment.run.isolation import make_state, read_counters
from workbench.metrics.counters import NixlCounters
from workbench.metrics.prometheus import difference
from workbench.serve.connectors import connector
from workbench.serve.deployment import deploy, launcher_for
from workbench.serve.plan import plan_deployment, ports_needed
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKENS = 1000
COLD = Pass(name="cold", state="cold")
STORE_WARM = Pass(name="store-warm", state="store-warm")


async def test_lmcache_moves_kv_from_prefill_to_decode(deployed: Any, ask: Any) -> None:
    async with deployed("1p1d", "lmcache") as deployment:
        await make_state(deployment, COLD)
        before = await read_counters(deployment)
        cold = await ask(deployment.url, TOKENS, seed=1)
        counted = (await read_counters(deployment)).since(before)

        # Prefill computed the prompt; decode took three whole chunks of it from the store.
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


async def test_nixl_moves_every_block_to_each_decode_instance(deployed: Any, ask: Any) -> None:
    async with deployed("1p2d", "nixl") as deployment:
        before = await read_counters(deployment)
        answers = [await ask(deployment.url, TOKENS, seed=n) for n in (1, 2)]
        after = await read_counters(deployment)
        assert [answer["status"] for answer in answers] == [200, 200]
        series = connector("nixl").transfer_counters
        for name in ("decode-0", "decode-1"):
            change = difference(before.engines[name], after.engines[name])
            moved = NixlCounters.of([change], series)
            assert moved is not None
            assert moved.failed == 0
            assert moved.bytes_moved >= TOKENS * 768  # bytes per token of the tiny model
        counted = after.since(before)
        assert counted.sources["decode"].computed <= 2
        assert counted.requests == {"prefill": 2, "decode": 2}


async def test_greedy_text_is_the_same_through_every_connector(deployed: Any, ask: Any) -> None:
    texts = set()
    for topology, name in (("1a", "none"), ("1p1d", "lmcache"), ("1p1d", "nixl")):
        async with deployed(topology, name) as deployment:
            answer = await ask(deployment.url, TOKENS, seed=7, max_tokens=16)
            texts.add(answer["choices"][0]["text"])
    assert len(texts) == 1


async def test_a_repeated_prompt_is_served_by_the_same_aggregated_instance(
    deployed: Any, ask: Any
) -> None:
    async with deployed("2a", "none") as deployment:
        for _ in range(4):
            await ask(deployment.url, TOKENS, seed=3)
        instances = [leg.decode_instance for leg in await deployment.legs()]
        assert instances == [i.url for i in deployment.instances] * 2


async def test_the_plain_start_serves_what_the_fork_server_would(
    settings: EngineSettings, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    topology = Topology.parse("1p1d")
    async with (
        launcher_for(settings, tmp_path, fork=False) as launcher,
        deploy(
            launcher,
            lambda ports: plan_deployment(topology, connector("nixl"), settings, ports=ports),
            ports=ports_needed(topology),
            log_dir=tmp_path / "logs",
        ) as deployment,
    ):
        assert (await ask(deployment.url, TOKENS, seed=1))["status"] == 200
        assert not (tmp_path / "fork-server.log").exists()
