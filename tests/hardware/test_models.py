import pytest

from workbench.hardware.models import MODELS, model_size


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("Llama-3.1-8B", 131_072), ("Llama-3.3-70B", 327_680), ("Qwen2.5-7B", 57_344),
        ("Qwen3-8B", 147_456), ("LLaMA-2-13B", 819_200),
        ("DeepSeek-V3", 70_272),  # MLA: 61 x 576 x 2
    ],
)  # fmt: skip
def test_kv_of_known_models(name, bytes_per_token):
    assert model_size(name).kv_bytes(1) == bytes_per_token
    assert model_size(name).kv_bytes(10, element_bytes=1) == 5 * bytes_per_token


def test_sliding_layers_stop_growing_at_their_window():
    # The notes' prompt of 22,660 tokens: 7.43 GB for Llama 70B, 0.84 GB for gpt-oss.
    assert model_size("Llama-3.3-70B").kv_bytes(22_660) == pytest.approx(7.425e9, rel=1e-3)
    oss = model_size("gpt-oss-120b")
    assert oss.kv_bytes(22_660) == pytest.approx(0.84e9, rel=1e-3)
    assert oss.kv_bytes(1001) - oss.kv_bytes(1000) == 36_864


def test_only_a_mixture_has_fewer_active_parameters():
    assert model_size("gpt-oss-120b").active == 5.1e9
    assert model_size("Qwen3-8B").active == model_size("Qwen3-8B").parameters


def test_every_model_has_a_source_and_weights_beyond_its_embedding():
    for model in MODELS:
        assert model.source, model.name
        assert 0 < model.embedding < model.parameters / 3, model.name


def test_a_likeness_is_no_identity():
    assert model_size("llama-3.3-70b") is not None
    assert model_size("Llama-3.3") is None
