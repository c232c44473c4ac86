import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.hardware.kv import (
    KvShape,
    chunk_hit_tokens,
    engine_hit_tokens,
    quantisation_ratio,
)


@pytest.mark.parametrize(
    ("shape", "bytes_per_token"),
    [
        ((80, 8, 128), 327_680),  # Llama 3.3 70B in bf16: 2 x 80 x 8 x 128 x 2 B = 320 KiB
        ((80, 8, 128, 1), 163_840),  # the same with an fp8 cache
        ((28, 4, 128), 57_344),  # Qwen2.5 7B
        ((3, 2, 32), 768),  # the tiny model of this repository
    ],
)
def test_bytes_per_token_of_known_models(shape, bytes_per_token):
    names = ("layers", "kv_heads", "head_dim", "element_bytes")
    assert KvShape(**dict(zip(names, shape, strict=False))).bytes_per_token == bytes_per_token


@pytest.mark.parametrize(
    ("prompt", "hit"),
    [
        (5000, 4992),  # 312 whole blocks; read from a server that had seen the prompt
        (5008, 4992),  # 313 blocks would hold it, but the last token is computed
        (5009, 5008),
        (16, 0),
        (17, 16),
        (1, 0),
        (0, 0),
    ],
)
def test_the_engine_serves_whole_blocks_and_never_the_last_token(prompt, hit):
    assert engine_hit_tokens(prompt, block_tokens=16) == hit


@pytest.mark.parametrize(("prompt", "held"), [(5000, 4864), (5120, 5120), (255, 0), (0, 0)])
def test_a_store_holds_whole_chunks(prompt, held):
    assert chunk_hit_tokens(prompt, chunk_tokens=256) == held


@given(st.integers(0, 10**6), st.sampled_from([1, 16, 32, 128, 256]))
def test_less_than_a_unit_is_lost(prompt, unit):
    engine = engine_hit_tokens(prompt, block_tokens=unit)
    assert engine % unit == 0 and prompt - 1 - unit < engine < max(prompt, 1)
    stored = chunk_hit_tokens(prompt, chunk_tokens=unit)
    assert stored % unit == 0 and prompt - unit < stored <= prompt


@pytest.mark.parametrize(
    ("quantised", "ratio"),
    [
        ({"bits": 8, "group": 128, "scale_bits": 0}, 2.0),
        ({"bits": 8, "group": 128}, 1.97),
        ({"bits": 4, "group": 32, "zero_bits": 16}, 3.2),
        ({"bits": 2, "group": 32, "zero_bits": 16}, 5.33),
        ({"bits": 8, "group": 128, "scale_bits": 0, "original_bits": 32}, 4.0),
    ],
)
def test_scales_take_a_part_of_what_quantisation_saves(quantised, ratio):
    assert quantisation_ratio(**quantised) == pytest.approx(ratio, abs=0.005)
