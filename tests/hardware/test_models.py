from workbench.hardware.models import MODELS, model_size


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
