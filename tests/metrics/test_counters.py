from __future__ import annotations

import asyncio
from math import isnan, nan
from pathlib import Path

import httpx
import pytest

from workbench.metrics.counters import (
    DraftCounters,
    EngineCounters,
    StoreCounters,
    TokenSources,
    TransferCounters,
    block_tokens,
    engine_count,
    kv_capacity_tokens,
    kv_usage,
    sample,
)
from workbench.metrics.prometheus import Counters, difference, parse
from workbench.serve.connectors.lmcache import STORE
from workbench.serve.connectors.nixl import CONNECTOR as NIXL

TRANSFERS = NIXL.transfer_counters


def page(values: dict[str, float], instance: str = "decode-0"):
    """A /metrics page of counters, gauges where the name says nothing of growing."""
    grows = ("_total", "_sum", "_count")
    lines = []
    for series, value in values.items():
        name = series.partition("{")[0]
        lines += [f"# TYPE {name} {'counter' if name.endswith(grows) else 'gauge'}"]
        lines += [f"{series} {value}"]
    return parse("\n".join(lines), instance)


def engine(computed=0, engine_hit=0, external_hit=0, finished=0, aborted=0, preempted=0):
    labels = 'engine="0",model_name="tiny"'
    by_source = "vllm:prompt_tokens_by_source_total"
    return page(
        {
            f'{by_source}{{{labels},source="local_compute"}}': computed,
            f'{by_source}{{{labels},source="local_cache_hit"}}': engine_hit,
            f'{by_source}{{{labels},source="external_kv_transfer"}}': external_hit,
            f'vllm:request_success_total{{{labels},finished_reason="length"}}': finished,
            f'vllm:request_success_total{{{labels},finished_reason="stop"}}': 0,
            f'vllm:request_success_total{{{labels},finished_reason="abort"}}': aborted,
            f"vllm:num_preemptions_total{{{labels}}}": preempted,
        }
    )


def test_an_engine_says_where_prompt_tokens_came_from():
    # a decode instance seen on a CPU: 7 prompts, of which one was wholly in its own cache
    seen = EngineCounters.of(
        engine(computed=276, engine_hit=4992, external_hit=27392, finished=7, aborted=2)
    )
    assert seen.sources == TokenSources(computed=276, engine_hit=4992, external_hit=27392)
    assert (seen.sources.total, seen.sources.cached) == (32660, 32384)
    assert seen.requests_finished == 7  # those that the client gave up are none
    assert seen.preemptions == 0


def test_of_a_difference_it_is_what_the_engine_did_in_between():
    change = difference(engine(computed=100, finished=3), engine(computed=160, finished=5))
    seen = EngineCounters.of(change)
    assert seen.sources == TokenSources(computed=60, engine_hit=0, external_hit=0)
    assert seen.requests_finished == 2


def test_an_engine_without_the_series_is_unknown():
    seen = EngineCounters.of(page({"sglang:token_usage": 0.5}))
    assert isnan(seen.sources.computed)
    assert isnan(seen.requests_finished)
    assert isnan(seen.preemptions)


def older(own="vllm:prefix_cache", of="tokens", external=None, **counted):
    """A page of vLLM 0.8 to 0.15, which does not count prompt tokens by source."""
    queries, hits, prompt = (counted.get(name, 0) for name in ("queries", "hits", "prompt"))
    lines = [
        f"# HELP {own}_hits_total Prefix cache hits, in terms of number of cached {of}.",
        f"# TYPE {own}_queries_total counter",
        f'{own}_queries_total{{engine="0"}} {queries}',
        f"# TYPE {own}_hits_total counter",
        f'{own}_hits_total{{engine="0"}} {hits}',
        f'# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total{{engine="0"}} {prompt}',
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1',
    ]
    if external is not None:
        name = "vllm:external_prefix_cache"
        lines += [f"# TYPE {name}_hits_total counter", f"{name}_hits_total {external}"]
        lines += [f"# TYPE {name}_queries_total counter", f"{name}_queries_total {queries - hits}"]
    return parse("\n".join(lines), "decode-0")


