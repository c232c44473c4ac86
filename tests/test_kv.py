import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ParameterError
from workbench.kv import KvShape, chunk_hit_tokens, engine_hit_tokens


@pytest.mark.parametrize(
    ("shape", "bytes_per_token"),
    [
        # Llama 3.3 70B in bf16: 2 x 80 layers x 8 KV heads x 128 x 2 B = 320 KiB
        (KvShape(layers=80, kv_heads=8, head_dim=128), 327_680),
        # the same with an fp8 cache
        (KvShape(layers=80, kv_heads=8, head_dim=128, element_bytes=1), 163_840),
        # Qwen2.5 7B: 28 layers, 4 KV heads
        (KvShape(layers=28, kv_heads=4, head_dim=128), 57_344),
        # the tiny model of this repository: 768 B
        (KvShape(layers=3, kv_heads=2, head_dim=32), 768),
    ],
)
def test_bytes_per_token_of_known_models(shape, bytes_per_token):
    assert shape.bytes_per_token == bytes_per_token


@pytest.mark.parametrize("field", ["layers", "kv_heads", "head_dim", "element_bytes"])
def test_a_shape_without_size_is_refused(field):
    with pytest.raises(ParameterError, match="above zero"):
        KvShape(**{"layers": 1, "kv_heads": 1, "head_dim": 1, field: 0})


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
