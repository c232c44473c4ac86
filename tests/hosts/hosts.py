"""Several hosts on one machine: a network namespace each, joined by a bridge.

    with hosts(3) as cluster:
        cluster.shape(cluster.hosts[1], rate_bit_s=200e6)
        cluster.hosts[1].run("ping", "-c", "1", cluster.head.address)

By hand, `python -m tests.hosts.hosts up --ray` makes hosts that stay, and `down` ends them.

Host 1 is the head. What drives an experiment runs inside it too (`with cluster.head.entered():`, or
`ip netns exec`), so that its own address is one of the cluster. The bridge is in a namespace of its
own, so that links can be shaped and cut from inside a host; the machine has a cable to it, for a
browser or a Prometheus. Hosts share the machine's files, /dev/shm and name.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "wbhosts"
"""Of every namespace; N of `wbhostsN` is also the third number of its addresses, 10.77.N.1 ..."""
_BRIDGE = "bridge"
_MACHINE = "to-machine"
_KEPT = "kept"
_NETWORKS = 200
_CLONE_NEWNET = 0x40000000
_GATEWAY = 254
_START_S = 240.0
_ATTEMPTS = 3
_OBJECT_STORE_BYTES = 80_000_000


class HostsError(Exception):
    """Hosts cannot be made or changed on this machine."""


def why_not() -> str:
    """Why this machine cannot make hosts; empty if it can."""
    if sys.platform != "linux" or os.geteuid():
        return "hosts of network namespaces need Linux and root"
    if missing := [program for program in ("ip", "tc") if not shutil.which(program)]:
        return (
            f"hosts of network namespaces need {' and '.join(missing)} (apt-get install iproute2)"
        )
    tried = subprocess.run(
        ("unshare", "--net", "ip", "link", "add", "wbtry", "type", "veth"), capture_output=True
    )
    return f"no veth pairs here: {tried.stderr.decode().strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Host:
    """One host: a network namespace with an interface eth0 and its loopback."""

    network: str
    number: int
    """1 is the head."""
    address: str
    folder: Path
    """Ray's temp-dir, and what else belongs to this host alone."""

    @property
    def name(self) -> str:
        return f"{self.network}-{self.number}"

    @property
    def outer(self) -> str:
        """The bridge's end of this host's cable."""
        return f"to-{self.number}"

    @property
    def inside(self) -> tuple[str, ...]:
        """Words before a command line that runs on this host."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *words: str, **options: Any) -> str:
        """The output of a command on this host. Raises HostsError if it fails."""
        return _run(*self.inside, *words, **options)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a command on this host; the end of the hosts ends it."""
        return subprocess.Popen((*self.inside, *words), **options)

    def pids(self) -> list[int]:
        """Every process on this host."""
        return _pids(self.name)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block on this host: this thread, and the threads and processes it starts."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _set_namespace(there)
            yield
        finally:
            _set_namespace(home)
            os.close(there)
            os.close(home)


