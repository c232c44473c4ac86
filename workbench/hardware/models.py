"""Sizes of well-known models, to check measured numbers against hardware limits.

Widths and vocabularies are from each model's config.json; `source` says how a row was verified.
Parameter counts marked "from memory" were not verified.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The parameter counts of a model."""

    name: str
    parameters: float
    embedding: float
    """Parameters of the input embedding and the output head together."""
    source: str
    active_parameters: float = 0.0
    """Parameters used per token; 0 for a dense model, which uses all."""

    @property
    def active(self) -> float:
        return self.active_parameters or self.parameters


def model_size(name: str) -> ModelSize | None:
    """The model of exactly that name, or None."""
    wanted = name.strip().casefold()
    return next((model for model in MODELS if model.name.casefold() == wanted), None)


MODELS = (
    ModelSize("LLaMA-2-7B", 6.738e9, 2.0 * 32_000 * 4096, "from memory"),
    ModelSize("LLaMA-2-13B", 13.016e9, 2.0 * 32_000 * 5120, "from memory"),
    ModelSize("LLaMA-2-70B", 68.977e9, 2.0 * 32_000 * 8192, "from memory"),
    ModelSize("Llama-3.1-8B", 8.03e9, 2.0 * 128_256 * 4096, "Llama-3-8B config, a copy"),
    ModelSize("Llama-3.3-70B", 70.55e9, 2.0 * 128_256 * 8192, "Llama-3-70B config, a copy"),
    ModelSize("Qwen2.5-7B", 7.62e9, 2.0 * 152_064 * 3584, "Qwen2.5-7B-Instruct config, a copy"),
    ModelSize("Qwen3-8B", 8.19e9, 2.0 * 151_936 * 4096, "Qwen3-8B config, a copy"),
    ModelSize("gpt-oss-120b", 116.8e9, 2.0 * 201_088 * 2880,
              "gpt-oss config, a copy; vocabulary and parameters from memory", 5.1e9),
    ModelSize("DeepSeek-V3", 671e9, 2.0 * 129_280 * 7168,
              "vLLM's DeepseekV3Config page; vocabulary and parameters from memory", 37e9),
)  # fmt: skip
