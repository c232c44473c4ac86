"""The words that findings of several notebooks share: which prompts, how much, is it resolved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any

from workbench.experiment.plan.plan import ExperimentPlan
from workbench.metrics.gates.gate_table import Spoil, spoil

__all__ = [
    "REPEATS",
    "Row",
    "marked",
    "prompts",
    "resolved",
    "rounds",
    "row_of",
    "sample",
    "span",
    "told",
    "warm_clause",
]

Row = dict[str, Any]

REPEATS = 0.005
"""A workload that shares less than this of its prompt tokens is taken for one that shares none."""


def prompts(plan: ExperimentPlan) -> str:
    """`a 22,660-token prompt`, or `prompts of up to 4,096 tokens` where they are unlike."""
    lengths = {request.prompt_tokens for request in plan.workload.sample.requests}
    if len(lengths) > 1:
        return f"prompts of up to {max(lengths):,} tokens"
    return f"a {max(lengths):,}-token prompt"


def span(ratios: Iterable[float]) -> str:
    """The only ratio, or `9 to 18`."""
    known = sorted(ratios)
    low, high = known[0], known[-1]
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def warm_clause(what: str, prompt: str, rows: Sequence[Row]) -> str:
    """What a warm cache does to TTFT, as far as the intervals carry it."""
    if all(isnan(r["low"]) for r in rows):
        return (
            f"Cold TTFT of {prompt} was {span(r['ratio'] for r in rows)} times that with a warm"
            f" {what}, in too few rounds for an interval"
        )
    better = [r for r in rows if resolved(r) and r["ratio"] > 1]
    worse = [r for r in rows if resolved(r) and r["ratio"] < 1]
    if len(better) == len(rows):
        return f"A warm {what} cuts TTFT of {prompt} {span(r['ratio'] for r in rows)} times"
    if len(worse) == len(rows):
        longer = span(1 / r["ratio"] for r in rows)
        return f"A warm {what} makes TTFT of {prompt} {longer} times longer"
    if not better and not worse:
        return f"What a warm {what} does to TTFT of {prompt} cannot be told from noise here"
    does = [f"cuts TTFT of {prompt} in {len(better)}"] * bool(better)
    does += [f"lengthens it in {len(worse)}"] * bool(better and worse)
    does += [f"lengthens TTFT of {prompt} in {len(worse)}"] * bool(worse and not better)
    return f"A warm {what} {' and '.join(does)} of {len(rows)} arms"


def row_of(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The first row with these values."""
    return next((r for r in rows if wanted.items() <= r.items()), None)


def rounds(number: int) -> str:
    """`1 round`, `3 rounds`."""
    return f"{number} round{'s' * (number != 1)}"


def sample(row: Row) -> str:
    """What a ratio rests on: `3 rounds, 9 pairs`."""
    return f"{rounds(row['n_rounds'])}, {row['n_pairs']} pairs"


def marked(cards: Sequence[Row], failed_gates: Sequence[str]) -> list[Row]:
    """The key numbers with what the gates that failed do to each: `spoilt`, and in its note.

    A card has the kind of its number in `rests_on` (see metrics.gates.gate_table), and in
    `passes` the passes that it comes from, or none where it comes from all.
    """
    return [_marked(card, failed_gates) for card in cards]


def _marked(card: Row, failed_gates: Sequence[str]) -> Row:
    does = spoil(
        failed_gates,
        card["rests_on"],
        passes=card.get("passes", ()),
        interval=card["low"] is not None and not isnan(card["low"]),
    )
    note = "; ".join(filter(None, (does.said, card["note"])))
    return card | {"spoilt": does.effect, "note": note}


def told(sentence: str, does: Spoil) -> str:
    """A sentence about numbers, led by what failed gates do to them where that is more than doubt.

    `Rough: gate “client kept up” failed. 1p4d lmcache: answers kept up with every rate.`
    """
    if does.effect not in ("struck", "rough"):
        return sentence
    return f"{does.said[:1].upper()}{does.said[1:]}. {sentence}"


def resolved(row: Row) -> bool:
    """True when the interval leaves 1 out."""
    return not isnan(row["low"]) and not row["low"] <= 1 <= row["high"]
