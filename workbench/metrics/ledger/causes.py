"""Why a cache served less than it could: causes that a counter shows, the surest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

from workbench.metrics.counters import TokenSources
from workbench.metrics.ideal import Reuse
from workbench.metrics.passes import PassCounters
from workbench.metrics.statistics import Number
from workbench.topology import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Tokens with a known cause; positive when they are missing, negative when there are extra."""

    cause: str
    tokens: Number
    why: str = ""
    """What shows it, in numbers."""


def of_failed(p: PassCounters, gap: float) -> Entry:
    """As much of a gap as failed requests explain: servers may have counted them in part."""
    most = float(p.failed_prompt_tokens)
    why = f"failed requests have {p.failed_prompt_tokens:,} prompt tokens, counted or not"
    return Entry(cause="failed requests", tokens=max(-most, min(most, gap)), why=why)


def missing_causes(
    p: PassCounters, role: Role, reuse: Reuse, sources: TokenSources, missing: float
) -> list[Entry]:
    """Entries for the `missing` tokens of a role: those that infinite caches would have served.

    A cause is named only when a counter of this pass shows it. One without missing tokens (a
    preemption) is an entry of 0. Negative `missing` are extra tokens.
    """
    found = []
    if (times := p.preemptions.get(role, 0.0)) > 0:
        why = (
            f"{times:,.0f} preemptions; vLLM counts a prompt once, when first admitted, so no"
            " counter has the recomputed tokens"
        )
        found.append(Entry(cause="preemption", tokens=0.0, why=why))
    if p.failed_prompt_tokens and missing:
        found.append(of_failed(p, missing))
        missing -= found[-1].tokens
    if missing < 0 and p.is_cold:
        why = "a cache held them before the cold pass began"
        found.append(Entry(cause="left over from before", tokens=missing, why=why))
    for entry in _shown(p, role, reuse, sources):
        if missing <= 0:
            break
        tokens = min(missing, entry.tokens)
        if tokens > 0:
            found.append(Entry(cause=entry.cause, tokens=tokens, why=entry.why))
            missing -= tokens
    return found


def hashes_apart(p: PassCounters) -> bool:
    """Whether every role loaded exactly the chunks that it had stored itself, and no others.

    Then instances hash the same chunk differently: their hash seeds or algorithms differ. A store
    that counts no lookups cannot show it.
    """
    store, kept = p.store, p.store_since_empty
    if (
        store is None
        or kept is None
        or not p.counts_lookups
        or p.private
        or not p.reuse.keys() >= p.sources.keys()
    ):
        return False
    roles = [p.reuse[role] for role in p.sources]
    alone = sum(reuse.alone_external_hit for reuse in roles)
    return (
        sum(reuse.external_hit for reuse in roles) > alone
        and store.requested_tokens > 0
        and store.hit_tokens == alone + sum(reuse.alone_held_twice for reuse in roles)
        and kept.written_chunks > 0
        and kept.evicted_chunks == 0
        and all(p.reuse[r].alone_external_hit == s.external_hit for r, s in p.sources.items())
    )


def _shown(p: PassCounters, role: Role, reuse: Reuse, sources: TokenSources) -> Iterator[Entry]:
    """Causes that a counter shows, each with the most tokens that it can explain."""
    unloaded = max(0.0, reuse.external_hit - sources.external_hit)
    if p.private:  # it was given all that the engine's own cache was given
        unloaded = max(0.0, float(reuse.cached) - sources.cached)
    if role == "decode" and p.transfers is not None and p.transfers.failed > 0:
        why = f"{p.transfers.failed:,.0f} transfers failed, and their tokens were recomputed"
        most = p.transfers.failed * p.longest_prompt_tokens
        yield Entry(cause="failed transfer", tokens=min(unloaded, most), why=why)
    store, kept = p.store, p.store_since_empty
    if p.stores and not p.private and store is not None and isnan(store.requested_tokens):
        why = "the store did not answer when its counters were read"
        yield Entry(cause="store did not answer", tokens=unloaded, why=why)
    elif p.stores and hashes_apart(p):
        why = (
            "each instance hit only its own chunks; instances hash prompts differently (set the"
            " same PYTHONHASHSEED and hash algorithm)"
        )
        yield Entry(cause="hash seed mismatch", tokens=unloaded, why=why)
    elif losing := [tier for tier in p.tiers if tier.problem or tier.lost > 0]:
        tier = losing[0]
        why = tier.problem or (
            f"{tier.shown} holds {tier.held:,.0f} of {tier.sent:,.0f} chunks"
            f" ({tier.why_lost or 'no counter shows why'})"
        )
        yield Entry(cause="tier lost chunks", tokens=unloaded, why=why)
    elif p.stores and kept is not None and kept.evicted_chunks > 0:
        named, unit = ("host memory", "blocks") if p.private else ("store", "chunks")
        why = (
            f"the {named} evicted {kept.evicted_chunks:,.0f} of {kept.written_chunks:,.0f} {unit};"
            " raise store_gb"
        )
        # A chunk that is gone takes the rest of its prompt with it.
        most = kept.evicted_chunks * p.longest_prompt_tokens
        yield Entry(cause=f"{named} eviction", tokens=min(unloaded, most), why=why)
    elif p.private and kept is not None and kept.dropped_chunks > 0:
        why = (
            f"vLLM found no free host memory {kept.dropped_chunks:,.0f} times, while transfers used"
            " it, and did not store; raise store_gb"
        )
        yield Entry(cause="host memory was full", tokens=unloaded, why=why)
    elif p.stores and kept is not None and kept.dropped_chunks > 0:
        why = (
            f"the store was full and rejected {kept.dropped_chunks:,.0f} chunks"
            f" ({kept.written_chunks:,.0f} kept); raise store_gb"
        )
        most = kept.dropped_chunks * p.longest_prompt_tokens
        yield Entry(cause="store was full", tokens=min(unloaded, most), why=why)
    elif role == "decode" and p.stores and p.stores_late and kept is not None:
        # Nothing was evicted or rejected, so what was stored in this pass came too late.
        why = "decode looked the prompt up before prefill had stored all of it"
        if store is not None and store.written_chunks > 0:
            yield Entry(cause="not stored yet", tokens=unloaded, why=why)
    if role in p.overflowed:
        # A store may still serve what an engine evicted, but only in whole chunks.
        lost = max(0.0, reuse.engine_hit - sources.engine_hit)
        why = "an instance received more prompt tokens than its KV cache holds; raise kv_cache_mib"
        yield Entry(cause="engine eviction", tokens=lost, why=why)
