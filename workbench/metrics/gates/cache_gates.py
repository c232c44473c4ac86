"""Gates on what the servers counted: was each pass in its cache state, and did KV move.

A cache state is proven from counters, per role, never concluded from the reset that made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isnan, nan

from workbench.metrics.counters import TokenSources
from workbench.metrics.gates.gate import Gate, judge
from workbench.metrics.passes import PassCounters, Source
from workbench.topology import Role

_STRAY_SHARE = 0.01
"""A server that counted tokens further off than this from those sent served somebody else too,
or not this pass: its count proves nothing."""
_OWN: Source = "engine_hit"
_FETCHED: Source = "external_hit"
_SERVED_BY: dict[str, dict[Role, Source]] = {
    "engine-warm": {"prefill": _OWN, "decode": _OWN, "aggregated": _OWN},
    "cross-instance": {"prefill": _OWN, "decode": _FETCHED, "aggregated": _FETCHED},
    "store-warm": {"prefill": _FETCHED, "decode": _FETCHED, "aggregated": _FETCHED},
}
_IF_UNCOUNTED = "let every instance show its /metrics, and nobody else use the servers"
_SOURCE_NAMES = {_OWN: "their own prefix cache", _FETCHED: "the connector"}


def cold_was_cold(passes: Iterable[PassCounters]) -> Gate:
    """No prompt token of a cold pass came from a cache, beyond the workload's own repeats.

    Prefill and aggregated instances may have no hit of either kind; decode instances none in
    their own cache (what reaches them through the connector is this pass's own prefill).
    """
    cold = [p for p in passes if p.is_cold]
    problems, silent, cached, asked, repeats = [], list[str](), 0.0, 0, 0
    for p in cold:
        for role, sources in p.sources.items():
            hits = sources.engine_hit if role == "decode" else sources.cached
            if isnan(hits):
                silent.append(_silent(p, role, sources))
                hits = 0.0 if isnan(sources.engine_hit) else sources.engine_hit  # at least
            allowed = _repeated(p, role)
            cached, asked, repeats = cached + hits, asked + p.prompt_tokens_sent, repeats + allowed
            if hits > allowed + p.failed_prompt_tokens:
                problems.append(
                    f"{p.label}: {hits:,.0f} of {p.prompt_tokens_sent:,} prompt tokens came from"
                    f" a cache of the {role} instances, where the workload itself repeats"
                    f" {allowed:,}"
                )
    return judge(
        "cold was cold",
        holds=f"{cached:,.0f} of {asked:,} prompt tokens of all roles came from a cache in"
        f" {_count(cold)}" + (f"; the workload itself repeats {repeats:,}" if repeats else ""),
        problems=problems,
        unknown=_uncounted("cold", cold) or silent,
        next_step="reset every tier before the pass, or give the prompts a new salt",
        if_unknown=_IF_UNCOUNTED,
    )


def _repeated(p: PassCounters, role: Role) -> int:
    """Hits that even a cold pass may have: exact where it is known which instance got what."""
    if (reuse := p.reuse.get(role)) is None:
        return p.ideal_reuse_tokens
    if role == "decode":
        return reuse.engine_hit + reuse.own_in_flight
    return reuse.cached + reuse.in_flight


def kv_moved(passes: Iterable[PassCounters]) -> Gate:
    """In PD passes the prefill instances answered every request and decode fetched the KV.

    Decode instances that compute more than no cache could give them prefilled in silence. They
    must also have received tokens where their own cache has not all of them.
    """
    split = [p for p in passes if p.sources.keys() & {"prefill", "decode"}]
    problems, unknown = [], _uncounted("prefill/decode", split)
    computed, received, allowed = 0.0, 0.0, 0
    for p in split:
        for role in ("prefill", "decode"):
            finished = p.requests.get(role, nan) if role in p.sources else nan
            if isnan(finished):
                unknown.append(f"{p.label}: the {role} instances' requests are not known")
            elif not p.requests_sent - p.requests_failed <= finished <= p.requests_sent:
                problems.append(
                    f"{p.label}: the {role} instances finished {finished:,.0f} requests,"
                    f" {p.requests_sent:,} were sent"
                )
        unknown += [
            _silent(p, role, sources)
            for role, sources in p.sources.items()
            if isnan(sources.cached) and not isnan(sources.total)
        ]
        decode = p.sources.get("decode", TokenSources())
        limit = _decode_allowance(p)
        computed, received = computed + decode.computed, received + decode.external_hit
        allowed += limit
        if decode.computed > limit:
            problems.append(
                f"{p.label}: the decode instances computed {decode.computed:,.0f} of"
                f" {p.prompt_tokens_sent:,} prompt tokens, where {limit:,} are allowed"
            )
        due = p.pass_name != "engine-warm"
        if "decode" in p.reuse:
            due = _expected(p, "decode", _FETCHED) > 0
        if decode.external_hit == 0 and due:
            problems.append(
                f"{p.label}: the decode instances received 0 of {p.prompt_tokens_sent:,}"
                " prompt tokens through the connector"
            )
    return judge(
        "KV moved",
        holds=f"the decode instances received {received:,.0f} of {_sent(split):,} prompt tokens and"
        f" computed {computed:,.0f}, where {allowed:,} are allowed, in {_count(split)}",
        problems=problems,
        unknown=unknown,
        next_step="look for the connector in the decode instances' logs; a prompt must exceed"
        " one chunk",
        if_unknown=_IF_UNCOUNTED,
    )


def disk_warm(passes: Iterable[PassCounters], *, share: float = 0.9) -> Gate:
    """Disk-warm passes were served by the store's tier below memory: `share` of its hits."""
    warm = [p for p in passes if p.pass_name == "disk-warm"]
    problems, unknown, below, hits = [], _uncounted("disk-warm", warm), 0.0, 0.0
    for p in warm:
        if p.store is None or isnan(p.store.hit_tokens + p.store.hit_l2_tokens):
            unknown.append(f"{p.label}: the store does not count its hits by tier")
            continue
        below, hits = below + p.store.hit_l2_tokens, hits + p.store.hit_tokens
        if p.store.hit_l2_tokens < share * p.store.hit_tokens or not p.store.hit_tokens:
            problems.append(
                f"{p.label}: {p.store.hit_l2_tokens:,.0f} of {p.store.hit_tokens:,.0f} tokens that"
                " the store found were below its memory"
            )
    return judge(
        "disk-warm was disk-warm",
        holds=f"{below:,.0f} of {hits:,.0f} tokens that the store found were below its memory",
        problems=problems,
        unknown=unknown,
        next_step="see whether the store's memory was really emptied before the pass",
        if_unknown=_IF_UNCOUNTED,
    )


def in_state(state: str, passes: Iterable[PassCounters], *, share: float = 0.9) -> Gate:
    """Passes of a warm cache state took their prompt tokens from the source that it names.

    On every role at least `share` of what a cache that never forgets would serve, or, where it is
    not known which instance got which prompt, of the tokens that whole blocks or chunks can hold.
    """
    warm = [p for p in passes if p.pass_name == state]
    problems, unknown = [], _uncounted(state, warm)
    for p in warm:
        for role, sources in p.sources.items():
            source = _SERVED_BY[state][role]
            tokens, expected = getattr(sources, source), _expected(p, role, source)
            if isnan(tokens):
                unknown += [] if isnan(sources.total) else [_silent(p, role, sources)]
            elif expected <= 0 and role not in p.reuse:
                unknown.append(
                    f"{p.label}: prompts too short to show a hit of {_SOURCE_NAMES[source]} on the"
                    f" {role} instances, which is whole units of {p.grain_tokens(source)} tokens"
                )
            # Where nothing is expected, another source holds what this one could serve.
            elif expected > 0 and tokens < share * (expected - p.failed_prompt_tokens):
                problems.append(
                    f"{p.label}: {tokens:,.0f} of {p.prompt_tokens_sent:,} prompt tokens of the"
                    f" {role} instances came from {_SOURCE_NAMES[source]}, at least"
                    f" {share * expected:,.0f} should"
                )
    return judge(
        f"{state} was {state}",
        holds=f"of {_sent(warm):,} prompt tokens in {_count(warm)}, by role:"
        f" {', '.join(_shares(state, warm))}",
        problems=problems,
        unknown=unknown,
        next_step="check which tiers the reset reached, and that nothing was evicted",
        if_unknown=_IF_UNCOUNTED,
    )


def _shares(state: str, warm: Sequence[PassCounters]) -> Iterator[str]:
    """Of each role the share that its source served, and the one that it could have."""
    for role, source in _SERVED_BY[state].items():
        mine = [p for p in warm if role in p.sources]
        if sent := _sent(mine):
            taken = sum(getattr(p.sources[role], source) for p in mine)
            text = f"{100 * taken / sent:.1f} % on {role} instances from {_SOURCE_NAMES[source]}"
            if all(role in p.reuse for p in mine):
                due = sum(_expected(p, role, source) for p in mine)
                text += f" ({100 * due / sent:.1f} % could be)"
            yield text


def _expected(p: PassCounters, role: Role, source: Source) -> float:
    """Tokens that this source can serve: exact where it is known which instance got what."""
    if (reuse := p.reuse.get(role)) is not None:
        if source == _OWN:
            return float(reuse.engine_hit)
        # What an engine got a moment earlier than its stamps say it need not load.
        return float(max(0, reuse.external_hit - reuse.own_in_flight))
    repeats = p.ideal_reuse_tokens if source == _FETCHED else 0
    return float(p.prompt_tokens_sent - repeats - p.requests_sent * p.grain_tokens(source))


def _decode_allowance(p: PassCounters) -> int:
    """Prompt tokens of a pass that decode instances which fetched their KV may compute."""
    if (reuse := p.reuse.get("decode")) is not None:
        exact = p.prompt_tokens_sent - reuse.cached + reuse.in_flight
        return exact + p.failed_prompt_tokens + p.block_tokens
    grain = p.grain_tokens(_FETCHED)
    return p.requests_sent * (grain + 1 if grain == p.chunk_tokens else grain)


def _uncounted(kind: str, passes: Sequence[PassCounters]) -> list[str]:
    """Why these passes prove nothing: none ran, no counters, or counts unlike what was sent."""
    reasons = [] if passes else [f"no {kind} pass was measured"]
    for p in passes:
        if not p.sources:
            reasons.append(f"{p.label}: no instance's counters could be read")
        for role, sources in p.sources.items():
            if isnan(sources.total):
                reasons.append(_silent(p, role, sources))
            elif abs(sources.total - p.prompt_tokens_sent) > (
                _STRAY_SHARE * p.prompt_tokens_sent + p.failed_prompt_tokens
            ):
                reasons.append(
                    f"{p.label}: the {role} instances counted {sources.total:,.0f} prompt tokens,"
                    f" {p.prompt_tokens_sent:,} were sent"
                )
    return reasons


def _silent(p: PassCounters, role: Role, sources: TokenSources) -> str:
    why = f" ({sources.unknown})" if sources.unknown else ""
    return f"{p.label}: the {role} instances do not say where their prompt tokens came from{why}"


def _sent(passes: Sequence[PassCounters]) -> int:
    return sum(p.prompt_tokens_sent for p in passes)


def _count(passes: Sequence[PassCounters]) -> str:
    kinds = {p.pass_name for p in passes}
    kind = f"{kinds.pop()} " if len(kinds) == 1 else ""
    return f"{len(passes)} {kind}pass{'es' if len(passes) != 1 else ''}"
