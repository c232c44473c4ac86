"""What a live hit analysis found, in words: storing, break-even, chunks, evictions, tiers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

from workbench.experiment.findings.sentences import rounds, told
from workbench.experiment.plan.hit_plan import MAIN, SMALL
from workbench.experiment.result.facts import Card
from workbench.metrics.gates.gate_table import spoil

Row = dict[str, Any]

__all__ = ["by_counters", "cards", "headline", "sentences"]


def headline(ratios: Sequence[Row]) -> str:
    """What loading gains and what storing costs, as far as intervals carry it."""
    parts = []
    whole = _longest(ratios, "loading", MAIN, "store-warm")
    if whole is not None and not isnan(whole["ratio"]):
        what = f"a {whole['prompt_tokens']:,}-token prompt"
        if isnan(whole["low"]):
            parts.append(
                f"Computing {what} took {whole['ratio']:.3g} times as long as loading it from"
                " LMCache, in too few rounds for an interval"
            )
        elif resolved(whole):
            how = f"{max(whole['ratio'], 1 / whole['ratio']):.3g} times"
            faster = "sooner" if whole["ratio"] > 1 else "later"
            parts.append(f"Loading {what} from LMCache answers {how} {faster} than computing it")
        else:
            parts.append(f"Loading {what} from LMCache is not told from computing it")
    cost = row_of(ratios, what="storing", prompt_tokens=0)
    if cost is not None and resolved(cost):
        parts.append(f"it changes TTFT of a cold prompt by {_percent(cost)}")
    elif cost is not None and not isnan(cost["low"]):
        parts.append("what it costs a cold prompt cannot be told from noise here")
    return "; ".join(parts) or "Hits were counted, but no two cache states can be compared"


def sentences(
    ratios: Sequence[Row], tiers: Sequence[Row], failed_gates: Sequence[str] = ()
) -> list[str]:
    """What was found, each sentence with its numbers and with what failed gates do to them."""
    counts, times = spoil(failed_gates, "counts"), spoil(failed_gates, "ratios")
    both = spoil(failed_gates, "counts", "ratios")
    said = [
        *(told(text, counts) for text in _credit(tiers)),
        *(told(text, times) for text in (*_storing(ratios), *_break_even(ratios))),
        *(told(text, both) for text in _chunks(ratios)),
        *(told(text, counts) for text in _evicted(tiers)),
        *(told(text, times) for text in _disk(ratios)),
    ]
    off = row_of(ratios, what="engine cache off")
    if off is not None:
        text = "With the engine's own prefix cache off LMCache serves the same tokens; TTFT beside"
        said.append(told(f"{text} engine cache on: {off['sentence']}.", both))
    return said


def by_counters(tiers: Sequence[Row]) -> list[str]:
    """Of each pass who served its tokens, as the servers counted: for servers that run already."""
    said = []
    for row in tiers:
        if isnan(row["counted_loaded"]) or isnan(row["counted_engine"]):
            said.append(f"{row['pass']}: the servers do not say who served its tokens.")
            continue
        text = (
            f"{row['pass']}: of {row['prompt_tokens']:,.0f} prompt tokens the engine's own cache"
            f" served {row['counted_engine']:,.0f} and LMCache {row['counted_loaded']:,.0f}"
        )
        if row["counted_claimed"] > row["counted_loaded"]:
            text += f"; LMCache's own counter claims {row['counted_claimed']:,.0f} hits"
        said.append(f"{text}.")
    return said


def _credit(tiers: Sequence[Row]) -> list[str]:
    row = row_of(tiers, arm=MAIN, **{"pass": "engine-warm"})
    if row is None or not row["idle"]:
        return []
    return [
        f"Asked again at once, the engine served {row['engine']:,.0f} of"
        f" {row['prompt_tokens']:,.0f} prompt tokens itself. LMCache's own counter claims"
        f" {row['counted_claimed']:,.0f} hits for them ({row['claimed_share']:.0%} of what it was"
        f" asked), and loaded {row['l1'] + row['l2']:,.0f}: it earns no credit there."
    ]


def _storing(ratios: Sequence[Row]) -> list[str]:
    row = row_of(ratios, what="storing", prompt_tokens=0)
    if row is None or isnan(row["ratio"]):
        return []
    judged = "" if resolved(row) else ", which is no detectable difference"
    if isnan(row["low"]):
        judged = ", in too few rounds for an interval"
    return [
        f"LMCache changes cold TTFT by {_percent(row)}{judged}: a lookup that finds nothing, and"
        f" storing ({sample(row)})."
    ]


def _break_even(ratios: Sequence[Row]) -> list[str]:
    said = []
    names = [(r["arm"], r["pass"]) for r in ratios if r["what"] == "loading"]
    for arm, name in dict.fromkeys(names):
        rows = [r for r in ratios if r["what"] == "loading" and r["prompt_tokens"]
                and (r["arm"], r["pass"]) == (arm, name)]  # fmt: skip
        rows = [r for r in rows if r["loaded_share"] > 0]
        where = {"store-warm": "all of it in L1", "disk-warm": "all of it on the disk"}.get(
            name, name
        )
        said.append(f"Break-even, {where}: {_crossing(rows)}")
    return said + _reuse(ratios)


def _crossing(rows: Sequence[Row]) -> str:
    """From which prompt length on loading beats recomputing, as far as it was measured."""
    if not rows:
        return "nothing was loaded."
    span = f"{rows[0]['prompt_tokens']:,} to {rows[-1]['prompt_tokens']:,} tokens"
    if all(isnan(r["low"]) for r in rows):
        return f"not judged, too few rounds for an interval ({span})."
    wins = [resolved(r) and r["ratio"] > 1 for r in rows]
    if all(wins):
        return (
            f"loading beats recomputing at every measured length ({span}), so the crossing lies"
            f" below {rows[0]['prompt_tokens']:,} tokens."
        )
    if not any(wins):
        return f"not reached in the measured range ({span})."
    if not wins[-1]:
        some = ", ".join(
            f"{r['prompt_tokens']:,}" for r, win in zip(rows, wins, strict=True) if win
        )
        return f"detectable at {some} tokens and not at {rows[-1]['prompt_tokens']:,}: no crossing."
    first = len(wins) - wins[::-1].index(False)
    return (
        f"loading beats recomputing from {rows[first]['prompt_tokens']:,} tokens on, and not yet"
        f" detectably at {rows[first - 1]['prompt_tokens']:,}."
    )


def _reuse(ratios: Sequence[Row]) -> list[str]:
    """How often a stored prompt must come back to pay for having been stored."""
    cost, gain = (
        _longest(ratios, w, MAIN, p) for w, p in (("storing", "cold"), ("loading", "store-warm"))
    )
    if cost is None or gain is None or not resolved(cost) or not resolved(gain):
        return []
    paid_ms = cost["ttft_ms"] - cost["baseline_ttft_ms"]
    saved_ms = gain["baseline_ttft_ms"] - gain["ttft_ms"]
    if paid_ms <= 0 or saved_ms <= 0:
        return []
    return [
        f"Storing a {cost['prompt_tokens']:,}-token prompt costs {paid_ms:.1f} ms and a later load"
        f" saves {saved_ms:.0f} ms (medians): it pays once {paid_ms / saved_ms:.1%} of such prompts"
        " come back."
    ]


def _chunks(ratios: Sequence[Row]) -> list[str]:
    rows = sorted(
        (r for r in ratios if r["what"] == "chunk" and not r["prompt_tokens"]),
        key=lambda r: int(r["chunk_tokens"]),
    )
    if len(rows) < 2:
        return []
    shares = ", ".join(f"{r['loaded_share']:.1%} with {r['chunk_tokens']}" for r in rows)
    clear = [r for r in rows if r["arm"] != MAIN and resolved(r)]
    beside = "; ".join(f"chunk {r['chunk_tokens']}: {r['sentence']}" for r in clear)
    if all(isnan(r["low"]) for r in rows if r["arm"] != MAIN):
        return [
            f"A prompt's tail below one chunk is never stored: LMCache brings {shares} tokens a"
            " chunk, of the same prompts. TTFT is not judged: too few rounds for an interval."
        ]
    main = next((r["chunk_tokens"] for r in rows if r["arm"] == MAIN), 0)
    verdict = f"TTFT beside chunk {main}: {beside}." if clear else (
        f"TTFT does not differ detectably from that of chunk {main}."
    )  # fmt: skip
    return [
        f"A prompt's tail below one chunk is never stored: LMCache brings {shares} tokens a chunk,"
        f" of the same prompts. {verdict}"
    ]


def _evicted(tiers: Sequence[Row]) -> list[str]:
    cold, again = (row_of(tiers, arm=SMALL, **{"pass": n}) for n in ("cold", "asked again"))
    whole = row_of(tiers, arm=MAIN, **{"pass": "store-warm"})
    if cold is None or again is None or whole is None:
        return []
    kept, lost, gone = (cold[f"counted_{n}_chunks"] for n in ("written", "dropped", "evicted"))
    if isnan(kept) or not lost + gone:
        return ["The small L1 held the whole workload: nothing was evicted or turned away."]
    return [
        f"With too small an L1, LMCache stored {kept:,.0f} chunks of the cold pass, turned"
        f" {lost:,.0f} away because memory was full, and evicted {gone:,.0f} behind them (its"
        " eviction looks once a second). Asked again, it brought"
        f" {(again['l1'] + again['l2']) / again['prompt_tokens']:.1%} of the prompt tokens, where"
        f" a large L1 brings {(whole['l1'] + whole['l2']) / whole['prompt_tokens']:.1%}."
    ]


def _disk(ratios: Sequence[Row]) -> list[str]:
    row = row_of(ratios, what="disk", prompt_tokens=0)
    return [] if row is None else [f"TTFT from the disk beside from memory: {row['sentence']}."]


def cards(ratios: Sequence[Row], tiers: Sequence[Row]) -> list[Card]:
    """Up to three key numbers with their intervals."""
    found = []
    gain = _longest(ratios, "loading", MAIN, "store-warm")
    if gain is not None and not isnan(gain["ratio"]):
        label = f"TTFT computed / loaded, {gain['prompt_tokens']:,} tokens"
        found.append(_card(label, gain["ratio"], gain["low"], gain["high"], "x", gain))
    cost = row_of(ratios, what="storing", prompt_tokens=0)
    if cost is not None and not isnan(cost["ratio"]):
        value, low, high = (100 * (1 / cost[k] - 1) for k in ("ratio", "high", "low"))
        found.append(_card("cold TTFT added by LMCache", value, low, high, "%", cost))
    idle = row_of(tiers, arm=MAIN, **{"pass": "engine-warm"})
    if idle is not None and idle["held"]:
        note = f"{idle['requests']} requests, engine-warm; no interval: tokens are counted"
        share = 100 * idle["idle"] / idle["held"]
        label = "LMCache hits that the engine had too"
        found.append(Card(label=label, value=share, unit="%", note=note, rests_on="counts"))
    return found


def _card(label: str, value: float, low: float, high: float, unit: str, row: Row) -> Card:
    note = sample(row)
    if not isnan(row["low"]) and not resolved(row):
        note = f"no difference detectable; {note}"
    return Card(
        label=label, value=value, unit=unit, low=low, high=high, note=note, rests_on="ratios"
    )


def resolved(row: Row) -> bool:
    """True when the interval leaves 1 out."""
    return not isnan(row["low"]) and not row["low"] <= 1 <= row["high"]


def row_of(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The first row with these values."""
    return next((r for r in rows if wanted.items() <= r.items()), None)


def sample(row: Row) -> str:
    """What a ratio rests on: `3 rounds, 9 pairs`."""
    return f"{rounds(row['n_rounds'])}, {row['n_pairs']} pairs"


def _percent(row: Row) -> str:
    """A ratio as the change of TTFT: `+3.2 % [+1.0, +5.5]`."""
    value, low, high = (100 * (1 / row[key] - 1) for key in ("ratio", "high", "low"))
    return f"{value:+.1f} %" + ("" if isnan(low) else f" [{low:+.1f}, {high:+.1f}]")


def _longest(rows: Sequence[Row], what: str, arm: str, name: str) -> Row | None:
    mine = [r for r in rows if (r["what"], r["arm"], r["pass"]) == (what, arm, name)]
    return max(mine, key=lambda r: int(r["prompt_tokens"]), default=None)
