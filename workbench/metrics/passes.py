"""What one pass sent and what the servers counted in it: the input of gates and ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Literal

from workbench.metrics.counters import DraftCounters, StoreCounters, TokenSources, TransferCounters
from workbench.metrics.ideal import Reuse
from workbench.topology import Role

Source = Literal["engine_hit", "external_hit"]

_FETCHED: Source = "external_hit"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCounts:
    """One tier of the store below its memory, at the end of a pass. NaN for what is unknown.

    All but `loads` are chunks since the tier was last emptied.
    """

    name: str
    """`disk`, `redis` or `mooncake`."""
    shown: str
    state: str
    """The cache state in which it alone has the KV."""
    loads: float = nan
    """Loads from it in this pass, as the store counts them."""
    sent: float = nan
    """What the store began to write to it, and what it says it wrote."""
    written: float = nan
    held: float = nan
    """What it has at its own end."""
    evicted: float = nan
    """What it says it dropped to make room."""
    problem: str = ""
    """Why it does not say what it has."""

    @property
    def lost(self) -> float:
        return self.sent - self.held

    @property
    def why_lost(self) -> str:
        """What the counters show about lost chunks: `3 writes failed`."""
        # A write fails as a whole in LMCache's count, even if the tier kept a part of it.
        failed = min(self.sent - self.written, self.lost)
        said = [f"{failed:,.0f} were not written"] if failed > 0 else []
        said += [f"it evicted {self.evicted:,.0f}"] if self.evicted > 0 else []
        return " and ".join(said)


def is_cold(pass_name: str) -> bool:
    """Also `cold at 2/s` and `cold at 8 users` of a sweep, `cold, 4 in flight` of a profile."""
    return pass_name.startswith("cold")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCounters:
    """What was sent in one pass, and what the servers counted in it, summed per role."""

    arm: str
    round: int
    pass_name: str
    """A cache state such as `store-warm`, or the name of a pass in that state."""
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
    read_bytes: float | None = None
    """KV that engines read from the store, as vLLM's connector counts it; None if it does not."""
    transfers: TransferCounters | None = None
    """KV that decode instances pulled, and failures on either side; None where nobody counts."""
    drafts: DraftCounters | None = None
    """Speculative decoding of all instances; None without it."""
    tiers: tuple[TierCounts, ...] = ()
    """Tiers of the store below its memory."""
    chunk_objects: int = 1
    """Objects that the store keeps for a chunk, one for each rank; 0 if roles differ."""
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
        return is_cold(self.pass_name)

    def loaded(self, role: Role) -> dict[str, float]:
        """Tokens that this role loaded from each tier of the store; empty where that is unknown.

        The store counts hits by tier for all roles, and what an engine did not need as well. So
        they are tokens of a role only if one tier had hits, or if all of them were loaded.
        """
        if self.store is None or not self.tiers:
            return {}
        external = self.sources[role].external_hit
        memory, below = self.store.hit_l1_tokens, self.store.hit_l2_tokens
        names = [tier.name for tier in self.tiers if tier.loads > 0]
        none = {"memory": 0.0} | {tier.name: 0.0 for tier in self.tiers}
        if below == 0:
            return none | {"memory": external}
        if len(names) != 1:
            return {}
        if memory == 0:
            return none | {names[0]: external}
        if len(self.sources) == 1 and memory + below == external:
            return none | {"memory": memory, names[0]: below}
        return {}

    @property
    def label(self) -> str:
        return f"{self.arm}, round {self.round + 1}, {self.pass_name}"

    def grain_tokens(self, source: Source) -> int:
        """The unit in which a source serves a prompt; the rest is computed."""
        # Attached servers have a store if one is counted, whatever their connector is.
        by_chunk = source == _FETCHED and (self.stores or self.store is not None)
        return self.chunk_tokens if by_chunk else self.block_tokens
