"""What holds for every connector, and the registry."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from workbench.errors import LaunchError, PlanError
from workbench.hardware.interpreter import interpreter
from workbench.params.pd_sweep import PdSweep
from workbench.serve import connectors
from workbench.serve.connectors import CONNECTORS, Connector, Wiring, connector
from workbench.serve.deployment import plan_deployment
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

PD, AGGREGATED = Topology.parse("1p4d"), Topology.parse("5a")


def test_a_connector_is_a_module_of_its_name_that_a_sweep_can_ask_for():
    folder = Path(connectors.__file__).parent
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__", "connector"}
    assert {name.replace("-", "_") for name in CONNECTORS} == modules
    for name in CONNECTORS:
        assert connector(name).name == PdSweep(connector=name).connector == name


@pytest.mark.parametrize(
    ("name", "topology"),
    [("none", AGGREGATED), ("lmcache", PD), ("lmcache", AGGREGATED), ("nixl", PD)],
)
def test_what_a_connector_can_serve(name, topology):
    connector(name).check(topology)


@pytest.mark.parametrize(
    ("name", "topology", "passes"),
    [
        ("none", "1a", ["cold", "engine-warm"]),
        ("none", "5a", ["cold", "engine-warm"]),
        ("lmcache", "1a", ["cold", "engine-warm", "store-warm"]),
        ("lmcache", "5a", ["cold", "engine-warm", "cross-instance", "store-warm"]),
        ("lmcache", "1p1d", ["cold", "engine-warm", "store-warm"]),
        ("lmcache", "1p4d", ["cold", "engine-warm", "cross-instance", "store-warm"]),
        ("nixl", "4p1d", ["cold", "engine-warm"]),
        ("nixl", "1p4d", ["cold", "engine-warm", "cross-instance"]),
    ],
)
def test_a_pass_is_there_only_where_its_state_can_be(name, topology, passes):
    assert list(connector(name).passes(Topology.parse(topology))) == passes


def test_the_smallest_connector_is_one_record(monkeypatch):
    """All of one that keeps KV in the engine's own process: the example of docs/architecture.md."""
    simple = Connector(
        name="simple-offload",
        transfer_config=lambda _: {
            "kv_connector": "SimpleCPUOffloadConnector",
            "kv_role": "kv_both",
        },
    )
    monkeypatch.setitem(CONNECTORS, "simple-offload", simple)
    settings = EngineSettings(model=Path("/models/tiny"), platform="cpu")
    topology = Topology.parse("2a")
    made = plan_deployment(topology, connector("simple-offload"), settings, ports=count(20_000))
    assert [process.name for process in made.processes] == ["aggregated-0", "aggregated-1", "proxy"]
    assert all('"SimpleCPUOffloadConnector"' in process.command_line for process in made.instances)
    assert simple.passes(topology) == ("cold", "engine-warm")
    assert simple.loads and simple.installed(interpreter())
    with pytest.raises(
        PlanError, match=r"1p4d needs connector=lmcache or nixl .* got 'simple-offload'"
    ):
        simple.check(PD)


def test_only_without_a_connector_can_an_instance_load_nothing():
    assert [name for name, known in CONNECTORS.items() if not known.loads] == ["none"]
    assert connector("none").engine_args(Wiring(role="aggregated", cpu=True)) == ()


@pytest.mark.parametrize("name", ["lmcache", "nixl"])
def test_what_a_connector_needs_and_this_machine_lacks_is_named_with_what_to_do(name):
    assert connector("none").installed(interpreter())
    lacking = replace(connector(name), modules=("no_such_package",))
    assert not lacking.installed(interpreter())
    with pytest.raises(LaunchError) as refused:
        lacking.check_installed(interpreter())
    assert f"connector '{name}' needs the package no_such_package" in str(refused.value)
    assert str(refused.value).endswith("-p connector none -p topology 2a)")  # a pair that is served
    assert lacking.install in str(refused.value)
