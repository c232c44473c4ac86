"""What a live hit analysis found, in words: storing, break-even, chunks, evictions, tiers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from workbench.experiment.findings.sentences import first, told
from workbench.experiment.hits.hit_findings import HitRatio, Tiers
from workbench.experiment.plan.hit_plan import MAIN, SMALL
from workbench.experiment.result.facts import Card
from workbench.metrics.gates.gate_table import spoil

_NO_INTERVAL = "in too few rounds for an interval"


def headline(ratios: Sequence[HitRatio]) -> str:
    """What loading gains and what storing costs, as far as intervals carry it."""
    parts = []
    gain = _longest(ratios, what="loading", pass_name="store-warm")
    if gain is not None and not isnan(gain.ratio.value):
        what, times = f"a {gain.prompt_tokens:,}-token prompt", gain.ratio.value
        parts.append(
            {
                "faster": f"Loading {what} from LMCache answers {times:.3g} times sooner than"
                " computing it",
                "slower": f"Loading {what} from LMCache answers {1 / times:.3g} times later than"
                " computing it",
                "undecided": f"Loading {what} from LMCache is not told from computing it",
                "no_interval": f"Computing {what} took {times:.3g} times as long as loading it from"
                f" LMCache, {_NO_INTERVAL}",
            }[gain.ratio.verdict]
        )
    cost = first(ratios, what="storing", prompt_tokens=0)
    if cost is not None and cost.resolved:
        parts.append(f"it changes TTFT of a cold prompt by {_percent(cost)}")
    elif cost is not None and cost.ratio.verdict == "undecided":
        parts.append("what it costs a cold prompt cannot be told from noise here")
    return "; ".join(parts) or "Hits were counted, but no two cache states can be compared"


def sentences(
    ratios: Sequence[HitRatio], tiers: Sequence[Tiers], failed_gates: Sequence[str] = ()
) -> list[str]:
    """What was found, each sentence with its numbers and with what failed gates do to them."""
    counts, times = spoil(failed_gates, "counts"), spoil(failed_gates, "ratios")
    both = spoil(failed_gates, "counts", "ratios")
    found = [
        *((text, counts) for text in _credit(tiers)),
        *((text, times) for text in (*_storing(ratios), *_break_even(ratios), *_reuse(ratios))),
        *((text, both) for text in _chunks(ratios)),
        *((text, counts) for text in _evicted(tiers)),
    ]
    if disk := first(ratios, what="disk", prompt_tokens=0):
        found.append((f"TTFT from the disk beside from memory: {disk.sentence}.", times))
    if off := first(ratios, what="engine cache off"):
        text = "With the engine's own prefix cache off LMCache serves the same tokens; TTFT beside"
        found.append((f"{text} engine cache on: {off.sentence}.", both))
    return [told(text, does) for text, does in found]


def by_counters(tiers: Sequence[Tiers]) -> list[str]:
    """Of each pass who served its tokens, as the servers counted: for servers that run already."""
    said = []
    for row in tiers:
        engine, loaded, claimed = (row.counted[name] for name in ("engine", "loaded", "claimed"))
        if isnan(engine + loaded):
            said.append(f"{row.pass_name}: the servers do not say who served its tokens.")
            continue
        text = (
            f"{row.pass_name}: of {row.prompt_tokens:,.0f} prompt tokens the engine's own cache"
            f" served {engine:,.0f} and LMCache {loaded:,.0f}"
        )
        if claimed > loaded:
            text += f"; LMCache's own counter claims {claimed:,.0f} hits"
        said.append(f"{text}.")
    return said


def _credit(tiers: Sequence[Tiers]) -> list[str]:
    row = first(tiers, arm=MAIN, pass_name="engine-warm")
    if row is None or not row.idle:
        return []
    return [
        f"Asked again at once, the engine served {row.engine:,.0f} of {row.prompt_tokens:,.0f}"
        f" prompt tokens itself. LMCache's own counter claims {row.counted['claimed']:,.0f} hits"
        f" for them ({row.claimed_share:.0%} of what it was asked), and loaded {row.loaded:,.0f}:"
        " it earns no credit there."
    ]


def _storing(ratios: Sequence[HitRatio]) -> list[str]:
    row = first(ratios, what="storing", prompt_tokens=0)
    if row is None or isnan(row.ratio.value):
        return []
    judged = {
        "undecided": ", which is no detectable difference",
        "no_interval": f", {_NO_INTERVAL}",
    }
    return [
        f"LMCache changes cold TTFT by {_percent(row)}{judged.get(row.ratio.verdict, '')}: a lookup"
        f" that finds nothing, and storing ({row.ratio.sample})."
    ]


_WHERE = {"store-warm": "all of it in L1", "disk-warm": "all of it on the disk"}


def _break_even(ratios: Sequence[HitRatio]) -> list[str]:
    by_state: dict[tuple[str, str], list[HitRatio]] = {}
    for row in ratios:
        if row.what == "loading":
            rows = by_state.setdefault((row.arm, row.pass_name), [])
            rows += [row] if row.prompt_tokens and row.loaded_share > 0 else []
    return [
        f"Break-even, {_WHERE.get(name, name)}: {_crossing(rows)}"
        for (_, name), rows in by_state.items()
    ]


def _crossing(rows: Sequence[HitRatio]) -> str:
    """From which prompt length on loading beats recomputing, as far as it was measured."""
    if not rows:
        return "nothing was loaded."
    lengths = [f"{row.prompt_tokens:,}" for row in rows]
    span = f"{lengths[0]} to {lengths[-1]} tokens"
    verdicts = [row.ratio.verdict for row in rows]
    wins = [verdict == "faster" for verdict in verdicts]
    if set(verdicts) == {"no_interval"}:
        return f"not judged, too few rounds for an interval ({span})."
    if all(wins):
        return (
            f"loading beats recomputing at every measured length ({span}), so the crossing lies"
            f" below {lengths[0]} tokens."
        )
    if not any(wins):
        return f"not reached in the measured range ({span})."
    if not wins[-1]:
        some = ", ".join(length for length, win in zip(lengths, wins, strict=True) if win)
        return f"detectable at {some} tokens and not at {lengths[-1]}: no crossing."
    first = len(wins) - wins[::-1].index(False)
    return (
        f"loading beats recomputing from {lengths[first]} tokens on, and not yet"
        f" detectably at {lengths[first - 1]}."
    )


def _reuse(ratios: Sequence[HitRatio]) -> list[str]:
    """How often a stored prompt must come back to pay for having been stored."""
    cost = _longest(ratios, what="storing", pass_name="cold")
    gain = _longest(ratios, what="loading", pass_name="store-warm")
    if cost is None or gain is None or not cost.resolved or not gain.resolved:
        return []
    paid_ms = cost.ttft_ms - cost.baseline_ttft_ms
    saved_ms = gain.baseline_ttft_ms - gain.ttft_ms
    if paid_ms <= 0 or saved_ms <= 0:
        return []
    return [
        f"Storing a {cost.prompt_tokens:,}-token prompt costs {paid_ms:.1f} ms and a later load"
        f" saves {saved_ms:.0f} ms (medians): it pays once {paid_ms / saved_ms:.1%} of such prompts"
        " come back."
    ]


def _chunks(ratios: Sequence[HitRatio]) -> list[str]:
    rows = [row for row in ratios if row.what == "chunk" and not row.prompt_tokens]
    rows.sort(key=lambda row: row.chunk_tokens)
    if len(rows) < 2:
        return []
    shares = ", ".join(f"{row.loaded_share:.1%} with {row.chunk_tokens}" for row in rows)
    others = [row for row in rows if row.arm != MAIN]
    main = next((row.chunk_tokens for row in rows if row.arm == MAIN), 0)
    clear = "; ".join(f"chunk {row.chunk_tokens}: {row.sentence}" for row in others if row.resolved)
    if all(row.ratio.verdict == "no_interval" for row in others):
        verdict = "TTFT is not judged: too few rounds for an interval."
    elif clear:
        verdict = f"TTFT beside chunk {main}: {clear}."
    else:
        verdict = f"TTFT does not differ detectably from that of chunk {main}."
    return [
        f"A prompt's tail below one chunk is never stored: LMCache brings {shares} tokens a chunk,"
        f" of the same prompts. {verdict}"
    ]


def _evicted(tiers: Sequence[Tiers]) -> list[str]:
    cold, again = (first(tiers, arm=SMALL, pass_name=name) for name in ("cold", "asked again"))
    whole = first(tiers, arm=MAIN, pass_name="store-warm")
    if cold is None or again is None or whole is None:
        return []
    kept, lost, gone = (
        cold.counted[f"{name}_chunks"] for name in ("written", "dropped", "evicted")
    )
    if isnan(kept) or not lost + gone:
        return ["The small L1 held the whole workload: nothing was evicted or turned away."]
    return [
        f"With too small an L1, LMCache stored {kept:,.0f} chunks of the cold pass, turned"
        f" {lost:,.0f} away because memory was full, and evicted {gone:,.0f} behind them (its"
        f" eviction looks once a second). Asked again, it brought"
        f" {again.loaded / again.prompt_tokens:.1%} of the prompt tokens, where a large L1 brings"
        f" {whole.loaded / whole.prompt_tokens:.1%}."
    ]


def cards(ratios: Sequence[HitRatio], tiers: Sequence[Tiers]) -> list[Card]:
    """Up to three key numbers with their intervals."""
    found = []
    gain = _longest(ratios, what="loading", pass_name="store-warm")
    if gain is not None and not isnan(gain.ratio.value):
        label = f"TTFT computed / loaded, {gain.prompt_tokens:,} tokens"
        bounds = (gain.ratio.value, gain.ratio.low, gain.ratio.high)
        found.append(_card(label, bounds, "x", gain))
    cost = first(ratios, what="storing", prompt_tokens=0)
    if cost is not None and not isnan(cost.ratio.value):
        found.append(_card("cold TTFT added by LMCache", _changes(cost), "%", cost))
    idle = first(tiers, arm=MAIN, pass_name="engine-warm")
    if idle is not None and idle.held:
        note = f"{idle.requests} requests, engine-warm; no interval: tokens are counted"
        share = 100 * idle.idle / idle.held
        label = "LMCache hits that the engine had too"
        found.append(Card(label=label, value=share, unit="%", note=note, rests_on="counts"))
    return found


def _card(label: str, bounds: tuple[float, float, float], unit: str, row: HitRatio) -> Card:
    none = "no difference detectable; " if row.ratio.verdict == "undecided" else ""
    value, low, high = bounds
    note = f"{none}{row.ratio.sample}"
    return Card(
        label=label, value=value, unit=unit, low=low, high=high, note=note, rests_on="ratios"
    )


def _changes(row: HitRatio) -> tuple[float, float, float]:
    """A ratio as the change of TTFT in percent, and its bounds."""
    value, low, high = (
        100 * (1 / ratio - 1) for ratio in (row.ratio.value, row.ratio.high, row.ratio.low)
    )
    return value, low, high


def _percent(row: HitRatio) -> str:
    """The same in words: `+3.2 % [+1.0, +5.5]`."""
    value, low, high = _changes(row)
    return f"{value:+.1f} %" + ("" if isnan(low) else f" [{low:+.1f}, {high:+.1f}]")


def _longest(rows: Sequence[HitRatio], *, what: str, pass_name: str) -> HitRatio | None:
    """Of the main arm, that of the longest prompts."""
    mine = [r for r in rows if (r.what, r.arm, r.pass_name) == (what, MAIN, pass_name)]
    return max(mine, key=lambda row: row.prompt_tokens, default=None)
