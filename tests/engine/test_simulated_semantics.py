"""The simulated pair against real vLLM, LMCache and NIXL: the same requests, the same counters."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from workbench.experiment.run.isolation import read_counters
from workbench.metrics import prometheus
from workbench.serve import simulated
from workbench.serve.deployment import Deployment
from workbench.serve.plan import DeploymentPlan
from workbench.serve.vllm import EngineSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")

LENGTHS = (1, 100, 127, 128, 129, 255, 256, 257, 300, 512, 513, 600, 1000)
NOT_COUNTS = ("_seconds", "_descriptors", "process_", "python_", "http_", "_created")
"""Times differ; descriptors depend on which free blocks lie side by side in memory."""
WAIT_FOR_TRANSFER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def ids(tokens: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(100, 9000), k=tokens)


@dataclass(frozen=True)
class Ask:
    prompt: list[int]
    max_tokens: int = 4


@dataclass(frozen=True)
class Reset:
    what: str


def everything() -> list[Ask | Reset]:
    """New, repeated, sharing a prefix, long answers; after each kind of reset."""
    long = ids(1000, 1000)
    rounds = [Ask(ids(n, n)) for n in LENGTHS]
    shared = [Ask(long[:600] + ids(400, 5)), Ask(long[:300] + ids(700, 6))]
    answers = [Ask(ids(100, 77), 300), Ask(ids(200, 78), 400), Ask(ids(200, 78))]
    half_local = [Ask(long[:300]), Ask(long), Ask(ids(513, 513)[:300] + ids(700, 9))]
    return [
        *(rounds * 2), *shared, *answers,
        Reset("engines"), *rounds, Ask(long[:300] + ids(700, 8)),
        Reset("engines"), Reset("store"), *rounds[5:],
        Reset("engines"), *half_local,
        Reset("store"), Ask(long), Reset("last engine"), Ask(long), Ask(ids(5000, 10)),
    ]  # fmt: skip


def more_than_fits() -> list[Ask | Reset]:
    """14 prompts of 16 blocks through 170 blocks: old ones are evicted, tails first."""
    prompts = [Ask(ids(2000, 200 + n)) for n in range(14)]
    return [*prompts, *(prompts[n] for n in (0, 13, 12, 11, 1, 2, 9, 8)), Ask(ids(700, 1))]


def counts(before: prometheus.Counters, after: prometheus.Counters) -> dict[str, float]:
    """What was counted in between, without model names, zeros and times."""
    change = prometheus.difference(before, after)
    counted = {}
    for (name, labels), value in change.values.items():
        if name in change.cumulative and value and not any(word in name for word in NOT_COUNTS):
            kept = [v for k, v in labels if k not in ("engine", "model_name", "cache_salt")]
            counted["/".join([name, *kept])] = value
    return counted


async def settled(deployment: Deployment) -> Any:
    """Counters once they stand still: engines and store count behind the answer."""
    last: Any = None
    while True:
        reading = await read_counters(deployment)
        both = [*reading.engines.values(), *([reading.store] if reading.store else [])]
        now = [counts(replace(c, values={}), c) for c in both]
        if now == last:
            return dict(zip([*reading.engines, "store"], both, strict=False))
        last = now
        await asyncio.sleep(0.1)


async def counted_by(deployment: Deployment, asked: list[Ask | Reset]) -> list[Any]:
    """For each request: its usage, and what each process counted."""
    rows: list[Any] = []
    before = await settled(deployment)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for step in asked:
            if isinstance(step, Reset):
                if step.what == "store":
                    await deployment.reset_store()
                elif step.what == "engines":
                    await deployment.reset_engines()
                else:
                    await client.post(f"{deployment.instances[-1].url}/reset_prefix_cache")
                continue
            body = {"model": "workbench", "prompt": step.prompt, "max_tokens": step.max_tokens}
            body |= {"temperature": 0, "ignore_eos": True}
            answer = await client.post(f"{deployment.url}/v1/completions", json=body)
            usage = answer.json()["usage"]
            after = await settled(deployment)
            rows.append(
                {
                    "request": (len(rows), len(step.prompt), step.max_tokens),
                    "prompt": usage["prompt_tokens"],
                    "output": usage["completion_tokens"],
                    "cached": usage["prompt_tokens_details"]["cached_tokens"],
                    **{name: counts(before[name], after[name]) for name in after},
                }
            )
            before = after
    return rows


def without_unknown(rows: list[Any], known: set[str]) -> list[Any]:
    """The real rows with only those series that the pretended servers show as well."""
    return [
        {
            name: {k: v for k, v in value.items() if k.split("/")[0] in known}
            if isinstance(value, dict)
            else value
            for name, value in row.items()
        }
        for row in rows
    ]


async def shown_by(deployment: Deployment) -> set[str]:
    """Names of the counters on the pages of a deployment, counted up or not."""
    return {name for c in (await settled(deployment)).values() for name in c.cumulative}


MUST_SHOW = {
    "none": {"vllm:prompt_tokens_by_source_total", "vllm:prefix_cache_hits_total"},
    "lmcache": {
        "vllm:external_prefix_cache_hits_total",
        "vllm:prompt_tokens_cached_by_source_total",
        "vllm:request_success_total",
        "lmcache_mp_lookups_requests_total",
        "lmcache_mp_lookup_requested_tokens_total",
        "lmcache_mp_lookup_hit_tokens_total",
        "lmcache_mp_l1_write_chunks_total",
        "lmcache_mp_l1_read_chunks_total",
        "lmcache_mp_l1_evicted_chunks_total",
    },
    "nixl": {"vllm:nixl_bytes_transferred_sum", "vllm:external_prefix_cache_hits_total"},
}


@pytest.fixture
def pretended(settings: EngineSettings) -> EngineSettings:
    folder = Path(simulated.__file__).parent
    return replace(settings, platform="simulated", model=folder)


@pytest.mark.parametrize(
    ("topology", "connector", "asked", "change"),
    [
        ("1a", "none", everything, {}),
        ("1a", "none", more_than_fits, {"kv_cache_mib": 16}),
        ("1a", "none", lambda: everything()[:30], {"prefix_caching": False}),
        ("1a", "lmcache", everything, {}),
        ("1p1d", "lmcache", everything, {}),
        ("1p1d", "nixl", everything, {}),
    ],
    ids=["none", "eviction", "cache off", "lmcache", "PD lmcache", "PD nixl"],
)
async def test_counters_are_equal_token_by_token(
    deployed: Any,
    settings: EngineSettings,
    pretended: EngineSettings,
    topology: str,
    connector: str,
    asked: Callable[[], list[Ask | Reset]],
    change: dict[str, Any],
) -> None:
    async with (
        deployed(topology, connector, settings=replace(settings, **change)) as real,
        deployed(topology, connector, settings=replace(pretended, **change)) as pretend,
    ):
        expected, found = await asyncio.gather(
            counted_by(real, asked()), counted_by(pretend, asked())
        )
        shown = await shown_by(pretend)
    assert shown >= MUST_SHOW[connector]
    for theirs, ours in zip(without_unknown(expected, shown), found, strict=True):
        assert ours == theirs


def recomputing(plan: DeploymentPlan) -> DeploymentPlan:
    """vLLM computes what could not be pulled, and holds blocks for two seconds only."""

    def arg(text: str) -> str:
        if not text.startswith("{"):
            return text
        config = json.loads(text) | {"kv_load_failure_policy": "recompute"}
        config.setdefault("kv_connector_extra_config", {})["kv_lease_duration"] = 2
        return json.dumps(config)

    changed = (replace(p, args=tuple(map(arg, p.args))) for p in plan.processes)
    return replace(plan, processes=tuple(changed))


async def broken_transfers(deployment: Deployment) -> list[dict[str, Any]]:
    """Counters of a pull that comes too late, is forgotten, and fails (cold and warm decode)."""
    prefill, decode = (instance.url for instance in deployment.instances)
    rows = []
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

        async def ask(url: str, seed: int, transfer: Any, max_tokens: int = 4) -> Any:
            body = {"model": "workbench", "prompt": ids(1000, seed), "max_tokens": max_tokens}
            body |= {"temperature": 0, "ignore_eos": True, "kv_transfer_params": transfer}
            return (await client.post(f"{url}/v1/completions", json=body)).json()

        before = await settled(deployment)
        for what in ("good", "late", "forgotten", "dead", "dead, warm"):
            seed = 2 if what.startswith("dead") else sum(map(ord, what))
            left = (await ask(prefill, seed, WAIT_FOR_TRANSFER, 1))["kv_transfer_params"]
            if what.startswith("dead"):
                left |= {"remote_port": 1, "remote_engine_id": f"11111111-{what[4:5]}"}
            if what == "late":
                await asyncio.sleep(4)
            answer = await ask(decode, seed, None if what == "forgotten" else left)
            await asyncio.sleep(4)  # whatever is still held expires
            after = await settled(deployment)
            counted = {name: counts(before[name], after[name]) for name in after}
            # NIXL's heartbeats to the dead peer fail as well, some time later.
            failed = counted["decode-0"].pop("vllm:nixl_num_failed_transfers_total", 0) > 0
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            rows.append({"what": what, "cached": cached, "failed": failed} | counted)
            before = after
    # vLLM shows these with the prefill instance's next step only.
    told = "vllm:nixl_num_notifications_after_expiry_total"
    return [*rows, {"told too late": sum(row["prefill-0"].pop(told, 0) for row in rows)}]


async def test_broken_transfers_are_counted_as_vllm_counts_them(
    deployed: Any, pretended: EngineSettings
) -> None:
    async with (
        deployed("1p1d", "nixl", change=recomputing) as real,
        deployed("1p1d", "nixl", settings=pretended, change=recomputing) as pretend,
    ):
        # Side by side, since most of it is waiting for leases to end.
        expected, found = await asyncio.gather(broken_transfers(real), broken_transfers(pretend))
        shown = await shown_by(pretend)
    assert found[-1] == {"told too late": 1}
    for theirs, ours in zip(without_unknown(expected, shown), found, strict=True):
        assert ours == theirs


def forgetful(plan: DeploymentPlan) -> DeploymentPlan:
    """A proxy that keeps the transfer parameters to itself."""
    *others, proxy = plan.processes
    lost = replace(proxy, args=(*proxy.args, "--fault", "transfer_params_lost"))
    return replace(plan, processes=(*others, lost))


async def test_a_forgetful_proxy_makes_real_vllm_prefill_twice_and_hold_its_blocks(
    deployed: Any, pretended: EngineSettings
) -> None:
    told = []
    for options in ({}, {"settings": replace(pretended, fault="transfer_params_lost")}):
        change = (lambda plan: plan) if options else forgetful
        async with deployed("1p1d", "nixl", change=change, **options) as deployment:
            (row,) = await counted_by(deployment, [Ask(ids(1000, 1))])
            prefill = deployment.instances[0].url
            async with httpx.AsyncClient(trust_env=False) as client:
                reset = (await client.post(f"{prefill}/reset_prefix_cache")).json()
            sources = {k: v for k, v in row["decode-0"].items() if "by_source" in k}
            told.append((sources, reset))
    assert told[0] == told[1]
    computed = {"vllm:prompt_tokens_by_source_total/local_compute": 1000.0}
    assert told[0] == (computed, {"success": False})
