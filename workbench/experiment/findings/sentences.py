"""Sentences and key numbers, computed from a run's summary and comparisons.

None says more than its interval allows, and each is led by what failed gates do to its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isnan
from typing import Any, TypeVar

from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import Card, Comparison, SummaryRow
from workbench.metrics.gates.gate_table import Kind, Spoil, gate_row, spoil
from workbench.metrics.statistics import Ratio

REPEATS = 0.005
"""A workload that shares less than this of its prompt tokens is taken for one that shares none."""
Row = TypeVar("Row")


def finding(
    plan: ExperimentPlan, comparisons: Sequence[Comparison], rates: Sequence[str] = ()
) -> str:
    """What was found, with its size; never more than its intervals allow.

    `rates` has one sentence for each arm of a sweep over rates, first that of what was asked for.
    """
    if rates:
        return rates[0].removesuffix(".")
    if plan.notebook == "single_instance_prefix_cache":
        return _cache_finding(plan, comparisons)
    return _sweep_finding(plan, comparisons)


def headline(
    found: str, failed_gates: Sequence[str], kind: Kind = "ratios", *, interval: bool = True
) -> tuple[str, str]:
    """The page's headline, and what it would be without a gate that failed, empty without one.

    `kind` is that of the numbers in `found`; `interval` says whether they have one.
    """
    does = spoil(failed_gates, kind, interval=interval)
    if does.struck:
        one, *others = does.gates
        more = f", and {len(others)} more failed" if others else ""
        return f"Not proven: {gate_row(one).meaning} (gate “{one}”{more})", found
    return (f"{found} ({does.said})" if does.effect == "rough" else found), ""


def scope(plan: ExperimentPlan) -> str:
    """One line under the headline: where, how often and with what load it was measured."""
    where = {
        "vllm": f"Measured on {plan.platform}.",
        "simulated": "Simulated servers: nothing was measured.",
        "attach": "Servers started by somebody else.",
    }[plan.params.engine]
    if plan.platform == "cpu" and plan.params.engine == "vllm" and not plan.params.model:
        where = "Tiny model on a CPU: ratios are shapes, not promises for a GPU."
    intervals = "95 % intervals" if plan.rounds >= 3 else "too few rounds for intervals of ratios"
    return (
        f"{where} {rounds(plan.rounds)}, arms interleaved,"
        f" {len(plan.workload.sample.requests)} requests a pass, {plan.describe_arrivals()};"
        f" {intervals}."
    )


def cards(
    plan: ExperimentPlan,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    failed_gates: Sequence[str] = (),
) -> tuple[Card, ...]:
    """Up to three key numbers, each with its interval and what it rests on."""
    known = [row for row in comparisons if row.metric == "ttft_s" and not isnan(row.ratio.value)]
    subject = next((a for a in plan.arms[::-1] if a.role != "opponent"), plan.arms[0]).label
    wanted = [
        (f"TTFT cold / {state}, {subject}", {"kind": "cache-state", "pass_name": state})
        for state in ("store-warm", "engine-warm")
    ]
    found = [(label, row) for label, which in wanted if (row := first(known, arm=subject, **which))]
    if row := first(known, kind="opponent", arm=subject, pass_name="cold"):
        label = f"{subject} beside {row.baseline_arm}, cold TTFT (above 1: faster)"
        found.append((label, row))
    if row := first(known, kind="cache-off", pass_name="cold"):
        found.append(("cache on beside off, cold TTFT (above 1: faster)", row))
    made = [
        Card(
            label=label,
            value=row.ratio.value,
            unit="x",
            low=row.ratio.low,
            high=row.ratio.high,
            note=ratio_note(row.ratio),
            rests_on="ratios",
            passes=row.passes,
        )
        for label, row in found
    ]
    cold = first(summary, arm=subject, metric="ttft_s", pass_name="cold")
    if cold is not None and len(made) < 3:
        made.append(
            Card(
                label=f"TTFT cold, {subject}",
                value=1000 * cold.estimate.value,
                unit="ms",
                low=1000 * cold.estimate.low,
                high=1000 * cold.estimate.high,
                note=f"median of {cold.n_requests} requests",
                rests_on="times",
                passes=("cold",),
            )
        )
    return marked(made[:3], failed_gates)


def sentences(
    plan: ExperimentPlan,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    failed_gates: Sequence[str] = (),
) -> list[str]:
    """One sentence for each pair of a subject and its opponent, and one on scarce decode."""
    verdicts = {
        "faster": "first token sooner",
        "slower": "first token later",
        "undecided": "no difference detectable",
        "no_interval": "not judged",
    }
    said = []
    for row in comparisons:
        if row.kind == "opponent" and row.metric == "ttft_s":
            verdict = row.ratio.verdict
            text = row.sentence.removeprefix("no difference detectable at this n: ")
            pair = f"{row.arm} beside {row.baseline_arm}, {row.pass_name}"
            known = verdict != "no_interval"
            does = spoil(failed_gates, "ratios", passes=row.passes, interval=known)
            said.append(told(f"{pair}: {verdicts[verdict]}, {text}.", does))
    if text := _scarce_decode(plan, summary):
        said.append(told(text, spoil(failed_gates, "times", passes=["cold"])))
    return said


def _scarce_decode(plan: ExperimentPlan, summary: Sequence[SummaryRow]) -> str:
    tpot_ms = {
        row.arm: 1000 * row.estimate.value
        for row in summary
        if row.metric == "tpot_s" and row.pass_name == "cold" and not isnan(row.estimate.value)
    }
    split = [
        (arm.label, arm.topology)
        for arm in plan.arms
        if arm.kv_connector and arm.topology and arm.disaggregated and arm.label in tpot_ms
    ]
    scarce = [label for label, topology in split if topology.decode < topology.prefill]
    ample = [label for label, topology in split if topology.decode >= topology.prefill]
    if not scarce or not ample:
        return ""
    worst, best = max(scarce, key=tpot_ms.__getitem__), min(ample, key=tpot_ms.__getitem__)
    return (
        f"With fewer decode than prefill instances TPOT is {tpot_ms[worst]:.1f} ms at worst"
        f" ({worst}), with as many or more {tpot_ms[best]:.1f} ms at best ({best}), cold."
    )


def _sweep_finding(plan: ExperimentPlan, comparisons: Sequence[Comparison]) -> str:
    subjects = {arm.label for arm in plan.arms if arm.role != "opponent"}
    ttft = matching(comparisons, metric="ttft_s")
    known = [row for row in ttft if not isnan(row.ratio.value)]
    parts = []
    for state, what in (("store-warm", "KV store"), ("engine-warm", "engine cache")):
        warm = matching(known, kind="cache-state", pass_name=state)
        if warm := [row for row in warm if row.arm in subjects]:
            parts.append(_warm_clause(what, _prompts(plan), warm))
            break
    if rivals := matching(known, kind="opponent"):
        parts.append(_pd_clause(rivals))
    if parts:
        return "; ".join(parts)
    for row in ttft:
        if row.arm in subjects:
            return f"TTFT of {_prompts(plan)} cannot be compared: {row.ratio.note}"
    return f"TTFT of {_prompts(plan)} was measured in one cache state"


def _warm_clause(what: str, prompt: str, rows: Sequence[Comparison]) -> str:
    """What a warm cache does to TTFT, as far as the intervals carry it."""
    times = _span(row.ratio.value for row in rows)
    if all(row.ratio.verdict == "no_interval" for row in rows):
        return (
            f"Cold TTFT of {prompt} was {times} times that with a warm {what}, in too few rounds"
            " for an interval"
        )
    better, worse = _with("faster", rows), _with("slower", rows)
    if len(better) == len(rows):
        return f"A warm {what} cuts TTFT of {prompt} {times} times"
    if len(worse) == len(rows):
        longer = _span(1 / row.ratio.value for row in rows)
        return f"A warm {what} makes TTFT of {prompt} {longer} times longer"
    if not better and not worse:
        return f"What a warm {what} does to TTFT of {prompt} cannot be told from noise here"
    if better and worse:
        does = f"cuts TTFT of {prompt} in {len(better)} and lengthens it in {len(worse)}"
    elif better:
        does = f"cuts TTFT of {prompt} in {len(better)}"
    else:
        does = f"lengthens TTFT of {prompt} in {len(worse)}"
    return f"A warm {what} {does} of {len(rows)} arms"


def _pd_clause(rivals: Sequence[Comparison]) -> str:
    """What splitting prefill and decode does by itself, beside as many aggregated instances."""
    lead = "splitting prefill and decode by itself"
    if all(row.ratio.verdict == "no_interval" for row in rivals):
        return f"{lead} cannot be judged: too few rounds for an interval"
    cold = [row for row in rivals if row.pass_name == "cold"]
    warm = [row for row in rivals if row.pass_name != "cold"]
    better, worse = _with("faster", cold), _with("slower", cold)
    some = better or worse
    among = f" in {len(some)} of {len(cold)} comparisons" if len(some) < len(cold) else ""
    if better and worse:
        text = (
            f"{lead} cuts cold TTFT in {len(better)} and lengthens it in {len(worse)} of"
            f" {len(cold)} comparisons"
        )
    elif better:
        text = f"{lead} cuts cold TTFT {_span(row.ratio.value for row in better)} times{among}"
    elif worse:
        slow = max(1 / row.ratio.value for row in worse)
        text = f"{lead} makes cold TTFT up to {slow:.3g} times longer{among}"
    else:
        text = f"{lead} makes no detectable difference to cold TTFT"
    counted = [("longer", len(_with("slower", warm))), ("shorter", len(_with("faster", warm)))]
    if words := [f"{word} in {n}" for word, n in counted if n]:
        text += f", and warm TTFT is {' and '.join(words)} of {len(warm)}"
    return text


def _cache_finding(plan: ExperimentPlan, comparisons: Sequence[Comparison]) -> str:
    """What a warm cache gains, and what a cache costs or, where prompts repeat, gains from cold."""
    warm = first(comparisons, kind="cache-state", metric="ttft_s", pass_name="engine-warm")
    cost = first(comparisons, kind="cache-off", metric="ttft_s", pass_name="cold")
    if warm is None or isnan(warm.ratio.value):
        return f"The prefix cache was measured with {_prompts(plan)}, but no pass can be compared"
    text = _warm_clause("prefix cache", _prompts(plan), [warm])
    if cost is None or cost.ratio.verdict == "no_interval":
        return text
    if plan.workload.sample.ideal_reuse >= REPEATS:
        return f"{_from_cold(plan, cost.ratio)}; {_once_warm(warm.ratio)}"
    if cost.ratio.verdict == "undecided":
        return f"{text}; what keeping it costs a cold prompt cannot be told from noise here"
    percent = 100 * (1 / cost.ratio.value - 1)
    return f"{text}; keeping it changes a cold prompt's TTFT by {percent:+.1f} %"


def _from_cold(plan: ExperimentPlan, gain: Ratio) -> str:
    """Cache on beside off, both cold, with a workload that repeats some of its own tokens."""
    prompt = _prompts(plan)
    repeats = f"this workload repeats {plan.workload.sample.ideal_reuse:.0%} of its tokens"
    if gain.verdict == "faster":
        times = f"{gain.value:.3g} times from cold"
        return f"The prefix cache cuts TTFT of {prompt} {times}, since {repeats}"
    if gain.verdict == "slower":
        longer = f"{1 / gain.value:.3g} times longer"
        return f"The prefix cache makes TTFT of {prompt} {longer} from cold, though {repeats}"
    return (
        f"What the prefix cache does to TTFT of {prompt} from cold cannot be told from noise here,"
        f" though {repeats}"
    )


def _once_warm(warm: Ratio) -> str:
    """What a second pass over the same prompts adds to that."""
    if warm.verdict == "faster":
        return f"a warm one cuts that {warm.value:.3g} times more"
    if warm.verdict == "slower":
        return f"with a warm one it is {1 / warm.value:.3g} times longer than that"
    return "what a warm one adds cannot be told from noise here"


def break_even(
    plan: ExperimentPlan, summary: Sequence[SummaryRow], comparisons: Sequence[Comparison]
) -> str:
    """From which cached share on the prefix cache pays, in one sentence; empty for other runs.

    Of prompts that repeat one another no cost is known: the cache saves in the cold pass already.
    A cold prompt costs TTFT(on, cold) - TTFT(off) more and a full hit saves TTFT(on, cold) -
    TTFT(warm); TTFT falls about linearly with the cached share, so it pays from cost / saving.
    """
    cost = first(comparisons, kind="cache-off", metric="ttft_s", pass_name="cold")
    sides = [("cache off", "cold"), ("cache on", "cold"), ("cache on", "engine-warm")]
    rows = [first(summary, metric="ttft_s", arm=arm, pass_name=name) for arm, name in sides]
    medians_ms = [1000 * row.estimate.value for row in rows if row is not None]
    if cost is None or isnan(cost.ratio.value) or len(medians_ms) < len(sides):
        return ""
    if (reuse := plan.workload.sample.ideal_reuse) >= REPEATS:
        return (
            f"These prompts repeat {reuse:.0%} of their tokens, so the cold pass shows what the"
            " cache gains and what it costs together; workload cold_start shows the cost alone."
        )
    off, cold, warm = medians_ms
    if not warm < cold:
        return "A full hit saved no TTFT here, so there is nothing that the cache could pay with."
    saved = f"a full hit saves {cold - warm:.0f} ms of TTFT"
    if cost.ratio.verdict in ("no_interval", "undecided"):
        return f"What the cache costs a cold prompt cannot be told from noise; {saved}."
    if cost.ratio.verdict == "faster":
        return f"A cold prompt is not slower with the cache on; {saved}: it pays from any hit."
    return (
        f"A cold prompt takes {cold - off:.1f} ms longer with the cache on, {saved}: the cache"
        f" pays once {(cold - off) / (cold - warm):.1%} of a prompt's tokens are found in it."
    )


def marked(cards: Iterable[Card], failed_gates: Sequence[str]) -> tuple[Card, ...]:
    """The key numbers with what the gates that failed do to each: `spoilt`, and in its note."""
    found = []
    for card in cards:
        kinds: list[Kind] = [card.rests_on] if card.rests_on else []
        interval = not isnan(card.low)
        does = spoil(failed_gates, *kinds, passes=card.passes, interval=interval)
        note = "; ".join(filter(None, (does.said, card.note)))
        found.append(replace(card, spoilt=does.effect, note=note))
    return tuple(found)


def told(sentence: str, does: Spoil) -> str:
    """A sentence about numbers, led by what failed gates do to them where that is more than doubt.

    `Rough: gate “client kept up” failed. 1p4d lmcache: answers kept up with every rate.`
    """
    if does.effect not in ("struck", "rough"):
        return sentence
    return f"{does.said[:1].upper()}{does.said[1:]}. {sentence}"


def matching(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The records whose fields have these values."""
    return [r for r in rows if all(getattr(r, name) == wanted[name] for name in wanted)]


