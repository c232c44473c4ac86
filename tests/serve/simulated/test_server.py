"""The simulated pair over HTTP: what a client sees of it, sound and with each fault."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs import start
from tests.serve.simulated.pair import SETTINGS, Pair, simulated_deployment
from workbench.errors import LaunchError
from workbench.params.shared import FAULTS
from workbench.serve.deployment import launcher_for
from workbench.serve.processes import logs
from workbench.serve.simulated import instance
from workbench.serve.simulated.faults import small_kv_mib
from workbench.serve.simulated.master import CONNECT_S
from workbench.serve.vllm import EngineSettings

BROKEN = {"error_in_stream": "stream_error", "truncated_stream": "truncated"}
"""Faults that break a stream, and the error that the client records."""

# Sound servers


async def test_an_answer_streams_one_token_a_chunk_with_usage_and_metrics():
    async with simulated_deployment("1a", "none") as pair:
        (record,) = await pair.ask(1)
    assert record.ok and record.finish_reason == "length"
    assert record.chunk_tokens == (1,) * 8
    assert (record.usage_prompt_tokens, record.output_tokens, record.cached_tokens) == (600, 8, 0)
    metrics = json.loads(record.engine_metrics)
    assert 0 < metrics["time_to_first_token_ms"] < 1000 * (record.chunk_s[0] - record.sent_s)
    assert metrics["generation_time_ms"] == pytest.approx(7 * metrics["mean_itl_ms"])


@pytest.mark.parametrize("name", ["lmcache", "nixl", "mooncake", "mooncake-store"])
async def test_kv_moves_from_prefill_to_decode_and_the_text_is_that_of_one_instance(name: str):
    async with simulated_deployment("1a", "none") as alone:
        expected = [record.text for record in await alone.ask()]
    async with simulated_deployment("1p2d", name) as pair:
        before = await pair.counters()
        cold = [record.text for record in await pair.ask()]
        moved = await pair.counted(before, "decode-1 fetched")
        warm = [record.text for record in await pair.ask(again=True)]
    assert cold == warm == expected
    assert len(set(cold)) == 4
    assert moved == 2 * (600 if name in ("nixl", "mooncake") else 512)


async def test_concurrent_prefills_wait_for_one_another():
    async with simulated_deployment("1a", "none") as pair:
        # The least of five, since a busy machine delays one that is alone as well.
        alone = [(await pair.ask(1, prompt_tokens=8000, salt=f"a{n}"))[0] for n in range(5)]
        both = await asyncio.gather(
            pair.ask(1, prompt_tokens=8000, salt="b"), pair.ask(1, prompt_tokens=8000, salt="c")
        )
    ttfts_s = sorted(record.chunk_s[0] - record.sent_s for (record,) in both)
    assert ttfts_s[1] > 1.5 * min(record.chunk_s[0] - record.sent_s for record in alone)


async def test_a_client_that_leaves_frees_its_blocks():
    async with simulated_deployment("1a", "none") as pair:
        (record,) = await pair.ask(1, output_tokens=5000, timeout_s=0.1)
        await asyncio.sleep(0.05)
        reset = await pair.post("/reset_prefix_cache")
    assert record.error == "timeout"
    assert reset.json() == {"success": True}


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"model": "nope", "prompt": [1]}, 404, "`nope` does not exist"),
        ({"prompt": [1] * 30_000}, 400, "maximum context length is 24576"),
        ({"prompt": [["x"]]}, 400, "invalid request"),
        ({}, 400, "invalid request"),
    ],
)
async def test_what_vllm_refuses_is_refused(body: Any, status: int, sentence: str):
    async with simulated_deployment("1a", "none") as pair:
        answer = await pair.post("/v1/completions", json=body)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]["message"]


async def test_chat_answers_too():
    messages = [{"role": "user", "content": "How long is a chunk?"}]
    body = {"messages": messages, "max_tokens": 3}
    async with simulated_deployment("1a", "none") as pair:
        whole = await pair.post("/v1/chat/completions", json=body)
        streamed = await pair.post("/v1/chat/completions", json=body | {"stream": True})
    content = whole.json()["choices"][0]["message"]["content"]
    events = [json.loads(e[6:]) for e in streamed.text.split("\n\n")[:-2]]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(e["choices"][0]["delta"]["content"] for e in events) == content


# Streams that go wrong


async def test_role_chunk_first():
    async with simulated_deployment("1a", "none", fault="role_chunk_first") as pair:
        body = {"prompt": [7] * 300, "max_tokens": 4, "stream": True}
        answer = await pair.post("/v1/completions", json=body)
        (record,) = await pair.ask(1, prompt_tokens=8000)
    events = answer.text.split("\n\n")[:-2]
    assert [bool(json.loads(e[6:])["choices"][0]["text"]) for e in events] == [False] + [True] * 4
    assert record.ok and len(record.chunk_s) == 8  # the empty chunk carries no token


async def test_tokens_in_bulk():
    async with simulated_deployment("1a", "none", fault="tokens_in_bulk") as pair:
        (record,) = await pair.ask(1, output_tokens=10)
    assert record.ok
    assert record.chunk_tokens == (4, 4, 2)


@pytest.mark.parametrize(("fault", "error"), BROKEN.items())
async def test_broken_streams(fault: str, error: str):
    async with simulated_deployment("1p1d", "lmcache", fault=fault) as pair:
        records = await pair.ask(4)
        (short,) = await pair.ask(1, output_tokens=2, salt="b")
    assert [record.error for record in records] == ["", error, "", error]
    assert [len(record.chunk_s) for record in records] == [8, 2, 8, 2]
    assert short.ok  # warm-ups are spared


async def test_late_finish():
    async with simulated_deployment("1a", "none", fault="late_finish") as pair:
        (record,) = await pair.ask(1)
    assert record.ok and record.finish_reason == "length" and len(record.chunk_s) == 8
    assert record.stream_end_s - record.chunk_s[-1] > 0.045


async def test_buffered_stream():
    async with simulated_deployment("1a", "none", fault="buffered_stream") as pair:
        (record,) = await pair.ask(1, output_tokens=16)
        (short,) = await pair.ask(1, output_tokens=2, salt="b")
    assert record.ok and len(record.chunk_s) == 16
    # In a few reads at most, all of them behind what 16 steps take.
    assert record.chunk_s[-1] - record.chunk_s[0] < 0.5 * (record.chunk_s[0] - record.sent_s)
    assert short.ok


async def test_usage_all_cached():
    async with simulated_deployment("1a", "none", fault="usage_all_cached") as pair:
        (record,) = await pair.ask(1)
    assert record.ok and record.cached_tokens == record.prompt_tokens


async def test_stalled_instance():
    async with simulated_deployment("1p2d", "lmcache", fault="stalled_instance") as pair:
        records = await pair.ask(8, timeout_s=0.5)
    assert [record.error for record in records] == [""] * 7 + ["timeout"]
    assert len(records[-1].chunk_s) == 2


async def test_slow_instance():
    async with simulated_deployment("2a", "none", fault="slow_instance") as pair:
        records = await pair.ask(4, output_tokens=40)
    spans_s = [record.chunk_s[-1] - record.chunk_s[0] for record in records]
    assert spans_s[1] > 2.5 * spans_s[0] and spans_s[3] > 2.5 * spans_s[2]


# What processes count

# fault, deployment, requests, and what processes then count
COUNTED: list[tuple[str, str, int, dict[str, float]]] = [
    # vLLM does not count a prompt a second time when its request starts over.
    ("preemption", "1a none", 4,
     {"aggregated-0 preempted": 2, "aggregated-0 computed": 2400, "aggregated-0 cache hits": 0}),
    ("prefilled_again", "1p1d lmcache", 2,
     {"decode-0 computed": 1200, "decode-0 external hits": 0}),
    ("prefilled_again", "1p1d nixl", 2,
     {"decode-0 computed": 1200, "decode-0 external hits": 0}),
    # External hits are counted when a request is admitted, whatever becomes of its transfer.
    ("failed_transfer", "1p1d nixl", 4,
     {"decode-0 failed": 2, "decode-0 computed": 1200, "decode-0 fetched": 1200,
      "decode-0 external hits": 2400}),
    ("expired_blocks", "1p1d nixl", 4,
     {"prefill-0 expired": 2, "prefill-0 told late": 2, "decode-0 fetched": 2400}),
    ("wrong_kv", "1p1d lmcache", 4, {"decode-0 fetched": 4 * 512}),
    ("wrong_kv", "1p1d nixl", 4, {"decode-0 fetched": 4 * 600}),
    ("store_left_warm", "1p1d lmcache", 1, {"prefill-0 fetched": 512, "store written": 0}),
    ("hash_seed_mismatch", "1p1d lmcache", 2, {"store lookups": 4, "store found": 0}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "deployment", "requests", "counts"), COUNTED, ids=lambda value: str(value)[:20]
)
async def test_what_is_counted(
    fault: str, deployment: str, requests: int, counts: dict[str, float]
):
    async with simulated_deployment(*deployment.split(), fault=fault) as pair:
        await pair.deployment.reset_store()
        before = await pair.counters()
        records = await pair.ask(requests)
        found = {what: await pair.counted(before, what) for what in counts}
    assert found == counts
    assert all(record.ok and record.output_tokens == 8 for record in records)


async def test_transfer_params_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(instance, "LEASE_S", 1.0)
    async with simulated_deployment("1p1d", "nixl", fault="transfer_params_lost") as pair:
        prefill = pair.deployment.instances[0].url
        before = await pair.counters()
        records = await pair.ask(2)
        computed = await pair.counted(before, "decode-0 computed")
        held = await pair.post("/reset_prefix_cache", url=prefill)
        while await pair.counted(before, "prefill-0 expired") < 2:
            await asyncio.sleep(0.05)
        free = await pair.post("/reset_prefix_cache", url=prefill)
    assert all(record.ok for record in records)
    assert computed == 1200
    assert (held.json(), free.json()) == ({"success": False}, {"success": True})


@pytest.mark.parametrize("fault", ["failed_transfer", "transfer_timeout"])
async def test_transfer_timeout(fault: str):
    """With Mooncake a transfer that fails ends its request, after it was counted as a hit."""
    async with simulated_deployment("1p1d", "mooncake", fault=fault) as pair:
        before = await pair.counters()
        records = await pair.ask(4)
        counted = [
            await pair.counted(before, f"decode-0 {what}")
            for what in ("external hits", "fetched", "computed")
        ]
    assert [record.error for record in records] == ["", "stream_error"] * 2
    assert counted == [2400, 1200, 0]


async def test_prefill_dead(tmp_path: Path, nothing_left: str):
    """With Mooncake decode waits for it, and the proxy ends that."""
    settings = EngineSettings(**SETTINGS, fault="prefill_dead")
    async with (
        launcher_for(settings, tmp_path) as launcher,
        start(launcher, "1p1d", "mooncake", settings=settings, logs=tmp_path) as deployment,
    ):
        pair = Pair(deployment)
        began_s = time.monotonic()
        records = await pair.ask(16)
        while not (dead := deployment.dead()):
            await asyncio.sleep(0.05)
        assert time.monotonic() - began_s < 5
    assert [process.spec.name for process in dead] == ["prefill-0"]
    done = [record.ok for record in records]
    assert done == [True] * done.index(False) + [False] * (16 - done.index(False))


@pytest.mark.parametrize("name", ["lmcache", "nixl", "mooncake", "mooncake-store"])
async def test_wrong_kv(name: str):
    texts = []
    for fault in ("", "wrong_kv"):
        async with simulated_deployment("1p1d", name, fault=fault) as pair:
            texts.append([record.text for record in await pair.ask()])
    assert [a == b for a, b in zip(*texts, strict=True)] == [True, False, True, False]


async def test_eviction():
    small = small_kv_mib(608)
    async with simulated_deployment("1a", "lmcache", kv_cache_mib=small, fault="eviction") as pair:
        await pair.ask(3)
        before = await pair.counters()
        await pair.ask(3, again=True)
        served = [await pair.counted(before, f"aggregated-0 {by}") for by in ("hit", "fetched")]
        evicted = await pair.counted(before, "store evicted")
    assert (served, evicted) == ([0, 0], 6)


async def test_reset_refused():
    async with simulated_deployment("2a", "none", fault="reset_refused") as pair:
        urls = [instance.url for instance in pair.deployment.instances]
        said = [(await pair.post("/reset_prefix_cache", url=url)).json() for url in urls]
    assert said == [{"success": True}, {"success": False}]


@pytest.mark.parametrize("fork", [True, False], ids=["forked", "plain"])
async def test_store_dead(fork: bool, tmp_path: Path, nothing_left: str):
    """With real processes: one of them ends."""
    settings = EngineSettings(**SETTINGS, fault="store_dead")
    async with (
        launcher_for(settings, tmp_path, fork=fork) as launcher,
        start(launcher, "1p1d", "lmcache", settings=settings, logs=tmp_path) as deployment,
    ):
        parents = {" ".join(psutil.Process(p.pid).parent().cmdline()) for p in deployment.processes}
        assert all(("processes.forkserver" in parent) == fork for parent in parents)
        pair = Pair(deployment)
        records = await pair.ask(8)
        before = await pair.counters()
        late = await pair.ask(1, salt="b")
        computed = await pair.counted(before, "decode-0 computed")
        assert [process.spec.name for process in deployment.dead()] == ["store"]
        assert "store_dead" in "\n".join(logs.lines(deployment.dead()[0].log))
    assert all(record.ok for record in [*records, *late])
    assert computed == 600


async def test_store_dead_at_start(tmp_path: Path, nothing_left: str):
    settings = EngineSettings(**SETTINGS, fault="store_dead_at_start")
    async with launcher_for(settings, tmp_path) as launcher:
        began_s = time.monotonic()
        with pytest.raises(LaunchError, match=r"^store ended while .* the master exits"):
            async with start(launcher, "1p1d", "mooncake-store", settings=settings, logs=tmp_path):
                raise AssertionError("it started")
    assert time.monotonic() - began_s < CONNECT_S  # how long the instances wait


async def test_late_store():
    computed = {}
    for fault in ("", "late_store"):
        async with simulated_deployment("1p1d", "mooncake-store", fault=fault) as pair:
            before = await pair.counters()
            await pair.ask(2)
            computed[fault] = await pair.counted(before, "decode-0 computed")
            while await pair.counted(before, "store blocks put") < 8:
                await asyncio.sleep(0.05)
            await pair.deployment.reset_engines()
            before = await pair.counters()
            await pair.ask(2, again=True)
            assert await pair.counted(before, "decode-0 fetched") == 1024  # in the end all is there
    assert computed == {"": 2 * 88, "late_store": 1200}


async def test_leased_blocks():
    async with simulated_deployment("1p1d", "mooncake-store", fault="leased_blocks") as pair:
        await pair.ask(1)
        assert await pair.deployment.reset_store()
        page = (await pair.counters()).store
    assert page is not None and page.sum(pair.deployment.store.held) == 4


def test_every_fault_is_seen_here():
    seen = {*BROKEN, *(fault for fault, *_ in COUNTED)}
    assert {name for name in FAULTS if f"test_{name}" not in globals()} <= seen
