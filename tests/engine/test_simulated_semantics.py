"""The simulated servers against real vLLM, LMCache, NIXL and Mooncake: the same requests, the
same counters."""

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from workbench.experiment.run.launch.isolation import read_counters
from workbench.hardware.interpreter import interpreter
from workbench.metrics import prometheus
from workbench.serve import simulated
from workbench.serve.connectors import connector
from workbench.serve.deployed import Deployment, DeploymentPlan
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, TOKEN_BYTES
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


Step = tuple[list[int], int] | str
"""A prompt with the tokens of its answer, or what is reset."""


def ask(prompt: list[int], max_tokens: int = 4) -> Step:
    return prompt, max_tokens


def everything() -> list[Step]:
    """New, repeated, sharing a prefix, long answers; after each kind of reset."""
    long = ids(1000, 1000)
    rounds = [ask(ids(n, n)) for n in LENGTHS]
    shared = [ask(long[:600] + ids(400, 5)), ask(long[:300] + ids(700, 6))]
    answers = [ask(ids(100, 77), 300), ask(ids(200, 78), 400), ask(ids(200, 78))]
    half_local = [ask(long[:300]), ask(long), ask(ids(513, 513)[:300] + ids(700, 9))]
    return [
        *(rounds * 2), *shared, *answers,
        "engines", *rounds, ask(long[:300] + ids(700, 8)),
        "engines", "store", *rounds[5:],
        "engines", *half_local,
        "store", ask(long), "last engine", ask(long), ask(ids(5000, 10)),
    ]  # fmt: skip


def a_part() -> list[Step]:
    """Of that, up to what follows the first reset: without a connector all resets are the same."""
    return everything()[:36]


def to_a_peer() -> list[Step]:
    """Around a block's borders, all that decode has in part, and prompts that prefill still has."""
    long = ids(1000, 1000)
    rounds = [ask(ids(n, n)) for n in (1, 100, 127, 128, 129, 600)]
    return [
        *rounds, *rounds, ask(long), ask(long[:600] + ids(400, 5)), ask(ids(100, 77), 300),
        "engines", *rounds, ask(long[:300]), ask(long),
        "last engine", ask(long), ask(ids(5000, 10)),
    ]  # fmt: skip


def more_than_fits() -> list[Step]:
    """14 prompts of 16 blocks through 170 blocks: old ones are evicted, tails first."""
    prompts = [ask(ids(2000, 200 + n)) for n in range(14)]
    return [*prompts, *(prompts[n] for n in (0, 13, 12, 11, 1, 2, 9, 8)), ask(ids(700, 1))]


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


def held(store: prometheus.Counters | None) -> dict[str, float]:
    """What a Mooncake master says it holds."""
    names = ("master_key_count", "master_allocated_bytes")
    found = {name: store.sum(name) for name in names} if store is not None else {}
    return {name: value for name, value in found.items() if value == value}


async def logged_blocks(deployment: Deployment) -> tuple[float, float]:
    """Transfers that Mooncake's prefill has logged, and the KV blocks that they moved."""
    logged, plan = (await read_counters(deployment)).logged, deployment.plan
    assert logged and plan and logged.failed == logged.expired == 0
    simulated = plan.settings.platform == "simulated"
    token_bytes = TOKEN_BYTES if simulated else plan.settings.kv_bytes_per_token
    return logged.transfers, round(logged.bytes_moved / (BLOCK_TOKENS * token_bytes))


async def answered(
    client: httpx.AsyncClient, deployment: Deployment, prompt: list[int], max_tokens: int
) -> Any:
    """The answer to a prompt. Where a store is late, decode is asked once it has the prompt."""
    prefill, decode = deployment.instances[0], deployment.instances[-1]
    if prefill is decode or not deployment.store.stores_late:
        return await complete(client, deployment.url, prompt, max_tokens)
    await complete(client, prefill.url, prompt, 1)
    await settled(deployment)
    return await complete(client, decode.url, prompt, max_tokens)


async def counted_by(deployment: Deployment, steps: list[Step]) -> list[Any]:
    """For each request: its usage, and what each process counted."""
    rows: list[Any] = []
    before = await settled(deployment)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for step in steps:
            if step == "store":
                await deployment.reset_store()
            elif step == "engines":
                await deployment.reset_engines()
            elif isinstance(step, str):
                await client.post(f"{deployment.instances[-1].url}/reset_prefix_cache")
            else:
                prompt, max_tokens = step
                usage = (await answered(client, deployment, prompt, max_tokens))["usage"]
                after = await settled(deployment)
                rows.append(
                    {
                        "request": (len(rows), len(prompt), max_tokens),
                        "prompt": usage["prompt_tokens"],
                        "output": usage["completion_tokens"],
                        "cached": usage["prompt_tokens_details"]["cached_tokens"],
                        **{name: counts(before[name], after[name]) for name in after},
                        "held": held(after.get("store")),
                    }
                )
                before = after
    return rows