def first(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """The first of `matching`."""
    return next(iter(matching(rows, **wanted)), None)


def rounds(number: int) -> str:
    """`1 round`, `3 rounds`."""
    return f"{number} round{'s' * (number != 1)}"


def ratio_note(ratio: Ratio) -> str:
    """What a key number rests on: `no difference detectable; 3 rounds, 9 pairs (few rounds)`."""
    sample = f"{rounds(ratio.rounds)}, {ratio.pairs} pairs"
    note = f"{sample} ({ratio.note})" if ratio.note else sample
    return f"no difference detectable; {note}" if ratio.verdict == "undecided" else note


def _prompts(plan: ExperimentPlan) -> str:
    """`a 22,660-token prompt`, or `prompts of up to 4,096 tokens` where they are unlike."""
    lengths = {request.prompt_tokens for request in plan.workload.sample.requests}
    if len(lengths) > 1:
        return f"prompts of up to {max(lengths):,} tokens"
    return f"a {max(lengths):,}-token prompt"


def _span(ratios: Iterable[float]) -> str:
    """The only ratio, or `9 to 18`."""
    known = sorted(ratios)
    low, high = known[0], known[-1]
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _with(verdict: str, rows: Iterable[Comparison]) -> list[Comparison]:
    return [row for row in rows if row.ratio.verdict == verdict]
