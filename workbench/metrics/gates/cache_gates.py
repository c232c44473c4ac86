"""Gates on what the servers counted: did each pass have its cache state, and was KV transferred.

A cache state is verified by counters, per role, and never inferred from the reset before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isnan, nan
from typing import TYPE_CHECKING

import numpy as np

from workbench.metrics.counters import TokenSources
from workbench.metrics.gates.gate import Gate, Problem, judge
from workbench.metrics.passes import PassCounters, Source
from workbench.topology import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRAY_SHARE = 0.01
"""A server whose prompt tokens differ by more than this fraction from those sent also served other
clients, or not this pass: its count says nothing about the cache state."""
_OWN: Source = "engine_hit"
_FETCHED: Source = "external_hit"
_SERVED_BY: dict[str, dict[Role, Source]] = {
    "engine-warm": {"prefill": _OWN, "decode": _OWN, "aggregated": _OWN},
    "cross-instance": {"prefill": _OWN, "decode": _FETCHED, "aggregated": _FETCHED},
    "store-warm": {"prefill": _FETCHED, "decode": _FETCHED, "aggregated": _FETCHED},
    "offload-warm": {"aggregated": _FETCHED},
}
_IF_UNCOUNTED = "Expose /metrics of every instance, and keep other clients off the servers"
_SOURCE_NAMES = {_OWN: "the prefix cache", _FETCHED: "the connector"}


def cold_was_cold(passes: Iterable[PassCounters]) -> Gate:
    """No prompt token of a cold pass hit a cache, beyond the workload's own repeats.

    Prefill and aggregated instances may have no hit of either kind; decode instances none in their
    prefix cache (what they load through the connector is this pass's own prefill).
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
                    Problem(
                        f"{hits:,.0f} of {p.prompt_tokens_sent:,} prompt tokens hit a cache on the"
                        f" {role} instances (limit {allowed:,}; {p.label}). The cold baseline was"
                        " warm",
                        (p.arm,),
                    )
                )
    return judge(
        "cold was cold",
        holds=f"{cached:,.0f} of {asked:,} prompt tokens hit a cache in {_count(cold)}"
        + _in_brackets(
            f"the workload itself repeats {repeats:,}" if repeats else "",
            "a PD prompt counts twice, on prefill and on decode; KV received from prefill is no hit"
            if any("decode" in p.sources for p in cold)
            else "",
        ),
        problems=problems,
        unknown=_uncounted("cold", cold) or silent,
        next_step="Reset every cache tier before the pass, or give the prompts a new salt",
        if_unknown=_IF_UNCOUNTED,
    )


def _in_brackets(*notes: str) -> str:
    """` (first; second)` of those that are not empty."""
    said = "; ".join(filter(None, notes))
    return f" ({said})" if said else ""


def _repeated(p: PassCounters, role: Role) -> int:
    """Hits that even a cold pass may have; exact where each request's instance is known."""
    if (reuse := p.reuse.get(role)) is None:
        return p.ideal_reuse_tokens
    if role == "decode":
        return reuse.engine_hit + reuse.own_in_flight
    return reuse.cached + reuse.in_flight


