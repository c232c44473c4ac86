"""What a live hit analysis found, in words: storing, break-even, chunks, evictions, tiers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from workbench.experiment.findings.sentences import first, told_once
from workbench.experiment.hits.hit_findings import HitRatio, Tier, percent
from workbench.experiment.plan.hit_plan import MAIN, SMALL, tier_of
from workbench.experiment.result.finding_rows import Card
from workbench.metrics.gates.gate_effects import Failed, spoil
from workbench.metrics.statistics import three_digits


def headline(ratios: Sequence[HitRatio]) -> str:
    """What loading gains and what storing costs, as far as intervals carry it."""
    parts = []
    gain = _longest(ratios, what="loading", pass_name="store-warm")
    if gain is not None and not isnan(gain.ratio.value):
        what, value = f"{gain.prompt_tokens:,} tokens from LMCache", gain.ratio.value
        parts.append(
            {
                "faster": f"Loading {what}: TTFT {_times(value)} faster",
                "slower": f"Loading {what}: TTFT {_times(1 / value)} slower",
                "undecided": "Loading from LMCache: no significant effect on TTFT",
                "no_interval": "Loading from LMCache: too few rounds to judge",
            }[gain.ratio.verdict]
        )
    cost = first(ratios, what="storing", prompt_tokens=0)
    if cost is not None and cost.resolved:
        added = _change(cost)[0]
        parts.append(f"storing: cold TTFT {abs(added):.0f} % {'higher' if added > 0 else 'lower'}")
    elif cost is not None and cost.ratio.verdict == "undecided":
        parts.append("storing: no significant cost")
    return "; ".join(parts) or "Cache hits were counted, but no two cache states can be compared"


def _times(value: float) -> str:
    """`9.8x`, `18x`."""
    return f"{value:.{int(value < 10)}f}x"


def sentences(
    ratios: Sequence[HitRatio], tiers: Sequence[Tier], failed_gates: Failed = ()
) -> tuple[str, ...]:
    """What was found, each sentence with its numbers and with what failed gates do to them."""
    counts, times = spoil(failed_gates, "counts"), spoil(failed_gates, "ratios")
    both = spoil(failed_gates, "counts", "ratios")
    found = [
        *((text, counts) for text in _not_needed(tiers)),
        *((text, times) for text in (*_storing(ratios), *_break_even(ratios), *_reuse(ratios))),
        *((text, both) for text in _chunks(ratios)),
        *((text, counts) for text in _evicted(tiers)),
    ]
    for row in ratios:
        if row.what == "tier" and not row.prompt_tokens:
            found.append(
                (_effect(row, f"loading from {tier_of(row.arm)} instead of memory"), times)
            )
    if off := first(ratios, what="engine cache off"):
        found.append((_effect(off, "turning off the engine's prefix cache (LMCache warm)"), both))
    return told_once(found)


def by_counters(tiers: Sequence[Tier]) -> list[str]:
    """Who served the tokens of each pass, by the counters of servers that ran before."""
    said = []
    for row in tiers:
        engine, loaded, claimed = (
            row[f"counted_{name}"] for name in ("engine", "loaded", "claimed")
        )
        if isnan(engine + loaded):
            said.append(f"{row['pass']}: the servers do not report which cache served its tokens.")
            continue
        text = (
            f"{row['pass']}: of {row['prompt_tokens']:,.0f} prompt tokens, {engine:,.0f} hit the"
            f" engine's prefix cache and {loaded:,.0f} were loaded from LMCache."
        )
        if claimed > loaded:
            text += f" LMCache's own counter reports {claimed:,.0f} hits."
        said.append(text)
    return said


def _effect(row: HitRatio, cause: str) -> str:
    """What a cause does to TTFT, with the speed-up: one sentence for each verdict."""
    ratio = row.ratio
    size = f"TTFT ratio {three_digits(ratio.value)}"
    if ratio.verdict != "no_interval":
        size += f", 95 % CI {three_digits(ratio.low)} to {three_digits(ratio.high)}"
    text = {
        "faster": f"{cause[:1].upper()}{cause[1:]} reduces TTFT",
        "slower": f"{cause[:1].upper()}{cause[1:]} increases TTFT",
        "undecided": f"No significant effect of {cause} on TTFT",
        "no_interval": f"Too few rounds to judge the effect of {cause} on TTFT",
    }[ratio.verdict]
    return f"{text} ({size}; {ratio.sample})."


def _not_needed(tiers: Sequence[Tier]) -> list[str]:
    row = _tier(tiers, MAIN, "engine-warm")
    if row is None or not row["idle"]:
        return []
    return [
        f"When the prompts were sent again at once, {row['engine']:,.0f} of"
        f" {row['prompt_tokens']:,.0f} prompt tokens hit the engine's prefix cache and"
        f" {row['l1'] + row['l2']:,.0f} were loaded from LMCache. LMCache itself reports"
        f" {row['counted_claimed']:,.0f} hit tokens ({percent(row['claimed_share'])} of those"
        f" looked up), but {row['idle']:,.0f} of them were already in the prefix cache."
    ]


def _storing(ratios: Sequence[HitRatio]) -> list[str]:
    row = first(ratios, what="storing", prompt_tokens=0)
    if row is None or isnan(row.ratio.value):
        return []
    value, low, high = _change(row)
    size = f" ({value:+.1f} %, 95 % CI {low:+.1f} to {high:+.1f})"
    return [
        {
            "faster": f"LMCache reduces cold TTFT{size}.",
            "slower": f"LMCache increases cold TTFT{size}: each prompt is looked up and stored.",
            "undecided": f"No significant effect of storing in LMCache on cold TTFT{size}.",
            "no_interval": "Too few rounds to judge the effect of storing in LMCache on cold TTFT"
            f" ({value:+.1f} %).",
        }[row.ratio.verdict]
    ]


def _where(arm: str, name: str) -> str:
    """Where the KV was: `whole prompt in L1`, `whole prompt on Redis`."""
    if name in ("disk-warm", "remote-warm"):
        return f"whole prompt on {tier_of(arm)}"
    return "whole prompt in L1" if name == "store-warm" else name.replace("%", " %")


def _break_even(ratios: Sequence[HitRatio]) -> list[str]:
    by_state: dict[tuple[str, str], list[HitRatio]] = {}
    for row in ratios:
        if row.what == "loading":
            rows = by_state.setdefault((row.arm, row.pass_name), [])
            rows += [row] if row.prompt_tokens and row.loaded_share > 0 else []
    return [
        f"Break-even, {_where(arm, name)}: {_crossing(rows)}"
        for (arm, name), rows in by_state.items()
    ]


def _crossing(rows: Sequence[HitRatio]) -> str:
    """From which prompt length on loading beats recomputing, as far as it was measured."""
    if not rows:
        return "nothing was loaded."
    lengths = [f"{row.prompt_tokens:,}" for row in rows]
    verdicts = [row.ratio.verdict for row in rows]
    wins = [verdict == "faster" for verdict in verdicts]
    if set(verdicts) == {"no_interval"}:
        return "not judged, because there are too few rounds for an interval."
    if all(wins):
        return (
            f"below {lengths[0]} tokens. Loading is faster than recomputing at every measured"
            f" length ({lengths[0]} to {lengths[-1]} tokens)."
        )
    if not any(wins):
        return f"not reached ({lengths[0]} to {lengths[-1]} tokens measured)."
    if not wins[-1]:
        some = ", ".join(length for length, win in zip(lengths, wins, strict=True) if win)
        return (
            f"unclear. Loading is significantly faster at {some} tokens, but not at"
            f" {lengths[-1]} tokens."
        )
    start = len(wins) - wins[::-1].index(False)
    return (
        f"at most {lengths[start]} tokens. Loading is significantly faster than recomputing from"
        f" {lengths[start]} tokens on, but not at {lengths[start - 1]} tokens."
    )


def _reuse(ratios: Sequence[HitRatio]) -> list[str]:
    """How often a stored prompt must be sent again to pay for having been stored."""
    cost = _longest(ratios, what="storing", pass_name="cold")
    gain = _longest(ratios, what="loading", pass_name="store-warm")
    if cost is None or gain is None or not cost.resolved or not gain.resolved:
        return []
    paid_ms = cost.ttft_ms - cost.baseline_ttft_ms
    saved_ms = gain.baseline_ttft_ms - gain.ttft_ms
    if paid_ms <= 0 or saved_ms <= 0:
        return []
    return [
        f"Storing a {cost.prompt_tokens:,}-token prompt costs {paid_ms:.1f} ms of TTFT; loading it"
        f" later saves {saved_ms:.0f} ms (medians). Storing pays off if at least"
        f" {percent(paid_ms / saved_ms)} of such prompts are sent again."
    ]


def _chunks(ratios: Sequence[HitRatio]) -> list[str]:
    rows = [row for row in ratios if row.what == "chunk" and not row.prompt_tokens]
    rows.sort(key=lambda row: row.chunk_tokens)
    if len(rows) < 2:
        return []
    shares = ", ".join(f"{percent(row.loaded_share)} with {row.chunk_tokens}" for row in rows)
    main = next((row.chunk_tokens for row in rows if row.arm == MAIN), 0)
    said = [
        "LMCache stores whole chunks only, so the rest of each prompt is recomputed. Fraction"
        f" of the prompt tokens loaded, by chunk size in tokens: {shares}."
    ]
    others = [row for row in rows if row.arm != MAIN]
    said += [
        _effect(row, f"a {row.chunk_tokens}-token chunk instead of {main}")
        for row in others
        if row.resolved
    ]
    if alike := [str(row.chunk_tokens) for row in others if not row.resolved]:
        judged = any(row.ratio.verdict != "no_interval" for row in others)
        lead = "No significant difference in TTFT" if judged else "Too few rounds to compare TTFT"
        said.append(f"{lead} between chunk size {main} and {', '.join(alike)}.")
    return said


def _evicted(tiers: Sequence[Tier]) -> list[str]:
    cold, again = (_tier(tiers, SMALL, name) for name in ("cold", "asked again"))
    whole = _tier(tiers, MAIN, "store-warm")
    if cold is None or again is None or whole is None:
        return []
    kept, lost, gone = (
        cold[f"counted_{name}_chunks"] for name in ("written", "dropped", "evicted")
    )
    if isnan(kept) or not lost + gone:
        return ["The small L1 held the whole workload: no chunk was evicted or dropped."]
    return [
        f"The small L1 stored {kept:,.0f} chunks in the cold pass, dropped {lost:,.0f} because it"
        f" was full, and evicted {gone:,.0f} (LMCache evicts once a second). When the prompts"
        f" were sent again, {_loaded(again)} of prompt tokens came from LMCache (large L1:"
        f" {_loaded(whole)})."
    ]


def cards(ratios: Sequence[HitRatio], tiers: Sequence[Tier]) -> list[Card]:
    """Up to three key numbers with their intervals."""
    found = []
    gain = _longest(ratios, what="loading", pass_name="store-warm")
    if gain is not None and not isnan(gain.ratio.value):
        label = f"TTFT speed-up from loading {gain.prompt_tokens:,} tokens"
        bounds = (gain.ratio.value, gain.ratio.low, gain.ratio.high)
        found.append(_card(label, bounds, "x", gain))
    cost = first(ratios, what="storing", prompt_tokens=0)
    if cost is not None and not isnan(cost.ratio.value):
        found.append(_card("change of cold TTFT with storing", _change(cost), "%", cost))
    idle = _tier(tiers, MAIN, "engine-warm")
    if idle is not None and idle["held"]:
        note = f"{idle['requests']} requests sent again at once; exact count"
        share = 100 * idle["idle"] / idle["held"]
        label = "of the LMCache-hit tokens were already in the prefix cache"
        found.append(Card(label=label, value=share, unit="%", note=note, rests_on="counts"))
    return found


def _card(label: str, bounds: tuple[float, float, float], unit: str, row: HitRatio) -> Card:
    none = "not significant; " if row.ratio.verdict == "undecided" else ""
    value, low, high = bounds
    note = f"{none}{row.ratio.sample}"
    return Card(
        label=label, value=value, unit=unit, low=low, high=high, note=note, rests_on="ratios"
    )


def _change(row: HitRatio) -> tuple[float, float, float]:
    """A ratio as the change of TTFT in percent, and its bounds."""
    value, low, high = (
        100 * (1 / ratio - 1) for ratio in (row.ratio.value, row.ratio.high, row.ratio.low)
    )
    return value, low, high


def _tier(tiers: Sequence[Tier], arm: str, name: str) -> Tier | None:
    return next((row for row in tiers if (row["arm"], row["pass"]) == (arm, name)), None)


def _loaded(row: Tier) -> str:
    return percent((row["l1"] + row["l2"]) / row["prompt_tokens"])


def _longest(rows: Sequence[HitRatio], *, what: str, pass_name: str) -> HitRatio | None:
    """Of the main arm, that of the longest prompts."""
    mine = [r for r in rows if (r.what, r.arm, r.pass_name) == (what, MAIN, pass_name)]
    return max(mine, key=lambda row: row.prompt_tokens, default=None)
