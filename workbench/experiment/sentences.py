"""Sentences and key numbers, computed from a run's summary and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any

from workbench.experiment.plan import ExperimentPlan
from workbench.metrics.gate import meaning
from workbench.topology import Topology

__all__ = ["break_even", "cards", "finding", "headline", "scope", "sentences"]

Row = dict[str, Any]


def finding(plan: ExperimentPlan, comparisons: Sequence[Row], rates: Sequence[str] = ()) -> str:
    """What was found, with its size; never more than its intervals allow.

    `rates` has one sentence for each arm of a sweep over rates, first that of what was asked for.
    """
    if rates:
        return rates[0].removesuffix(".")
    if plan.notebook == "single_instance_prefix_cache":
        return _cache_finding(plan, comparisons)
    return _sweep_finding(plan, comparisons)


def headline(found: str, failed_gates: Sequence[str]) -> dict[str, str]:
    """`finding`, the page's headline, and `unproven`, what it would be if no gate had failed."""
    if not failed_gates:
        return {"finding": found, "unproven": ""}
    first, *others = failed_gates
    more = f", and {len(others)} more failed" if others else ""
    return {
        "finding": f"Not proven: {meaning(first)} (gate “{first}”{more})",
        "unproven": found,
    }


def _prompt(plan: ExperimentPlan) -> str:
    return f"{plan.workload.longest_prompt_tokens:,}-token prompt"


def _cache_finding(plan: ExperimentPlan, comparisons: Sequence[Row]) -> str:
    warm = _row(comparisons, kind="cache-state", metric="ttft_s", **{"pass": "engine-warm"})
    cost = _row(comparisons, kind="cache-off", metric="ttft_s", **{"pass": "cold"})
    if warm is None or isnan(warm["ratio"]):
        return f"The prefix cache was measured with a {_prompt(plan)}, but no pass can be compared"
    text = _warm_clause("prefix cache", _prompt(plan), [warm])
    if cost is None or isnan(cost["low"]):
        return text
    if _resolved(cost):
        percent = 100 * (1 / cost["ratio"] - 1)
        return f"{text}; keeping it changes a cold prompt's TTFT by {percent:+.1f} %"
    return f"{text}; what keeping it costs a cold prompt cannot be told from noise here"


def _sweep_finding(plan: ExperimentPlan, comparisons: Sequence[Row]) -> str:
    subjects = {a.label for a in plan.arms if a.role != "opponent"}
    ttft = [r for r in comparisons if r["metric"] == "ttft_s" and not isnan(r["ratio"])]
    parts = []
    for state, what in (("store-warm", "KV store"), ("engine-warm", "engine cache")):
        warm = [
            r for r in ttft
            if r["kind"] == "cache-state" and r["pass"] == state and r["arm"] in subjects
        ]  # fmt: skip
        if warm:
            parts.append(_warm_clause(what, _prompt(plan), warm))
            break
    rivals = [r for r in ttft if r["kind"] == "opponent"]
    if rivals:
        parts.append(_pd_clause(rivals))
    return "; ".join(parts) or f"TTFT of a {_prompt(plan)} was measured in one cache state"


def _span(ratios: Iterable[float]) -> str:
    known = sorted(ratios)
    low, high = known[0], known[-1]
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _warm_clause(what: str, prompt: str, rows: Sequence[Row]) -> str:
    """What a warm cache does to TTFT, as far as the intervals carry it."""
    if all(isnan(r["low"]) for r in rows):
        return (
            f"Cold TTFT of a {prompt} was {_span(r['ratio'] for r in rows)} times that with a warm"
            f" {what}, in too few rounds for an interval"
        )
    better = [r for r in rows if _resolved(r) and r["ratio"] > 1]
    worse = [r for r in rows if _resolved(r) and r["ratio"] < 1]
    if len(better) == len(rows):
        return f"A warm {what} cuts TTFT of a {prompt} {_span(r['ratio'] for r in rows)} times"
    if len(worse) == len(rows):
        longer = _span(1 / r["ratio"] for r in rows)
        return f"A warm {what} makes TTFT of a {prompt} {longer} times longer"
    if not better and not worse:
        return f"What a warm {what} does to TTFT of a {prompt} cannot be told from noise here"
    does = [f"cuts TTFT of a {prompt} in {len(better)}"] * bool(better)
    does += [f"lengthens it in {len(worse)}"] * bool(better and worse)
    does += [f"lengthens TTFT of a {prompt} in {len(worse)}"] * bool(worse and not better)
    return f"A warm {what} {' and '.join(does)} of {len(rows)} arms"


