"""The token ledger: the source of every prompt token, and the cause of every difference.

A pass has an account for each quantity that two parties count. In each of them

    expected - observed = sum of the entries + unexplained

and every entry has a cause that a counter or an exact rule shows. More unexplained tokens than one
KV block per request fail the gate `the ledger closes`.

- `counted`: prompt tokens that the client sent to a role, against those that its servers counted.
- `reused`: prefix tokens that an infinite cache would have served, against those that were served.
- `moved`: tokens that decode instances counted as fetched, against the KV bytes that moved.
- `store`: tokens that engines loaded, against the hits that the store counted.
- `read`: tokens that engines loaded, against the bytes that vLLM's connector read from the store.
- `tiers`: hits that the store counted below its memory, against chunks that it read from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan, nan

from workbench.metrics.counters import TokenSources, TransferCounters
from workbench.metrics.gates.gate import Gate, Problem, judge
from workbench.metrics.ledger.causes import Entry, hashes_apart, missing_causes, of_failed
from workbench.metrics.passes import PassCounters
from workbench.metrics.statistics import Number
from workbench.topology import Role

COMPARED = {
    "counted": "sent vs counted",
    "reused": "reusable vs served",
    "moved": "fetched vs moved",
    "store": "loaded vs store hits",
    "read": "loaded vs bytes read",
    "tiers": "L2 hits vs L2 loads",
}
"""The expected and the observed number of each account, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One comparison of a pass, in prompt tokens; NaN where a server does not report them."""

    arm: str
    round: int
    pass_name: str
    role: str
    """`prefill`, `decode`, `aggregated`, or `all` for the store."""
    name: str
    """`counted`, `reused`, `moved`, `store`, `read` or `tiers`."""
    requests: int
    expected: Number
    observed: Number
    entries: tuple[Entry, ...] = ()
    allowed: Number = nan
    """Limit of unexplained tokens: one KV block where the expected value is exact, else one per
    request."""
    unknown: str = ""
    """Why this account cannot be computed; empty when it can."""
    unexplained: Number = nan
    """Tokens without a known cause; negative when more was observed than expected."""
    closes: bool = False

    @property
    def label(self) -> str:
        role = "" if self.role == "all" else f", {self.role}"
        return f"{self.arm}, round {self.round + 1}, {self.pass_name}{role}; {COMPARED[self.name]}"


_ROUTES = "it is unknown which instance got which prompt"


def accounts(passes: Iterable[PassCounters]) -> list[Account]:
    """All accounts of these passes, without those that do not apply to a deployment."""
    drawn: list[Account] = []
    for p in passes:
        for role, sources in p.sources.items():
            drawn.append(_counted(p, role, sources))
            drawn.append(_reused(p, role, sources))
        if p.pulls and "decode" in p.sources:
            drawn.append(_moved(p))
        if p.stores and p.sources:
            drawn.append(_store(p))
            if p.read_bytes is not None:
                drawn.append(_read(p, p.read_bytes))
        if p.tiers:
            drawn.append(_tiers(p))
    return drawn


def ledger_closes(passes: Iterable[PassCounters]) -> Gate:
    """In no account more than one KV block per request stays unexplained."""
    passes = list(passes)
    drawn = accounts(passes)
    open_ = [account for account in drawn if not account.unknown and not account.closes]
    unknown = [f"{a.unknown[:1].upper()}{a.unknown[1:]} ({a.label})" for a in drawn if a.unknown]
    unknown += [f"No counters could be read ({p.label})" for p in passes if not p.sources]
    known = [account for account in drawn if not account.unknown]
    worst = max((abs(account.unexplained) for account in known), default=0.0)
    tokens = sum(p.prompt_tokens_sent for p in passes)
    return judge(
        "the ledger closes",
        holds=(
            "Every prompt token is accounted for"
            if worst < 0.5
            else f"Each comparison has at most {worst:,.0f} unexplained tokens, below its limit"
        )
        + f" ({tokens:,} tokens in {len(passes)} passes)",
        problems=[
            Problem(
                f"{abs(a.unexplained):,.0f} prompt tokens are unexplained (limit"
                f" {a.allowed:,.0f}; expected {a.expected:,.0f}, observed {a.observed:,.0f}"
                f"{caused(a)}; {a.label})",
                (a.arm,),
            )
            for a in open_
        ],
        unknown=unknown or ([] if drawn else ["No pass was measured"]),
        next_step="Read the ledger rows of that pass and the server logs",
        if_unknown="Give the URL of every server that exposes /metrics (prefill_urls, decode_urls,"
        " lmcache_url)",
    )


def _account(
    p: PassCounters,
    role: str,
    name: str,
    *,
    expected: float,
    observed: float,
    entries: Iterable[Entry] = (),
    unknown: str = "",
) -> Account:
    entries = tuple(entries)
    allowed = float(p.block_tokens * (1 if _exact(p) else p.requests_sent))
    unexplained = expected - observed - sum(entry.tokens for entry in entries)
    return Account(
        arm=p.arm,
        round=p.round,
        pass_name=p.pass_name,
        role=role,
        name=name,
        requests=p.requests_sent,
        expected=expected,
        observed=observed,
        entries=entries,
        allowed=allowed,
        unknown=unknown,
        unexplained=unexplained,
        closes=not unknown and abs(unexplained) <= allowed,
    )


def caused(a: Account) -> str:
    """`, known causes 7,168 more`: what causes add to the observed tokens; empty without any."""
    known = sum(entry.tokens for entry in a.entries)
    return f", known causes {abs(known):,.0f} {'fewer' if known > 0 else 'more'}" if known else ""


def _counted(p: PassCounters, role: Role, sources: TokenSources) -> Account:
    short = p.prompt_tokens_sent - sources.total
    entries = [of_failed(p, short)] if p.failed_prompt_tokens and short else []
    return _account(
        p,
        role,
        "counted",
        expected=float(p.prompt_tokens_sent),
        observed=sources.total,
        entries=entries,
        unknown=_silent(sources) if isnan(sources.total) else "",
    )


def _reused(p: PassCounters, role: Role, sources: TokenSources) -> Account:
    reuse = p.reuse.get(role)
    if reuse is None or _silent(sources):
        why = _silent(sources) or _ROUTES
        return _account(p, role, "reused", expected=nan, observed=sources.cached, unknown=why)
    entries = [Entry(cause=cause, tokens=tokens) for cause, tokens in reuse.rest]
    missing = reuse.cached - sources.cached
    in_flight = float(reuse.in_flight)
    if in_flight:
        # A prefix may have been there a moment before its stamp.
        early = min(in_flight, max(0.0, -missing))
        missing += early
        why = "the request that computes the prefix was still running"
        entries.append(Entry(cause="in flight", tokens=in_flight - early, why=why))
    entries += missing_causes(p, role, reuse, sources, missing)
    return _account(
        p,
        role,
        "reused",
        expected=float(reuse.ideal),
        observed=sources.cached,
        entries=entries,
    )


def _moved(p: PassCounters) -> Account:
    """KV bytes over the wire against tokens that decode instances counted as fetched."""
    seen = p.transfers or TransferCounters(bytes_moved=nan, transfers=nan, failed=nan, expired=nan)
    fetched = p.sources["decode"].external_hit
    moved = seen.bytes_moved / p.kv_bytes_per_token
    if seen.rounding_bytes and not isnan(moved):
        # A log rounds sizes, but whole blocks were moved.
        whole_blocks = p.block_tokens * round(moved / p.block_tokens)
        if abs(moved - whole_blocks) <= seen.rounding_bytes / p.kv_bytes_per_token:
            moved = float(whole_blocks)
    unknown = _silent(p.sources["decode"]) if isnan(fetched) else ""
    if p.transfers is None:
        unknown = unknown or "the instances do not count the bytes that were moved"
    elif isnan(moved):
        unknown = unknown or "the bytes that were moved, or the KV bytes per token, are unknown"
    entries = []
    reuse = p.reuse.get("decode")
    if reuse is not None and (whole := reuse.moved_tokens - reuse.external_hit):
        why = "whole blocks are moved, including the last, partly filled one"
        entries.append(Entry(cause="block rounding", tokens=float(-whole), why=why))
    short = fetched - moved - sum(entry.tokens for entry in entries)
    if p.failed_prompt_tokens and short:
        entries.append(of_failed(p, short))
    elif seen.failed > 0 and short > 0:
        short = min(short, seen.failed * (p.longest_prompt_tokens + p.block_tokens))
        why = f"{seen.failed:,.0f} failed transfers, counted as fetched but recomputed"
        entries.append(Entry(cause="failed transfer", tokens=short, why=why))
    elif seen.expired > 0 and short > 0:
        short = min(short, seen.expired * (p.longest_prompt_tokens + p.block_tokens))
        why = f"the KV of {seen.expired:,.0f} prompts expired before it was fetched"
        entries.append(Entry(cause="expired KV", tokens=short, why=why))
    return _account(
        p,
        "decode",
        "moved",
        expected=fetched,
        observed=moved,
        entries=entries,
        unknown=unknown,
    )


def _store(p: PassCounters) -> Account:
    """Hits of the store against tokens that engines loaded."""
    loaded = sum(sources.external_hit for sources in p.sources.values())
    hits = p.store.hit_tokens if p.store is not None else nan
    unknown = "the store's counters could not be read" if isnan(hits) else ""
    if unknown and p.private and isnan(p.kv_bytes_per_token):
        unknown = "the KV bytes per token are unknown, and vLLM counts the bytes that it loaded"
    if isnan(loaded):
        unknown = unknown or next(filter(None, map(_silent, p.sources.values())), "")
    apart = hashes_apart(p)
    twice = 0.0
    if p.counts_lookups and not p.reuse:
        unknown = unknown or _ROUTES  # so what engines had too is unknown
    elif p.counts_lookups:
        twice = float(sum(r.alone_held_twice if apart else r.held_twice for r in p.reuse.values()))
    entries = []
    if twice:
        why = "the engine's own hit was as long, so nothing was loaded from the store"
        entries.append(Entry(cause="engine had it too", tokens=-twice, why=why))
    # The lookup of a request that waits in an engine comes later than the request.
    gap, slack = loaded - hits + twice, sum(r.in_flight + r.own_in_flight for r in p.reuse.values())
    if slack and gap:
        why = "the lookup ran while the request that computes the prefix was still running"
        tokens = max(-slack, min(slack, gap))
        entries.append(Entry(cause="in flight", tokens=tokens, why=why))
    rest = loaded - hits - sum(entry.tokens for entry in entries)
    kept, times = p.store_since_empty, sum(p.preemptions.values())
    if rest < 0 and times > 0:
        why = f"{times:,.0f} preempted requests were looked up again and loaded nothing"
        most = times * p.longest_prompt_tokens
        entries.append(Entry(cause="preemption", tokens=max(-most, rest), why=why))
    elif kept is not None and kept.evicted_chunks > 0 and 0 < rest <= twice:
        why = f"the store had evicted {kept.evicted_chunks:,.0f} chunks that the engines still held"
        entries.append(Entry(cause="store eviction", tokens=rest, why=why))
    elif p.failed_prompt_tokens and rest:
        entries.append(of_failed(p, rest))
    return _account(
        p,
        "all",
        "store",
        expected=loaded,
        observed=hits,
        entries=entries,
        unknown=unknown,
    )


def _read(p: PassCounters, read_bytes: float) -> Account:
    """Bytes that vLLM's connector read from the store against tokens that engines loaded."""
    loaded = sum(sources.external_hit for sources in p.sources.values())
    read = read_bytes / p.kv_bytes_per_token
    unknown = "the KV bytes per token are unknown" if isnan(read) else ""
    if isnan(loaded):
        unknown = unknown or next(filter(None, map(_silent, p.sources.values())), "")
    entries, rest, times = [], loaded - read, sum(p.preemptions.values())
    if rest < 0 and times > 0:
        why = f"{times:,.0f} preempted requests loaded their prompts again"
        most = times * p.longest_prompt_tokens
        entries.append(Entry(cause="preemption", tokens=max(-most, rest), why=why))
    elif p.failed_prompt_tokens and rest:
        entries.append(of_failed(p, rest))
    return _account(
        p, "all", "read", expected=loaded, observed=read, entries=entries, unknown=unknown
    )