@dataclass(frozen=True)
class Cluster:
    network: str
    gateway: str
    """The machine's own address on this network."""
    hosts: tuple[Host, ...]

    @property
    def head(self) -> Host:
        return self.hosts[0]

    def host(self, number: int) -> Host:
        """Host 1 is the head."""
        return self.hosts[number - 1]

    def cut(self, host: Host) -> None:
        """Take a host off the network; its processes go on."""
        _on_bridge(self.network, "ip", "link", "set", host.outer, "down")

    def join(self, host: Host) -> None:
        """Put a host that was cut off back on the network."""
        _on_bridge(self.network, "ip", "link", "set", host.outer, "up")

    def shape(self, host: Host, rate_bit_s: float) -> None:
        """Limit what a host sends and what it receives to `rate_bit_s` each."""
        rate = ("tbf", "rate", f"{rate_bit_s:.0f}bit", "burst", "256kb", "latency", "50ms")
        host.run("tc", "qdisc", "replace", "dev", "eth0", "root", *rate)
        _on_bridge(self.network, "tc", "qdisc", "replace", "dev", host.outer, "root", *rate)

    def unshape(self, host: Host) -> None:
        """Remove the limit that `shape` set, if there is one."""
        with suppress(HostsError):
            host.run("tc", "qdisc", "del", "dev", "eth0", "root")
        with suppress(HostsError):
            _on_bridge(self.network, "tc", "qdisc", "del", "dev", host.outer, "root")

    @property
    def ray_address(self) -> str:
        return f"{self.head.address}:6379"

    def start_ray(self, *, cpus: int = 4, env: dict[str, str] | None = None) -> None:
        """Ray on every host; host N has the resource `host_N`. About 20 s."""
        for host in self.hosts:
            self.start_ray_on(host, cpus=cpus, env=env)

    def start_ray_on(self, host: Host, *, cpus: int = 4, env: dict[str, str] | None = None) -> None:
        """Ray on one host. It gives a node 30 s, too little beside other work: then again."""
        for attempt in range(1, _ATTEMPTS + 1):
            process = self._ray(host, cpus, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            said = process.communicate(timeout=_START_S)[0].decode()
            if not process.returncode:
                return
            if attempt == _ATTEMPTS:
                raise HostsError(f"ray start failed on {host.name}: {said[-2000:]}")
            for pid in host.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _ray(
        self, host: Host, cpus: int, env: dict[str, str] | None, **options: Any
    ) -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).with_name("ray")
        if not ray.exists():
            raise HostsError(f"no program ray in {ray.parent} (pip install 'ray[default]')")
        port = self.ray_address.rpartition(":")[2]
        role = (
            ("--head", f"--port={port}", "--include-dashboard=false")
            if host is self.head
            else (f"--address={self.ray_address}",)
        )
        return host.start(
            str(ray), "start", *role,
            f"--node-ip-address={host.address}",
            f"--num-cpus={cpus}",
            f"--resources={json.dumps({f'host_{host.number}': 1})}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={host.folder}",
            "--include-log-monitor=false",
            "--disable-usage-stats",
            env=os.environ | (env or {}),
            **options,
        )  # fmt: skip


@contextmanager
def hosts(count: int = 3, *, ray: bool = False, cpus: int = 4) -> Iterator[Cluster]:
    """Hosts for a block. All that runs on them ends with it; hosts of a killed owner go first."""
    sweep()
    cluster = _make(count, owner=_me())
    try:
        if ray:
            cluster.start_ray(cpus=cpus)
        yield cluster
    finally:
        _end(cluster.network)


def sweep(*, kept: bool = False) -> list[str]:
    """End the hosts whose owner is dead (`kept`: also those that `up` made); their networks."""
    ended = []
    for network, owner in _networks().items():
        if (kept and owner == _KEPT) or _dead(owner):
            _end(network)
            ended.append(network)
    return ended


def _make(count: int, *, owner: str) -> Cluster:
    if reason := why_not():
        raise HostsError(reason)
    number = _claimed()
    network = f"{PREFIX}{number}"
    made = []
    try:
        gateway = f"10.77.{number}.{_GATEWAY}"
        _on_bridge(network, "ip", "link", "add", _BRIDGE, "type", "bridge")
        _on_bridge(network, "ip", "link", "set", _BRIDGE, "up", "alias", owner)
        _cable(network, _MACHINE, network)
        _run("ip", "address", "add", f"{gateway}/24", "dev", network)
        _run("ip", "link", "set", network, "up")
        for n in range(1, count + 1):
            folder = Path(tempfile.mkdtemp(prefix=f"{network}-{n}-"))
            host = Host(network, n, f"10.77.{number}.{n}", folder)
            _run("ip", "netns", "add", host.name)
            _cable(network, host.outer, "eth0", host.name)
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
            host.run("ip", "link", "set", "lo", "up")
            # As a real host has one: libraries ask which address leads to the outside.
            host.run("ip", "route", "add", "default", "via", gateway)
            made.append(host)
    except BaseException:
        _end(network)
        raise
    return Cluster(network, gateway, tuple(made))


