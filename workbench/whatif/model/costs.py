"""The time of a step, a token and a byte, and the limits of an instance."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Durations of one resample of a profile, in seconds, and the engine's own limits."""

    prefill_step_s: float
    token_s: float
    """Per new token."""
    pair_s: float
    """Per new token and token that it attends to."""
    decode_step_s: float
    sequence_s: float
    """Per sequence of a decode step."""
    kv_token_s: float
    """Per KV token that a decode step reads."""
    transfer_s: float
    byte_s: float
    concurrent_s: float
    """Per other transfer to the same decode instance."""
    step_tokens: int
    """Token budget of a step (max_num_batched_tokens)."""
    step_sequences: int
    """Sequences of a step (max_num_seqs)."""
    block_tokens: int
    kv_tokens: dict[str, int]
    """KV space of an instance, by role."""
    kv_bytes_per_token: float
    holds: bool
    """Prefill keeps its blocks until decode has pulled them."""
    profiled_kv_tokens: float = inf
    """The most KV tokens of a decode batch that was measured."""

    def prefill_s(self, tokens: int, before: int = 0) -> float:
        """A prompt alone on an instance, from its first step to its first token."""
        steps = max(1, ceil(tokens / self.step_tokens))
        pairs = tokens * (before + tokens / 2)
        return steps * self.prefill_step_s + tokens * self.token_s + pairs * self.pair_s

    def decode_s(self, batch: float, kv_tokens: float) -> float:
        """One decode step."""
        return self.decode_step_s + batch * self.sequence_s + kv_tokens * self.kv_token_s

    def transfer_of(self, tokens: float, others: float = 0) -> float:
        """The KV of a prompt to its decode instance."""
        moved = tokens * self.kv_bytes_per_token * self.byte_s
        return self.transfer_s + moved + others * self.concurrent_s
