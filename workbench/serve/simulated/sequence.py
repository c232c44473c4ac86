"""One request inside the pretend engine: what it is, how far it has come, what it holds."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from math import nan

from workbench.serve.simulated.blocks import chain_of

__all__ = ["Offer", "Sequence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A prefix of the prompt that lies outside the instance."""

    tokens: int = 0
    tier: str = "external_unspecified"
    """As vLLM calls it: `external_unspecified` for a store, `p2p` for another instance."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One request inside the engine."""

    id: str
    prompt: Tokens[int]
    max_tokens: int
    arrived_s: float
    offer: Offer = field(default_factory=Offer)
    reported_cached: int = -1
    """What usage calls cached, where the prefill instance has said it; else -1."""
    hold: bool = False
    """Keep the blocks after the end, for a decode instance to fetch."""
    outputs: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    final: bytes = b""
    """The content of the whole prompt: the text is made from it."""
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    sealed: int = 0
    """Blocks, from the first on, that the cache knows."""
    loading: bool = False
    local: int = 0
    external: int = 0
    preemptions: int = 0
    scheduled_s: float = nan
    first_s: float = nan
    last_s: float = nan
    ended: bool = False

    def __post_init__(self) -> None:
        self.hashes = chain_of(self.prompt)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.outputs)

    @property
    def cached(self) -> int:
        """`cached_tokens` of the answer's usage."""
        return self.local + self.external if self.reported_cached < 0 else self.reported_cached
