"""Checks that must hold before a number is shown; each says what it counted.

Pure functions: counters of passes, or the `requests` frame, in; a Gate out. A gate that lacks what
it needs is INCONCLUSIVE with the reason, never PASS. Not here yet: ledger, physics, transfers,
client saturation, steady state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Literal

from workbench.metrics.counters import TokenSources
from workbench.metrics.latency import succeeded
from workbench.topology import Role

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Gate",
    "PassCounters",
    "cold_was_cold",
    "cross_instance",
    "engine_warm",
    "kv_moved",
    "no_failures",
    "output_counts_equal",
    "same_text",
    "store_warm",
]

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Source = Literal["engine_hit", "external_hit"]

_STRAY_SHARE = 0.01
"""How far the tokens that servers counted may be from those sent, before someone else's traffic
(or a failed request) makes the count prove nothing."""
_WHENCE = {"engine_hit": "own prefix cache", "external_hit": "connector"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One check: its outcome, the sentence with the numbers, and what to do if it is not PASS."""

    name: str
    outcome: Outcome
    sentence: str
    next_step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCounters:
    """What was sent in one pass, and what the servers counted in it, added up per role."""

    arm: str
    round: int
    pass_name: str
    """`cold`, `engine-warm`, `cross-instance` or `store-warm`."""
    connector: str = "none"
    requests_sent: int
    prompt_tokens_sent: int
    ideal_reuse_tokens: int = 0
    """Tokens that the workload itself repeats: hits that even a cold pass may have."""
    sources: Mapping[Role, TokenSources] = field(default_factory=dict)
    requests: Mapping[Role, float] = field(default_factory=dict)
    """Requests that ended by themselves, per role."""
    block_tokens: int = 16
    """vLLM's KV block: what is left of a prompt after whole blocks is always computed."""
    chunk_tokens: int = 256
    """The store's chunk, likewise."""

    @property
    def label(self) -> str:
        return f"{self.arm}, round {self.round}, {self.pass_name}"


def cold_was_cold(passes: Iterable[PassCounters]) -> Gate:
    """No prompt token of a cold pass came from a cache, beyond the workload's own repeats.

    Prefill and aggregated instances may have no hit of either kind; decode instances none in
    their own cache (what reaches them through the connector is this pass's own prefill).
    """
    cold = [p for p in passes if p.pass_name == "cold"]
    problems, cached = [], 0.0
    unknown = _uncounted(cold)
    for p in cold:
        for role, sources in p.sources.items():
            hits = sources.engine_hit if role == "decode" else sources.cached
            cached += hits
            if hits > p.ideal_reuse_tokens:
                problems.append(
                    f"{p.label}: {hits:,.0f} of {p.prompt_tokens_sent:,} prompt tokens came from"
                    f" a cache of the {role} instances; the workload itself repeats"
                    f" {p.ideal_reuse_tokens:,}"
                )
    sent, own = (
        sum(p.prompt_tokens_sent for p in cold),
        sum(p.ideal_reuse_tokens for p in cold),
    )
    repeats = f"; the workload itself repeats {own:,}" if own else ""
    return _gate(
        "cold was cold",
        problems,
        unknown,
        f"{cached:,.0f} of {sent:,} prompt tokens came from any cache in {_passes(cold)}{repeats}",
        "reset every tier before the pass, or give the prompts a new salt",
    )


def kv_moved(passes: Iterable[PassCounters]) -> Gate:
    """In PD passes, prefill instances answered every request and decode instances fetched KV.

    Decode instances may compute, per request, one chunk and one token with LMCache, one block
    with the others (NIXL, Mooncake); more means that they prefilled silently. They must also
    have received something, except engine-warm, where their own cache has it all.
    """
    split = [p for p in passes if "prefill" in p.sources or "decode" in p.sources]
    problems, computed, received, allowed = [], 0.0, 0.0, 0
    unknown = _uncounted(split, also_requests=True)
    for p in split:
        decode = p.sources.get("decode", TokenSources())
        lmcache = p.connector.startswith("lmcache")
        allowance = p.requests_sent * (p.chunk_tokens + 1 if lmcache else p.block_tokens)
        computed, received = computed + decode.computed, received + decode.external_hit
        allowed += allowance
        for role in ("prefill", "decode"):
            if abs(p.requests.get(role, p.requests_sent) - p.requests_sent) > 0:
                problems.append(
                    f"{p.label}: the {role} instances finished {p.requests[role]:,.0f}"
                    f" of {p.requests_sent:,} requests sent"
                )
        if decode.computed > allowance:
            problems.append(
                f"{p.label}: the decode instances computed {decode.computed:,.0f} of"
                f" {p.prompt_tokens_sent:,} prompt tokens, at most {allowance:,} were allowed"
            )
        if decode.external_hit == 0 and p.pass_name != "engine-warm":
            problems.append(
                f"{p.label}: the decode instances received 0 of {p.prompt_tokens_sent:,}"
                " prompt tokens through the connector"
            )
    return _gate(
        "KV moved",
        problems,
        unknown,
        f"the decode instances received {received:,.0f} prompt tokens and computed"
        f" {computed:,.0f} (at most {allowed:,} allowed) in {_passes(split)}",
        "look in the decode instances' logs for the connector; prompts must be longer than a"
        " chunk",
    )


def engine_warm(passes: Iterable[PassCounters], *, share: float = 0.9) -> Gate:
    """Engine-warm passes were served by each instance's own prefix cache.

    On every role at least `share` of the prompt tokens that whole blocks can hold.
    """
    hit: dict[Role, Source] = {
        "prefill": "engine_hit",
        "decode": "engine_hit",
        "aggregated": "engine_hit",
    }
    return _state_proof("engine-warm", passes, hit, share)


def cross_instance(passes: Iterable[PassCounters], *, share: float = 0.9) -> Gate:
    """Cross-instance passes: prefill had the KV itself, the instance that answered fetched it."""
    hit: dict[Role, Source] = {
        "prefill": "engine_hit",
        "decode": "external_hit",
        "aggregated": "external_hit",
    }
    return _state_proof("cross-instance", passes, hit, share)


def store_warm(passes: Iterable[PassCounters], *, share: float = 0.9) -> Gate:
    """Store-warm passes were served by the KV store on every role."""
    hit: dict[Role, Source] = {
        "prefill": "external_hit",
        "decode": "external_hit",
        "aggregated": "external_hit",
    }
    return _state_proof("store-warm", passes, hit, share)
