"""The tiny Llamas for machines without a GPU, and the sizes in any model's configuration.

`tiny` is built on this machine: 12 million parameters with seeded weights, scaled so that
greedy decoding has a clear winner, and a tokenizer trained on Python's standard library. Its text
makes no sense, but vLLM runs it like any Llama, and a prefix hit is 28 to 110 times cheaper than
its prefill (5,000 to 22,000 tokens on one core), which is what is measured. `tiny-wide`, for runs
over several models, has fewer layers with twice as many heads: 18 million parameters, and a third
more KV for each token.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError, PlanError, must_be
from workbench.hardware.cache import cache_folder, not_writable
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.hardware.kv import KvShape

LAYERS = 3
"""Layers of `tiny` on a machine that is not slow."""

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 320,
    "intermediate_size": 1280,
    "num_hidden_layers": LAYERS,
    # Two narrow heads keep long prompts affordable: attention cost is quadratic.
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    # `vllm bench latency` draws token ids up to 9,999.
    "vocab_size": 12288,
    "max_position_embeddings": 40960,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "tiny-wide": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
}
"""What differs from _CONFIG in each of `params.shared.BUILT_IN_MODELS`."""
_TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "model_max_length": _CONFIG["max_position_embeddings"],
    "clean_up_tokenization_spaces": False,
    "chat_template": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    ),
}
_SEED = 20260101
_TRAINING_FILES = 150
_RECIPE = 1
"""Increment it when `_weights` or `_tokenizer` changes, so that the model is rebuilt."""

_BUILT = "built"

_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"),
}

_ELEMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0}
"""Bytes of an element of the KV cache, by dtype; every `fp8_...` is one byte."""

_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""

_NOT_PLAIN = ("num_experts", "num_local_experts", "n_routed_experts", "quantization_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of a model's KV cache and its context length, from its configuration."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_tokens: int
    context_tokens: int
    """Longest prompt plus output."""
    stretched: bool = False
    """Rope scaling in the configuration: the engine may take more than `context_tokens`."""
    hidden: int = 0
    plain: bool = False
    """Dense and not quantised: every weight is used for every token."""

    element_bytes: float = 2.0
    """Bytes of a KV element. vLLM runs float32 weights in 16 bits too unless a dtype is given
    (vllm/config/model.py: _resolve_auto_dtype)."""
    parameters: float = 0.0
    """Parameters used by every token, without embedding and output head; 0 without weight files or
    if the model is not `plain`."""

    @property
    def kv_shape(self) -> KvShape:
        """The shape of a token's KV entry, in the dtype that the model runs in."""
        return KvShape(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            element_bytes=self.element_bytes,
        )

    def run_as(self, dtype: str, kv_dtype: str = "") -> ModelFacts:
        """The same model with other dtypes of weights and KV cache; empty changes nothing."""
        kv = kv_dtype.partition("_")[0] if kv_dtype not in ("", "auto") else dtype
        return replace(self, element_bytes=_ELEMENT_BYTES.get(kv, self.element_bytes))


def all_layers(name: str) -> int:
    """Layers of a built-in model on a machine that is not slow."""
    return int((_CONFIG | _SIZES[name])["num_hidden_layers"])


def tiny_model(
    cache_dir: Path | None = None,
    *,
    name: str = "tiny",
    layers: int = 0,
    engine: Interpreter | None = None,
) -> Path:
    """Folder of a tiny model in Hugging Face format, built on the first call (seconds, 25 MB).

    Fewer `layers` than it has make a model for slow machines. `engine` builds it, which has torch.
    It is in `cache_folder`; its name has a hash of the recipe and of the Python version, whose
    standard library the tokenizer is trained on. Several processes may call this at once: the first
    to finish wins. Raises PlanError if it cannot be built.
    """
    engine = engine or interpreter()
    config = _CONFIG | _SIZES[name] | ({"num_hidden_layers": layers} if layers else {})
    place = (cache_dir or cache_folder()) / f"tiny-llama-{_recipe_hash(config, engine.python)}"
    if place.is_dir():
        return place
    building: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".tiny-llama-", dir=place.parent))
        if engine.own:
            _build(building, config)
        else:
            _built_by(engine, building, config)
        building.chmod(0o755)
        building.rename(place)
    except ModuleNotFoundError as error:
        raise PlanError(
            f"the tiny model needs the package {error.name}, which comes with vLLM; run make setup,"
            " or give the interpreter of an environment with vLLM (example: -p engine_python"
            " /opt/vllm/bin/python)"
        ) from error
    except OSError as error:
        # A folder cannot be renamed onto one with files in it: then another process was first.
        if not place.is_dir():
            raise not_writable(place.parent, error) from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return place