def test_vllm_0_12_to_0_15_count_hits_of_both_caches_and_the_rest_is_computed():
    before = older(queries=50, hits=0, prompt=50, external=0)
    after = older(queries=1050, hits=320, prompt=1050, external=256)
    seen = EngineCounters.of(difference(before, after)).sources
    assert seen == TokenSources(computed=424, engine_hit=320, external_hit=256)
    assert (seen.total, seen.unknown) == (1000, "")


GPU = "vllm:gpu_prefix_cache"
"""The name of 0.8 to 0.10; before 0.9 it counts blocks, and says so."""
NO_TOTAL = {"vllm:prefix_cache_queries": 100, "vllm:prefix_cache_hits": 64}
"""Not every exporter ends counters in `_total`."""


@pytest.mark.parametrize(
    ("seen", "engine_hit", "why"),
    [
        (older(queries=1000, hits=320, prompt=1000), 320, "tokens loaded through the connector"),
        (older(GPU, "blocks", queries=62, hits=20, prompt=1000), 320, "tokens loaded through"),
        (older(GPU, "tokens", queries=1000, hits=320, prompt=1000), 320, "tokens loaded through"),
        (older(GPU, "x", queries=1000, hits=320, prompt=1000), nan, f"the unit of {GPU}_hits"),
        (older(queries=2000, hits=640, prompt=1000, external=0), nan, "prompts were looked up"),
        (page(NO_TOTAL), nan, "prompt tokens are not counted"),
        (page(NO_TOTAL | {"vllm:prompt_tokens_total": 100}), 64, "tokens loaded through"),
        (page({f"{GPU}_hit_rate": 0.9, "vllm:prompt_tokens_total": 1000}), nan,
         "the V0 engine exports only a hit rate"),
    ],
)  # fmt: skip
def test_versions_before_0_12_count_hits_of_their_own_cache_alone(
    seen: Counters, engine_hit: float, why: str
) -> None:
    sources = EngineCounters.of(seen).sources
    assert sources.engine_hit == pytest.approx(engine_hit, nan_ok=True)
    assert isnan(sources.computed)
    assert sources.total == pytest.approx(seen.sum("vllm:prompt_tokens_total"), nan_ok=True)
    assert sources.unknown.startswith(why)
    assert sources.unknown.endswith("this takes vLLM 0.16 or later")


def test_where_nothing_was_loaded_the_rest_was_computed() -> None:
    seen = EngineCounters.of(older(queries=1000, hits=320, prompt=1000)).sources
    assert seen.without_external() == TokenSources(computed=680, engine_hit=320, external_hit=0)


def test_data_parallel_engines_of_an_instance_are_added_up():
    pages = []
    for served in (0, 1):
        by_source = "vllm:prompt_tokens_by_source_total"
        values = {
            f'{name}{{engine="{i}"{more}}}': value * served
            for i in range(2)
            for name, more, value in (
                (by_source, ',source="local_compute"', 100),
                (by_source, ',source="local_cache_hit"', 30 * i),
                (by_source, ',source="external_kv_transfer"', 0),
                ("vllm:request_success_total", ',finished_reason="stop"', 2),
                ("vllm:num_requests_running", "", i),
            )
        }
        for i in range(2):
            values[f'vllm:cache_config_info{{block_size="16",engine="{i}",num_gpu_blocks="9"}}'] = 1
        pages.append(page(values))
    change = difference(*pages)
    seen = EngineCounters.of(change)
    assert seen.sources == TokenSources(computed=200, engine_hit=30, external_hit=0)
    assert seen.requests_finished == 4
    assert engine_count(change) == 2
    assert (kv_capacity_tokens(change), block_tokens(change)) == (2 * 9 * 16, 16)
    assert change.sum("vllm:num_requests_running") == 1


def test_sources_of_the_instances_of_a_role_add_up():
    one = TokenSources(computed=1, engine_hit=2, external_hit=3)
    assert one + one == TokenSources(computed=2, engine_hit=4, external_hit=6)
    assert isnan((one + TokenSources()).total)  # one instance unknown: the role is unknown
    partly = TokenSources(engine_hit=2, all_tokens=6, unknown="old")
    assert ((one + partly).total, (one + partly).engine_hit) == (12, 4)
    assert (partly + one).unknown == "old"


