"""Gate G1: can the claimed hardware reach this number at all?"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
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
"""A value may exceed its limit by this factor: data sheets and published values are rounded."""

_OF_THE_GPU = {
    "memory_bandwidth": ("hbm_tb_s", "TB/s", "bandwidth"),
    "matrix_rate": ("bf16_tflops", "TFLOP/s", "dense bf16 rate"),
}
"""Limits that do not depend on a model: the GPU's field, its unit, and its name."""
_MODEL_LIMITS = {
    "prefill_throughput": ("compute-bound prefill limit", "peak FLOP/s over FLOPs per token"),
    "decode_throughput": (
        "bandwidth-bound decode limit at batch 1", "memory bandwidth over bytes of the weights",
    ),
}  # fmt: skip
"""Limits that depend on a model: their name, and how they are computed."""


def impossible(bounds: Iterable[Bound]) -> str:
    """What exceeds its limit most, without the last full stop; empty if nothing does."""
    excesses = [excess for excess in map(_excess, bounds) if not isnan(excess[0])]
    times, sentence = max(excesses, default=(0.0, ""))
    return sentence if times > SLACK else ""


def unknown_limits(bounds: Iterable[Bound]) -> tuple[str, ...]:
    """A clause for each GPU or model without a row in our tables: its limit is not checked."""
    missing = []
    for bound in bounds:
        if accelerator(bound.gpu) is None:
            missing.append(f"GPU {bound.gpu!r} is not in workbench/hardware/physics.py")
        if bound.limit not in _OF_THE_GPU and model_size(bound.model) is None:
            missing.append(f"model {bound.model!r} is not in workbench/hardware/models.py")
    return tuple(f"Physical limit not checked: {text}" for text in dict.fromkeys(missing))


def _excess(bound: Bound) -> tuple[float, str]:
    """How many times its limit the value is (strictly, as the gate judges) and a sentence."""
    gpu, model = accelerator(bound.gpu), model_size(bound.model)
    if gpu is None:
        return 0.0, ""
    on = f"one {gpu.name}" if bound.gpus == 1 else f"{bound.gpus} {gpu.name}"
    if bound.limit in _OF_THE_GPU:
        rate, unit, what = _OF_THE_GPU[bound.limit]
        times = bound.value / (bound.gpus * float(getattr(gpu, rate)))
        return times, f"{bound.value:,.6g} {unit} is {times:.1f}x the {what} of {on}"
    if model is None:
        return 0.0, ""
    if bound.limit == "memory_fit":
        share = memory_share(parameters=model.parameters, gpu=gpu, gpus=bound.gpus)
        weights_gb = model.parameters * 2 / 1e9
        return share, (
            f"16-bit weights of {model.name} ({weights_gb:,.0f} GB) are {share:.1f}x the memory of"
            f" {on}"
        )
    ceiling, looser = _ceilings(bound, model, gpu)
    what, of = _MODEL_LIMITS[bound.limit]
    return bound.value / looser, (
        f"{bound.value:,.6g} tokens/s is {bound.value / ceiling:.1f}x the {what} of"
        f" {model.name} on {on}. The limit ({of}) is {ceiling:,.0f} tokens/s"
    )


def _ceilings(bound: Bound, model: ModelSize, gpu: Accelerator) -> tuple[float, float]:
    """The limit with all weights, as usually quoted, and without embedding and head.

    A prompt token uses neither; a decoded one uses the head, half of the two.
    """
    whole, inner = model.active, model.active - model.embedding
    if bound.limit == "prefill_throughput":
        prefill = partial(prefill_ceiling_tps, gpu=gpu, gpus=bound.gpus)
        return prefill(parameters=whole), prefill(parameters=inner)
    decode = partial(decode_ceiling_tps, gpu=gpu, gpus=bound.gpus)
    return decode(weight_bytes=2 * whole), decode(weight_bytes=whole + inner)
