"""The simulated pair over HTTP: what a client sees of it, sound and with each fault."""

import asyncio
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serve.simulated_pair import SETTINGS, Pair, pretend
from workbench.params.engine import FAULTS
from workbench.serve.connectors import connector
from workbench.serve.deployment import deploy, launcher_for
from workbench.serve.plan import plan_deployment, ports_needed
from workbench.serve.processes import logs
from workbench.serve.simulated import settings
from workbench.serve.simulated.faults import small_kv_mib
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

SOURCE = "vllm:prompt_tokens_by_source_total"
BROKEN = {"error_in_stream": "stream_error", "truncated_stream": "truncated"}
"""Faults that break a stream, and the error that the client records."""


# Sound servers


async def test_an_answer_streams_one_token_a_chunk_with_usage_and_metrics():
    async with pretend("1a", "none") as pair:
        (record,) = await pair.ask(1)
    assert record.ok and record.finish_reason == "length"
    assert record.chunk_tokens == (1,) * 8
    assert (record.usage_prompt_tokens, record.output_tokens, record.cached_tokens) == (600, 8, 0)
    metrics = json.loads(record.engine_metrics)
    assert 0 < metrics["time_to_first_token_ms"] < 1000 * (record.chunk_s[0] - record.sent_s)
    assert metrics["generation_time_ms"] == pytest.approx(7 * metrics["mean_itl_ms"])


@pytest.mark.parametrize("name", ["lmcache", "nixl"])
async def test_kv_moves_from_prefill_to_decode_and_the_text_is_that_of_one_instance(name: str):
    async with pretend("1a", "none") as alone:
        expected = [record.text for record in await alone.ask()]
    async with pretend("1p2d", name) as pair:
        before = await pair.counters()
        cold = [record.text for record in await pair.ask()]
        moved = await pair.counted(before, "decode-1", SOURCE, source="external_kv_transfer")
        warm = [record.text for record in await pair.ask(again=True)]
    assert cold == warm == expected
    assert len(set(cold)) == 4
    assert moved == 2 * {"lmcache": 512, "nixl": 600}[name]


async def test_concurrent_prefills_wait_for_one_another():
    async with pretend("1a", "none") as pair:
        # The least of five, since a busy machine delays one that is alone as well.
        alone = [(await pair.ask(1, prompt_tokens=8000, salt=f"a{n}"))[0] for n in range(5)]
        both = await asyncio.gather(
            pair.ask(1, prompt_tokens=8000, salt="b"), pair.ask(1, prompt_tokens=8000, salt="c")
        )
    ttfts_s = sorted(record.chunk_s[0] - record.sent_s for (record,) in both)
    assert ttfts_s[1] > 1.5 * min(record.chunk_s[0] - record.sent_s for record in alone)


async def test_a_client_that_leaves_frees_its_blocks():
    async with pretend("1a", "none") as pair:
        (record,) = await pair.ask(1, output_tokens=5000, timeout_s=0.1)
        await asyncio.sleep(0.05)
        reset = await pair.post(pair.deployment.url, "/reset_prefix_cache")
    assert record.error == "timeout"
    assert reset.json() == {"success": True}


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"model": "nope", "prompt": [1]}, 404, "`nope` does not exist"),
        ({"prompt": [1] * 30_000}, 400, "maximum context length is 24576"),
        ({"prompt": [["x"]]}, 400, "not a request"),
        ({}, 400, "not a request"),
    ],
)
async def test_what_vllm_refuses_is_refused(body: Any, status: int, sentence: str):
    async with pretend("1a", "none") as pair:
        answer = await pair.post(pair.deployment.url, "/v1/completions", json=body)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]["message"]


async def test_chat_answers_too():
    messages = [{"role": "user", "content": "How long is a chunk?"}]
    async with pretend("1a", "none") as pair:
        url = pair.deployment.url
        whole = await pair.post(
            url, "/v1/chat/completions", json={"messages": messages, "max_tokens": 3}
        )
        streamed = await pair.post(
            url,
            "/v1/chat/completions",
            json={"messages": messages, "max_tokens": 3, "stream": True},
        )
    content = whole.json()["choices"][0]["message"]["content"]
    events = [json.loads(e[6:]) for e in streamed.text.split("\n\n")[:-2]]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(e["choices"][0]["delta"]["content"] for e in events) == content


# Streams that go wrong


async def test_role_chunk_first():
    async with pretend("1a", "none", fault="role_chunk_first") as pair:
        body = {"prompt": [7] * 300, "max_tokens": 4, "stream": True}
        answer = await pair.post(pair.deployment.url, "/v1/completions", json=body)
        (record,) = await pair.ask(1, prompt_tokens=8000)
    events = answer.text.split("\n\n")[:-2]
    assert [bool(json.loads(e[6:])["choices"][0]["text"]) for e in events] == [False] + [True] * 4
    assert record.ok and len(record.chunk_s) == 8  # the empty chunk carries no token


