"""The tiny Llama for machines without a GPU, and the facts of any model's configuration.

The tiny model is made on this machine: 12 million parameters with seeded weights, scaled so that
greedy decoding has a clear winner, and a tokenizer trained on Python's standard library. It says
nothing sensible, but vLLM runs it as it runs any Llama, and a prefix hit is 28 to 110 times
cheaper than its prefill (5,000 to 22,000 tokens, on one core), which is what is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError, PlanError
from workbench.hardware.kv import KvShape

LAYERS = 3
"""Of the tiny model, where the machine is not slow."""

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 320,
    "intermediate_size": 1280,
    "num_hidden_layers": LAYERS,
    # Two narrow heads keep long prompts affordable: attention grows with the square.
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
"""Raise it when `_weights` or `_tokenizer` changes, so that nobody gets the old model."""

_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"),
}

_ELEMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}

_HEADER_BYTES = 100_000_000
"""Most that safetensors itself accepts."""

_NOT_PLAIN = ("num_experts", "num_local_experts", "n_routed_experts", "quantization_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model's configuration says about its KV entries and the lengths it takes."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_tokens: int
    context_tokens: int
    """Longest prompt plus output; rope scaling given to the engine can raise it."""
    hidden: int = 0
    plain: bool = False
    """Dense and not quantised: every weight works on every token."""

    element_bytes: float = 2.0
    """Bytes of a KV element. vLLM runs weights of float32 in 16 bits too, unless told otherwise
    (vllm/config/model.py: _resolve_auto_dtype)."""
    parameters: float = 0.0
    """Those that every token passes, without embedding table and output head; 0 where the folder
    has no weight files, or the model is not `plain`."""

    @property
    def kv_shape(self) -> KvShape:
        """What decides the size of a token's KV, in the number format that the model runs in."""
        return KvShape(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            element_bytes=self.element_bytes,
        )

    def run_as(self, dtype: str) -> ModelFacts:
        """The same model in another number format; empty leaves it as it is."""
        return replace(self, element_bytes=_ELEMENT_BYTES.get(dtype, self.element_bytes))


def tiny_model(cache_dir: Path | None = None, *, layers: int = LAYERS) -> Path:
    """Folder of the tiny model in Hugging Face format; made on the first call (seconds, 25 MB).

    Fewer `layers` than LAYERS make a model for slow machines. It lies in `cache_folder`; its name
    has a hash of the recipe and of the Python version, whose standard library the tokenizer is
    trained on. Several processes may call this at once: each builds beside the place, and the first
    to finish wins. Raises PlanError when it can't be made.
    """
    config = _CONFIG | {"num_hidden_layers": layers}
    place = (cache_dir or cache_folder()) / f"tiny-llama-{_recipe_hash(config)}"
    if place.is_dir():
        return place
    building: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".tiny-llama-", dir=place.parent))
        _build(building, config)
        building.chmod(0o755)
        building.rename(place)
    except ModuleNotFoundError as error:
        raise PlanError(
            f"the tiny model needs {error.name}, which comes with vLLM; install the engine first,"
            " or give a model folder"
        ) from error
    except OSError as error:
        # A folder cannot be renamed onto one with files in it: then another process was first.
        if not place.is_dir():
            raise PlanError(
                f"the tiny model cannot be written to {place.parent}: {error};"
                " set WORKBENCH_CACHE to a folder with 30 MB free"
            ) from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return place


def model_facts(path: Path | str) -> ModelFacts:
    """Read `config.json` in a local model folder, of any architecture that states its sizes.

    Text models inside multimodal ones (`text_config`) are followed; a missing head width is
    hidden size / heads, and missing KV heads are all heads, as in transformers. Raises
    ParameterError when the folder, the file or a size is missing.
    """
    folder = Path(path).expanduser()
    hint = "give a folder with config.json, or leave model empty for the tiny model"
    if not folder.is_dir():
        raise ParameterError(f"model folder {folder} does not exist; {hint}")
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
        config = config.get("text_config") or config
    except FileNotFoundError:
        raise ParameterError(f"model folder {folder} has no config.json; {hint}") from None
    except (ValueError, AttributeError) as error:
        raise ParameterError(f"{file} is not a model configuration: {error}; {hint}") from error
    sizes = {name: _size(config, keys, file) for name, keys in _KEYS.items()}
    kv_heads = config.get("num_key_value_heads") or sizes["heads"]
    head_dim = config.get("head_dim") or sizes["hidden"] // sizes["heads"]
    if latent := config.get("kv_lora_rank"):
        # Multi-head latent attention caches one shared vector per token instead of K and V of
        # each head: one head of half its width gives the same bytes.
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
        hidden=sizes["hidden"],
        plain=plain,
        parameters=float(max(0, weights - tables)) if plain else 0.0,
    )


def _numbers_in(file: Path) -> int:
    """Numbers in a safetensors file, by its header: 8 bytes of length, then JSON with shapes.

    0 without such a header: the engine will say what is wrong with the file.
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
    raise ParameterError(f"{file} does not say {' or '.join(keys)}: its model is not known here")


def cache_folder() -> Path:
    """Where the tiny model and what is known of this machine's speed are kept."""
    if own := os.environ.get("WORKBENCH_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "workbench"


def _recipe_hash(config: Mapping[str, Any]) -> str:
    recipe = [_RECIPE, _SEED, _TRAINING_FILES, config, _TOKENIZER_CONFIG]
    text = json.dumps([*recipe, platform.python_version()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _build(folder: Path, config: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    tokenizer = _tokenizer()
    if tokenizer.get_vocab_size() != _CONFIG["vocab_size"]:
        raise PlanError(
            f"the tiny model's tokenizer has {tokenizer.get_vocab_size()} tokens, not"
            f" {_CONFIG['vocab_size']}: {sysconfig.get_path('stdlib')} lacks the sources of the"
            " standard library; use a full Python, or give a model folder"
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(
        _weights(config["num_hidden_layers"]),
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


def _weights(layers: int) -> dict[str, Any]:
    """Seeded normal weights, each scaled by its fan-in; queries, keys and logits a bit sharper."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)

    def normal(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        weights = torch.randn(rows, columns, generator=generator) * gain * columns**-0.5
        return weights.to(torch.bfloat16)

    hidden, inner, vocabulary = (
        _CONFIG[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    queries = _CONFIG["num_attention_heads"] * _CONFIG["head_dim"]
    keys = _CONFIG["num_key_value_heads"] * _CONFIG["head_dim"]
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    weights = {
        "model.embed_tokens.weight": normal(vocabulary, hidden, gain=hidden**0.5),
        "model.norm.weight": ones,
        "lm_head.weight": normal(vocabulary, hidden, gain=3.0),
    }
    for layer in range(layers):
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