async def complete(
    client: httpx.AsyncClient, url: str, prompt: list[int], max_tokens: int = 4, **more: Any
) -> Any:
    """The answer to one greedy completion."""
    body = {"model": "workbench", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    answer = await client.post(f"{url}/v1/completions", json=body | {"ignore_eos": True} | more)
    return answer.json()


def without_unknown(rows: list[Any], known: set[str]) -> list[Any]:
    """The real rows with only those series that the pretended servers show as well."""

    def kept(name: str, value: Any) -> Any:
        if not isinstance(value, dict) or name == "held":
            return value
        return {k: v for k, v in value.items() if k.split("/")[0] in known}

    return [{name: kept(name, value) for name, value in row.items()} for row in rows]


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
    "mooncake-store": {
        "vllm:external_prefix_cache_hits_total",
        "vllm:mooncake_store_operation_total",
        "vllm:mooncake_store_operation_keys_total",
        "vllm:mooncake_store_operation_bytes_total",
        "master_batch_exist_key_items_total",
        "master_batch_get_replica_list_items_total",
        "master_batch_put_start_items_total",
        "master_batch_put_end_items_total",
        "master_remove_all_requests_total",
        "mem_cache_hit_nums_",
        "mem_cache_hit_bytes_total",
        "valid_get_nums_",
    },
    "mooncake": {"vllm:external_prefix_cache_hits_total", "vllm:request_success_total"},
    "nixl": {"vllm:nixl_bytes_transferred_sum", "vllm:external_prefix_cache_hits_total"},
}


@pytest.fixture
def pretended(settings: EngineSettings) -> EngineSettings:
    folder = Path(simulated.__file__).parent
    return replace(settings, platform="simulated", model=folder)


needs_mooncake = pytest.mark.skipif(
    not connector("mooncake-store").installed(interpreter()), reason="needs make setup MOONCAKE=1"
)


@pytest.mark.parametrize(
    ("topology", "name", "steps", "change"),
    [
        ("1a", "none", a_part, {}),
        ("1a", "none", more_than_fits, {"kv_cache_mib": 16}),
        ("1a", "none", a_part, {"prefix_caching": False}),
        ("1a", "lmcache", everything, {}),
        ("1p1d", "lmcache", everything, {}),
        ("1p1d", "nixl", everything, {}),
        pytest.param("1p1d", "mooncake", to_a_peer, {}, marks=needs_mooncake),
        pytest.param("1a", "mooncake-store", a_part, {}, marks=needs_mooncake),
        pytest.param("1p1d", "mooncake-store", everything, {}, marks=needs_mooncake),
    ],
    ids="none,eviction,cache off,lmcache,PD lmcache,PD nixl,PD mooncake,store,PD store".split(","),
)
async def test_counters_are_equal_token_by_token(
    deployed: Any,
    settings: EngineSettings,
    pretended: EngineSettings,
    topology: str,
    name: str,
    steps: Callable[[], list[Step]],
    change: dict[str, Any],
) -> None:
    async with (
        deployed(topology, name, settings=replace(settings, **change)) as real,
        deployed(topology, name, settings=replace(pretended, **change)) as pretend,
    ):
        expected, found = await asyncio.gather(
            counted_by(real, steps()), counted_by(pretend, steps())
        )
        shown = await shown_by(pretend)
        if name == "mooncake":
            assert await logged_blocks(pretend) == await logged_blocks(real)
    assert shown >= MUST_SHOW[name]
    pairs = zip(without_unknown(expected, shown), found, strict=True)
    unlike = {theirs["request"]: apart(ours, theirs) for theirs, ours in pairs}
    assert {request: d for request, d in unlike.items() if d} == {}


def apart(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """What differs between two rows."""
    return {
        (name, series): (mine.get(series), real.get(series))
        for name in ours | theirs
        for mine, real in [(in_dict(ours[name]), in_dict(theirs[name]))]
        for series in mine | real
        if mine.get(series) != real.get(series)
    }


def in_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"": value}


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
        before = await settled(deployment)
        for what in ("good", "late", "forgotten", "dead", "dead, warm"):
            prompt = ids(1000, 2 if what.startswith("dead") else sum(map(ord, what)))
            leg = await complete(client, prefill, prompt, 1, kv_transfer_params=WAIT_FOR_TRANSFER)
            left = leg["kv_transfer_params"]
            if what.startswith("dead"):
                left |= {"remote_port": 1, "remote_engine_id": f"11111111-{what[4:5]}"}
            if what == "late":
                await asyncio.sleep(4)
            given = None if what == "forgotten" else left
            answer = await complete(client, decode, prompt, kv_transfer_params=given)
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


async def without_a_master(deployment: Deployment) -> Any:
    """Usage of a new prompt and what the engine counted, after the master was killed."""
    before = (await read_counters(deployment)).engines["aggregated-0"]
    os.kill(deployment.processes[0].pid, signal.SIGKILL)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        usage = (await complete(client, deployment.url, ids(1000, 3)))["usage"]
        while True:
            after = (await read_counters(deployment)).engines["aggregated-0"]
            if after.sum("vllm:mooncake_store_operation_failed_keys_total") > 0:
                return usage["prompt_tokens_details"]["cached_tokens"], counts(before, after)
            await asyncio.sleep(0.2)


@needs_mooncake
async def test_a_dead_master_is_counted_as_vllm_counts_it(
    deployed: Any, pretended: EngineSettings
) -> None:
    async with (
        deployed("1a", "mooncake-store") as real,
        deployed("1a", "mooncake-store", settings=pretended) as pretend,
    ):
        expected, found = await asyncio.gather(without_a_master(real), without_a_master(pretend))
    assert found[1]["vllm:mooncake_store_operation_total/lookup_exists/ok"] == 1
    assert found[1]["vllm:mooncake_store_operation_total/save_put/partial_failure"] == 1
    assert found[0] == expected[0] == 0
    assert found[1] == {name: expected[1].get(name) for name in found[1]}
