"""Ceilings that no measured number may exceed: roofline arithmetic of prefill and decode.

Upper bounds only (Williams et al., Roofline, CACM 2009): attention, launches, communication and
the KV cache's own traffic are left out unless given, so a real server stays well below.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import ParameterError

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "accelerator",
    "decode_ceiling_tps",
    "prefill_ceiling_tps",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What the vendor promises of one GPU: dense rates, without structured sparsity."""

    name: str
    bf16_tflops: float
    """Dense bf16 matrix rate in 10^12 operations per second."""
    hbm_tb_s: float
    """Memory bandwidth in 10^12 bytes per second."""
    memory_gb: float
    product_names: tuple[str, ...]
    """As nvidia-smi, rocm-smi or amd-smi write it."""


ACCELERATORS = (
    # NVIDIA A100 80GB datasheet: 312 TFLOPS BF16 (624 with sparsity), 2,039 GB/s.
    Accelerator(
        name="A100 80GB SXM",
        bf16_tflops=312.0,
        hbm_tb_s=2.039,
        memory_gb=80,
        product_names=("NVIDIA A100-SXM4-80GB",),
    ),
    # NVIDIA H100 datasheet, SXM: 1,979 TFLOPS BF16 with sparsity, half of it dense; 3.35 TB/s.
    Accelerator(
        name="H100 SXM",
        bf16_tflops=989.5,
        hbm_tb_s=3.35,
        memory_gb=80,
        product_names=("NVIDIA H100 80GB HBM3",),
    ),
    # NVIDIA H200 datasheet, SXM: the H100's compute; 4.8 TB/s, 141 GB.
    Accelerator(
        name="H200",
        bf16_tflops=989.5,
        hbm_tb_s=4.8,
        memory_gb=141,
        product_names=("NVIDIA H200",),
    ),
    # AMD Instinct MI300X data sheet: 1,307.4 TFLOPS BF16 dense, 5.3 TB/s, 192 GB.
    Accelerator(
        name="MI300X",
        bf16_tflops=1307.4,
        hbm_tb_s=5.3,
        memory_gb=192,
        product_names=("AMD Instinct MI300X", "AMD Instinct MI300X OAM", "AMD Instinct MI300X VF"),
    ),
    # AMD Instinct MI325X data sheet: the MI300X's compute; 6.0 TB/s, 256 GB.
    Accelerator(
        name="MI325X",
        bf16_tflops=1307.4,
        hbm_tb_s=6.0,
        memory_gb=256,
        product_names=("AMD Instinct MI325X", "AMD Instinct MI325X OAM", "AMD Instinct MI325X VF"),
    ),
)


def accelerator(product_name: str) -> Accelerator | None:
    """The accelerator of that product name, or None: a ceiling is never guessed from a likeness."""
    wanted = product_name.strip().casefold()
    for known in ACCELERATORS:
        if wanted in {name.casefold() for name in (known.name, *known.product_names)}:
            return known
    return None


def prefill_ceiling_tps(*, parameters: float, gpu: Accelerator, gpus: int = 1) -> float:
    """Most prompt tokens per second: peak FLOP/s / (2 x parameters).

    `parameters` are those that multiply every prompt token: without input embedding and output
    head, and only the active experts. 2 FLOP per parameter and token: Kaplan et al., Scaling
    Laws (2020), section 2.1. Holds for bf16 and computed tokens; cached ones cost nothing.
    """
    _positive(parameters=parameters, gpus=gpus)
    return gpus * gpu.bf16_tflops * 1e12 / (2 * parameters)


def decode_ceiling_tps(*, weight_bytes: float, gpu: Accelerator, gpus: int = 1) -> float:
    """Most tokens per second of one request decoded alone: bandwidth / weight bytes.

    Each token reads every weight once (Pope et al., Efficiently Scaling Transformer Inference,
    2022): without the input embedding, and only the active experts. Add the context's KV bytes
    for a tighter bound. Holds without speculative decoding, which makes several tokens per read.
    """
    _positive(weight_bytes=weight_bytes, gpus=gpus)
    return gpus * gpu.hbm_tb_s * 1e12 / weight_bytes


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ParameterError(f"{name} is {value}: a ceiling needs a number above zero")
