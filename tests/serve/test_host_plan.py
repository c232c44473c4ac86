"""A deployment on several hosts: who runs where, and which addresses each one gets."""

import json
from itertools import count
from pathlib import Path

import pytest

from tests.clusters import cluster, host
from workbench.errors import PlanError
from workbench.hardware.hosts import THIS_MACHINE, Cluster
from workbench.serve.connectors import connector
from workbench.serve.deployed import Deployment, DeploymentPlan
from workbench.serve.deployment import launcher_for, plan_deployment
from workbench.serve.processes.ray_hosts import RayLauncher
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology


def plan(
    topology: str, name: str, hosts: Cluster, platform: str = "cpu", **given: int
) -> DeploymentPlan:
    settings = EngineSettings(model=Path("/models/tiny"), platform=platform, cluster=hosts)
    return plan_deployment(
        Topology.parse(topology), connector(name), settings, ports=count(20_000),
        tp=TensorParallel(**given),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spread", "topology", "places"),
    [
        ("pack", "1p3d", "host-1 host-1 host-1 host-1"),
        ("pack", "1p4d", "host-1 host-1 host-1 host-1 host-2"),
        ("spread", "1p4d", "host-1 host-2 host-3 host-1 host-2"),
        ("spread", "2a", "host-1 host-2"),
        ("node", "4a", "host-1 host-1 host-1 host-1"),
    ],
)
def test_instances_are_spread_as_asked_and_always_alike(spread, topology, places):
    made = plan(topology, "nixl" if "p" in topology else "none", cluster(spread=spread))
    assert [p.host.name for p in made.instances] == places.split()
    assert list(made.hosts.values()) == places.split()


def test_a_host_with_gpus_is_chosen_and_counts_its_own_from_0():
    hosts = cluster(host(1, gpus=2), host(2, gpus=4), spread="pack")
    made = plan("1p2d", "nixl", hosts, "cuda", prefill=2, decode=1)
    told = [(p.host.name, p.env["CUDA_VISIBLE_DEVICES"]) for p in made.instances]
    assert told == [("host-1", "0,1"), ("host-2", "0"), ("host-2", "1")]
    node = cluster(*hosts.hosts, spread="node")
    assert set(plan("1p2d", "nixl", node, "cuda", prefill=2).hosts.values()) == {"host-2"}


def test_each_connector_gets_the_addresses_of_its_hosts():
    prefill, decode = plan("1p1d", "nixl", cluster()).instances
    assert prefill.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.1"
    assert decode.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == decode.env["VLLM_HOST_IP"] == "10.0.0.2"
    assert decode.env["UCX_NET_DEVICES"] == "eth0"
    assert "--host 10.0.0.2 " in decode.command_line
    assert decode.url.startswith("http://10.0.0.2:")
    assert decode.ready_url == f"{decode.url}/health"


def test_the_proxy_stays_on_this_machine_and_knows_every_host():
    *_, proxy = plan("1p2d", "mooncake", cluster()).processes
    assert proxy.host == THIS_MACHINE and proxy.here
    assert proxy.url.startswith("http://127.0.0.1:")
    legs = [word for word in proxy.args if word.startswith("http")]
    assert [url.rpartition(":")[0] for url in legs] == [
        "http://10.0.0.1", "http://10.0.0.2", "http://10.0.0.3", "http://10.0.0.1"
    ]  # fmt: skip


def test_mooncakes_master_is_on_the_head_and_every_instance_knows_it():
    master, prefill, decode, _ = plan("1p1d", "mooncake-store", cluster()).processes
    assert master.host.address == "10.0.0.1" and "-rpc_address 10.0.0.1" in master.command_line
    for instance in (prefill, decode):
        config = json.loads(instance.env_files["MOONCAKE_CONFIG_PATH"])
        assert config["master_server_address"] == f"10.0.0.1:{master.port}"
        assert instance.env["VLLM_HOST_IP"] == instance.host.address


def test_lmcaches_store_is_on_the_host_of_its_instances():
    hosts = cluster(host(1, cpus=1), host(2), spread="node")
    store, prefill, decode, _ = plan("1p1d", "lmcache", hosts).processes
    assert {p.host.name for p in (store, prefill, decode)} == {"host-2"}
    assert '"lmcache.mp.host": "tcp://10.0.0.2"' in decode.command_line
    assert store.ready_url.startswith("http://10.0.0.2:")


def test_lmcache_across_hosts_is_refused_with_what_works():
    with pytest.raises(PlanError, match=r"lmcache with topology=1p1d needs spread=node .* 2 hosts"):
        plan("1p1d", "lmcache", cluster())


@pytest.mark.parametrize(
    ("hosts", "why"),
    [
        (cluster(host(1, cpus=1), host(2, cpus=1)), "3 CPUs for 3 .*, got host-1 1, host-2 1"),
        (cluster(host(1), host(2, memory_free_gb=1), spread="node"), ""),
        (cluster(host(1, memory_free_gb=1), spread="node"), "3 CPUs on one host .* got host-1 1"),
    ],
)  # fmt: skip
def test_what_the_hosts_cannot_hold_is_refused_with_the_numbers(hosts, why):
    if not why:
        assert plan("1p2d", "nixl", hosts).instances
        return
    with pytest.raises(PlanError, match=why):
        plan("1p2d", "nixl", hosts)


def test_a_plan_says_where_its_instances_run():
    said = str(plan("1p1d", "nixl", cluster()))
    assert "spread spread: prefill-0 on host-1, decode-0 on host-2" in said


def test_a_host_that_is_cut_off_stops_a_pass():
    """Its connections stay open, so that requests would wait for their timeout."""
    made = plan("1p1d", "nixl", cluster())

    class Running:
        def __init__(self, spec):
            self.spec = spec

    running = Deployment(url="", plan=made, processes=tuple(map(Running, made.processes)))
    assert running.stalling_roles == {"prefill", "decode"}


def test_the_launcher_holds_what_the_largest_arm_needs():
    hosts = cluster()
    plans = [plan("1p2d", "nixl", hosts), plan("1a", "none", hosts)]
    launcher = launcher_for(plans[0].settings, Path("logs"), plans=plans)
    assert isinstance(launcher, RayLauncher)
    assert {host.name: share.instances for host, share in launcher.needed.items()} == {
        "host-1": 1, "host-2": 1, "host-3": 1
    }  # fmt: skip
    assert launcher.loads  # each host has a fork server of its own
