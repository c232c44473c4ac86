from __future__ import annotations

import pytest

from workbench.hardware.physics import (
    ACCELERATORS,
    Accelerator,
    accelerator,
    decode_ceiling_tps,
    memory_share,
    prefill_ceiling_tps,
)

ROUND = Accelerator(
    name="round", bf16_tflops=100, hbm_tb_s=2, memory_gb=80, product_names=("ROUND 1",)
)


def test_prefill_takes_two_operations_per_parameter_and_token():
    assert prefill_ceiling_tps(parameters=1e9, gpu=ROUND) == 50_000
    assert prefill_ceiling_tps(parameters=1e9, gpu=ROUND, gpus=4) == 200_000


def test_decode_reads_every_weight_for_every_token():
    assert decode_ceiling_tps(weight_bytes=2e9, gpu=ROUND) == 1000
    assert decode_ceiling_tps(weight_bytes=2e9, gpu=ROUND, gpus=8) == 8000


def test_a_published_figure_above_the_ceiling_is_recognised():
    # 58,499 tokens/s of prefill were claimed for a 70B model on one A100.
    a100 = accelerator("NVIDIA A100-SXM4-80GB")
    assert prefill_ceiling_tps(parameters=70e9, gpu=a100) < 58_499 / 20


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA H200", "H200"), ("nvidia h100 80gb hbm3", "H100 SXM"), ("MI300X", "MI300X"),
        (" AMD Instinct MI325X ", "MI325X"),
        # A likeness is no identity.
        ("NVIDIA H200 NVL", None), ("NVIDIA H100 PCIe", None), ("AMD EPYC", None), ("", None),
    ],
)  # fmt: skip
def test_accelerators_are_known_by_the_names_that_drivers_give(product, name):
    found = accelerator(product)
    assert (found.name if found else None) == name


def test_the_table_has_plausible_units():
    for gpu in ACCELERATORS:
        ridge = gpu.bf16_tflops / gpu.hbm_tb_s  # operations per byte
        assert 100 < ridge < 400, gpu.name


def test_a_70b_model_in_fp16_is_not_resident_on_one_a100():
    a100 = accelerator("A100 80GB SXM")
    assert memory_share(parameters=68.98e9, gpu=a100) == pytest.approx(1.72, abs=0.01)
    assert memory_share(parameters=68.98e9, gpu=a100, gpus=4) < 0.5
    assert memory_share(parameters=68.98e9, gpu=a100, bits=4) < 0.5
