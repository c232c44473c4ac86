"""Whether machines have the GPUs, cores and memory of a deployment, and which instance gets which.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import PlanError, must_be, needs
from workbench.hardware.hosts import THIS_MACHINE, Cluster, Host, HostFacts
from workbench.params.store_tiers import SIZED
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

CPU_PROCESS_GB = 0.55
"""Memory of one of several forked CPU instances without KV and weights (measured, proportional set
size)."""
CPU_INSTANCES_AT_MOST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """GPU ids and cores in the order of their use, and free memory."""

    devices: tuple[str, ...] = ()
    instances_per_gpu: int = 1
    cores: tuple[int, ...] = ()
    """Cores that instances may have for themselves."""
    free_memory_gb: float = float("inf")
    free_shm_gb: float = float("inf")


def instance_gb(settings: EngineSettings, *, host_gb: float = 0.0) -> float:
    """Memory of one CPU instance."""
    return CPU_PROCESS_GB + settings.kv_cache_mib / 1024 + settings.weights_gb + host_gb


def check_capacity(
    topology: Topology,
    tp: TensorParallel,
    capacity: Capacity,
    settings: EngineSettings,
    *,
    host_gb: float = 0.0,
) -> None:
    """Refuse what this machine cannot hold, with the numbers. Raises PlanError.

    `host_gb` is main memory to which each instance offloads KV.
    """
    each = settings.cores_per_instance
    if (needed := topology.instances * each) > len(capacity.cores):
        raise PlanError(
            f"topology {topology} needs {needed} cores ({topology.instances} instances x {each}"
            f" cores_per_instance), got {len(capacity.cores)}; use a smaller topology, or let"
            " instances share all cores (example: -p cores_per_instance 0)"
        )
    if settings.platform == "simulated" or settings.cluster is not None:
        return  # hosts are checked where instances get their places
    if settings.platform == "cpu":
        if topology.instances > CPU_INSTANCES_AT_MOST:
            allowed = f"one with at most {CPU_INSTANCES_AT_MOST} instances on a CPU"
            raise PlanError(must_be("topology", allowed, str(topology), "1p4d"))
        each_gb = instance_gb(settings, host_gb=host_gb)
        needed_gb = topology.instances * each_gb
        if needed_gb > capacity.free_memory_gb:
            raise PlanError(
                f"topology {topology} needs about {needed_gb:.1f} GB of memory"
                f" ({topology.instances} instances x {each_gb:.2g} GB), got"
                f" {capacity.free_memory_gb:.1f} GB free; end other programs, lower kv_cache_mib"
                f"{' or store_gb' if host_gb else ''} or use fewer instances (example: -p topology"
                f" {'1a' if host_gb else '1p1d'})"
            )
        return
    if topology.instances * host_gb > capacity.free_memory_gb:
        free_gb = capacity.free_memory_gb
        allowed = f"at most the free memory ({free_gb:.1f} GB) divided by the instances"
        raise PlanError(must_be("store_gb", allowed, host_gb, f"{0.5 * free_gb:.3g}"))
    for role, _ in topology.roles:
        span = int(getattr(tp, role))
        # Sharing a GPU gives more instances, never more GPUs to one of them.
        if span > len(capacity.devices):
            allowed = f"at most the number of visible GPUs ({len(capacity.devices)})"
            name, example = f"{role}_tp", len(capacity.devices) or "-p platform cpu"
            more = int(getattr(settings.gpus(TensorParallel()), role))
            if more > 1 and capacity.devices:
                name += f" ({span // more}) x pipeline and data parallel size ({more})"
                example = f"-p {role}_tp 1 -p engine_args '--pipeline-parallel-size 1'"
            raise PlanError(must_be(name, allowed, span, example))
    needed_gpus, slots = topology.gpus(tp), len(capacity.devices) * capacity.instances_per_gpu
    if needed_gpus > slots:
        raise PlanError(
            f"topology {topology} needs {needed_gpus} GPUs, got {slots}"
            f" ({len(capacity.devices)} visible x {capacity.instances_per_gpu} instances_per_gpu);"
            " use a smaller topology or raise instances_per_gpu (example: -p topology 1p1d)"
        )


def check_store(store_gb: float, capacity: Capacity) -> None:
    """Refuse a KV store larger than the free shared memory. Raises PlanError."""
    if store_gb > capacity.free_shm_gb:
        free = f"{capacity.free_shm_gb:.1f} GB"
        allowed = f"at most the free space of /dev/shm ({free}; in a container raise --shm-size)"
        raise PlanError(must_be("store_gb", allowed, store_gb, 0.5))


def check_tiers(tiers: Sequence[str], tier_gb: float, capacity: Capacity) -> None:
    """Refuse tiers of the KV store that do not fit the free memory. Raises PlanError."""
    if {*tiers} & SIZED and tier_gb > capacity.free_memory_gb:
        allowed = f"at most the free memory ({capacity.free_memory_gb:.1f} GB)"
        raise PlanError(must_be("tier_gb", allowed, tier_gb, 0.5))


def hand_out(topology: Topology, tp: TensorParallel, capacity: Capacity) -> list[tuple[str, ...]]:
    """Devices of each instance, in role order; a GPU is shared only when all are in use."""
    slots = [d for _ in range(capacity.instances_per_gpu) for d in capacity.devices]
    taken: list[tuple[str, ...]] = []
    for role, count in topology.roles:
        for _ in range(count):
            span = int(getattr(tp, role))
            taken.append(tuple(slots[:span]))
            del slots[:span]
    return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an instance runs, and its GPUs there."""

    host: Host = THIS_MACHINE
    devices: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    """Its own cores; empty if it may use all."""


