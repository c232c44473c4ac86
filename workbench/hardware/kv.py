"""Arithmetic of the KV cache: bytes per token, and the hits that blocks and chunks allow."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isnan, nan

from workbench.errors import check_positive

_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """The shape of a token's KV entry in a model with grouped-query attention."""

    layers: int
    kv_heads: int
    head_dim: int
    element_bytes: float = 2.0

    def __post_init__(self) -> None:
        names = ("layers", "kv_heads", "head_dim", "element_bytes")
        check_positive(**{name: getattr(self, name) for name in names})

    @property
    def bytes_per_token(self) -> float:
        """2 (K and V) x layers x KV heads x head width x bytes per element.

        Source: Kwon et al., PagedAttention (SOSP'23), section 3.
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * self.element_bytes


def engine_hit_tokens(prompt_tokens: int, *, block_tokens: int) -> int:
    """The most prompt tokens that vLLM's prefix cache can hit of a prompt it has seen before.

    Whole blocks only, and never the last token, whose logits are needed:
    floor((L - 1) / block) * block (vLLM, v1 KV cache manager, `get_computed_blocks`).
    """
    return max(0, (prompt_tokens - 1) // block_tokens * block_tokens)


def chunk_hit_tokens(prompt_tokens: int, *, chunk_tokens: int) -> int:
    """The most prompt tokens that a store of whole chunks (LMCache) holds of a prompt."""
    return prompt_tokens // chunk_tokens * chunk_tokens


def host_memory_blocks(memory_gb: float, *, block_bytes: float) -> float:
    """KV blocks that fit the host memory to which vLLM offloads; NaN if their size is unknown.

    A block there takes whole memory pages (vLLM 0.32, `CPUOffloadingSpec`).
    """
    if isnan(block_bytes):
        return nan
    return memory_gb * 2**30 // (ceil(block_bytes / _PAGE_BYTES) * _PAGE_BYTES)


def quantisation_ratio(
    *,
    bits: float,
    group: int,
    scale_bits: float = 16.0,
    zero_bits: float = 0.0,
    original_bits: float = 16.0,
) -> float:
    """The compression ratio of a quantised KV cache, scales included.

    original / (bits + (scale + zero) / group), a scale for each `group` elements (Liu et al.,
    KIVI, ICML 2024, section 3): int8 with a scale for 128 elements is 1.97 times smaller.
    """
    check_positive(bits=bits, group=group)
    return original_bits / (bits + (scale_bits + zero_bits) / group)
