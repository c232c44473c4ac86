import json

import pytest

from workbench.errors import ParameterError, PlanError
from workbench.serve.connectors import CONNECTORS, as_option, connector, lmcache_server_args
from workbench.topology import Topology

PD, AGGREGATED = Topology.parse("1p4d"), Topology.parse("5a")


def test_every_connector_is_found_by_its_name():
    assert [connector(name).name for name in CONNECTORS] == ["none", "lmcache", "nixl"]


def test_an_unknown_connector_is_refused_with_the_nearest():
    with pytest.raises(ParameterError, match="did you mean 'lmcache'"):
        connector("lmcash")


@pytest.mark.parametrize(
    ("name", "topology"),
    [("none", AGGREGATED), ("lmcache", PD), ("lmcache", AGGREGATED), ("nixl", PD)],
)
def test_what_a_connector_can_serve(name, topology):
    connector(name).check(topology)


def test_no_connector_with_two_roles_is_refused_since_both_would_prefill():
    with pytest.raises(PlanError, match=r"both roles would prefill; .* such as 5a"):
        connector("none").check(PD)


def test_nixl_without_two_roles_is_refused_since_nothing_would_move():
    with pytest.raises(PlanError, match="5a has neither; take connector none or lmcache"):
        connector("nixl").check(AGGREGATED)


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


def test_lmcache_instances_find_the_store_and_give_it_up_within_seconds():
    for role in ("prefill", "decode", "aggregated"):
        config = connector("lmcache").transfer_config(role, store_port=5001, cpu=True)
        assert (config["kv_connector"], config["kv_role"]) == ("LMCacheMPConnector", "kv_both")
        extra = config["kv_connector_extra_config"]
        assert extra["lmcache.mp.port"] == 5001
        assert extra["lmcache.mp.mq_timeout"] <= 10


@pytest.mark.parametrize(("role", "kv_role"), [("prefill", "producer"), ("decode", "consumer")])
def test_nixl_roles_are_producer_and_consumer(role, kv_role):
    config = connector("nixl").transfer_config(role, store_port=0, cpu=False)
    assert config == {"kv_connector": "NixlConnector", "kv_role": f"kv_{kv_role}"}


def test_nixl_keeps_its_buffers_in_memory_on_a_cpu_only():
    config = connector("nixl").transfer_config("decode", store_port=0, cpu=True)
    assert config["kv_buffer_device"] == "cpu"


def test_the_option_is_json_or_nothing():
    config = connector("nixl").transfer_config("prefill", store_port=0, cpu=True)
    name, value = as_option(config)
    assert name == "--kv-transfer-config"
    assert json.loads(value) == config
    assert as_option(connector("none").transfer_config("aggregated", store_port=0, cpu=True)) == []


def test_the_store_listens_on_loopback_with_a_name_and_size_of_its_own():
    line = " ".join(lmcache_server_args(port=1, http_port=2, shm_name="wb-7", memory_gb=2.0))
    assert "--host 127.0.0.1 --port 1 --http-host 127.0.0.1 --http-port 2" in line
    assert "--shm-name wb-7 --l1-size-gb 2 --eviction-policy LRU" in line