def kv_moved(passes: Iterable[PassCounters]) -> Gate:
    """In PD passes the prefill instances served every request and decode fetched the KV.

    Decode instances that compute more than an infinite cache would leave them prefilled prompts
    themselves. They must also have fetched tokens unless their own cache has all of them.
    """
    split = [p for p in passes if p.sources.keys() & {"prefill", "decode"}]
    problems, unknown = [], _uncounted("prefill/decode", split)
    computed, received, kept, allowed = 0.0, 0.0, 0.0, 0
    late: list[str] = []
    for p in split:
        for role in ("prefill", "decode"):
            finished = p.requests.get(role, nan) if role in p.sources else nan
            if isnan(finished):
                unknown.append(f"The {role} instances do not report finished requests ({p.label})")
            elif not p.requests_sent - p.requests_failed <= finished <= p.requests_sent:
                fewer = finished < p.requests_sent
                problems.append(
                    Problem(
                        f"The {role} instances finished {finished:,.0f} requests, but"
                        f" {p.requests_sent:,} were sent ({p.label})."
                        f" {'Some requests bypassed them' if fewer else 'Other clients use them'}",
                        (p.arm,),
                    )
                )
        unknown += [
            _silent(p, role, sources)
            for role, sources in p.sources.items()
            if isnan(sources.cached) and not isnan(sources.total)
        ]
        decode = p.sources.get("decode", TokenSources())
        limit = _decode_allowance(p)
        computed, received = computed + decode.computed, received + decode.external_hit
        kept, allowed = kept + decode.engine_hit, allowed + limit
        if decode.computed > limit:
            seen = (
                f"The decode instances computed {decode.computed:,.0f} of"
                f" {p.prompt_tokens_sent:,} prompt tokens (limit {limit:,}; {p.label})"
            )
            if _may_be_late(p):
                late.append(f"{seen}. Prefill responds before the store has a whole prompt")
            else:
                problems.append(Problem(f"{seen}. They prefilled instead of fetching KV", (p.arm,)))
        due = p.pass_name != "engine-warm"
        if "decode" in p.reuse:
            due = _expected(p, "decode", _FETCHED) > 0
        if decode.external_hit == 0 and due:
            problems.append(
                Problem(
                    f"The decode instances fetched 0 of {p.prompt_tokens_sent:,} prompt tokens"
                    f" through the connector ({p.label}). No KV was transferred",
                    (p.arm,),
                )
            )
    return judge(
        "KV moved",
        holds=f"Decode instances fetched {received:,.0f} prompt tokens, had {kept:,.0f} cached and"
        f" computed {computed:,.0f} (at most {allowed:,} may be computed; {_count(split)})",
        problems=problems,
        unknown=[*unknown, *late],
        next_step="Look for connector errors in the decode logs, and use prompts longer than a"
        " chunk",
        if_unknown=_IF_UNCOUNTED if unknown else "End other programs, or use more rounds",
    )


def _may_be_late(p: PassCounters) -> bool:
    """Whether decode may have looked up what this pass was still storing.

    Then it computes a part as users of that store would see it too. A decode instance that computes
    most of the prompts, or finds none of them, has another reason.
    """
    store, kept, decode = p.store, p.store_since_empty, p.sources["decode"]
    return (
        p.stores_late
        and store is not None
        and kept is not None
        and store.written_chunks > 0
        and not kept.evicted_chunks > 0
        and not kept.dropped_chunks > 0
        and 0 < decode.computed < decode.external_hit
    )


def tier_warm(state: str, passes: Iterable[PassCounters], *, share: float = 0.9) -> Gate:
    """In passes of this state `share` of the store's hits came from the tier below its memory that
    the state names, and from no other tier."""
    warm = [p for p in passes if p.pass_name == state]
    problems, unknown, below, hits = [], _uncounted(state, warm), 0.0, 0.0
    shown = next((t.shown for p in warm for t in p.tiers if t.state == state), "the tier below")
    for p in warm:
        if p.store is None or isnan(p.store.hit_tokens + p.store.hit_l2_tokens):
            unknown.append(f"The store does not count its hits by tier ({p.label})")
            continue
        below, hits = below + p.store.hit_l2_tokens, hits + p.store.hit_tokens
        others = [tier.shown for tier in p.tiers if tier.state != state and tier.loads > 0]
        if others:
            problems.append(
                Problem(f"The store also loaded from {others[0]} ({p.label})", (p.arm,))
            )
        elif p.store.hit_l2_tokens < share * p.store.hit_tokens or not p.store.hit_tokens:
            problems.append(
                Problem(
                    f"{p.store.hit_l2_tokens:,.0f} of {p.store.hit_tokens:,.0f} tokens that the"
                    f" store served came from {shown} (at least {100 * share:g} % expected;"
                    f" {p.label}). The pass does not measure it",
                    (p.arm,),
                )
            )
    return judge(
        f"{state} was {state}",
        holds=f"{below:,.0f} of {hits:,.0f} tokens that the store served came from {shown}",
        problems=problems,
        unknown=unknown,
        next_step="Check that the store's memory was emptied before the pass, and that the tier"
        " still has the chunks",
        if_unknown=_IF_UNCOUNTED,
    )


