"""Sizes of well-known models, for arithmetic that refutes the impossible.

Layers, heads and widths are those of each model's config.json; `source` says how a row was
confirmed. Parameter counts marked "from memory" were not read in a source.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.hardware.kv import KvShape, latent_bytes_per_token, sliding_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What the size of a model's weights and KV follows from."""

    name: str
    parameters: float
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    embedding: float
    """Parameters of the input embedding and the output head together."""
    active_parameters: float = 0.0
    """Those that one token passes; 0 for a dense model, where it passes all."""
    latent: int = 0
    """Width of the MLA entry (latent and rotary part) that replaces K and V heads."""
    window: int = 0
    """Tokens that a sliding layer keeps; every second layer slides."""
    source: str = ""

    @property
    def active(self) -> float:
        return self.active_parameters or self.parameters

    def kv_bytes(self, tokens: int, *, element_bytes: float = 2.0) -> float:
        """KV bytes of one sequence of `tokens`."""
        if self.latent:
            width = latent_bytes_per_token(
                layers=self.layers, width=self.latent, element_bytes=element_bytes
            )
            return width * tokens
        shape = KvShape(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            element_bytes=element_bytes,
        )
        if not self.window:
            return shape.bytes_per_token * tokens
        return sliding_bytes(
            shape, tokens=tokens, window=self.window, sliding_layers=self.layers // 2
        )


def model_size(name: str) -> ModelSize | None:
    """The model of that name, or None: a size is never guessed from a likeness."""
    wanted = name.strip().casefold()
    return next((model for model in MODELS if model.name.casefold() == wanted), None)


def _dense(name: str, billion: float, shape: tuple[int, int, int], vocab: int, hidden: int,
           source: str, *, head_dim: int = 128) -> ModelSize:  # fmt: skip
    layers, q_heads, kv_heads = shape
    return ModelSize(
        name=name,
        parameters=billion * 1e9,
        layers=layers,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        embedding=2.0 * vocab * hidden,
        source=source,
    )


MODELS = (
    _dense("LLaMA-2-7B", 6.738, (32, 32, 32), 32_000, 4096, "from memory"),
    _dense(
        "LLaMA-2-13B", 13.016, (40, 40, 40), 32_000, 5120,
        "from memory; its KV agrees with the vLLM blog: 1.7 GB for 2,048 tokens",
    ),
    _dense("LLaMA-2-70B", 68.977, (80, 64, 8), 32_000, 8192, "from memory"),
    _dense("Llama-3.1-8B", 8.03, (32, 32, 8), 128_256, 4096, "Llama-3-8B config, a copy"),
    _dense("Llama-3.3-70B", 70.55, (80, 64, 8), 128_256, 8192, "Llama-3-70B config, a copy"),
    _dense("Qwen2.5-7B", 7.62, (28, 28, 4), 152_064, 3584, "Qwen2.5-7B-Instruct config, a copy"),
    _dense("Qwen3-8B", 8.19, (36, 32, 8), 151_936, 4096, "Qwen3-8B config, a copy"),
    ModelSize(
        name="gpt-oss-120b", parameters=116.8e9, active_parameters=5.1e9, layers=36, q_heads=64,
        kv_heads=8, head_dim=64, embedding=2.0 * 201_088 * 2880, window=128,
        source="gpt-oss config, a copy; window, vocabulary and parameters from memory",
    ),
    ModelSize(
        name="DeepSeek-V3", parameters=671e9, active_parameters=37e9, layers=61, q_heads=128,
        kv_heads=128, head_dim=128, embedding=2.0 * 129_280 * 7168, latent=512 + 64,
        source="vLLM's DeepseekV3Config page; vocabulary and parameters from memory",
    ),
)  # fmt: skip