async def test_tokens_in_bulk():
    async with pretend("1a", "none", fault="tokens_in_bulk") as pair:
        (record,) = await pair.ask(1, output_tokens=10)
    assert record.ok
    assert record.chunk_tokens == (4, 4, 2)


@pytest.mark.parametrize(("fault", "error"), BROKEN.items())
async def test_broken_streams(fault: str, error: str):
    async with pretend("1p1d", "lmcache", fault=fault) as pair:
        records = await pair.ask(4)
        (short,) = await pair.ask(1, output_tokens=2, salt="b")
    assert [record.error for record in records] == ["", error, "", error]
    assert [len(record.chunk_s) for record in records] == [8, 2, 8, 2]
    assert short.ok  # warm-ups are spared


async def test_late_finish():
    async with pretend("1a", "none", fault="late_finish") as pair:
        (record,) = await pair.ask(1)
    assert record.ok and record.finish_reason == "length" and len(record.chunk_s) == 8
    assert record.stream_end_s - record.chunk_s[-1] > 0.045


async def test_buffered_stream():
    async with pretend("1a", "none", fault="buffered_stream") as pair:
        (record,) = await pair.ask(1, output_tokens=16)
        (short,) = await pair.ask(1, output_tokens=2, salt="b")
    assert record.ok and len(record.chunk_s) == 16
    # In a few reads at most, all of them behind what 16 steps take.
    assert record.chunk_s[-1] - record.chunk_s[0] < 0.5 * (record.chunk_s[0] - record.sent_s)
    assert short.ok


async def test_usage_all_cached():
    async with pretend("1a", "none", fault="usage_all_cached") as pair:
        (record,) = await pair.ask(1)
    assert record.ok and record.cached_tokens == record.prompt_tokens


async def test_stalled_instance():
    async with pretend("1p2d", "lmcache", fault="stalled_instance") as pair:
        records = await pair.ask(8, timeout_s=0.5)
    assert [record.error for record in records] == [""] * 7 + ["timeout"]
    assert len(records[-1].chunk_s) == 2


async def test_slow_instance():
    async with pretend("2a", "none", fault="slow_instance") as pair:
        records = await pair.ask(4, output_tokens=40)
    spans_s = [record.chunk_s[-1] - record.chunk_s[0] for record in records]
    assert spans_s[1] > 2.5 * spans_s[0] and spans_s[3] > 2.5 * spans_s[2]


async def test_preemption():
    async with pretend("1a", "none", fault="preemption") as pair:
        before = await pair.counters()
        records = await pair.ask(4)
        preempted = await pair.counted(before, "aggregated-0", "vllm:num_preemptions_total")
        computed = await pair.counted(before, "aggregated-0", SOURCE, source="local_compute")
        hits = await pair.counted(before, "aggregated-0", "vllm:prefix_cache_hits_total")
    assert preempted == 2
    # vLLM does not count a prompt a second time when its request starts over.
    assert (computed, hits) == (4 * 600, 0)
    assert all(record.ok and record.output_tokens == 8 for record in records)


# KV that goes wrong


@pytest.mark.parametrize("name", ["lmcache", "nixl"])
async def test_prefilled_again(name: str):
    async with pretend("1p1d", name, fault="prefilled_again") as pair:
        before = await pair.counters()
        records = await pair.ask(2)
        computed = await pair.counted(before, "decode-0", SOURCE, source="local_compute")
        fetched = await pair.counted(before, "decode-0", "vllm:external_prefix_cache_hits_total")
    assert all(record.ok for record in records)
    assert (computed, fetched) == (1200, 0)


async def test_transfer_params_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings, "LEASE_S", 1.0)
    async with pretend("1p1d", "nixl", fault="transfer_params_lost") as pair:
        before = await pair.counters()
        records = await pair.ask(2)
        computed = await pair.counted(before, "decode-0", SOURCE, source="local_compute")
        held = await pair.post(pair.deployment.instances[0].url, "/reset_prefix_cache")
        await asyncio.sleep(1.2)
        expired = await pair.counted(before, "prefill-0", "vllm:nixl_num_kv_expired_reqs_total")
        free = await pair.post(pair.deployment.instances[0].url, "/reset_prefix_cache")
    assert all(record.ok for record in records)
    assert computed == 1200
    assert (held.json(), free.json()) == ({"success": False}, {"success": True})
    assert expired == 2


async def test_failed_transfer():
    async with pretend("1p1d", "nixl", fault="failed_transfer") as pair:
        before = await pair.counters()
        records = await pair.ask(4)
        name = "decode-0"
        failed = await pair.counted(before, name, "vllm:nixl_num_failed_transfers_total")
        computed = await pair.counted(before, name, SOURCE, source="local_compute")
        fetched = await pair.counted(before, name, SOURCE, source="external_kv_transfer")
        hits = await pair.counted(before, name, "vllm:external_prefix_cache_hits_total")
    assert all(record.ok for record in records)
    assert (failed, computed, fetched) == (2, 1200, 1200)
    assert hits == 2400  # counted when the requests were admitted