def tiers_kept(passes: Iterable[PassCounters]) -> Gate:
    """Each tier below the store's memory holds all chunks that the store sent to it.

    LMCache counts failed writes as done and does not notice evictions, so its own counters are
    compared with what each tier says at its own end.
    """
    kept = [(p, tier) for p in passes for tier in p.tiers]
    problems, unknown, chunks = [], [], 0.0
    for p, tier in kept:
        where = f"{tier.shown[:1].upper()}{tier.shown[1:]}"
        rewritten = p.store_since_empty is not None and p.store_since_empty.evicted_chunks > 0
        if tier.problem:
            problems.append(
                Problem(
                    f"{where} did not answer after the pass: {tier.problem} ({p.label})", (p.arm,)
                )
            )
        elif isnan(tier.lost):
            unknown.append(f"The chunks sent to {tier.shown} are not counted ({p.label})")
        elif tier.lost > 0:
            found = f"{where} holds {tier.held:,.0f} of {tier.sent:,.0f} chunks that LMCache sent"
            if tier.why_lost:
                problems.append(Problem(f"{found}: {tier.why_lost} ({p.label})", (p.arm,)))
            elif rewritten:
                unknown.append(f"{found}; what memory evicted may be sent twice ({p.label})")
            else:
                problems.append(Problem(f"{found}, and no counter shows why ({p.label})", (p.arm,)))
        else:
            chunks = max(chunks, tier.held)
    names = " and ".join(dict.fromkeys(tier.shown for _, tier in kept))
    return judge(
        "tiers kept what was sent",
        holds=f"{names[:1].upper()}{names[1:]} held every chunk that LMCache sent (at most"
        f" {chunks:,.0f}, after each of {len({p.label for p, _ in kept})} passes)",
        problems=problems,
        unknown=unknown or ([] if kept else ["No pass with such a tier was measured"]),
        next_step="Raise tier_gb, or read the logs of the store and of the tier",
        if_unknown="Raise store_gb, or expose /metrics of the store",
    )