def _pd_clause(rivals: Sequence[Row]) -> str:
    """What splitting prefill and decode does by itself, beside as many aggregated instances."""
    cold = [r for r in rivals if r["pass"] == "cold"]
    warm = [r for r in rivals if r["pass"] != "cold"]
    lead = "splitting prefill and decode by itself"
    if all(isnan(r["low"]) for r in rivals):
        return f"{lead} cannot be judged: too few rounds for an interval"
    better = [r for r in cold if _resolved(r) and r["ratio"] > 1]
    worse = [r for r in cold if _resolved(r) and r["ratio"] < 1]
    if better and worse:
        text = f"{lead} cuts cold TTFT in {len(better)} and lengthens it in {len(worse)} of"
        text += f" {len(cold)} comparisons"
    elif better:
        text = f"{lead} cuts cold TTFT {_span(r['ratio'] for r in better)} times"
        text += _among(better, cold)
    elif worse:
        slow = max(1 / r["ratio"] for r in worse)
        text = f"{lead} makes cold TTFT up to {slow:.3g} times longer{_among(worse, cold)}"
    else:
        text = f"{lead} makes no detectable difference to cold TTFT"
    slower = sum(_resolved(r) and r["ratio"] < 1 for r in warm)
    sooner = sum(_resolved(r) and r["ratio"] > 1 for r in warm)
    if slower or sooner:
        words = [f"longer in {slower}"] * bool(slower) + [f"shorter in {sooner}"] * bool(sooner)
        text += f", and warm TTFT is {' and '.join(words)} of {len(warm)}"
    return text


def _among(some: Sequence[Row], rivals: Sequence[Row]) -> str:
    """Says how many of the comparisons show it, where not all do."""
    return f" in {len(some)} of {len(rivals)} comparisons" if len(some) < len(rivals) else ""


def scope(plan: ExperimentPlan) -> str:
    """One line under the headline: where, how often and with what load it was measured."""
    where = (
        "Tiny model on a CPU: ratios are shapes, not promises for a GPU."
        if plan.platform == "cpu" and plan.params.engine == "vllm" and not plan.params.model
        else {
            "vllm": f"Measured on {plan.platform}.",
            "simulated": "Simulated servers: nothing was measured.",
            "attach": "Servers started by somebody else.",
        }[plan.params.engine]
    )
    intervals = "95 % intervals" if plan.rounds >= 3 else "too few rounds for intervals of ratios"
    return (
        f"{where} {plan.rounds} round{'s' * (plan.rounds > 1)}, arms interleaved,"
        f" {len(plan.workload.sample.requests)} requests a pass, {plan.describe_arrivals()};"
        f" {intervals}."
    )


def cards(
    plan: ExperimentPlan,
    summary: Sequence[Row],
    comparisons: Sequence[Row],
    failed_gates: Sequence[str] = (),
) -> list[Row]:
    """Up to three key numbers, each with its interval and what it rests on."""
    comparisons = [row for row in comparisons if not isnan(row["ratio"])]
    subject = next((a for a in plan.arms[::-1] if a.role != "opponent"), plan.arms[0])
    cards = []
    for state in ("store-warm", "engine-warm"):
        row = _row(comparisons, kind="cache-state", metric="ttft_s", arm=subject.label,
                   **{"pass": state})  # fmt: skip
        if row is not None:
            cards.append(_ratio_card(f"TTFT cold / {state}, {subject.label}", row))
    row = _row(comparisons, kind="opponent", metric="ttft_s", arm=subject.label, **{"pass": "cold"})
    if row is not None:
        label = f"{subject.label} beside {row['baseline_arm']}, cold TTFT (above 1: faster)"
        cards.append(_ratio_card(label, row))
    row = _row(comparisons, kind="cache-off", metric="ttft_s", **{"pass": "cold"})
    if row is not None:
        cards.append(_ratio_card("cache on beside off, cold TTFT (above 1: faster)", row))
    cold = _row(summary, arm=subject.label, metric="ttft_s", **{"pass": "cold"})
    if cold is not None and len(cards) < 3:
        cards.append(
            {
                "label": f"TTFT cold, {subject.label}",
                "value": 1000 * cold["median"],
                "unit": "ms",
                "low": 1000 * cold["low"],
                "high": 1000 * cold["high"],
                "note": f"median of {cold['n_requests']} requests",
            }
        )
    if failed_gates:
        cards = [card | {"note": f"not proven: a gate failed; {card['note']}"} for card in cards]
    return cards[:3]


