from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from platform import python_version
from typing import Any

import pytest

from workbench.errors import ParameterError, PlanError
from workbench.serve import tiny_model as module
from workbench.serve.tiny_model import ModelFacts, model_facts, tiny_model

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="the engine is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tiny_model(tmp_path_factory.mktemp("cache"))


def written(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- the tiny model


def test_what_is_no_weight_file_has_no_known_size(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    for content in (b"", b"\xff" * 64, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}"):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert model_facts(written(tmp_path, config)).parameters == 0.0


def test_facts_are_those_of_the_recipe(tiny: Path) -> None:
    facts = model_facts(tiny)
    assert facts.parameters == 3_934_400  # 11,798,720, of which the two tables are 7,864,320
    assert replace(facts, parameters=0.0) == ModelFacts(
        layers=3, kv_heads=2, head_dim=32, vocab_tokens=12288, context_tokens=40960, hidden=320,
        plain=True,
    )  # fmt: skip
    assert facts.kv_shape.bytes_per_token == 768


def test_second_call_only_looks(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_ns = (tiny / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(module, "_build", None)
    assert tiny_model(tiny.parent) == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == made_ns


def test_transformers_reads_the_configuration(tiny: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(tiny)
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (3, 320, 32)
    assert config.rope_parameters["rope_theta"] == 500000.0
    assert str(config.dtype).endswith("bfloat16")


def test_tokenizer_round_trips_text_and_knows_the_chat_template(tiny: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    text = "def prefill(tokens: list[int]) -> None:  # größer, 漢字"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text)
    assert len(tokenizer) == 12288
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "user: hi\nassistant: "


@pytest.mark.parametrize("layers", [3, 1])
def test_weights_fill_a_llama_and_greedy_text_has_a_clear_winner(layers: int, tiny: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny_model(tiny.parent, layers=layers)
    assert (folder == tiny) == (layers == 3)
    assert model_facts(folder).layers == layers
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    with torch.no_grad():
        logits = model(torch.arange(100, 164)[None]).logits[0].float()
    best, second = logits.topk(2).values.unbind(-1)
    # bf16 resolves about 0.06 at these logits: most positions must win by more than that.
    assert (best - second).median() > 0.1
    assert logits.argmax(-1).unique().numel() > 32
    # The last answer rests on the KV of all tokens, so that another prompt's KV would show.
    with torch.no_grad():
        other = model(torch.arange(100, 164).roll(1)[None]).logits[0].float()
    assert (other[-1] - logits[-1]).abs().max() > 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kv_has_16_bits_whatever_the_weights_unless_told_otherwise(
    dtype: str, tiny: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny / "config.json").read_text()) | {"dtype": dtype}
    facts = model_facts(written(tmp_path, config))
    assert facts.kv_shape.bytes_per_token == 768
    assert facts.run_as("float32").kv_shape.bytes_per_token == 1536
    assert facts.run_as("") == facts.run_as("bfloat16") == facts


def test_same_recipe_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    again = tiny_model(tmp_path)
    assert again.name == tiny.name
    for file in sorted(tiny.iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_changed_recipe_has_another_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEED", 1)
    assert module._recipe_hash(module._CONFIG, python_version()) not in tiny.name


@needs_torch
def test_threads_and_processes_at_once_get_one_whole_model(tmp_path: Path) -> None:
    code = "import sys; from workbench.serve.tiny_model import tiny_model; print(tiny_model())"
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"WORKBENCH_CACHE": str(tmp_path), "PATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    with ThreadPoolExecutor(2) as threads:
        folders = set(threads.map(tiny_model, [tmp_path, tmp_path]))
    folders.add(Path(other.communicate(timeout=120)[0].strip()))
    assert len(folders) == 1
    assert list(tmp_path.iterdir()) == list(folders), "a half-built folder was left"
    assert {file.name for file in folders.pop().iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, config: object) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_build", fail)
    with pytest.raises(KeyboardInterrupt):
        tiny_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "safetensors.torch", raising=False)
    with pytest.raises(
        PlanError, match=r"needs the package (torch|safetensors), which comes with vLLM"
    ):
        tiny_model(tmp_path)


def test_unwritable_cache_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlanError, match=r"WORKBENCH_CACHE .* must be a writable folder"):
        tiny_model(tmp_path / "file")


# --- the facts of any model


LLAMA_70B = {
    "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
GPT_2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}


@pytest.mark.parametrize(
    ("config", "kv_heads", "head_dim", "kv_bytes"),
    [
        (LLAMA_70B, 8, 128, 327_680),
        # A stated width wins over the quotient (gpt-oss-120b).
        (LLAMA_70B | {"hidden_size": 2880, "num_hidden_layers": 36, "head_dim": 64}, 8, 64, 73_728),
        # Without KV heads every head has its own.
        (GPT_2, 12, 64, 36_864),
        # A text model inside a multimodal one.
        ({"model_type": "both", "text_config": LLAMA_70B | {"head_dim": None}}, 8, 128, 327_680),
        # Latent attention (DeepSeek-V3): one vector of 512 + 64 a layer, in 16 bits.
        (
            LLAMA_70B | {"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
            1, 288, 61 * 576 * 2,
        ),
    ],
)  # fmt: skip
def test_the_kv_of_a_token_follows_from_the_configuration(
    config: dict[str, Any], kv_heads: int, head_dim: int, kv_bytes: int, tmp_path: Path
) -> None:
    facts = model_facts(written(tmp_path, config))
    assert (facts.kv_heads, facts.head_dim) == (kv_heads, head_dim)
    assert facts.kv_shape.bytes_per_token == kv_bytes


def test_other_facts_have_other_names_in_older_models(tmp_path: Path) -> None:
    facts = model_facts(str(written(tmp_path, GPT_2)))
    assert (facts.layers, facts.hidden, facts.vocab_tokens) == (12, 768, 50257)
    assert (facts.context_tokens, facts.plain) == (1024, True)


@pytest.mark.parametrize("more", [{"num_local_experts": 8}, {"quantization_config": {}}])
def test_experts_and_small_weights_are_not_plain(more: dict[str, Any], tmp_path: Path) -> None:
    assert not model_facts(written(tmp_path, GPT_2 | more)).plain


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"must be an existing folder with config\.json"),
        ("not json", r"config\.json is a model configuration"),
        ('["a", "list"]', r"config\.json is a model configuration"),
        ('{"hidden_size": 1}', "config.json has num_hidden_layers or n_layer"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_file(
    text: str | None, sentence: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ParameterError, match=sentence):
        model_facts(tmp_path)
