"""What this machine can give to a deployment, and whether that is enough. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import PlanError
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

CPU_PROCESS_GB = 0.55
"""Memory of one forked CPU instance without KV and weights, in company (measured, proportional set
size)."""
CPU_INSTANCES_AT_MOST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What this machine can give: GPU ids in the order they are handed out, or memory."""

    devices: tuple[str, ...] = ()
    instances_per_gpu: int = 1
    free_memory_gb: float = float("inf")
    free_shm_gb: float = float("inf")


def instance_gb(settings: EngineSettings) -> float:
    """Memory of one CPU instance."""
    return CPU_PROCESS_GB + settings.kv_cache_mib / 1024 + settings.weights_gb


def check_capacity(
    topology: Topology, tp: TensorParallel, capacity: Capacity, settings: EngineSettings
) -> None:
    """Refuse what this machine cannot hold, with the numbers at hand. Raises PlanError."""
    if settings.platform == "simulated":
        return
    if settings.platform == "cpu":
        if topology.instances > CPU_INSTANCES_AT_MOST:
            raise PlanError(
                f"topology {topology} has {topology.instances} instances and a CPU machine takes at"
                f" most {CPU_INSTANCES_AT_MOST}; try 1p4d (5 instances) or 4p2d (6)"
            )
        each_gb = instance_gb(settings)
        needed_gb = topology.instances * each_gb
        if needed_gb > capacity.free_memory_gb:
            raise PlanError(
                f"topology {topology} needs about {needed_gb:.1f} GB ({topology.instances}"
                f" instances x {each_gb:.2g} GB) and {capacity.free_memory_gb:.1f} GB are free; end"
                " other programs, lower kv_cache_mib, or take a smaller topology such as 1p1d"
            )
        return
    for role, _ in topology.roles:
        span = int(getattr(tp, role))
        # Sharing gives more instances, never more GPUs to one of them.
        if span > len(capacity.devices):
            raise PlanError(
                f"{role}_tp is {span} and {len(capacity.devices)} GPUs are visible; take a smaller"
                f" {role}_tp, or platform cpu where there is no GPU"
            )
    needed_gpus, slots = topology.gpus(tp), len(capacity.devices) * capacity.instances_per_gpu
    if needed_gpus > slots:
        raise PlanError(
            f"topology {topology} needs {needed_gpus} GPUs and {len(capacity.devices)} are visible"
            f" (x {capacity.instances_per_gpu} instances per GPU = {slots}); take a smaller"
            " topology such as 1p1d, a smaller tp, or raise instances_per_gpu"
        )


def check_store(store_gb: float, capacity: Capacity) -> None:
    """Refuse a KV store that shared memory cannot hold. Raises PlanError."""
    if store_gb > capacity.free_shm_gb:
        raise PlanError(
            f"store_gb is {store_gb:g} and /dev/shm has {capacity.free_shm_gb:.1f} GB free; lower"
            " store_gb, e.g. to 1, or start the container with a larger --shm-size"
        )


def hand_out(topology: Topology, tp: TensorParallel, capacity: Capacity) -> list[tuple[str, ...]]:
    """Devices of each instance, in role order; a GPU is used again only when all are in use."""
    slots = [d for _ in range(capacity.instances_per_gpu) for d in capacity.devices]
    taken: list[tuple[str, ...]] = []
    for role, count in topology.roles:
        for _ in range(count):
            span = int(getattr(tp, role))
            taken.append(tuple(slots[:span]))
            del slots[:span]
    return taken
