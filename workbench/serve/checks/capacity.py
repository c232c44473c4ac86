"""Whether this machine has enough GPUs or memory for a deployment. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import PlanError, must_be
from workbench.params.store_tiers import SIZED
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

CPU_PROCESS_GB = 0.55
"""Memory of one of several forked CPU instances without KV and weights (measured, proportional set
size)."""
CPU_INSTANCES_AT_MOST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """GPU ids in the order of their use, and free memory."""

    devices: tuple[str, ...] = ()
    instances_per_gpu: int = 1
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
    if settings.platform == "simulated":
        return
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