def model_facts(path: Path | str) -> ModelFacts:
    """Read `config.json` in a local model folder, for any architecture that states its sizes.

    The text model of a multimodal one (`text_config`) is used. A missing head width is hidden size
    / heads, and missing KV heads are all heads, as in transformers. Raises ParameterError if the
    folder, the file or a size is missing.
    """
    folder = Path(path).expanduser()
    allowed = "an existing folder with config.json, or empty for the tiny model"
    example = "/models/Qwen2.5-7B-Instruct"
    if not folder.is_dir():
        raise ParameterError(must_be("model", allowed, str(path), example))
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
        config = config.get("text_config") or config
    except FileNotFoundError:
        raise ParameterError(must_be("model", allowed, str(path), example)) from None
    except (ValueError, AttributeError) as error:
        allowed = f"a folder whose config.json is a model configuration ({error})"
        raise ParameterError(must_be("model", allowed, str(path), example)) from error
    sizes = {name: _size(config, keys, file) for name, keys in _KEYS.items()}
    kv_heads = config.get("num_key_value_heads") or sizes["heads"]
    head_dim = config.get("head_dim") or sizes["hidden"] // sizes["heads"]
    if latent := config.get("kv_lora_rank"):
        # Multi-head latent attention caches one shared vector per token instead of K and V of
        # each head: one head of half that width has the same bytes.
        kv_heads, head_dim = 1, (latent + config.get("qk_rope_head_dim", 0)) // 2
    plain = not any(key in config for key in _NOT_PLAIN)
    weights = sum(map(_numbers_in, folder.glob("model*.safetensors")))
    tables = 2 * sizes["vocabulary"] * sizes["hidden"]
    return ModelFacts(
        layers=sizes["layers"],
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_tokens=sizes["vocabulary"],
        context_tokens=sizes["context"],
        stretched=bool(config.get("rope_scaling") or config.get("rope_parameters")),
        hidden=sizes["hidden"],
        plain=plain,
        parameters=float(max(0, weights - tables)) if plain else 0.0,
    )


def _numbers_in(file: Path) -> int:
    """Number of values in a safetensors file, by its header: 8 bytes of length, JSON with shapes.

    0 without such a header: the engine will report what is wrong with the file.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(min(length, _HEADER_BYTES))
    try:
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        return sum(prod(tensor["shape"]) for tensor in tensors.values())
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0


def _size(config: Mapping[str, Any], keys: tuple[str, ...], file: Path) -> int:
    for key in keys:
        if isinstance(config.get(key), int):
            return int(config[key])
    allowed = f"a folder whose config.json has {' or '.join(keys)}"
    raise ParameterError(must_be("model", allowed, str(file.parent), "/models/Qwen2.5-7B-Instruct"))


def _recipe_hash(config: Mapping[str, Any], python: str) -> str:
    recipe = [_RECIPE, _SEED, _TRAINING_FILES, config, _TOKENIZER_CONFIG]
    text = json.dumps([*recipe, python], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _built_by(engine: Interpreter, folder: Path, config: Mapping[str, Any]) -> None:
    said = engine.run(__name__, str(folder), json.dumps(config))
    if said != _BUILT:
        raise PlanError(
            f"the tiny model could not be built by {engine.path}: {said or 'it said nothing'}; give"
            " a model (example: -p model /models/Qwen2.5-7B-Instruct)"
        )


def _build(folder: Path, config: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    tokenizer = _tokenizer()
    if tokenizer.get_vocab_size() != _CONFIG["vocab_size"]:
        raise PlanError(
            f"the tiny model's tokenizer must have {_CONFIG['vocab_size']} tokens, got"
            f" {tokenizer.get_vocab_size()}: {sysconfig.get_path('stdlib')} lacks the standard"
            " library's sources; use a full Python, or give a model (example: -p model"
            " /models/Qwen2.5-7B-Instruct)"
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(
        _weights(config),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _tokenizer() -> Any:
    """Byte-level BPE, trained on the standard library's modules in the order of their names."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_CONFIG["vocab_size"],
        special_tokens=[_TOKENIZER_CONFIG["bos_token"], _TOKENIZER_CONFIG["eos_token"]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    files = sorted(str(file) for file in Path(sysconfig.get_path("stdlib")).glob("*.py"))
    tokenizer.train(files[:_TRAINING_FILES], trainer)
    return tokenizer


def _weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """Seeded normal weights, scaled by fan-in; queries, keys and logits slightly larger."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)

    def normal(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        weights = torch.randn(rows, columns, generator=generator) * gain * columns**-0.5
        return weights.to(torch.bfloat16)

    hidden, inner, vocabulary = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    weights = {
        "model.embed_tokens.weight": normal(vocabulary, hidden, gain=hidden**0.5),
        "model.norm.weight": ones,
        "lm_head.weight": normal(vocabulary, hidden, gain=3.0),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        weights |= {
            name + "self_attn.q_proj.weight": normal(queries, hidden, gain=2.0),
            name + "self_attn.k_proj.weight": normal(keys, hidden, gain=2.0),
            name + "self_attn.v_proj.weight": normal(keys, hidden),
            name + "self_attn.o_proj.weight": normal(hidden, queries),
            name + "mlp.gate_proj.weight": normal(inner, hidden),
            name + "mlp.up_proj.weight": normal(inner, hidden),
            name + "mlp.down_proj.weight": normal(hidden, inner),
            name + "input_layernorm.weight": ones.clone(),
            name + "post_attention_layernorm.weight": ones.clone(),
        }
    return weights


if __name__ == "__main__":
    try:
        _build(Path(sys.argv[1]), json.loads(sys.argv[2]))
        print(_BUILT)
    except (ImportError, OSError, PlanError) as error:
        print(error)
