import asyncio
from pathlib import Path

import pytest

from workbench.experiment.plan.arm import Pass
from workbench.experiment.run.launch import isolation
from workbench.experiment.run.launch.isolation import Counted, make_state, read_counters, warm_up
from workbench.metrics.counters import TokenSources
from workbench.serve.connectors import connector
from workbench.serve.deployed import Deployment, Instance
from workbench.serve.deployment import plan_deployment
from workbench.serve.processes.launcher import Process
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

LOGGED = "KV Transfer metrics: Num successful transfers=1, Avg MB per transfer=2.0\n"
RESET, CLEAR = "POST /reset_prefix_cache", "POST /cache/clear"


@pytest.fixture
def one(vllm):
    """One instance with a KV store; the pretended server is both."""
    instance = Instance(name="aggregated-0", role="aggregated", url=vllm.url)
    return Deployment(
        url=vllm.url, model="their-model", instances=(instance,), store_url=vllm.url
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "orders"),
    [
        ("cold", [RESET, CLEAR]),
        ("engine-warm", []),
        ("cross-instance", []),
        ("store-warm", [RESET]),
    ],
)
async def test_a_state_is_made_by_emptying_what_has_to_be_empty(state, orders, one, vllm):
    made = await make_state(one, Pass(name=state, state=state))
    assert made.doubts == ()
    assert (made.engines_empty, made.store_empty) == (RESET in orders, CLEAR in orders)
    assert vllm.asked == orders


async def test_a_store_is_left_to_finish_its_writing_first(one, vllm, monkeypatch):
    monkeypatch.setattr(isolation, "STORE_QUIET_S", 0.01)
    vllm.written_chunks = [1, 2, 3, 3, 9]
    await make_state(one, Pass(name="store-warm", state="store-warm"))
    assert vllm.written_chunks == [9]  # read until two readings agreed, not once more


async def test_a_store_that_never_rests_is_not_waited_for_for_ever(one, vllm, monkeypatch):
    monkeypatch.setattr(isolation, "STORE_QUIET_S", 0.001)
    monkeypatch.setattr(isolation, "STORE_TIMEOUT_S", 0.05)
    vllm.written_chunks = list(range(1000))
    await make_state(one, Pass(name="store-warm", state="store-warm"))
    assert vllm.asked == [RESET]


@pytest.mark.parametrize("state", ["cold", "store-warm"])
async def test_what_cannot_be_emptied_is_a_doubt(state, vllm):
    made = await make_state(Deployment(url=vllm.url), Pass(name="a", state=state))
    assert not made.engines_empty
    (doubt,) = made.doubts
    assert doubt.startswith("Engine caches could not be reset before a a pass")


async def test_a_warm_up_walks_each_pair_with_and_without_the_shift(one, vllm):
    await warm_up(one, vocab_tokens=1000, salt="new", pairs=3)
    assert vllm.asked == ["POST /v1/completions"] * 6
    assert len(set(vllm.prompts)) == 3  # the same prompts twice
    assert {len(prompt) for prompt in vllm.prompts} == {isolation.WARM_UP_TOKENS}


async def test_the_change_of_the_counters_is_added_up_by_role(vllm):
    two = Deployment(
        url=vllm.url,
        instances=tuple(
            Instance(name=f"decode-{number}", role="decode", url=vllm.url) for number in range(2)
        ),
        store_url=vllm.url,
    )
    before = await read_counters(two)
    vllm.counts(100, source="local_compute")
    vllm.counts(16, source="local_cache_hit")
    vllm.counts(3, finished_reason="length")
    counted = (await read_counters(two)).since(before)
    assert counted.sources == {"decode": TokenSources(computed=200, engine_hit=32, external_hit=0)}
    assert counted.requests == {"decode": 6}
    assert counted.doubts == ()


async def test_the_block_is_what_the_engine_says(one):
    assert (await read_counters(one)).block_tokens == 128


async def test_a_restart_between_two_readings_makes_the_counters_unknown(one, vllm):
    vllm.counts(5, finished_reason="length")
    before = await read_counters(one)
    vllm.restarts()
    counted = (await read_counters(one)).since(before)
    assert "restarted during the pass" in counted.doubts[0]
    assert counted.requests["aggregated"] != counted.requests["aggregated"]


async def test_readings_are_rows_of_a_table(one):
    rows = (await read_counters(one)).rows(arm="1a", when="before")
    assert {row["instance"] for row in rows} == {"aggregated-0", "store"}
    (row,) = (
        r for r in rows
        if r["instance"] == "aggregated-0" and r["labels"].endswith(",source=local_compute")
    )  # fmt: skip
    assert (row["arm"], row["when"], row["value"]) == ("1a", "before", 0.0)
    assert row["series"] == "vllm:prompt_tokens_by_source_total"


@pytest.fixture
def logging(vllm, tmp_path):
    """A prefill instance with connector mooncake, whose log is `prefill-0.log`."""
    settings = EngineSettings(model=Path("/models/tiny"), platform="cpu")
    plan = plan_deployment(
        Topology.parse("1p1d"), connector("mooncake"), settings, ports=range(20_000, 20_100)
    )
    process = Process(plan.instances[0], tmp_path / "prefill-0.log", asyncio.Future())
    instance = Instance(name="prefill-0", role="prefill", url=vllm.url)
    return Deployment(url=vllm.url, instances=(instance,), processes=(process,), plan=plan)


async def test_transfers_are_read_when_vllm_has_logged_all_of_them(logging, vllm):
    (process,) = logging.processes
    process.log.write_text(LOGGED)
    before = await read_counters(logging)
    vllm.counts(2, finished_reason="length")

    def log_the_rest() -> None:
        process.log.write_text(LOGGED + LOGGED)

    asyncio.get_running_loop().call_later(0.2, log_the_rest)
    change = (await read_counters(logging)).transfers_since(before, {})
    assert change.transfers == 1 and change.failed == change.expired == 0
    assert change.bytes_moved == 2 * 2**20


async def test_transfers_that_are_never_logged_are_unknown(logging, monkeypatch):
    monkeypatch.setattr(isolation, "LOG_PERIODS", 0)
    reading = await read_counters(logging)
    assert reading.transfers_since(reading, {}) is None


async def test_without_servers_there_is_nothing_to_read(vllm):
    nobody = Deployment(url=vllm.url)
    reading = await read_counters(nobody)
    assert (reading.engines, reading.store, reading.rows()) == ({}, None, [])
    assert reading.since(reading).sources == {}


def test_the_first_token_that_a_proxy_adds_to_each_prompt_is_no_prompt_token():
    counted = Counted(
        sources={
            "prefill": TokenSources(computed=1000, engine_hit=0, external_hit=0),
            "decode": TokenSources(computed=44, engine_hit=0, external_hit=960),
        },
        requests={"prefill": 4, "decode": 4},
        preemptions={},
    )
    corrected = counted.without_first_tokens().sources
    assert corrected["decode"] == TokenSources(computed=40, engine_hit=0, external_hit=960)
    assert corrected["prefill"] is counted.sources["prefill"]
