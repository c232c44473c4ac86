"""Arithmetic of the KV cache: bytes per token, blocks, chunks, and the hits that they allow."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import ParameterError

__all__ = ["KvShape", "chunk_hit_tokens", "engine_hit_tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """What decides the size of a token's KV entry in a model with grouped-query attention."""

    layers: int
    kv_heads: int
    head_dim: int
    element_bytes: float = 2.0

    def __post_init__(self) -> None:
        if min(self.layers, self.kv_heads, self.head_dim, self.element_bytes) <= 0:
            raise ParameterError(f"{self!r}: layers, heads, width and bytes are all above zero")

    @property
    def bytes_per_token(self) -> float:
        """2 (K and V) x layers x KV heads x head width x bytes per element.

        Source: Kwon et al., PagedAttention (SOSP'23), section 3.
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * self.element_bytes


def engine_hit_tokens(prompt_tokens: int, *, block_tokens: int) -> int:
    """Most prompt tokens that vLLM's prefix cache serves of a prompt it has seen before.

    Whole blocks only, and never the last token, whose logits are needed:
    floor((L - 1) / block) * block (vLLM, v1 KV cache manager, `get_computed_blocks`).
    """
    return max(0, (prompt_tokens - 1) // block_tokens * block_tokens)


def chunk_hit_tokens(prompt_tokens: int, *, chunk_tokens: int) -> int:
    """Most prompt tokens that a store of whole chunks (LMCache) holds of a prompt."""
    return prompt_tokens // chunk_tokens * chunk_tokens