def test_nixl_says_what_it_moved():
    decode = page(
        {
            'vllm:nixl_bytes_transferred_sum{engine="0"}': 7_680_000,
            'vllm:nixl_bytes_transferred_count{engine="0"}': 3,
            'vllm:nixl_num_failed_transfers_total{engine="0"}': 1,
        }
    )
    prefill = page({'vllm:nixl_num_kv_expired_reqs_total{engine="0"}': 2})
    seen = TransferCounters.of([decode, prefill, engine(computed=5)], TRANSFERS)
    assert seen == TransferCounters(bytes_moved=7_680_000, transfers=3, failed=1, expired=2)
    alone = TransferCounters.of([decode], TRANSFERS)
    assert alone is not None and isnan(alone.expired)


def test_draft_tokens_are_those_of_all_instances():
    name = "vllm:spec_decode_num_{}_total"
    drafted = page({name.format("draft_tokens"): 644.0, name.format("accepted_tokens"): 5.0})
    idle = page({name.format("draft_tokens"): 0.0, name.format("accepted_tokens"): 0.0})
    assert DraftCounters.of([drafted, idle, page({})]) == DraftCounters(proposed=644, accepted=5)
    assert DraftCounters.of([idle]) is None
    assert DraftCounters.of([page({})]) is None


def test_engines_without_nixl_say_nothing_of_it():
    assert TransferCounters.of([engine(computed=5)], TRANSFERS) is None


LOOKED_UP = 'lmcache_mp_lookup_{}_tokens_total{{model_name="tiny"}}'


@pytest.mark.parametrize(
    ("seen", "fields"),
    [
        (
            page({LOOKED_UP.format("requested"): 9728, LOOKED_UP.format("hit"): 4864,
                  "lmcache_mp_l1_write_chunks_total": 19}),
            {"requested_tokens": 9728, "hit_tokens": 4864, "written_chunks": 19},
        ),
        # What it never did is zero: it exports no counter before its first use.
        (page({"lmcache_mp_l1_usage_ratio": 0.0}), {"requested_tokens": 0, "evicted_chunks": 0}),
        # Lookups without hits are a series that we do not know.
        (page({LOOKED_UP.format("requested"): 256}), {"hit_tokens": nan, "evicted_chunks": 0}),
        # A page of something else, and a restart.
        (engine(computed=5), {"evicted_chunks": nan}),
        (difference(page({"lmcache_mp_l1_write_chunks_total": 10}),
                    page({"lmcache_mp_l1_write_chunks_total": 3})), {"written_chunks": nan}),
    ],
)  # fmt: skip
def test_the_store_says_what_was_looked_up_and_found(
    seen: Counters, fields: dict[str, float]
) -> None:
    found = StoreCounters.of(seen, STORE.counters)
    assert {name: getattr(found, name) for name in fields} == pytest.approx(fields, nan_ok=True)


def test_kv_usage_is_that_of_the_fullest_engine():
    two = page({f'vllm:kv_cache_usage_perc{{engine="{i}"}}': i / 4 for i in range(3)})
    assert kv_usage(two) == 0.5
    assert kv_usage(page({"vllm:gpu_cache_usage_perc": 0.25})) == 0.25  # vLLM before 0.11
    assert isnan(kv_usage(engine()))


