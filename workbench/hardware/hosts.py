"""Hosts of a Ray cluster: what each has, asked before anything starts there.

Ray is imported only when a plan asks for `place ray`.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import PlanError, must_be
from workbench.hardware.interpreter import interpreter

if TYPE_CHECKING:
    from workbench.hardware.machine import Machine

Spread = Literal["pack", "spread", "node"]

ADDRESS_EXAMPLE = "10.0.0.1:6379"
_MUST_EQUAL = ("vllm", "lmcache", "nixl", "mooncake")
"""Packages that exchange data between hosts, so that their versions must be equal."""
_LOOK_S = 90.0
"""A host starts a Python for its answer, and may ask another environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where a process runs; by default this machine, on loopback only."""

    name: str = "this machine"
    address: str = "127.0.0.1"
    interface: str = "lo"
    """The network interface that has the address."""

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


THIS_MACHINE = Host()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """A host of the cluster: the CPUs and GPUs that Ray has there, and what it told of itself."""

    host: Host
    cpus: int
    gpus: int
    machine: Machine
    """With the packages of the interpreter that runs engines."""
    model: str
    """A digest of the model's folder: empty if it is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The hosts of a Ray cluster; the first is this machine, which runs proxy and client."""

    address: str
    """As in `ray_address`."""
    spread: Spread
    hosts: tuple[HostFacts, ...]

    @property
    def head(self) -> Host:
        return self.hosts[0].host

    def table(self) -> list[str]:
        """What each host has, a line each."""
        lines = []
        for seen in self.hosts:
            has, lent = seen.machine, f"{seen.gpus} GPUs" if seen.gpus else f"{seen.cpus} CPUs"
            engine = " ".join(f"{n} {v}" for n, v in has.versions.items() if n in _MUST_EQUAL)
            lines.append(
                f"{seen.host.name:8} {seen.host.address:15} Ray has {lent}; {has.cores} cores,"
                f" GPUs: {gpu_names(has)}, {has.memory_free_gb:.0f} GB free, {has.shm_free_gb:.0f}"
                f" GB shared memory, Python {_minor(has)}, {engine or 'no vLLM'}"
            )
        return lines


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, as a driver of the cluster at this address; a connection that exists is used and kept.

    Raises PlanError if Ray is not installed, or no cluster answers.
    """
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise PlanError(
            "place=ray needs the package ray, which is not installed. On each host run make setup"
            ' RAY=1, or pip install -e ".[ray]"; or use -p place local'
        ) from error
    if ray.is_initialized():
        yield ray
        return
    own = {} if address == "auto" else {"_node_ip_address": _address_towards(address)}
    try:
        # Ray's own log would fill the notebook's output; the error below has its reason.
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        allowed = (
            "the address of a Ray cluster that this machine has joined, with its token if any"
            f" ({reason[:160].rstrip('.')})"
        )
        raise PlanError(must_be("ray_address", allowed, address, ADDRESS_EXAMPLE)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def cluster_of(address: str, spread: Spread, *, python: str, model: str) -> Cluster:
    """The cluster at this address. Each host is asked about the engine's `python` and `model`.

    Raises PlanError if a host does not answer, or differs in something that must be equal.
    """
    with connected(address) as ray:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        here = ray.util.get_node_ip_address()
        nodes.sort(key=lambda n: (n["NodeManagerAddress"] != here, _number(n)))
        pinned = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        asked = [
            ray.remote(_look)
            .options(num_cpus=0, scheduling_strategy=pinned(node["NodeID"], soft=False))
            .remote(node["NodeManagerAddress"], python, model)
            for node in nodes
        ]
        found = []
        for number, (node, answer) in enumerate(zip(nodes, asked, strict=True), start=1):
            name, own = f"host-{number}", node["NodeManagerAddress"]
            try:
                interface, machine, digest = ray.get(answer, timeout=_LOOK_S)
            except Exception as error:  # anything that the host raised
                raise PlanError(_no_answer(name, own, error)) from error
            lent = node["Resources"]
            host = Host(name=name, address=own, interface=interface)
            found.append(
                HostFacts(
                    host=host, machine=machine, model=digest,
                    cpus=int(lent.get("CPU", 0)), gpus=int(lent.get("GPU", 0)),
                )
            )  # fmt: skip
    made = Cluster(address=address, spread=spread, hosts=tuple(found))
    _check_alike(made, python, model)
    return made


def differences(cluster: Cluster) -> list[str]:
    """A sentence for each difference between hosts with which a run still works."""
    said = []
    for what in ("cpu", "cores", "kernel"):
        values = {f.host.name: str(getattr(f.machine, what)) for f in cluster.hosts}
        said += _unlike(what, values)
    said += _unlike("GPUs", {f.host.name: gpu_names(f.machine) for f in cluster.hosts})
    names = {name for f in cluster.hosts for name in f.machine.versions}
    for name in sorted(names - set(_MUST_EQUAL)):
        values = {f.host.name: f.machine.versions.get(name, "none") for f in cluster.hosts}
        said += _unlike(name, values)
    return said


def _check_alike(cluster: Cluster, python: str, model: str) -> None:
    """Refuse hosts without the engine or the model, or with another version. Raises PlanError."""
    first = cluster.hosts[0]
    for other in cluster.hosts:
        where = str(other.host)
        if Path(model).is_dir() and other.model != first.model:
            what = "another model" if other.model else "no model"
            raise PlanError(
                f"place=ray needs the model at the same path on each host, got {what} at {model} on"
                f" {where}. Copy it there (example: rsync -a {model}/ {other.host.address}:{model})"
            )
        for name in _MUST_EQUAL:
            ours, theirs = (f.machine.versions.get(name, "none") for f in (first, other))
            if ours != theirs:
                version, lacking = (theirs, first) if ours == "none" else (ours, other)
                raise PlanError(
                    f"place=ray needs the same {name} on all hosts, got {ours} on"
                    f" {first.host.name} and {theirs} on {where}. Install {name} {version} on"
                    f" {lacking.host.name}, in {python}"
                )
    python_of = {f.host.name: _minor(f.machine) for f in cluster.hosts}
    if said := _unlike("Python", python_of):
        raise PlanError(
            f"place=ray needs the same Python version on all hosts. {said[0]} Install one of"
            " these on all hosts"
        )


def _minor(machine: Machine) -> str:
    return ".".join((machine.engine_python or machine.python).split(".")[:2])


def gpu_names(machine: Machine) -> str:
    """`8 x NVIDIA H200`, or `none`."""
    names = [gpu.name for gpu in machine.gpus]
    return f"{len(names)} x {names[0]}" if names else "none"


def _unlike(what: str, values: Mapping[str, str]) -> list[str]:
    """`Hosts differ in cores: host-1 8, host-2 16.`; nothing if they are equal."""
    if len(set(values.values())) < 2:
        return []
    told = ", ".join(f"{name} {value}" for name, value in values.items())
    return [f"Hosts differ in {what}: {told}."]


def _number(node: Mapping[str, Any]) -> Sequence[int | str]:
    """Its address, to sort by: 10.0.0.9 comes before 10.0.0.10."""
    parts = str(node["NodeManagerAddress"]).split(".")
    return [int(part) if part.isdecimal() else part for part in parts]


def _no_answer(name: str, address: str, error: Exception) -> str:
    said = str(getattr(error, "cause", None) or error).strip().splitlines()
    reason = (said or [type(error).__name__])[-1][:160].rstrip(".")
    return (
        f"place=ray needs the workbench and its Python at the same path on each host, but {name}"
        f" ({address}) did not answer: {reason}. Install the workbench there, or remove the host"
        " (example: ray stop)"
    )


def _look(address: str, python: str, model: str) -> tuple[str, Machine, str]:
    """Run on a host: the interface that has its address, what it has, and the model's digest."""
    from workbench.hardware import machine  # needs more than an engine's environment has

    found = machine.facts().with_engine(interpreter(python))
    return _interface(address), found, digest(Path(model))


def digest(model: Path) -> str:
    """Names and sizes of a model's files, and the text of its config; empty without a folder."""
    if not model.is_dir():
        return ""
    config = model / "config.json"
    seen = hashlib.sha256(config.read_bytes() if config.is_file() else b"")
    for file in sorted(model.iterdir()):
        seen.update(f"{file.name} {file.stat().st_size}".encode())
    return seen.hexdigest()[:12]


def _interface(address: str) -> str:
    """The interface with this address; UCX must be told one where several lead to a peer."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return "all"


def _address_towards(address: str) -> str:
    """This machine's own address on the network of `HOST:PORT`. Raises PlanError without one."""
    host, _, port = address.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # nothing is sent
            own: str = probe.getsockname()[0]
            return own
    except OSError as error:
        allowed = f"the address of a Ray head that can be reached ({error.strerror})"
        raise PlanError(must_be("ray_address", allowed, address, ADDRESS_EXAMPLE)) from error
