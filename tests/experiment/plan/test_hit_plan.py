"""The plan of the LMCache hit analysis: arms, prompts, parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.odd_server import odd_server
from workbench.errors import PlanError
from workbench.experiment.plan import arms
from workbench.experiment.plan.hit_plan import CACHE_OFF, MAIN, NO_STORE, SMALL, TIERS
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.params.notebooks import LMCacheHitAnalysis

Plan = Callable[..., ExperimentPlan]


@pytest.fixture
def hits(machine_has: Callable[..., None]) -> Plan:
    return lambda **params: arms.plan(LMCacheHitAnalysis(**params))


def test_the_arms_differ_in_one_thing_each(hits: Plan) -> None:
    plan = hits()
    by_label = {arm.label: arm for arm in plan.arms}
    assert list(by_label) == [
        NO_STORE, MAIN, CACHE_OFF, "chunk 64", "chunk 128", "chunk 512", SMALL, TIERS["disk"],
    ]  # fmt: skip
    assert [p.name for p in by_label[MAIN].passes] == [
        "cold", "engine-warm", "50% in LMCache", "store-warm",
    ]  # fmt: skip
    assert by_label[CACHE_OFF].settings is not None
    assert not by_label[CACHE_OFF].settings.prefix_caching
    assert [by_label[f"chunk {n}"].chunk_tokens for n in (64, 128, 512)] == [64, 128, 512]
    assert by_label["chunk 64"].may_fail and not by_label[MAIN].may_fail
    assert by_label[SMALL].store_gb < 0.01 < by_label[MAIN].store_gb
    lines = str(plan)
    assert lines.count("--chunk-size 64") == 1
    assert lines.count('"base_path": "disk"') == 1
    assert lines.count("--block-size 64") == len(plan.arms)


def test_each_tier_has_an_arm_of_its_own(hits: Plan) -> None:
    arms = hits(store_tiers=["memory", "redis", "mooncake"], tier_gb=0.25).arms[-2:]
    assert [(arm.label, arm.tiers, arm.tier_gb) for arm in arms] == [
        ("lmcache, L2 on Redis", ("redis",), 0.25),
        ("lmcache, L2 on Mooncake", ("mooncake",), 0.25),
    ]
    for arm in arms:
        assert [p.name for p in arm.passes] == ["cold", "store-warm", "remote-warm"]


def test_prompts_of_each_length_take_turns_and_share_nothing(hits: Plan) -> None:
    workload = hits(prompt_tokens=[40, 300], requests=3).workload.build("salt")
    assert [r.prompt_tokens for r in workload.requests] == [40, 300] * 3
    assert {r.ideal_reuse_tokens for r in workload.requests} == {0}
    assert len({r.prompt_ids[:16].tobytes() for r in workload.requests}) == 6


def test_a_store_that_is_not_too_small_is_a_doubt(hits: Plan) -> None:
    assert not hits().doubts
    assert "nothing will be evicted" in hits(small_store_mb=500).doubts[0]
    assert "evicted blocks" in hits(kv_cache_mib=16, small_store_mb=1).doubts[0]


async def test_the_chunk_of_a_running_store_is_asked_of_it(
    hits: Plan, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/none.pem")  # of no concern to a store without TLS
    attach = {"engine": "attach", "base_url": "http://127.0.0.1:1"}
    urls = ["http://127.0.0.1:1"]
    async with odd_server({"/status": {"is_healthy": True, "chunk_size": 512}}) as store:
        given = attach | {"decode_urls": urls, "lmcache_url": store.url}
        plan = await asyncio.to_thread(lambda: hits(**given))
    (arm,) = plan.arms
    assert (arm.connector, arm.chunk_tokens) == ("lmcache", 512)
    assert [p.name for p in arm.passes] == ["cold", "engine-warm", "store-warm"]
    silent = hits(**attach, decode_urls=urls, lmcache_url=f"http://127.0.0.1:{unused_tcp_port}")
    assert "does not report its chunk size" in silent.doubts[-1]


def test_a_log_has_no_plan(hits: Plan) -> None:
    with pytest.raises(PlanError, match="nothing is measured"):
        hits(log_file="vllm.log")
