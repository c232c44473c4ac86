"""The launcher over a real Ray on three hosts: whatever is killed, nothing of ours stays."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.hosts.hosts import Cluster, Host, hosts

WITHIN_S = 15.0

DRIVER = """
import asyncio, sys
from pathlib import Path
from tests.serve.conftest import SERVER
from workbench.hardware.hosts import cluster_of
from workbench.serve.processes.launcher import ProcessSpec
from workbench.serve.processes.ray_hosts import RayLauncher, shares
from workbench.serve.processes.startup import failure_line, ready

def server(host, port):
    code = SERVER.replace("127.0.0.1", host.address)
    return ProcessSpec(
        name=f"decode-on-{host.name}", role="decode", program=(sys.executable, "-c", code),
        args=(str(port),), port=port, host=host, ready_url=f"http://{host.address}:{port}/",
    )

async def main():
    logs = Path(sys.argv[2])
    cluster = cluster_of(sys.argv[1], "spread", python="", model="")
    used = [facts.host for facts in cluster.hosts]
    needed = shares([[server(host, 1) for host in used]])
    async with RayLauncher(logs, cluster, needed) as launcher:
        ports = await launcher.unused_ports()
        running = [await launcher.start(server(host, next(ports)), logs) for host in used]
        await ready(running, timeout_s=60)
        print("ready", *(host.address for host in used), flush=True)
        await asyncio.wait([one.exited for one in running], return_when="FIRST_COMPLETED")
        for one in running:
            if not one.alive:
                print(failure_line(one, "ended by itself"), flush=True)
    print("left", flush=True)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def ray_cluster(machine_makes_hosts: None) -> Iterator[Cluster]:
    pytest.importorskip("ray")
    with hosts(3, ray=True) as made:
        yield made


def end_ray(host: Host) -> None:
    for pid in host.pids():
        with suppress(psutil.Error):
            psutil.Process(pid).kill()


def ours(host: Host) -> dict[int, str]:
    """Servers and supervisors of ours on a host."""
    found = {}
    for pid in host.pids():
        with suppress(psutil.Error):
            words = psutil.Process(pid).cmdline()
            if any("HTTPServer" in word or "processes.supervisor" in word for word in words):
                found[pid] = " ".join(words)[:60]
    return found


def worker(host: Host, name: str) -> psutil.Process:
    """The process of Ray on a host whose command line begins so."""
    for pid in host.pids():
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.cmdline() and Path(process.cmdline()[0]).name.startswith(name):
                return process
    raise AssertionError(f"no {name} on {host.name}")


def seconds_until_clean(cluster: Cluster) -> float:
    began_s = time.monotonic()
    while left := {host.name: found for host in cluster.hosts if (found := ours(host))}:
        assert time.monotonic() - began_s < WITHIN_S, left
        time.sleep(0.1)
    return time.monotonic() - began_s


@pytest.fixture
def driver(ray_cluster: Cluster, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver on the head that runs a server on each host."""
    line = (sys.executable, "-c", DRIVER, ray_cluster.ray_address, str(tmp_path))
    root = str(Path(__file__).parents[2])
    running = ray_cluster.head.start(
        *line, stdout=subprocess.PIPE, text=True, cwd=root, stderr=subprocess.STDOUT
    )
    assert running.stdout is not None
    said = running.stdout.readline()
    addresses = [host.address for host in ray_cluster.hosts]
    assert said.split() == ["ready", *addresses], said + running.stdout.read()
    assert all(len(ours(host)) >= 2 for host in ray_cluster.hosts)
    yield running
    running.kill()
    running.wait()


@pytest.mark.timeout(400)
def test_a_killed_driver_leaves_nothing(driver: subprocess.Popen[str], ray_cluster: Cluster):
    # The process in the namespace, not `ip netns exec`, which becomes it.
    driver.send_signal(signal.SIGKILL)
    print("driver killed, clean after", seconds_until_clean(ray_cluster))


def kill_actor(cluster: Cluster, host: Host) -> None:
    worker(host, "ray::HostAgent").kill()


def kill_raylet(cluster: Cluster, host: Host) -> None:
    worker(host, "raylet").kill()


def cut_off(cluster: Cluster, host: Host) -> None:
    cluster.cut(host)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("accident", [kill_actor, kill_raylet, cut_off])
def test_a_lost_host_is_named_and_nothing_stays_anywhere(
    accident: Callable[[Cluster, Host], None],
    driver: subprocess.Popen[str],
    ray_cluster: Cluster,
):
    second = ray_cluster.host(2)
    accident(ray_cluster, second)
    print(accident.__name__, "clean after", seconds_until_clean(ray_cluster))
    said, _ = driver.communicate(timeout=60)
    lines = [line for line in said.splitlines() if line.startswith(("decode", "left"))]
    assert lines[0].startswith(f"decode-on-host-2 ended by itself: host-2 ({second.address})"), said
    assert lines[-1] == "left"
    if accident is not kill_actor:
        # Ray gives such a host up; it joins anew.
        ray_cluster.join(second)
        end_ray(second)
        ray_cluster.start_ray_on(second)
