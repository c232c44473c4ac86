"""What one pass sent and what the servers counted in it: the input of gates and ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Literal

from workbench.metrics.counters import NixlCounters, StoreCounters, TokenSources
from workbench.metrics.ideal import Reuse
from workbench.topology import Role

Source = Literal["engine_hit", "external_hit"]

_FETCHED: Source = "external_hit"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCounters:
    """What was sent in one pass, and what the servers counted in it, summed per role."""

    arm: str
    round: int
    pass_name: str
    """`cold`, `engine-warm`, `cross-instance`, `store-warm` or `offload-warm`."""
    stores: bool = False
    """Its connector has a store, which serves whole chunks."""
    private: bool = False
    """Each instance has one of its own: host memory below its KV space."""
    stores_late: bool = False
    """Engines may respond before the store has all blocks of a prompt."""
    counts_lookups: bool = True
    """The store's hits are what engines looked up; else what they loaded."""
    pulls: bool = False
    """Decode instances pull KV, so that transfers can fail and KV can expire."""
    requests_sent: int
    prompt_tokens_sent: int
    longest_prompt_tokens: int = 0
    ideal_reuse_tokens: int = 0
    """Tokens that the workload itself repeats, so that even a cold pass may hit them."""
    sources: Mapping[Role, TokenSources] = field(default_factory=dict)
    """Every role of the deployment; `TokenSources()` where its counters are unknown."""
    requests: Mapping[Role, float] = field(default_factory=dict)
    """Requests that finished normally, per role."""
    preemptions: Mapping[Role, float] = field(default_factory=dict)
    store: StoreCounters | None = None
    """What the store did in this pass, for all roles; None without a store."""
    store_since_empty: StoreCounters | None = None
    """The same since the store was last emptied."""
    nixl: NixlCounters | None = None
    """KV that decode instances pulled, and failures on either side; None without NIXL."""
    expired_before: float = 0.0
    """Prompts whose KV expired between the previous pass and this one."""
    reuse: Mapping[Role, Reuse] = field(default_factory=dict)
    """What infinite caches would have served; empty where that is unknown."""
    requests_failed: int = 0
    failed_prompt_tokens: int = 0
    """Prompt tokens of failed requests, which servers may or may not have counted."""
    overflowed: frozenset[Role] = frozenset()
    """Roles with an instance that received more prompt tokens than its KV cache holds."""
    kv_bytes_per_token: float = nan
    block_tokens: int = 16
    """vLLM's KV block: the rest of a prompt after whole blocks is always computed."""
    chunk_tokens: int = 256
    """The store's chunk, likewise."""

    @property
    def is_cold(self) -> bool:
        """Also `cold at 2/s`, of a sweep over rates."""
        return self.pass_name == "cold" or self.pass_name.startswith("cold at ")

    @property
    def label(self) -> str:
        return f"{self.arm}, round {self.round + 1}, {self.pass_name}"

    def grain_tokens(self, source: Source) -> int:
        """The unit in which a source serves a prompt; the rest is computed."""
        by_chunk = source == _FETCHED and self.stores
        return self.chunk_tokens if by_chunk else self.block_tokens