def in_state(state: str, passes: Iterable[PassCounters], *, share: float = 0.9) -> Gate:
    """Prompt tokens of a warm pass were served by the cache that its state names.

    On every role at least `share` of what an infinite cache would serve or, where each request's
    instance is not known, of the tokens in whole blocks or chunks.
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
                    f"Prompts on the {role} instances are too short to hit {_SOURCE_NAMES[source]}"
                    f" (a hit takes {p.grain_tokens(source)} tokens; {p.label})"
                )
            # Where nothing is expected, another source holds what this one could serve.
            elif expected > 0 and tokens < share * (expected - p.failed_prompt_tokens):
                problems.append(
                    Problem(
                        f"On the {role} instances {_SOURCE_NAMES[source]} served {tokens:,.0f} of"
                        f" {p.prompt_tokens_sent:,} prompt tokens (at least {share * expected:,.0f}"
                        f" expected; {p.label}). The pass was not {state}",
                        (p.arm,),
                    )
                )
    return judge(
        f"{state} was {state}",
        holds=" and ".join(_served(state, warm)),
        problems=problems,
        unknown=unknown,
        next_step="Check which cache tiers the reset reached, and that nothing was evicted",
        if_unknown=_IF_UNCOUNTED,
    )


def _served(state: str, warm: Sequence[PassCounters]) -> Iterator[str]:
    """What each source of this state served, with its roles, the lowest fraction first.

    `The prefix cache served 100 % of cacheable tokens (on prefill and decode instances: 99.2 % of
    all prompt tokens)`; only of all prompt tokens where the cacheable ones are unknown.
    """
    exact = all(role in p.reuse for p in warm for role in p.sources)
    tokens: dict[Source, dict[Role, NDArray[np.float64]]] = {}  # got, cacheable, sent
    for p in warm:
        for role, sources in p.sources.items():
            source, sent = _SERVED_BY[state][role], p.prompt_tokens_sent
            due = _expected(p, role, source) if exact else sent
            by_role = tokens.setdefault(source, {})
            row = np.array([getattr(sources, source), due, sent], float)
            by_role[role] = by_role.get(role, np.zeros(3)) + row
    for number, (source, by_role) in enumerate(tokens.items()):
        lowest_first = sorted(by_role, key=lambda role: _fraction(*by_role[role][:2]))
        each = {role: _percent(*by_role[role][:2]) for role in lowest_first}
        got, due, sent = np.sum([*by_role.values()], axis=0)
        name, what = _SOURCE_NAMES[source], "cacheable" if exact else "prompt"
        lead = f"{name.capitalize() if not number else name} served {_percent(got, due)}"
        lead += f" of {what} tokens" if not number else ""
        apart = [f"{role} {of}" for role, of in each.items()] if len({*each.values()}) > 1 else []
        alone = apart or [*by_role] == ["aggregated"]
        where = "" if alone else f"on {_listed(lowest_first)} instances: "
        of_all = [f"{_percent(got, sent)} of all prompt tokens"] if exact else []
        yield lead + _in_brackets((where + "; ".join([*apart, *of_all])).removesuffix(": "))


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _fraction(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole else 1.0


def _percent(part: float, whole: float) -> str:
    """`99.2 %`; 100 % is never rounded up to."""
    percent = 100 * _fraction(part, whole)
    return f"{percent if percent == 100 else min(percent, 99.9):.1f}".removesuffix(".0") + " %"


def _expected(p: PassCounters, role: Role, source: Source) -> float:
    """Tokens that this source can serve; exact where each request's instance is known."""
    if (reuse := p.reuse.get(role)) is not None:
        if source == _OWN:
            return float(reuse.engine_hit)
        # An engine need not load what it held a moment earlier than its stamps say.
        return float(max(0, reuse.external_hit - reuse.own_in_flight))
    repeats = p.ideal_reuse_tokens if source == _FETCHED else 0
    return float(p.prompt_tokens_sent - repeats - p.requests_sent * p.grain_tokens(source))


def _decode_allowance(p: PassCounters) -> int:
    """Prompt tokens of a pass that decode instances may compute although they fetch KV."""
    if (reuse := p.reuse.get("decode")) is not None:
        exact = p.prompt_tokens_sent - reuse.cached + reuse.in_flight
        return exact + p.failed_prompt_tokens + p.block_tokens
    grain = p.grain_tokens(_FETCHED)
    return p.requests_sent * (grain + 1 if grain == p.chunk_tokens else grain)


def _uncounted(kind: str, passes: Sequence[PassCounters]) -> list[str]:
    """Why these passes cannot be judged: none ran, no counters, or counts unlike what was sent."""
    reasons = [] if passes else [f"No {kind} pass was measured"]
    for p in passes:
        if not p.sources:
            reasons.append(f"No counters could be read ({p.label})")
        for role, sources in p.sources.items():
            if isnan(sources.total):
                reasons.append(_silent(p, role, sources))
            elif abs(sources.total - p.prompt_tokens_sent) > (
                _STRAY_SHARE * p.prompt_tokens_sent + p.failed_prompt_tokens
            ):
                reasons.append(
                    f"The {role} instances counted {sources.total:,.0f} prompt tokens, but"
                    f" {p.prompt_tokens_sent:,} were sent ({p.label})"
                )
    return reasons


def _silent(p: PassCounters, role: Role, sources: TokenSources) -> str:
    why = f"; {sources.unknown}" if sources.unknown else ""
    return (
        f"The {role} instances do not report where their prompt tokens came from ({p.label}{why})"
    )


def _sent(passes: Sequence[PassCounters]) -> int:
    return sum(p.prompt_tokens_sent for p in passes)


def _count(passes: Sequence[PassCounters]) -> str:
    kinds = {p.pass_name for p in passes}
    kind = f"{kinds.pop()} " if len(kinds) == 1 else ""
    return f"{len(passes)} {kind}pass{'es' if len(passes) != 1 else ''}"
