"""Hosts made of network namespaces: they reach one another, are cut off, shaped, and all end."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.hosts.hosts import Cluster, Host, HostsError, hosts, started, sweep

SLEEPER = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")


def ping(sender: Host, receiver: Host) -> bool:
    """Whether a TCP connection from one host to the other is answered or refused within 1 s."""
    code = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 9), timeout=1)\n"
        "except ConnectionRefusedError: print('reached')\n"
        "except OSError: print('cut off')"
    )
    return sender.run(sys.executable, "-c", code, receiver.address).strip() == "reached"


def gbit_s(receiver: Host, sender: Host, seconds: float = 1.0) -> float:
    """TCP payload from one host to the other."""
    with receiver.entered():
        listener = socket.create_server((receiver.address, 0))
    got, began_s, ended_s = 0, 0.0, 0.0

    def receive() -> None:
        nonlocal got, began_s, ended_s
        taken, _ = listener.accept()
        began_s = time.monotonic()
        while chunk := taken.recv(1 << 18):
            got += len(chunk)
            ended_s = time.monotonic()
        taken.close()

    thread = threading.Thread(target=receive)
    thread.start()
    with sender.entered():
        sending = socket.create_connection((receiver.address, listener.getsockname()[1]))
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        sending.sendall(bytes(1 << 16))
    sending.close()
    thread.join()
    listener.close()
    return 8e-9 * got / (ended_s - began_s)


def test_hosts_reach_one_another_until_one_is_cut_off(cluster: Cluster) -> None:
    one, two, three = cluster.hosts
    assert ping(one, two) and ping(two, three) and ping(three, one)
    cluster.cut(two)
    assert not ping(one, two) and not ping(two, three) and ping(one, three)
    cluster.join(two)
    assert ping(one, two)


def test_a_shaped_link_has_its_rate_in_both_directions(cluster: Cluster) -> None:
    one, two, _ = cluster.hosts
    assert gbit_s(one, two) > 1.0
    cluster.shape(two, rate_bit_s=200e6)
    assert gbit_s(one, two) == pytest.approx(0.19, rel=0.1)
    assert gbit_s(two, one) == pytest.approx(0.19, rel=0.1)
    cluster.unshape(two)
    assert gbit_s(one, two) > 1.0


def test_a_block_inside_a_host_has_its_address(cluster: Cluster) -> None:
    address = cluster.head.address
    with cluster.head.entered():
        socket.create_server((address, 0)).close()
        said = subprocess.run(("ip", "-br", "addr"), capture_output=True, text=True).stdout
    assert address in said
    with pytest.raises(OSError):
        socket.create_server((address, 0))


def test_processes_end_with_their_hosts(machine_makes_hosts: None) -> None:
    with hosts(2) as cluster:
        process = cluster.host(2).start(*SLEEPER, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout and process.stdout.readline() == b"up\n"
        assert cluster.host(2).pids() == [process.pid] and cluster.head.pids() == []
    assert process.wait(1) == -signal.SIGTERM
    assert not cluster.head.folder.exists()
    with pytest.raises(HostsError):
        cluster.head.run("true")


def test_two_networks_live_side_by_side(cluster: Cluster) -> None:
    with hosts(1) as other:
        assert other.network != cluster.network
        assert other.head.address != cluster.head.address
    assert ping(*cluster.hosts[:2])


def test_hosts_of_a_killed_owner_are_swept_and_no_others(cluster: Cluster) -> None:
    code = (
        "import subprocess, sys, time\n"
        "from tests.hosts.hosts import hosts\n"
        "with hosts(2) as cluster:\n"
        f"    cluster.host(2).start(*{SLEEPER!r}, stdout=subprocess.PIPE).stdout.readline()\n"
        "    print(cluster.network, *cluster.host(2).pids(), flush=True)\n"
        "    time.sleep(600)"
    )
    owner = subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE)
    assert owner.stdout is not None
    network, pid = owner.stdout.readline().decode().split()
    assert network not in sweep()
    owner.kill()
    owner.wait()
    assert sweep() == [network]
    assert not started(int(pid))
    assert ping(*cluster.hosts[:2])
