"""Real vLLM on three hosts: content gates hold, and a host that is lost is named in the result."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.hosts.hosts import Cluster, hosts
from tests.hosts.sweeps import ENVIRONMENT, measured, sweep_line
from tests.hosts.test_ray_launcher import WITHIN_S, end_ray
from workbench.experiment.environment import TIMING_GATES


@pytest.fixture(scope="module")
def ray_cluster(machine_makes_hosts: None) -> Iterator[Cluster]:
    for package in ("ray", "vllm", "nixl"):
        pytest.importorskip(package)
    with hosts(3, ray=True) as made:
        yield made


@pytest.mark.timeout(900)
@pytest.mark.parametrize("connector", ["nixl", "mooncake"])
@pytest.mark.parametrize(("topology", "used"), [("1p1d", 2), ("1p2d", 3)])
def test_kv_moves_between_hosts_and_every_content_gate_passes(
    ray_cluster: Cluster, topology: str, used: int, connector: str, tmp_path: Path
) -> None:
    if connector == "mooncake":
        pytest.importorskip("mooncake")
    file = measured(ray_cluster, tmp_path, topology=topology, connector=connector)
    facts = json.loads(file.read_text())
    found = {gate["name"]: gate["outcome"] for gate in facts["gates"]}
    print(topology, connector, facts["launches_s"], found)
    assert {name for name, o in found.items() if o != "PASS"} <= TIMING_GATES | {"steady state"}
    assert found["KV moved"] == found["the ledger closes"] == found["same text"] == "PASS"
    (arm,) = facts["arms"]
    assert [*arm["hosts"].values()] == ["host-1", "host-2", "host-3"][:used]
    assert [row["address"] for row in facts["hosts"]] == [h.address for h in ray_cluster.hosts]
    page = file.with_name("report.html").read_text()
    assert f"host-2 ({ray_cluster.host(2).address})" in page


def instances(cluster: Cluster) -> list[str]:
    """Servers and supervisors of ours on any host."""
    found = []
    for host in cluster.hosts:
        for pid in host.pids():
            with suppress(psutil.Error):
                line = " ".join(psutil.Process(pid).cmdline())
                if "workbench.serve." in line or "vllm.entrypoints" in line:
                    found.append(f"{host.name} {pid} {line[:80]}")
    return found


@pytest.mark.timeout(900)
def test_a_host_that_is_cut_off_in_mid_pass_is_named_and_the_same_command_runs_again(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    long = {"rounds": 2, "requests": 40, "output_tokens": 24}
    line = sweep_line(ray_cluster, tmp_path, **long)
    running = ray_cluster.head.start(
        *line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
    )
    ends_s = time.monotonic() + 300
    # The rows of the cold pass are written; the next pass sends its requests.
    while not (kept := list(tmp_path.glob("pd_sweep/*/attempt-*/requests.parquet"))):
        assert running.poll() is None and time.monotonic() < ends_s, running.communicate()
        time.sleep(0.2)
    second = ray_cluster.host(2)
    ray_cluster.cut(second)
    cut_s = time.monotonic()
    while left := instances(ray_cluster):
        assert time.monotonic() - cut_s < WITHIN_S, left
        time.sleep(0.2)
    print("clean after", time.monotonic() - cut_s)
    said, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert f"host-2 ({second.address})" in said
    (file,) = kept
    assert len(pd.read_parquet(file)) >= 40
    facts = json.loads(file.with_name("result.json").read_text())
    assert facts["status"] == "failed"
    assert any(f"host-2 ({second.address})" in doubt for doubt in facts["doubts"])

    ray_cluster.join(second)
    end_ray(second)
    ray_cluster.start_ray_on(second)
    measured(ray_cluster, tmp_path, **long)