def _tiers(p: PassCounters) -> Account:
    """Hits below the store's memory against what the store read from there."""
    hits, loaded, unknown = nan, nan, ""
    if p.store is None or isnan(p.store.hit_l2_tokens + p.store.tier_loaded_chunks):
        unknown = "the store's counters could not be read"
    elif not p.chunk_objects:
        unknown = "roles differ in tensor parallelism, and so in the chunks that they store"
    else:
        hits = p.store.hit_l2_tokens
        loaded = p.store.tier_loaded_chunks / p.chunk_objects * p.chunk_tokens
    entries = []
    if hits > loaded and not _exact(p):
        why = "requests in flight together share what was read once"
        entries.append(Entry(cause="in flight", tokens=hits - loaded, why=why))
    return _account(
        p, "all", "tiers", expected=hits, observed=loaded, entries=entries, unknown=unknown
    )


def _exact(p: PassCounters) -> bool:
    """Whether each request's possible hits are known: no two requests were in flight together."""
    return p.reuse.keys() >= p.sources.keys() and not any(
        reuse.in_flight or reuse.own_in_flight for reuse in p.reuse.values()
    )


def _silent(sources: TokenSources) -> str:
    if not isnan(sources.cached + sources.computed):
        return ""
    why = f" ({sources.unknown})" if sources.unknown else ""
    return f"the instances do not report where their prompt tokens came from{why}"
