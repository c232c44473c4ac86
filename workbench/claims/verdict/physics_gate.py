"""Gate G1: is a number possible at all on the hardware that it is said to come from?"""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan

from workbench.claims.registry.claim import Bound
from workbench.hardware.models import ModelSize, model_size
from workbench.hardware.physics import (
    Accelerator,
    accelerator,
    decode_ceiling_tps,
    memory_share,
    prefill_ceiling_tps,
)

SLACK = 1.05
"""A value may be this much above its limit: data sheets and published values are rounded."""

_OF_THE_GPU = {
    "memory_bandwidth": ("hbm_tb_s", "TB/s", "bandwidth"),
    "matrix_rate": ("bf16_tflops", "TFLOP/s", "dense bf16 rate"),
}
"""Limits that no model matters to: the GPU's field, its unit, and its name."""


def impossible(bounds: Iterable[Bound]) -> str:
    """A sentence on the bound that is broken the most; empty if none is broken."""
    excesses = [excess for excess in map(_excess, bounds) if not isnan(excess[0])]
    times, sentence = max(excesses, default=(0.0, ""))
    return sentence if times > SLACK else ""


def unknown_limits(bounds: Iterable[Bound]) -> tuple[str, ...]:
    """A sentence for each GPU or model that has no row in the tables: its limit is not checked."""
    missing = []
    for bound in bounds:
        if accelerator(bound.gpu) is None:
            missing.append(f"GPU {bound.gpu!r} is not in workbench/hardware/physics.py")
        if bound.limit not in _OF_THE_GPU and model_size(bound.model) is None:
            missing.append(f"model {bound.model!r} is not in workbench/hardware/models.py")
    return tuple(f"{text}; its physical limit was not checked" for text in dict.fromkeys(missing))


def _excess(bound: Bound) -> tuple[float, str]:
    """How many times its limit the value is (strictly, as the gate judges) and a sentence."""
    gpu, model = accelerator(bound.gpu), model_size(bound.model)
    if gpu is None:
        return 0.0, ""
    on = f"{bound.gpus} x {gpu.name}"
    if bound.limit in _OF_THE_GPU:
        rate, unit, what = _OF_THE_GPU[bound.limit]
        times = bound.value / (bound.gpus * float(getattr(gpu, rate)))
        return times, f"{bound.value:,.6g} {unit} is {times:.1f} times the {what} of {on}"
    if model is None:
        return 0.0, ""
    if bound.limit == "memory_fit":
        share = memory_share(parameters=model.parameters, gpu=gpu, gpus=bound.gpus)
        weights_gb = model.parameters * 2 / 1e9
        return share, (
            f"16-bit weights of {model.name}, {weights_gb:,.0f} GB, are {share:.1f} times the"
            f" memory of {on}"
        )
    ceiling, looser = _ceilings(bound, model, gpu)
    what = "prefill" if bound.limit == "prefill_throughput" else "batch-1 decode"
    return bound.value / looser, (
        f"{bound.value:,.6g} tokens/s is {bound.value / ceiling:.1f} times the {what} ceiling of"
        f" {model.name} on {on}, {ceiling:,.0f} tokens/s"
    )


def _ceilings(bound: Bound, model: ModelSize, gpu: Accelerator) -> tuple[float, float]:
    """The ceiling with all weights, as the field quotes it, and without embedding and head.

    A prompt token passes neither; a decoded one passes the head, half of the two.
    """
    if bound.limit == "prefill_throughput":
        sizes = (model.active, model.active - model.embedding)
        one, other = (
            prefill_ceiling_tps(parameters=size, gpu=gpu, gpus=bound.gpus) for size in sizes
        )
    else:
        sizes = (2 * model.active, 2 * model.active - model.embedding)
        one, other = (
            decode_ceiling_tps(weight_bytes=size, gpu=gpu, gpus=bound.gpus) for size in sizes
        )
    return one, other
