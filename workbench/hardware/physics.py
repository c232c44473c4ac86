"""Upper limits for measured numbers: roofline arithmetic of prefill and decode.

Upper bounds only (Williams et al., Roofline, CACM 2009): attention, kernel launches, communication
and KV cache traffic are left out unless given, so a real server stays well below.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import check_positive


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The vendor's specification of one GPU: dense rates, without structured sparsity."""

    name: str
    bf16_tflops: float
    """Dense bf16 matrix rate in 10^12 operations per second."""
    hbm_tb_s: float
    """Memory bandwidth in 10^12 bytes per second."""
    memory_gb: float
    product_names: tuple[str, ...]
    """As printed by nvidia-smi, rocm-smi or amd-smi."""


_FORMS = ("", " OAM", " VF")
ACCELERATORS = (
    # name, dense bf16 TFLOP/s, memory TB/s, memory GB, names that tools print
    # NVIDIA A100 80GB datasheet: 312 TFLOPS BF16 (624 with sparsity), 2,039 GB/s; PCIe 1,935 GB/s.
    Accelerator("A100 80GB SXM", 312.0, 2.039, 80, ("NVIDIA A100-SXM4-80GB",)),
    Accelerator("A100 80GB PCIe", 312.0, 1.935, 80, ("NVIDIA A100 80GB PCIe",)),
    # The A800 differs in NVLink only (from memory).
    Accelerator("A800 80GB PCIe", 312.0, 1.935, 80, ("NVIDIA A800 80GB PCIe",)),
    # NVIDIA H100 datasheet, SXM: 1,979 TFLOPS BF16 with sparsity, half of it dense; 3.35 TB/s.
    Accelerator("H100 SXM", 989.5, 3.35, 80, ("NVIDIA H100 80GB HBM3",)),
    # NVIDIA H200 datasheet, SXM: the H100's compute; 4.8 TB/s, 141 GB.
    Accelerator("H200", 989.5, 4.8, 141, ("NVIDIA H200",)),
    # NVIDIA HGX B200 (1,000 W): 2,250 TFLOPS BF16 dense, 8.0 TB/s, 180 GB usable (secondary).
    Accelerator("B200", 2250.0, 8.0, 180, ("NVIDIA B200",)),
    # AMD Instinct MI300X data sheet: 1,307.4 TFLOPS BF16 dense, 5.3 TB/s, 192 GB.
    Accelerator("MI300X", 1307.4, 5.3, 192, tuple(f"AMD Instinct MI300X{form}" for form in _FORMS)),
    # AMD Instinct MI325X data sheet: the MI300X's compute; 6.0 TB/s, 256 GB.
    Accelerator("MI325X", 1307.4, 6.0, 256, tuple(f"AMD Instinct MI325X{form}" for form in _FORMS)),
)


def accelerator(product_name: str) -> Accelerator | None:
    """The accelerator of exactly that product name, or None."""
    wanted = product_name.strip().casefold()
    names = {
        name.casefold(): gpu for gpu in ACCELERATORS for name in (gpu.name, *gpu.product_names)
    }
    return names.get(wanted)


def prefill_ceiling_tps(*, parameters: float, gpu: Accelerator, gpus: int = 1) -> float:
    """The highest possible prefill throughput, in tokens/s: peak FLOP/s / (2 x parameters).

    `parameters` are those used for every prompt token: without input embedding and output head, and
    only the active experts. 2 FLOP per parameter and token: Kaplan et al., Scaling
    Laws (2020), section 2.1. Holds for bf16 and computed tokens; cached ones cost nothing.
    """
    check_positive(parameters=parameters, gpus=gpus)
    return gpus * gpu.bf16_tflops * 1e12 / (2 * parameters)


def decode_ceiling_tps(*, weight_bytes: float, gpu: Accelerator, gpus: int = 1) -> float:
    """The highest possible decode rate of a single request, in tokens/s: bandwidth / weight bytes.

    Each token reads every weight once (Pope et al., Efficiently Scaling Transformer Inference,
    2022): without the input embedding, and only the active experts. Add the context's KV bytes
    for a tighter bound. Speculative decoding makes several tokens per read.
    """
    check_positive(weight_bytes=weight_bytes, gpus=gpus)
    return gpus * gpu.hbm_tb_s * 1e12 / weight_bytes


def memory_share(*, parameters: float, gpu: Accelerator, gpus: int = 1, bits: float = 16) -> float:
    """Weights / memory of the GPUs; above 1 the model does not fit.

    Every expert counts. Memory is in 10^9 bytes, as vendors write it: KV and activations need
    room as well, so a share under 1 does not yet fit.
    """
    check_positive(parameters=parameters, gpus=gpus, bits=bits)
    return parameters * bits / 8 / (gpus * gpu.memory_gb * 1e9)
