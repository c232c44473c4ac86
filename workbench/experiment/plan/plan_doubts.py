"""What weakens a result before anything has run: sentences on a plan and its machine."""

from __future__ import annotations

from math import isnan, nan

from workbench.experiment.plan.plan import Arm, Pass
from workbench.experiment.plan.traffic import WorkloadSpec
from workbench.serve.capacity import Capacity
from workbench.serve.simulated.faults import FAULTS
from workbench.serve.tiny_model import ModelFacts
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel

__all__ = ["fault_doubts", "kv_doubts", "kv_space_tokens", "sharing_doubts", "unequal_doubts"]


def fault_doubts(settings: EngineSettings) -> list[str]:
    """What goes wrong on purpose."""
    if not settings.fault:
        return []
    shows = FAULTS[settings.fault].shows
    return [f"The simulated servers go wrong on purpose, {settings.fault}: {shows}."]


def sharing_doubts(capacity: Capacity, settings: EngineSettings) -> list[str]:
    """Instances that share a GPU."""
    if not settings.on_gpu or capacity.instances_per_gpu == 1:
        return []
    return [
        f"Up to {capacity.instances_per_gpu} instances share a GPU: they wait for one another, so"
        " no role is as fast as it would be alone."
    ]


def unequal_doubts(arms: list[Arm], tp: TensorParallel) -> list[str]:
    """Opponents that could not have as many GPUs, since an aggregated instance spans several."""
    return [
        f"{arm.label} has {arm.gpus} GPUs, which {tp.aggregated} a piece do not divide: its"
        f" aggregated opponents have {arm.gpus // tp.aggregated * tp.aggregated}."
        for arm in arms
        if arm.role == "subject" and arm.disaggregated and arm.gpus % tp.aggregated
    ]


def kv_doubts(
    workload: WorkloadSpec,
    passes: tuple[Pass, ...],
    settings: EngineSettings,
    model: ModelFacts | None,
) -> list[str]:
    """A cache that cannot hold the workload evicts it, and a warm pass is then not warm."""
    space_tokens = kv_space_tokens(settings, model)
    if isnan(space_tokens):
        return []
    # What is shared is held once; a partly warm pass leaves the new part of each prompt behind.
    new = sum(1 - p.share for p in passes)
    sent_tokens = sum(
        r.prompt_tokens - r.ideal_reuse_tokens + r.max_tokens + int(new * r.prompt_tokens)
        for r in workload.sample.requests
    )
    if sent_tokens <= space_tokens:
        return []
    return [
        f"The workload has {sent_tokens:,} tokens and an instance's KV space holds"
        f" {space_tokens:,.0f}: warm passes will find evicted blocks. Raise kv_cache_mib."
    ]


def kv_space_tokens(settings: EngineSettings, model: ModelFacts | None) -> float:
    """Tokens that an instance holds; on a GPU only vLLM knows what its memory leaves."""
    if settings.on_gpu or model is None:
        return nan
    return settings.kv_cache_mib * 2**20 / model.kv_shape.bytes_per_token
