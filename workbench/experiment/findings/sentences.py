"""Sentences and key numbers, computed from a run's summary and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from workbench.experiment.findings.cache_sentences import cache_finding
from workbench.experiment.findings.clauses import (
    Row,
    marked,
    prompts,
    resolved,
    rounds,
    row_of,
    sample,
    span,
    told,
    warm_clause,
)
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.metrics.gates.gate_table import Kind, gate_row, spoil

__all__ = ["cards", "finding", "headline", "scope", "sentences"]


def finding(plan: ExperimentPlan, comparisons: Sequence[Row], rates: Sequence[str] = ()) -> str:
    """What was found, with its size; never more than its intervals allow.

    `rates` has one sentence for each arm of a sweep over rates, first that of what was asked for.
    """
    if rates:
        return rates[0].removesuffix(".")
    if plan.notebook == "single_instance_prefix_cache":
        return cache_finding(plan, comparisons)
    return _sweep_finding(plan, comparisons)


def headline(
    found: str, failed_gates: Sequence[str], kind: Kind = "ratios", *, interval: bool = True
) -> dict[str, str]:
    """`finding`, the page's headline, and `unproven`, what it would be without a gate that failed.

    `kind` is that of the numbers in `found`; `interval` says whether they have one.
    """
    does = spoil(failed_gates, kind, interval=interval)
    if does.effect == "rough":
        return {"finding": f"{found} ({does.said})", "unproven": ""}
    if not does.struck:
        return {"finding": found, "unproven": ""}
    first, *others = does.gates
    more = f", and {len(others)} more failed" if others else ""
    return {
        "finding": f"Not proven: {gate_row(first).meaning} (gate “{first}”{more})",
        "unproven": found,
    }


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
            parts.append(warm_clause(what, prompts(plan), warm))
            break
    rivals = [r for r in ttft if r["kind"] == "opponent"]
    if rivals:
        parts.append(_pd_clause(rivals))
    if parts:
        return "; ".join(parts)
    unknown = next(
        (r for r in comparisons if r["metric"] == "ttft_s" and isnan(r["ratio"])
         and r["arm"] in subjects), None,
    )  # fmt: skip
    if unknown is not None:
        return f"TTFT of {prompts(plan)} cannot be compared: {unknown['note']}"
    return f"TTFT of {prompts(plan)} was measured in one cache state"


def _pd_clause(rivals: Sequence[Row]) -> str:
    """What splitting prefill and decode does by itself, beside as many aggregated instances."""
    cold = [r for r in rivals if r["pass"] == "cold"]
    warm = [r for r in rivals if r["pass"] != "cold"]
    lead = "splitting prefill and decode by itself"
    if all(isnan(r["low"]) for r in rivals):
        return f"{lead} cannot be judged: too few rounds for an interval"
    better = [r for r in cold if resolved(r) and r["ratio"] > 1]
    worse = [r for r in cold if resolved(r) and r["ratio"] < 1]
    if better and worse:
        text = f"{lead} cuts cold TTFT in {len(better)} and lengthens it in {len(worse)} of"
        text += f" {len(cold)} comparisons"
    elif better:
        text = f"{lead} cuts cold TTFT {span(r['ratio'] for r in better)} times"
        text += _among(better, cold)
    elif worse:
        slow = max(1 / r["ratio"] for r in worse)
        text = f"{lead} makes cold TTFT up to {slow:.3g} times longer{_among(worse, cold)}"
    else:
        text = f"{lead} makes no detectable difference to cold TTFT"
    slower = sum(resolved(r) and r["ratio"] < 1 for r in warm)
    sooner = sum(resolved(r) and r["ratio"] > 1 for r in warm)
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
        f"{where} {rounds(plan.rounds)}, arms interleaved,"
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
        row = row_of(comparisons, kind="cache-state", metric="ttft_s", arm=subject.label,
                   **{"pass": state})  # fmt: skip
        if row is not None:
            cards.append(_ratio_card(f"TTFT cold / {state}, {subject.label}", row))
    row = row_of(
        comparisons, kind="opponent", metric="ttft_s", arm=subject.label, **{"pass": "cold"}
    )
    if row is not None:
        label = f"{subject.label} beside {row['baseline_arm']}, cold TTFT (above 1: faster)"
        cards.append(_ratio_card(label, row))
    row = row_of(comparisons, kind="cache-off", metric="ttft_s", **{"pass": "cold"})
    if row is not None:
        cards.append(_ratio_card("cache on beside off, cold TTFT (above 1: faster)", row))
    cold = row_of(summary, arm=subject.label, metric="ttft_s", **{"pass": "cold"})
    if cold is not None and len(cards) < 3:
        cards.append(
            {
                "label": f"TTFT cold, {subject.label}",
                "value": 1000 * cold["median"],
                "unit": "ms",
                "low": 1000 * cold["low"],
                "high": 1000 * cold["high"],
                "note": f"median of {cold['n_requests']} requests",
                "rests_on": "times",
                "passes": ["cold"],
            }
        )
    return marked(cards[:3], failed_gates)


def _ratio_card(label: str, row: Row) -> Row:
    note = f"{sample(row)} ({row['note']})" if row["note"] else sample(row)
    if not isnan(row["low"]) and not resolved(row):
        note = f"no difference detectable; {note}"
    return {
        "label": label,
        "value": row["ratio"],
        "unit": "x",
        "low": row["low"],
        "high": row["high"],
        "note": note,
        "rests_on": "ratios",
        "passes": _passes(row),
    }


def _passes(row: Row) -> list[str]:
    """The passes that a ratio compares."""
    return list(dict.fromkeys((row["pass"], row["baseline_pass"])))


def sentences(
    plan: ExperimentPlan,
    summary: Sequence[Row],
    comparisons: Sequence[Row],
    failed_gates: Sequence[str] = (),
) -> list[str]:
    """One sentence for each pair of a subject and its opponent, and one on scarce decode."""
    said = []
    for row in comparisons:
        if row["kind"] == "opponent" and row["metric"] == "ttft_s":
            if isnan(row["low"]):
                verdict = "not judged"
            elif not resolved(row):
                verdict = "no difference detectable"
            else:
                verdict = f"first token {'sooner' if row['ratio'] > 1 else 'later'}"
            text = row["sentence"].removeprefix("no difference detectable at this n: ")
            text = f"{row['arm']} beside {row['baseline_arm']}, {row['pass']}: {verdict}, {text}."
            known = not isnan(row["low"])
            does = spoil(failed_gates, "ratios", passes=_passes(row), interval=known)
            said.append(told(text, does))
    tpot = {
        r["arm"]: 1000 * r["median"]
        for r in summary
        if r["metric"] == "tpot_s" and r["pass"] == "cold" and not isnan(r["median"])
    }
    split = [(a, a.topology) for a in plan.arms if a.means and a.topology and a.disaggregated]
    scarce = [a.label for a, t in split if t.decode < t.prefill and a.label in tpot]
    ample = [a.label for a, t in split if t.decode >= t.prefill and a.label in tpot]
    if scarce and ample:
        worst, best = max(scarce, key=tpot.__getitem__), min(ample, key=tpot.__getitem__)
        text = (
            f"With fewer decode than prefill instances TPOT is {tpot[worst]:.1f} ms at worst"
            f" ({worst}), with as many or more {tpot[best]:.1f} ms at best ({best}), cold."
        )
        said.append(told(text, spoil(failed_gates, "times", passes=["cold"])))
    return said
