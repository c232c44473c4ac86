"""Tiers below LMCache's memory: how they are planned, counted and emptied."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from redis import Redis

from workbench.errors import DeploymentError, LaunchError
from workbench.hardware.interpreter import interpreter
from workbench.serve.connectors import connector
from workbench.serve.connectors.tiers import tiers_of
from workbench.serve.deployed import Deployment, DeploymentPlan
from workbench.serve.deployment import plan_deployment
from workbench.serve.processes.ports import free_ports
from workbench.serve.vllm import EngineSettings
from workbench.topology import Topology

CHUNK = "/models/tiny@01000100@0@00{:014x}"
"""What LMCache calls a chunk."""
HERE = {"interpreter": interpreter(), "size_gb": 1.0, "folder": Path()}


@pytest.fixture
def port() -> Iterator[int]:
    """A Redis server that is not ours."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("needs redis-server (apt-get install redis-server)")
    (free,) = free_ports(1)
    run = subprocess.Popen(
        [program, "--port", str(free), "--bind", "127.0.0.1", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    ends_s = time.monotonic() + 20
    while time.monotonic() < ends_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", free)) == 0:
                break
        time.sleep(0.05)
    yield free
    run.kill()
    run.wait()


def planned(*names: str, folder: Path = Path("disk")) -> DeploymentPlan:
    return plan_deployment(
        Topology.parse("2a"), connector("lmcache"),
        EngineSettings(model=Path("/models/tiny"), platform="cpu"), ports=count(20_000),
        store_tiers=names, tier_gb=0.5, disk_folder=folder,
    )  # fmt: skip


def adapters(plan: DeploymentPlan) -> list[dict[str, object]]:
    (store,) = (p for p in plan.processes if p.role == "store")
    options = zip(store.args, store.args[1:], strict=False)
    return [json.loads(value) for name, value in options if name == "--l2-adapter"]


def test_servers_of_tiers_start_before_the_store_and_get_no_requests():
    plan = planned("disk", "redis")
    assert [(p.name, p.role) for p in plan.processes] == [
        ("redis", "tier"), ("store", "store"),
        ("aggregated-0", "aggregated"), ("aggregated-1", "aggregated"), ("proxy", "proxy"),
    ]  # fmt: skip
    server, store, *_, proxy = plan.processes
    assert "--port 20000 --save '' --appendonly no --maxmemory 536870912" in server.command_line
    assert adapters(plan) == [
        {"type": "fs", "base_path": "disk"},
        {"type": "resp", "host": "127.0.0.1", "port": 20_000, "num_workers": 2},
    ]
    assert plan.store_http_url == store.ready_url.removesuffix("/healthcheck")
    assert proxy.args.count("--decode") == 2
    assert [tier.state for tier in plan.tiers] == ["disk-warm", "remote-warm"]


def test_a_redis_at_an_address_is_not_started():
    plan = planned("redis://cache.example:6380")
    assert plan.processes[0].role == "store"
    assert adapters(plan)[0] | {"num_workers": 2} == {
        "type": "resp", "host": "cache.example", "port": 6380, "num_workers": 2
    }  # fmt: skip


def test_lmcache_finds_the_adapter_for_mooncake_and_lends_memory():
    plan = planned("mooncake")
    master, store, *_ = plan.processes
    assert (master.name, master.role) == ("mooncake", "tier")
    (adapter,) = adapters(plan)
    assert adapter["adapter_params"] == {"master": f"127.0.0.1:{master.port}", "segment_mb": 512}
    folder = Path(store.env["PYTHONPATH"].split(":")[0])
    module = (folder / f"{adapter['module_path']}.py").read_text()
    assert f"class {adapter['class_name']}(" in module
    assert "workbench." not in module  # another Python may run it, which has no workbench


async def test_only_chunks_are_counted_on_a_disk_and_deleted(tmp_path):
    (tier,) = planned("disk", folder=tmp_path).tiers
    for name in ("a@0x1@0@ff.data", "b@0x1@0@ff.data", "notes.txt"):
        (tmp_path / name).touch()
    assert (await tier.held()).chunks == 2
    await tier.empty()
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


async def test_a_redis_loses_lmcaches_chunks_and_nothing_else(port):
    (tier,) = tiers_of([f"redis://127.0.0.1:{port}"], count(1), **HERE)
    await tier.check()
    with Redis(port=port) as client:
        client.mset({CHUNK.format(number): b"kv" for number in range(1200)} | {"theirs": b"1"})
        assert (await tier.held()).chunks == 1200
        await tier.empty()
        assert client.keys() == [b"theirs"]
    await Deployment(url="").reset_tiers([tier])
    with pytest.raises(LaunchError, match=r"needs an empty Redis database 0, .* got 1 keys"):
        await tier.check()


async def test_a_chunk_that_stays_is_found_after_a_reset(port, monkeypatch):
    (tier,) = tiers_of([f"redis://127.0.0.1:{port}"], count(1), **HERE)

    async def nothing(_: object) -> None: ...

    monkeypatch.setattr(type(tier), "empty", nothing)
    with Redis(port=port) as client:
        client.set(CHUNK.format(1), b"kv")
    with pytest.raises(DeploymentError, match="Redis still holds 1 chunks after it was emptied"):
        await Deployment(url="").reset_tiers([tier])


async def test_a_redis_that_is_gone_is_named(unused_tcp_port):
    address = f"redis://127.0.0.1:{unused_tcp_port}"
    (tier,) = tiers_of([address], count(1), **HERE)
    with pytest.raises(LaunchError, match=f"server at {address} does not answer"):
        await tier.check()
    with pytest.raises(DeploymentError, match="does not answer"):
        await tier.held()


def test_where_an_engine_runs_the_connectors_need_no_package_of_ours():
    """With engine_python LMCache's server is forked in an environment without the workbench's."""
    blocked = ("httpx", "redis", "psutil", "numpy", "pandas", "mooncake", "lmcache")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
import workbench.serve.connectors.lmcache
"""
    subprocess.run([sys.executable, "-c", code], check=True)
