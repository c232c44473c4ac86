"""Why a cache served less than it could: causes that a counter proves, in the order of proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

from workbench.metrics.counters import TokenSources
from workbench.metrics.ideal import Reuse
from workbench.metrics.passes import PassCounters
from workbench.topology import Role

__all__ = ["Entry", "missing_causes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Tokens with a cause; positive when they are missing, negative when they are too many."""

    cause: str
    tokens: float
    why: str = ""
    """What proves it, in numbers."""


def missing_causes(
    p: PassCounters, role: Role, reuse: Reuse, sources: TokenSources, missing: float
) -> list[Entry]:
    """Entries for the `missing` tokens of a role: those that perfect caches would have served.

    A cause is named only when a counter of this pass shows it; one that has been counted without
    a token missing (a preemption) is an entry of 0.
    """
    found = []
    if (times := p.preemptions.get(role, 0.0)) > 0:
        why = (
            f"{times:,.0f} preemptions: vLLM counts a prompt when it is first admitted; what was"
            " computed again is in no counter"
        )
        found.append(Entry(cause="preemption", tokens=0.0, why=why))
    if missing < 0 and p.pass_name == "cold":
        why = "held by a cache before the first request of a cold pass was sent"
        found.append(Entry(cause="left over from before", tokens=missing, why=why))
    if missing <= 0:
        return found
    external_missing = max(0.0, reuse.external_hit - sources.external_hit)
    for entry in _proven(p, role, missing, external_missing):
        found.append(entry)
        missing -= entry.tokens
        if missing <= 0:
            break
    return found


def _proven(
    p: PassCounters, role: Role, missing: float, external_missing: float
) -> Iterator[Entry]:
    store = p.store if p.connector.startswith("lmcache") else None
    since = p.store_since_empty
    if store is not None and external_missing:
        if isnan(store.requested_tokens):
            why = "the store did not answer when its counters were read"
            yield Entry(
                cause="store did not answer", tokens=min(missing, external_missing), why=why
            )
            return
        if since is not None and since.written_chunks > 0 and store.requested_tokens > 0:
            if store.hit_tokens == 0 and since.evicted_chunks == 0:
                why = (
                    f"the store holds {since.written_chunks:,.0f} chunks, was asked for"
                    f" {store.requested_tokens:,.0f} tokens and found none: instances hash"
                    " prompts differently (PYTHONHASHSEED, or another hash algorithm)"
                )
                yield Entry(
                    cause="hash seed mismatch", tokens=min(missing, external_missing), why=why
                )
                return
            if since.evicted_chunks > 0:
                why = (
                    f"the store dropped {since.evicted_chunks:,.0f} of"
                    f" {since.written_chunks:,.0f} chunks: store_gb is too small"
                )
                yield Entry(cause="store eviction", tokens=min(missing, external_missing), why=why)
                missing -= min(missing, external_missing)
    if role in p.overflowed:
        # What an engine forgot a store may still serve, but only in whole chunks.
        bound = missing if store is None else min(missing, p.chunk_tokens * p.requests_sent)
        why = "an instance was given more prompt tokens than its KV space holds"
        yield Entry(cause="engine eviction", tokens=bound, why=why)
