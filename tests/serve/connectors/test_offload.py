import ast
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.errors import PlanError
from workbench.metrics.counters import StoreCounters
from workbench.metrics.prometheus import Counters
from workbench.serve.connectors import Wiring
from workbench.serve.connectors.offload import CONNECTOR, STORE
from workbench.serve.deployed import Deployment, Instance
from workbench.serve.deployment import plan_deployment
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

SETTINGS = EngineSettings(model=Path("/models/tiny"), platform="cpu")
MADE = plan_deployment(
    Topology.parse("2a"), CONNECTOR, SETTINGS, ports=range(20_000, 20_100), store_gb=0.5
)


def config(cpu: bool) -> dict[str, object]:
    wiring = Wiring(role="aggregated", cpu=cpu, store_gb=0.5)
    return json.loads(CONNECTOR.engine_args(wiring)[1])["kv_connector_extra_config"]


def test_each_instance_has_all_of_the_memory_and_no_server_is_started():
    assert [process.name for process in MADE.processes] == ["aggregated-0", "aggregated-1", "proxy"]
    assert all('"cpu_bytes_to_use": 536870912' in p.command_line for p in MADE.instances)


def test_with_a_gpu_vllm_is_left_as_it_is():
    assert config(cpu=False) == {"cpu_bytes_to_use": 2**29}
    assert CONNECTOR.env(Wiring(role="aggregated", cpu=False)) == {}


def test_without_one_vllm_imports_our_spec_from_a_folder_that_is_on_its_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    given = config(cpu=True)
    folder, mine = CONNECTOR.env(Wiring(role="aggregated", cpu=True))["PYTHONPATH"].split(
        os.pathsep
    )
    file = Path(folder) / f"{given['spec_module_path']}.py"
    assert f"class {given['spec_name']}(CPUOffloadingSpec)" in file.read_text()
    assert mine == "/mine"


def test_the_spec_needs_nothing_of_the_workbench():
    folder = CONNECTOR.env(Wiring(role="aggregated", cpu=True))["PYTHONPATH"].split(os.pathsep)[0]
    (file,) = [file for file in Path(folder).glob("*.py") if file.stem != "__init__"]
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    ours = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert ours == {"numpy", "torch", "vllm"}


def test_the_state_that_only_its_memory_serves_has_its_own_name():
    assert CONNECTOR.passes(Topology.parse("2a")) == ("cold", "engine-warm", "offload-warm")
    with pytest.raises(PlanError, match=r"1p4d needs connector=lmcache or nixl .* got 'offload'"):
        CONNECTOR.check(Topology.parse("1p4d"))


def test_its_counters_are_those_of_every_instance():
    instances = tuple(Instance(name=p.name, role="aggregated", url=p.url) for p in MADE.instances)
    running = Deployment(url=MADE.url, instances=instances, store=STORE)
    assert [*running.store_urls.values()] == [p.url for p in MADE.instances]
    assert replace(running, store=replace(STORE, processes=lambda: ())).store_urls == {}


def test_bytes_are_converted_to_tokens_and_blocks():
    # What vLLM 0.32 counted for a prompt of 3,072 tokens of 3,072 bytes, loaded once.
    series = {
        ("vllm:kv_offload_load_bytes_total", ()): 4_718_592.0 * 2,
        ("vllm:kv_offload_store_bytes_total", ()): 5_111_808.0,
    }
    read = Counters(instance="aggregated-0", values=series, read_at_s=0.0)
    counted = StoreCounters.of(read, STORE.counters, block_tokens=128, block_bytes=128 * 3072)
    assert (counted.hit_tokens, counted.written_chunks, counted.dropped_chunks) == (3072, 13, 0)
    both = counted + counted
    assert (both.hit_tokens, both.written_chunks) == (6144, 26)


def test_before_the_first_block_is_loaded_nothing_was():
    unused = {("vllm:kv_offload_total_bytes_total", ()): 0.0}
    read = Counters(instance="aggregated-0", values=unused, read_at_s=0.0)
    counted = StoreCounters.of(read, STORE.counters, block_tokens=128, block_bytes=1.0)
    assert (counted.hit_tokens, counted.written_chunks) == (0, 0)
