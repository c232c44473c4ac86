from __future__ import annotations

import math

import pytest

from workbench.errors import ParameterError
from workbench.hardware.physics import (
    ACCELERATORS,
    Accelerator,
    accelerator,
    amdahl_bound,
    decode_ceiling_tps,
    decode_floor_s,
    load_crossover_tokens,
    memory_share,
    prefill_ceiling_tps,
    prefill_flop,
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


@pytest.mark.parametrize("bad", [0, -1, float("nan")])
def test_a_ceiling_of_nothing_is_refused(bad):
    with pytest.raises(ParameterError, match=r"parameters is .*: a ceiling needs a number above"):
        prefill_ceiling_tps(parameters=bad, gpu=ROUND)
    with pytest.raises(ParameterError, match="weight_bytes is "):
        decode_ceiling_tps(weight_bytes=bad, gpu=ROUND)
    with pytest.raises(ParameterError, match="gpus is "):
        decode_ceiling_tps(weight_bytes=1, gpu=ROUND, gpus=0)


def test_a_prompt_costs_its_weights_and_the_square_of_its_length():
    assert prefill_flop(1000, parameters=1e9) == 2e12
    # Llama 3.3 70B, 22,660 tokens: 3.2 PFLOP and 0.67 of attention
    whole = prefill_flop(22_660, parameters=70.55e9, layers=80, q_heads=64, head_dim=128)
    assert whole == pytest.approx(3.20e15 + 0.67e15, rel=0.01)


def test_a_decode_step_is_as_long_as_its_longer_half():
    step = {"weight_bytes": 2e9, "kv_bytes": 2e9, "parameters": 1e9, "gpu": ROUND}
    assert decode_floor_s(**step, batch=1) == 2e-3  # 4 GB at 2 TB/s
    assert decode_floor_s(**step, batch=1000) == 20e-3  # 2e12 operations at 100 TFLOP/s


def test_a_70b_model_in_fp16_is_not_resident_on_one_a100():
    a100 = accelerator("A100 80GB SXM")
    assert memory_share(parameters=68.98e9, gpu=a100) == pytest.approx(1.72, abs=0.01)
    assert memory_share(parameters=68.98e9, gpu=a100, gpus=4) < 0.5
    assert memory_share(parameters=68.98e9, gpu=a100, bits=4) < 0.5


def test_loading_wins_from_a_length_on():
    link = {"kv_bytes_per_token": 1e5, "parameters": 1e9, "flop_s": 1e14}
    # Computing 20 us a token; loading 1 us: it saves 19 us a token, for 19 ms of latency.
    assert load_crossover_tokens(**link, link_gb_s=100, latency_s=19e-3) == pytest.approx(1000)
    assert load_crossover_tokens(**link, link_gb_s=100) == 0
    assert load_crossover_tokens(**link, link_gb_s=1) == math.inf
    # At the crossover both take as long, attention and latency included.
    length = load_crossover_tokens(**link, link_gb_s=100, attention_flop=1e6, latency_s=19e-3)
    loading = 19e-3 + length * 1e5 / 100e9
    assert loading == pytest.approx((2 * 1e9 * length + 1e6 * length**2) / 1e14)
    # Loading at 100 us a token wins only where attention costs the missing 80 us.
    length = load_crossover_tokens(**link, link_gb_s=1, attention_flop=1e6)
    assert length * 1e6 / 1e14 == pytest.approx(80e-6)


def test_a_part_bounds_the_gain_of_the_whole():
    assert amdahl_bound(share=0.5) == 2
    assert amdahl_bound(share=0.5, speedup=2) == pytest.approx(4 / 3)
    assert amdahl_bound(share=1) == math.inf
    assert amdahl_bound(share=0, speedup=100) == 1
    with pytest.raises(ParameterError, match="share is 2: a share of the time is from 0 to 1"):
        amdahl_bound(share=2)
