"""What a launch counts for its passes."""

from dataclasses import replace
from math import isnan

import pytest

from workbench.experiment.plan.arm import Arm, Pass
from workbench.experiment.run.launch.isolation import CounterReading, Made
from workbench.experiment.run.launch.launch_counts import LaunchCounts
from workbench.load.workload.workload import reference
from workbench.metrics.passes import PassCounters
from workbench.metrics.prometheus import Counters, parse
from workbench.records import RequestRecord
from workbench.serve.deployed import Deployment, Instance
from workbench.topology import Topology

PREFILL = Instance(name="prefill-0", role="prefill", url="http://127.0.0.1:1")
ALONE = Deployment(url=PREFILL.url, instances=(PREFILL,))
ONLY = Instance(name="aggregated-0", role="aggregated", url="http://127.0.0.1:2")
OLD = Deployment(url=ONLY.url, instances=(ONLY,))
EXPIRED = "vllm:nixl_num_kv_expired_reqs_total"


def reading(expired: float) -> CounterReading:
    counted = Counters(
        instance=PREFILL.name,
        read_at_s=0.0,
        values={(EXPIRED, ()): expired},
        cumulative=frozenset([EXPIRED]),
    )
    return CounterReading(deployment=ALONE, engines={PREFILL.name: counted}, store=None)


@pytest.fixture
def launch() -> LaunchCounts:
    pair = Topology(prefill=1, decode=1)
    arm = Arm(label="nixl", role="attached", topology=pair, connector="nixl", passes=())
    return LaunchCounts(arm, 0, ALONE)


def ended(launch: LaunchCounts, at: CounterReading, begun: CounterReading) -> tuple[float, float]:
    """What had expired between the readings of a pass, and before it."""
    prompts = reference(requests=1, prompt_tokens=32, output_tokens=2, vocab_tokens=100, salt="a")
    counted = at.since(begun)
    made = launch.ended(Pass(name="a", state="cold"), prompts, prompts, (), (), at, counted)
    assert made.transfers is not None
    return made.transfers.expired, made.expired_before


def test_kv_that_expires_between_two_passes_is_told_with_the_second(launch: LaunchCounts):
    launch.begins(Made(), reading(1))
    # What had expired before the first pass, a warm-up lost.
    assert ended(launch, reading(1), reading(1)) == (0, 0)
    launch.begins(Made(), reading(4))
    assert ended(launch, reading(5), reading(4)) == (1, 3)
    launch.begins(Made(), reading(5))
    assert ended(launch, reading(5), reading(5)) == (0, 0)


def test_what_expired_before_a_pass_that_broke_off_is_told_with_the_next(launch: LaunchCounts):
    for begun in (0, 2, 3):
        launch.begins(Made(), reading(begun))
    assert ended(launch, reading(3), reading(3)) == (0, 3)


def test_what_a_restart_hides_is_not_made_up(launch: LaunchCounts):
    launch.begins(Made(), reading(5))
    assert ended(launch, reading(5), reading(5)) == (0, 0)
    launch.begins(Made(), reading(1))  # a counter that fell
    assert ended(launch, reading(1), reading(1)) == (0, 0)


def old_vllm(hits: float, engines: int = 1) -> CounterReading:
    """What vLLM 0.10 has counted after one prompt of 32 tokens."""
    counts = {"prefix_cache_queries": 32, "prefix_cache_hits": hits, "prompt_tokens": 32}
    values = {(f"vllm:{name}_total", ()): float(value) for name, value in counts.items()}
    for number in range(engines):
        values["vllm:num_requests_running", (("engine", str(number)),)] = 0.0
    page = Counters(instance="aggregated-0", read_at_s=0.0, values=values)
    return CounterReading(deployment=OLD, engines={"aggregated-0": page}, store=None)


def record(cached: int) -> RequestRecord:
    given = {"index": 0, "request_id": "a", "ideal_reuse_tokens": 0, "max_tokens": 2}
    times = {"scheduled_s": 0.0, "sent_s": 0.0, "chunk_s": (1.0,), "stream_end_s": 1.0}
    return RequestRecord(prompt_tokens=32, cached_tokens=cached, **given, **times)


def counted(reading: CounterReading, cached: int, connector: str = "unknown") -> PassCounters:
    arm = Arm(label="old", role="attached", topology=None, connector=connector, passes=())
    launch = LaunchCounts(arm, 0, OLD)
    none = CounterReading(deployment=OLD, engines={ONLY.name: parse("", ONLY.name)}, store=None)
    prompts = reference(requests=1, prompt_tokens=32, output_tokens=2, vocab_tokens=100, salt="a")
    launch.begins(Made(), none)
    cold = Pass(name="cold", state="cold")
    since = reading.since(none)
    return launch.ended(cold, prompts, prompts, [record(cached)], (), reading, since)


@pytest.mark.parametrize(
    ("cached", "connector", "known"),
    [
        (16, "unknown", True),  # the answer's own count leaves nothing for a connector
        (32, "unknown", False),
        (-1, "unknown", False),
        (-1, "none", True),  # we started it without one
    ],
)
def test_that_no_connector_loaded_anything_is_shown_by_a_second_witness(
    cached: int, connector: str, known: bool
):
    sources = counted(old_vllm(16), cached, connector).sources["aggregated"]
    assert sources.engine_hit == 16
    if known:
        assert (sources.computed, sources.external_hit, sources.unknown) == (16, 0, "")
    else:
        assert isnan(sources.external_hit)
        assert "vLLM 0.16 or later" in sources.unknown


def test_which_data_parallel_engine_got_a_prompt_is_not_known():
    assert "aggregated" in counted(old_vllm(16), 16).reuse
    assert counted(old_vllm(16, engines=2), 16).reuse == {}
    both = old_vllm(16, engines=2)
    doubts = both.since(both).doubts
    assert doubts == (
        "aggregated-0 runs 2 data-parallel engines with separate caches, so a repeated prompt may"
        " miss.",
    )


@pytest.mark.parametrize(("store_url", "stores"), [("", False), ("http://127.0.0.1:3", True)])
def test_an_attached_store_serves_whole_chunks(store_url: str, stores: bool):
    """Which connector attached servers have is unknown, but not that they have a store."""
    arm = Arm(label="attached", role="attached", topology=None, connector="unknown", passes=())
    deployment = replace(OLD, store_url=store_url)
    launch = LaunchCounts(arm, 0, deployment)
    launch.begins(Made(), old_vllm(0))
    prompts = reference(requests=1, prompt_tokens=32, output_tokens=2, vocab_tokens=100, salt="a")
    at = old_vllm(0)
    made = launch.ended(
        Pass(name="cold", state="cold"), prompts, prompts, (), (), at, at.since(old_vllm(0))
    )
    assert made.grain_tokens("external_hit") == (made.chunk_tokens if stores else made.block_tokens)