def _ratio_card(label: str, row: Row) -> Row:
    rounds = f"{row['n_rounds']} rounds, {row['n_pairs']} pairs"
    note = f"{rounds} ({row['note']})" if row["note"] else rounds
    if not isnan(row["low"]) and not _resolved(row):
        note = f"no difference detectable; {note}"
    return {
        "label": label,
        "value": row["ratio"],
        "unit": "x",
        "low": row["low"],
        "high": row["high"],
        "note": note,
    }


def sentences(
    plan: ExperimentPlan, summary: Sequence[Row], comparisons: Sequence[Row]
) -> list[str]:
    """One sentence for each pair of a subject and its opponent, and one on scarce decode."""
    said = []
    for row in comparisons:
        if row["kind"] == "opponent" and row["metric"] == "ttft_s":
            if isnan(row["low"]):
                verdict = "not judged"
            elif not _resolved(row):
                verdict = "no difference detectable"
            else:
                verdict = f"first token {'sooner' if row['ratio'] > 1 else 'later'}"
            said.append(
                f"{row['arm']} beside {row['baseline_arm']}, {row['pass']}: {verdict},"
                f" {row['sentence'].removeprefix('no difference detectable at this n: ')}."
            )
    tpot = {
        r["arm"]: 1000 * r["median"]
        for r in summary
        if r["metric"] == "tpot_s" and r["pass"] == "cold" and not isnan(r["median"])
    }
    split = [
        (a, Topology.parse(a.topology))
        for a in plan.arms
        if a.connector in ("lmcache", "nixl") and a.topology.endswith("d")
    ]
    scarce = [a.label for a, t in split if t.decode < t.prefill and a.label in tpot]
    ample = [a.label for a, t in split if t.decode >= t.prefill and a.label in tpot]
    if scarce and ample:
        worst, best = max(scarce, key=tpot.__getitem__), min(ample, key=tpot.__getitem__)
        said.append(
            f"With fewer decode than prefill instances TPOT is {tpot[worst]:.1f} ms at worst"
            f" ({worst}), with as many or more {tpot[best]:.1f} ms at best ({best}), cold."
        )
    return said


def break_even(summary: Sequence[Row], comparisons: Sequence[Row]) -> str:
    """From which cached share on the prefix cache pays, in one sentence; empty for other runs.

    A cold prompt costs TTFT(on, cold) - TTFT(off) more and a full hit saves TTFT(on, cold) -
    TTFT(warm); TTFT falls about linearly with the cached share, so it pays from cost / saving.
    """
    cost = _row(comparisons, kind="cache-off", metric="ttft_s", **{"pass": "cold"})
    rows = {(r["arm"], r["pass"]): 1000 * r["median"] for r in summary if r["metric"] == "ttft_s"}
    known = [("cache off", "cold"), ("cache on", "cold"), ("cache on", "engine-warm")]
    if cost is None or not all(key in rows for key in known):
        return ""
    off, cold, warm = (rows[key] for key in known)
    saved = f"a full hit saves {cold - warm:.0f} ms of TTFT"
    if isnan(cost["low"]) or not _resolved(cost):
        return f"What the cache costs a cold prompt cannot be told from noise; {saved}."
    if cost["ratio"] >= 1:
        return f"A cold prompt is not slower with the cache on; {saved}: it pays from any hit."
    share = (cold - off) / (cold - warm)
    return (
        f"A cold prompt takes {cold - off:.1f} ms longer with the cache on, {saved}: the cache"
        f" pays once {share:.1%} of a prompt's tokens are found in it."
    )


def _row(rows: Sequence[Row], **wanted: Any) -> Row | None:
    return next((r for r in rows if wanted.items() <= r.items()), None)


def _resolved(row: Row) -> bool:
    """True when the interval leaves 1 out."""
    return not isnan(row["low"]) and not row["low"] <= 1 <= row["high"]