def on_hosts(
    topology: Topology, tp: TensorParallel, cluster: Cluster, settings: EngineSettings
) -> list[Place]:
    """The place of each instance, in role order, by the cluster's `spread`.

    pack: the first host with room; spread: the host with the fewest instances; node: all on one.
    The same hosts and topology always give the same places. Raises PlanError if there is no room.
    """
    spans = [int(getattr(tp, role)) for role, count in topology.roles for _ in range(count)]
    gpus, unit = settings.on_gpu, "GPUs" if settings.on_gpu else "CPUs"
    wanted = spans if gpus else [1] * len(spans)

    def room(host: HostFacts) -> int:
        if gpus:
            return host.gpus
        fits = host.machine.memory_free_gb / instance_gb(settings)
        return min(host.cpus, int(fits))

    rooms = [room(host) for host in cluster.hosts]
    taken, counts = [0] * len(rooms), [0] * len(rooms)
    candidates = list(range(len(rooms)))
    if cluster.spread == "node":
        candidates = [n for n in candidates if rooms[n] >= sum(wanted)][:1]
    places = []
    for size in wanted:
        fitting = [n for n in candidates if rooms[n] - taken[n] >= size]
        if not fitting:
            have = ", ".join(f"{host.host.name} {n}" for host, n in zip(cluster.hosts, rooms))  # noqa: B905
            on_one = " on one host" * (cluster.spread == "node")
            raise PlanError(
                f"topology {topology} needs {sum(wanted)} {unit}{on_one} for {len(wanted)}"
                f" instances (spread={cluster.spread}), got {have}. Use a smaller topology,"
                " another spread, or more hosts (example: -p topology 1p1d)"
            )
        chosen = fitting[0]
        if cluster.spread == "spread":
            chosen = min(fitting, key=lambda n: counts[n])
        devices = tuple(map(str, range(taken[chosen], taken[chosen] + size))) if gpus else ()
        places.append(Place(host=cluster.hosts[chosen].host, devices=devices))
        taken[chosen] += size
        counts[chosen] += 1
    return places


def check_one_host(
    places: Sequence[Place], cluster: Cluster, connector: str, topology: Topology
) -> None:
    """Refuse a store that shares memory with instances of several hosts. Raises PlanError."""
    if len(names := dict.fromkeys(place.host.name for place in places)) > 1:
        needed = (
            f"spread=node (its store shares memory with its instances, here on {len(names)} hosts)"
        )
        setting = f"connector={connector} with topology={topology}"
        raise PlanError(needs(setting, needed, cluster.spread, "node"))
