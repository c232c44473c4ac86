import json
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.errors import LaunchError
from workbench.hardware.interpreter import interpreter
from workbench.metrics.counters import StoreCounters
from workbench.metrics.prometheus import Counters
from workbench.serve.connectors.mooncake_store import CONNECTOR, STORE
from workbench.serve.deployment import plan_deployment
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology


def deployment(topology: str, store_gb: float = 1.0):
    settings = EngineSettings(model=Path("/models/tiny"), platform="cpu")
    return plan_deployment(
        Topology.parse(topology), CONNECTOR, settings, ports=range(20_000, 20_100),
        store_gb=store_gb,
    )  # fmt: skip


def test_the_master_is_first_and_listens_on_loopback_only():
    master, *others = deployment("1p1d").processes
    assert [p.name for p in others] == ["prefill-0", "decode-0", "proxy"]
    assert master.program[0].endswith("mooncake_master")
    for option in ("-rpc_address", "-metrics_host"):
        assert master.args[master.args.index(option) + 1] == "127.0.0.1"
    assert deployment("1p1d").store_http_url == f"http://127.0.0.1:{master.port + 1}"


def test_each_instance_lends_its_part_of_the_memory_and_finds_the_master():
    plan = deployment("1p3d", store_gb=2.0)
    files = [json.loads(p.env_files["MOONCAKE_CONFIG_PATH"]) for p in plan.instances]
    assert [file["global_segment_size"] for file in files] == [2**29] * 4
    assert {file["master_server_address"] for file in files} == {
        f"127.0.0.1:{plan.processes[0].port}"
    }


def test_each_instance_has_a_socket_of_its_own_for_lookups():
    configs = [
        json.loads(p.args[p.args.index("--kv-transfer-config") + 1])["kv_connector_extra_config"]
        for p in deployment("1p3d").instances
    ]
    assert len({config["lookup_rpc_port"] for config in configs}) == 4


@pytest.mark.parametrize(
    ("topology", "passes"),
    [
        ("1p1d", ["cold", "engine-warm", "store-warm"]),
        ("1p2d", ["cold", "engine-warm", "cross-instance", "store-warm"]),
        ("2a", ["cold", "engine-warm", "cross-instance", "store-warm"]),
    ],
)
def test_the_cache_states_are_those_of_a_store(topology, passes):
    assert list(CONNECTOR.passes(Topology.parse(topology))) == passes


def test_the_master_counts_blocks_and_the_ledger_tokens():
    series = {
        ("mem_cache_hit_nums_", ()): 39.0, ("master_batch_exist_key_items_total", ()): 78.0,
        ("master_batch_put_end_items_total", ()): 39.0, ("master_evicted_key_count", ()): 0.0,
    }  # fmt: skip
    read = Counters(instance="store", values=series, read_at_s=0.0)
    counted = StoreCounters.of(read, STORE.counters, block_tokens=128)
    assert (counted.hit_tokens, counted.requested_tokens) == (39 * 128, 78 * 128)
    assert (counted.written_chunks, counted.dropped_chunks) == (39, 0)


def test_without_a_gpu_torch_gets_an_event_that_is_always_done(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "Event", torch.cuda.Event)
    CONNECTOR.patch_cpu()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    event.synchronize()
    assert event.query()


def test_what_is_missing_is_told_before_anything_starts():
    lacking = replace(CONNECTOR, modules=("no_such_package",))
    with pytest.raises(LaunchError, match=r"needs the package no_such.*make setup MOONCAKE=1"):
        lacking.check_installed(interpreter())