async def test_expired_blocks():
    async with pretend("1p1d", "nixl", fault="expired_blocks") as pair:
        before = await pair.counters()
        records = await pair.ask(4)
        expired = await pair.counted(before, "prefill-0", "vllm:nixl_num_kv_expired_reqs_total")
        told = "vllm:nixl_num_notifications_after_expiry_total"
        late = await pair.counted(before, "prefill-0", told)
        fetched = await pair.counted(before, "decode-0", SOURCE, source="external_kv_transfer")
    assert all(record.ok for record in records)
    assert (expired, late, fetched) == (2, 2, 2400)


@pytest.mark.parametrize("name", ["lmcache", "nixl"])
async def test_wrong_kv(name: str):
    async with pretend("1p1d", name) as sound:
        expected = [record.text for record in await sound.ask()]
    async with pretend("1p1d", name, fault="wrong_kv") as pair:
        before = await pair.counters()
        records = await pair.ask()
        fetched = await pair.counted(before, "decode-0", SOURCE, source="external_kv_transfer")
    same = [record.text == text for record, text in zip(records, expected, strict=True)]
    assert same == [True, False, True, False]
    assert fetched == 4 * {"lmcache": 512, "nixl": 600}[name]


async def test_store_left_warm():
    async with pretend("1p1d", "lmcache", fault="store_left_warm") as pair:
        assert await pair.deployment.reset_store()
        before = await pair.counters()
        (record,) = await pair.ask(1)
        hits = await pair.counted(before, "prefill-0", SOURCE, source="external_kv_transfer")
        written = await pair.counted(before, "store", "lmcache_mp_l1_write_chunks_total")
    assert record.ok
    assert (hits, written) == (512, 0)


async def test_hash_seed_mismatch():
    async with pretend("1p1d", "lmcache", fault="hash_seed_mismatch") as pair:
        before = await pair.counters()
        records = await pair.ask(2)
        lookups = await pair.counted(before, "store", "lmcache_mp_lookups_requests_total")
        hits = await pair.counted(before, "store", "lmcache_mp_lookup_hit_tokens_total")
    assert all(record.ok for record in records)
    assert (lookups, hits) == (4, 0)


async def test_eviction():
    small = small_kv_mib(608)
    async with pretend("1a", "lmcache", kv_cache_mib=small, fault="eviction") as pair:
        await pair.ask(3)
        before = await pair.counters()
        await pair.ask(3, again=True)
        name = "aggregated-0"
        own = await pair.counted(before, name, SOURCE, source="local_cache_hit")
        fetched = await pair.counted(before, name, SOURCE, source="external_kv_transfer")
        evicted = await pair.counted(before, "store", "lmcache_mp_l1_evicted_chunks_total")
    assert (own, fetched) == (0, 0)
    assert evicted == 6


async def test_reset_refused():
    async with pretend("2a", "none", fault="reset_refused") as pair:
        said = [
            (await pair.post(i.url, "/reset_prefix_cache")).json()
            for i in pair.deployment.instances
        ]
    assert said == [{"success": True}, {"success": False}]


@pytest.mark.parametrize("fork", [True, False], ids=["forked", "plain"])
async def test_store_dead(fork: bool, tmp_path: Path, nothing_left: str):
    """With real processes: one of them ends."""
    settings = EngineSettings(**SETTINGS, fault="store_dead")
    topology = Topology.parse("1p1d")
    async with (
        launcher_for(settings, tmp_path, fork=fork) as launcher,
        deploy(
            launcher,
            lambda ports: plan_deployment(topology, connector("lmcache"), settings, ports=ports),
            ports=ports_needed(topology),
            log_dir=tmp_path / "logs",
        ) as deployment,
    ):
        parents = {" ".join(psutil.Process(p.pid).parent().cmdline()) for p in deployment.processes}
        assert all(("processes.forkserver" in parent) == fork for parent in parents)
        pair = Pair(deployment)
        records = await pair.ask(8)
        before = await pair.counters()
        late = await pair.ask(1, salt="b")
        computed = await pair.counted(before, "decode-0", SOURCE, source="local_compute")
        assert [process.spec.name for process in deployment.dead()] == ["store"]
        assert "store_dead" in "\n".join(logs.lines(deployment.dead()[0].log))
    assert all(record.ok for record in [*records, *late])
    assert computed == 600


def test_every_fault_has_a_test_of_its_name_or_breaks_a_stream():
    assert {name for name in FAULTS if f"test_{name}" not in globals()} == set(BROKEN)
