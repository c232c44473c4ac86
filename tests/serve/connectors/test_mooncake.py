import json
from pathlib import Path

import pytest

from workbench.errors import PlanError
from workbench.serve.connectors.mooncake import CONNECTOR
from workbench.serve.deployed import Deployment, DeploymentPlan
from workbench.serve.deployment import plan_deployment
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology


def deployment(topology: str, **given: object) -> DeploymentPlan:
    settings = EngineSettings(model=Path("/models/tiny"), platform="cpu", **given)
    return plan_deployment(
        Topology.parse(topology), CONNECTOR, settings, ports=range(20_000, 20_100),
        transfer_timeout_s=45, mooncake_protocol="rdma",
    )  # fmt: skip


def test_each_prefill_instance_has_a_bootstrap_server_that_the_proxy_knows():
    *instances, proxy = deployment("2p1d").processes
    ports = [p.env.get("VLLM_MOONCAKE_BOOTSTRAP_PORT") for p in instances]
    assert ports[2] is None and len({*ports[:2], *(str(p.port) for p in instances)}) == 5
    bootstrap = [f"--bootstrap http://127.0.0.1:{port}" for port in ports[:2]]
    assert " ".join(bootstrap) in proxy.command_line and "--mode mooncake" in proxy.command_line


def test_instances_have_their_roles_and_wait_as_long_as_the_plan_says():
    plan = deployment("1p1d")
    for instance, role in zip(plan.instances, ("kv_producer", "kv_consumer"), strict=True):
        config = json.loads(instance.args[instance.args.index("--kv-transfer-config") + 1])
        assert (config["kv_connector"], config["kv_role"]) == ("MooncakeConnector", role)
        assert config["kv_connector_extra_config"] == {"mooncake_protocol": "rdma"}
        assert instance.env["VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT"] == "45"
        assert instance.env["VLLM_HOST_IP"] == "127.0.0.1"


def test_without_its_prefill_instance_decode_would_wait():
    assert Deployment(url="", plan=deployment("1p1d")).stalling_roles == {"prefill"}
    assert Deployment(url="").stalling_roles == frozenset()


def test_a_variable_of_the_user_wins():
    given = {"VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": "1"}
    for instance in deployment("1p1d", extra_env=given).instances:
        assert instance.env["VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT"] == "1"


@pytest.mark.parametrize(
    ("topology", "passes"),
    [
        ("1p1d", ["cold", "engine-warm"]),
        ("1p2d", ["cold", "engine-warm", "cross-instance"]),
    ],
)
def test_the_cache_states_are_those_without_a_store(topology, passes):
    assert list(CONNECTOR.passes(Topology.parse(topology))) == passes


def test_without_a_prefill_instance_nothing_can_be_received():
    with pytest.raises(PlanError, match="no prefill instance to receive KV from"):
        CONNECTOR.check(Topology.parse("2a"))


def test_without_a_gpu_the_device_is_the_first(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.accelerator, "current_device_index", None)
    CONNECTOR.patch_cpu()
    assert torch.accelerator.current_device_index() == 0