def _claimed() -> int:
    """The number of a new network. Making its bridge's namespace takes number and addresses."""
    for number in range(_NETWORKS):
        made = subprocess.run(("ip", "netns", "add", f"{PREFIX}{number}"), capture_output=True)
        if not made.returncode:
            return number
        if b"File exists" not in made.stderr:
            raise HostsError(f"no namespace could be made: {made.stderr.decode().strip()}")
    raise HostsError(f"{_NETWORKS} namespaces {PREFIX}N exist already")


def _on_bridge(network: str, *words: str) -> str:
    return _run("ip", "netns", "exec", network, *words)


def _cable(network: str, outer: str, inner: str, namespace: str = "") -> None:
    """A cable from the bridge to an interface `inner` of a namespace, or of this one."""
    peer = ("peer", "name", outer, "netns", network)
    owner = ("-netns", namespace) if namespace else ()
    _run("ip", *owner, "link", "add", inner, "type", "veth", *peer)
    _on_bridge(network, "ip", "link", "set", outer, "master", _BRIDGE, "up")


def _names() -> list[str]:
    """Every namespace of hosts and bridges."""
    named = (line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line)
    return [name for name in named if name.startswith(PREFIX)]


def _networks() -> dict[str, str]:
    """Every network of hosts on this machine and its owner: pid and start time, or `kept`."""
    found = {}
    for network in (name for name in _names() if "-" not in name):
        with suppress(HostsError):  # being made, or being ended, by another
            (bridge,) = json.loads(_on_bridge(network, "ip", "-json", "link", "show", _BRIDGE))
            found[network] = bridge.get("ifalias", "")
    return found


def _me() -> str:
    return f"{os.getpid()} {started(os.getpid())}"


def started(pid: int) -> str:
    """When a process started, in ticks since boot; empty if it has ended, a zombie too."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]


def _dead(owner: str) -> bool:
    pid, _, since = owner.partition(" ")
    return pid.isdigit() and started(int(pid)) != since


def _end(network: str) -> None:
    """End every process on the hosts of a network, then delete them, their files and the bridge."""
    names = [name for name in _names() if name.startswith(f"{network}-")]
    for number, wait_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline_s = time.monotonic() + wait_s
        signalled: set[int] = set()
        while left := {pid for name in names for pid in _pids(name)} - {os.getpid()}:
            for pid in left - signalled:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled |= left
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.1)
    with suppress(HostsError):  # at once; a namespace takes the others with it somewhat later
        _on_bridge(network, "ip", "link", "delete", _MACHINE)
    for name in (*names, network):
        with suppress(HostsError):
            _run("ip", "netns", "delete", name)
    for folder in Path(tempfile.gettempdir()).glob(f"{network}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _pids(name: str) -> list[int]:
    try:
        return [int(pid) for pid in _run("ip", "netns", "pids", name).split()]
    except HostsError:
        return []


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise HostsError(f"cannot enter a host: {os.strerror(ctypes.get_errno())}")


def _run(*words: str, **options: Any) -> str:
    ended = subprocess.run(words, capture_output=True, text=True, **options)
    if ended.returncode:
        raise HostsError(f"{' '.join(words)}: {(ended.stderr or ended.stdout).strip()}")
    said: str = ended.stdout
    return said


def main(typed: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.hosts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="make hosts that stay until `down`")
    up.add_argument("--count", type=int, default=3)
    up.add_argument("--ray", action="store_true", help="start Ray on each")
    up.add_argument("--rate-mbit", type=float, help="limit every host's link")
    commands.add_parser("down", help="end every host that `up` made, or whose owner is dead")
    given = parser.parse_args(typed)
    try:
        if given.command == "down":
            print(*sweep(kept=True) or ["no hosts"])
            return 0
        cluster = _make(given.count, owner=_KEPT)
        if given.rate_mbit:
            for host in cluster.hosts:
                cluster.shape(host, given.rate_mbit * 1e6)
        if given.ray:
            try:
                cluster.start_ray()
            except BaseException:
                _end(cluster.network)
                raise
    except HostsError as error:
        print(error, file=sys.stderr)
        return 1
    for host in cluster.hosts:
        print(f"{host.address}  {' '.join(host.inside)} COMMAND")
    if given.ray:
        print(f"ray address {cluster.ray_address}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