GAUGES = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 2
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0"} 5
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.25
"""


async def test_gauges_are_sampled_until_told_to_stop():
    stop, answered = asyncio.Event(), 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal answered
        answered += 1
        if answered == 4:  # two readings of two instances; the last one is taken at the end
            stop.set()
        return httpx.Response(200, text=GAUGES) if request.url.port == 1 else httpx.Response(503)

    urls = {"prefill-0": "http://127.0.0.1:1", "decode-0": "http://127.0.0.1:2"}
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        await sample(client, urls, 0.001, stop, rows := [])
    assert [row["instance"] for row in rows] == ["prefill-0", "decode-0"] * 3
    gauges = {"running": 2, "waiting": 5, "kv_usage": 0.25}
    assert rows[0] == {"instance": "prefill-0", "at_s": rows[0]["at_s"], **gauges}
    assert all(isnan(rows[1][gauge]) for gauge in gauges)
    assert rows[0]["at_s"] < rows[2]["at_s"] < rows[4]["at_s"]


async def test_one_reading_is_taken_even_when_the_pass_is_already_over():
    stop = asyncio.Event()
    stop.set()
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=GAUGES))
    async with httpx.AsyncClient(transport=transport) as client:
        await sample(client, {"decode-0": "http://127.0.0.1:1"}, 60, stop, rows := [])
    assert [row["running"] for row in rows] == [2]


HEAD = "(APIServer pid=12375) INFO 11-29 16:54:14 [metrics.py:103] KV Transfer metrics: "
LINE = (
    "Num successful transfers={sent}, Avg xfer time (ms)=9.373, P90 xfer time (ms)=14.663,"
    " Avg MB per transfer={mb}, Throughput (MB/s)=205.037, Avg number of descriptors=3.0,"
    " Num failed transfers={failed}, Num failed recvs={lost}, Num KV expired reqs={expired}"
)
"""A period as vLLM 0.32.0 writes it."""


def period(sent: int = 0, mb: float = 0, failed: int = 0, lost: int = 0, expired: int = 0) -> str:
    return HEAD + LINE.format(sent=sent, mb=mb, failed=failed, lost=lost, expired=expired)


def logs(folder: Path, prefill: list[str], decode: list[str]) -> list[Path]:
    files = [folder / "prefill-0.log", folder / "decode-0.log"]
    for file, lines in zip(files, (prefill, decode), strict=True):
        file.write_text("\n".join(["Route: /health", *lines, "bye"]))
    return files


def test_every_line_counts_its_own_period(tmp_path):
    seen = TransferCounters.logged(logs(tmp_path, [period(1, 0.281), period(2, 1.922)], []))
    assert seen is not None
    assert (seen.transfers, seen.failed, seen.expired) == (3, 0, 0)
    # 300, 5,000 and 8 tokens were sent in whole blocks of 128, 768 bytes each.
    blocks = 3 + 40 + 1
    assert seen.bytes_moved == pytest.approx(blocks * 128 * 768, abs=seen.rounding_bytes)
    assert seen.rounding_bytes < 3 * 768


def test_a_transfer_that_failed_on_both_sides_failed_once(tmp_path):
    decode = [
        "ERROR [mooncake_connector.py:2405] pulling kv_caches for ['cmpl-1-0'] failed: Timeout"
        " waiting for P side ready.",
        "ERROR Failing 1 request(s) due to KV load failure (failure_policy=fail, 3000 tokens"
        " affected)",
        period(lost=1),
    ]
    seen = TransferCounters.logged(logs(tmp_path, [period(1, 2.0, failed=1)], decode))
    assert seen is not None
    assert (seen.transfers, seen.failed) == (1, 1)
    assert seen.reason == "Timeout waiting for P side ready."


def test_kv_that_expired_while_the_engine_was_idle_is_in_no_period(tmp_path):
    expired = (
        "WARNING Request cmpl-1-0 timed out after 5 seconds without being sent. Freeing its blocks"
        " on the producer side."
    )
    seen = TransferCounters.logged(logs(tmp_path, [period(1, 2.0), expired], []))
    assert seen is not None and seen.expired == 1


def test_what_is_counted_since_an_earlier_reading(tmp_path):
    before = TransferCounters.logged(logs(tmp_path, [period(1, 0.281)], []))
    now = TransferCounters.logged(
        logs(tmp_path, [period(1, 0.281), period(4, 0.094, expired=2)], [])
    )
    assert before is not None and now is not None
    change = now.since(before)
    assert (change.transfers, change.failed, change.expired) == (4, 0, 2)
    assert change.bytes_moved == pytest.approx(4 * 0.094 * 2**20)


def test_a_log_without_such_lines_says_nothing(tmp_path):
    assert TransferCounters.logged(logs(tmp_path, [], [])) is None
    assert TransferCounters.logged([tmp_path / "missing.log"]) is None
