"""LMCache inside vLLM: text only, since it runs on GPUs."""

import json
from math import isnan
from pathlib import Path

import pytest

from workbench.errors import PlanError
from workbench.metrics.counters import StoreCounters
from workbench.metrics.prometheus import Counters
from workbench.serve import simulated
from workbench.serve.checks.capacity import Capacity
from workbench.serve.connectors import connector
from workbench.serve.deployment import plan_deployment
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology


def test_each_instance_keeps_kv_in_its_own_host_memory():
    made = plan_deployment(
        Topology.parse("2a"),
        connector("lmcache-inprocess"),
        EngineSettings(model=Path(simulated.__file__).parent, platform="cuda"),
        ports=range(20_000, 20_100),
        capacity=Capacity(devices=("0", "1")),
        store_gb=8.0,
    )
    assert [process.name for process in made.processes] == ["aggregated-0", "aggregated-1", "proxy"]
    for process in made.instances:
        config = json.loads(process.args[process.args.index("--kv-transfer-config") + 1])
        assert config == {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
        assert process.env["LMCACHE_LOCAL_CPU"] == "True"
        assert process.env["LMCACHE_MAX_LOCAL_CPU_SIZE"] == "8"
        assert process.env["LMCACHE_CHUNK_SIZE"] == "256"
        assert process.env["PYTHONHASHSEED"] == "0"  # or workers hash a chunk differently


def test_the_passes_are_those_of_host_memory():
    passes = connector("lmcache-inprocess").passes(Topology.parse("1a"), ())
    assert passes == ("cold", "engine-warm", "offload-warm")


def test_no_kv_moves_between_instances():
    with pytest.raises(PlanError, match="1p1d needs connector=lmcache or nixl"):
        connector("lmcache-inprocess").check(Topology.parse("1p1d"))


def test_what_it_does_not_count_is_unknown_and_not_an_error():
    names = connector("lmcache-inprocess").store.counters
    page = {("vllm:prompt_tokens_total", ()): 512.0}
    told = StoreCounters.of(Counters(instance="a", values=page, read_at_s=0.0), names)
    assert isnan(told.hit_tokens) and isnan(told.written_chunks)
    page |= {(names["requested_tokens"], ()): 512.0, (names["hit_tokens"], ()): 256.0}
    told = StoreCounters.of(Counters(instance="a", values=page, read_at_s=0.0), names)
    assert (told.requested_tokens, told.hit_tokens, told.evicted_chunks) == (512, 256, 0)
    assert isnan(told.written_chunks)
