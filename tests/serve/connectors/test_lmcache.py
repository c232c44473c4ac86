import json
from pathlib import Path

import pytest

from workbench.hardware.interpreter import interpreter
from workbench.serve.connectors import Wiring
from workbench.serve.connectors.lmcache import CONNECTOR, STORE
from workbench.serve.connectors.tiers.on_disk import disk_tier

HERE = {"interpreter": interpreter()}


@pytest.mark.parametrize("role", ["prefill", "decode", "aggregated"])
def test_instances_find_the_store_and_give_it_up_within_seconds(role):
    option, text = CONNECTOR.engine_args(Wiring(role=role, cpu=True, store_port=5001))
    assert option == "--kv-transfer-config"
    config = json.loads(text)
    assert (config["kv_connector"], config["kv_role"]) == ("LMCacheMPConnector", "kv_both")
    extra = config["kv_connector_extra_config"]
    assert extra["lmcache.mp.port"] == 5001
    assert extra["lmcache.mp.mq_timeout"] <= 10


def test_the_store_listens_on_loopback_with_a_name_and_size_of_its_own():
    (server,) = STORE.processes(iter([1, 2]), **HERE, shm_name="wb-7", memory_gb=2.0)
    line = server.command_line
    assert "--host 127.0.0.1 --port 1 --http-host 127.0.0.1 --http-port 2" in line
    assert "--shm-name wb-7 --l1-size-gb 2 --eviction-policy LRU" in line
    assert "--chunk-size" not in line and "--l2-adapter" not in line
    assert server.ready_url.startswith("http://127.0.0.1:2/")


def test_a_store_with_another_chunk_and_a_disk_says_so():
    (server,) = STORE.processes(
        iter([1, 2]),
        **HERE,
        shm_name="wb",
        memory_gb=1,
        chunk_tokens=64,
        tiers=[disk_tier(Path("/d"))],
    )  # fmt: skip
    assert ("--chunk-size", "64") == server.args[-4:-2]
    assert json.loads(server.args[-1]) == {"type": "fs", "base_path": "/d"}


def test_nobody_reports_home():
    (server,) = STORE.processes(iter([1, 2]), **HERE, shm_name="wb", memory_gb=1)
    for env in (CONNECTOR.env(Wiring(role="decode", cpu=False)), server.env):
        assert env["LMCACHE_TRACK_USAGE"] == "false"
