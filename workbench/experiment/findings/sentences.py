"""Key numbers and sentences of a run, built from the verdicts of its ratios.

A text claims no more than its interval allows, and says what failed gates do to its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Any, Literal, TypeVar

from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.finding_rows import Card, Comparison, SummaryRow, spoilt_note
from workbench.metrics.gates.gate_effects import Failed, Spoil, spoil, struck_arms, told
from workbench.metrics.gates.gate_table import Kind
from workbench.metrics.passes import is_cold
from workbench.metrics.statistics import ROUNDS_FOR_INTERVAL, Ratio, Verdict, three_digits

_RESOLVED = 1.25
"""An effect whose interval reaches further from 1 is not resolved: it may be large or absent."""
REPEATS = 0.005
"""A workload that repeats less than this fraction of its prompt tokens counts as one without
repeats."""
Row = TypeVar("Row")
Overall = Verdict | Literal["sometimes_faster", "sometimes_slower", "mixed"]
"""What several comparisons say together."""

WARM = {
    "store-warm": "KV store", "disk-warm": "disk tier", "remote-warm": "remote store tier",
    "offload-warm": "host memory", "engine-warm": "prefix cache",
}  # fmt: skip
"""What is warm in a pass."""


def scope(plan: ExperimentPlan) -> str:
    """The lines under the headline: where, how often and with what load it was measured."""
    where = {
        "vllm": f"Measured on {plan.platform}.",
        "simulated": "Simulated servers: these numbers say nothing about real hardware.",
        "attach": "Attached servers, which this run did not start.",
    }[plan.params.engine]
    built_in = all(part.params.built_in_model for part in plan.parts)
    if plan.platform == "cpu" and plan.params.engine == "vllm" and built_in:
        tiny = "Tiny models" if plan.by_model else "Tiny model"
        where = f"{tiny} on a CPU: expect the direction, not the size, to hold on a GPU."
    intervals = "Brackets are 95 % confidence intervals"
    if plan.rounds < ROUNDS_FOR_INTERVAL:
        intervals = "Too few rounds for confidence intervals of ratios"
    return (
        f"{where} {f'{len(plan.by_model)} models, ' * bool(plan.by_model)}"
        f"{count(plan.rounds, 'round')},"
        f" {'up to ' * plan.sized}{count(len(plan.workload.sample.requests), 'request')} per pass,"
        f" {_prompts(plan)},"
        f" {plan.describe_arrivals()}.{'' if plan.profiles else f' {intervals}.'}"
    )


def cards(
    plan: ExperimentPlan,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    failed_gates: Failed = (),
) -> tuple[Card, ...]:
    """Up to three key numbers, each with its interval and sample.

    They are those of the last subject, if possible of one without a failed gate.
    """
    bad = struck_arms(failed_gates, "ratios")
    known = [row for row in comparisons if row.metric == "ttft_s" and not isnan(row.ratio.value)]
    known.sort(key=lambda row: bool({*row.arms} & bad.keys()))
    arms = [arm.label for arm in plan.arms[::-1] if arm.role != "opponent"] or [plan.arms[0].label]
    subject = next((arm for arm in arms if arm not in bad), arms[0])
    wanted: list[tuple[str, dict[str, str]]] = [
        (f"TTFT speed-up, warm {what} vs cold ({subject})", {"arm": subject, "pass_name": state})
        for state, what in WARM.items()
    ]
    for kind in ("opponent", "no-offload"):
        rival = first(known, kind=kind, arm=subject, pass_name="cold")
        if rival is not None:
            label = f"Cold TTFT speed-up, {subject} over {rival.baseline_arm} (below 1x: slower)"
            wanted.append((label, {"kind": kind, "arm": subject, "pass_name": "cold"}))
    label = "Cold TTFT speed-up, prefix cache on over off (below 1x: slower)"
    wanted.append((label, {"kind": "cache-off", "pass_name": "cold"}))
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
            arms=row.arms,
        )
        for label, which in wanted
        if (row := first(known, **{"kind": "cache-state"} | which))
    ]
    cold = first(summary, arm=subject, metric="ttft_s", pass_name="cold")
    if cold is not None:
        made.append(
            Card(
                label=f"Median cold TTFT, {subject}",
                value=1000 * cold.estimate.value,
                unit="ms",
                low=1000 * cold.estimate.low,
                high=1000 * cold.estimate.high,
                note=count(cold.n_requests, "request"),
                rests_on="times",
                passes=("cold",),
                arms=(subject,),
            )
        )
    return marked(made[:3], failed_gates)


def sentences(
    plan: ExperimentPlan,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    failed_gates: Failed = (),
) -> list[str]:
    """What the headline leaves out: totals, each subject against its opponents, scarce decode.

    Totals are of the arms whose ratios are valid, if there are any.
    """
    bad = struck_arms(failed_gates, "ratios")
    ttft = [row for row in comparisons if row.metric == "ttft_s" and not isnan(row.ratio.value)]
    rivals = matching(ttft, kind="opponent")
    arms = "PD arm" if all(a.disaggregated for a in plan.arms if a.role == "subject") else "arm"
    groups = [
        (f"Compared to cold, TTFT with a warm {what}", warm_rows(plan, ttft, state), arms)
        for state, what in WARM.items()
    ]
    hardware = "instances" if plan.platform in ("cpu", "simulated") else "GPUs"
    lead = f"Compared to the same number of aggregated {hardware},"
    if hardware == "GPUs":
        lead = "Compared to aggregated instances on the same number of GPUs,"
    for temperature in ("cold", "warm"):
        rows = [r for r in rivals if is_cold(r.pass_name) == (temperature == "cold")]
        groups.append((f"{lead} {temperature} TTFT of the PD split", rows, "comparison"))
    said: list[tuple[str, Spoil]] = []
    for what, whole, noun in groups:
        rows = [row for row in whole if not {*row.arms} & bad.keys()] or whole
        if len(rows) > 1:
            does = _does(rows, failed_gates)
            if plan.model:  # of several
                what = f"{plan.model}: {what[:1].lower()}{what[1:]}"
            size = "speed-up" if noun == arms else "TTFT of the baseline / of the PD split:"
            said.append((f"{what} is {_tally(rows, noun)} ({size} {_ratios(rows)}).", does))
    for row in [*rivals, *matching(ttft, kind="no-offload")]:
        said.append((_pair(row), _does([row], failed_gates)))
    timed = struck_arms(failed_gates, "times")
    if text := _scarce_decode(plan, [row for row in summary if row.arm not in timed]):
        left = [arm.label for arm in plan.arms if arm.label not in timed]
        said.append((text, spoil(failed_gates, "times", passes=["cold"], arms=left)))
    return list(told_once(said))


def _does(rows: Sequence[Comparison], failed_gates: Failed) -> Spoil:
    """What failed gates do to a sentence about these comparisons."""
    passes = {name for row in rows for name in row.passes}
    arms = {name for row in rows for name in row.arms}
    interval = _has_interval(rows)
    return spoil(failed_gates, "ratios", passes=passes, arms=arms, interval=interval)


def _pair(row: Comparison) -> str:
    """`Cold: 1p4d is 1.40x faster than 5a in TTFT [1.30, 1.50] (5 rounds, 30 request pairs).`"""
    ratio, state = row.ratio, f"{row.pass_name[:1].upper()}{row.pass_name[1:]}"
    if ratio.verdict in ("faster", "slower"):
        ends = sorted((ratio.low, ratio.high) if ratio.verdict == "faster" else
                      (1 / ratio.high, 1 / ratio.low))  # fmt: skip
        factor = ratio.value if ratio.verdict == "faster" else 1 / ratio.value
        said = (
            f"{row.arm} is {three_digits(factor)}x {ratio.verdict} than {row.baseline_arm} in TTFT"
            f" [{three_digits(ends[0])}, {three_digits(ends[1])}]"
        )
    else:
        lead = {
            "undecided": "no significant TTFT difference between",
            "no_interval": "too few rounds to compare TTFT of",
        }[ratio.verdict]
        both = f"{row.arm} and {row.baseline_arm}"
        ours = "with offloading" if row.kind == "no-offload" else "PD split"
        said = f"{lead} {both}, baseline / {ours} is {ratio_text(ratio)}"
    return f"{state}: {said} ({sample_text(ratio)})."


def _tally(rows: Sequence[Comparison], noun: str) -> str:
    """`slower in 6 of 7 comparisons and not significantly different in 1`"""
    words: dict[Verdict, str] = {
        "faster": "faster",
        "slower": "slower",
        "undecided": "not significantly different",
        "no_interval": "not judged (too few rounds)",
    }
    verdicts = [row.ratio.verdict for row in rows]
    first, *others = [(w, verdicts.count(v)) for v, w in words.items() if v in verdicts]
    parts = [f"{first[0]} in {first[1]} of {count(len(rows), noun)}"]
    return " and ".join(parts + [f"{word} in {number}" for word, number in others])


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
        "With fewer decode than prefill instances, median cold TPOT is up to"
        f" {three_digits(tpot_ms[worst])} ms ({worst}). The best PD split with at least as many"
        f" has {three_digits(tpot_ms[best])} ms ({best})."
    )


def unresolved(ratio: Ratio) -> bool:
    """Whether the interval contains both no effect and a large one."""
    return not 1 / _RESOLVED <= ratio.low <= ratio.high <= _RESOLVED


def break_even(
    plan: ExperimentPlan,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    *,
    cached: float = nan,
) -> str:
    """From which hit rate on the prefix cache pays off; empty for other runs.

    A cold prompt costs TTFT(on, cold) - TTFT(off) more and an engine-warm one, of which the
    fraction `cached` hits, saves TTFT(on, cold) - TTFT(warm). TTFT falls about linearly with the
    hit rate, so the cache pays off from cost / saving * cached. Where prompts repeat one another
    the cold pass has hits too, and no cost is known.
    """
    cost = first(comparisons, kind="cache-off", metric="ttft_s", pass_name="cold")
    sides = [("cache off", "cold"), ("cache on", "cold"), ("cache on", "engine-warm")]
    rows = [first(summary, metric="ttft_s", arm=arm, pass_name=name) for arm, name in sides]
    medians_ms = [1000 * row.estimate.value for row in rows if row is not None]
    if cost is None or isnan(cost.ratio.value) or len(medians_ms) < len(sides):
        return ""
    if (reuse := plan.workload.sample.ideal_reuse) >= REPEATS:
        return (
            f"These prompts repeat {percent(reuse)} of their tokens, so the cold pass mixes gain"
            " and cost. Use workload cold_start to measure the cost alone."
        )
    off, cold, warm = medians_ms
    if not warm < cold:
        return "Engine-warm prompts saved no TTFT here, so the prefix cache cannot pay off."
    hit = "" if isnan(cached) else f" ({percent(cached)} cached)"
    saved = f"Engine-warm prompts{hit} save {three_digits(cold - warm)} ms of TTFT."
    if cost.ratio.verdict in ("no_interval", "undecided"):
        known = "not significant"
        if cost.ratio.verdict == "no_interval" or unresolved(cost.ratio):
            known = "too noisy to tell"
        return f"{saved} The cost of the prefix cache on a cold prompt is {known}."
    if cost.ratio.verdict == "faster":
        return f"{saved} A cold prompt is not slower with the cache on, so any hit pays off."
    from_share = (cold - off) / (cold - warm) * (1.0 if isnan(cached) else cached)
    return (
        f"{saved} The cache adds {three_digits(cold - off)} ms to a cold prompt, so it pays off"
        f" once {percent(from_share, 1)} of a prompt's tokens hit."
    )


def marked(cards: Iterable[Card], failed_gates: Failed) -> tuple[Card, ...]:
    """The key numbers with what failed gates do to each: `spoilt`, and a word in its note.

    The reason stands once on the page, with the gates and doubts.
    """
    found = []
    for card in cards:
        kinds: list[Kind] = [card.rests_on] if card.rests_on else []
        interval = not isnan(card.low)
        effect = spoil(
            failed_gates, *kinds, passes=card.passes, arms=card.arms, interval=interval
        ).effect
        found.append(replace(card, spoilt=effect, note=spoilt_note(effect, card.note)))
    return tuple(found)


def told_once(said: Iterable[tuple[str, Spoil]]) -> tuple[str, ...]:
    """The same of several sentences; those with the same lead follow it in one text."""
    texts: dict[str, list[str]] = {}
    for sentence, does in said:
        led = told("", does)
        texts.setdefault(led or sentence, []).append(sentence)
    return tuple(f"{led}{' '.join(own)}" if own[0] != led else led for led, own in texts.items())


def overall(rows: Sequence[Comparison]) -> Overall:
    """What several comparisons say together; those without an interval do not count."""
    verdicts = [row.ratio.verdict for row in rows]
    faster, slower = verdicts.count("faster"), verdicts.count("slower")
    if not set(verdicts) - {"no_interval"}:
        return "no_interval"
    if faster and slower:
        return "mixed"
    if faster:
        return "faster" if faster == len(rows) else "sometimes_faster"
    if slower:
        return "slower" if slower == len(rows) else "sometimes_slower"
    return "undecided"


def matching(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The records whose fields have these values."""
    return [r for r in rows if all(getattr(r, name) == wanted[name] for name in wanted)]


def first(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """The first of `matching`."""
    return next(iter(matching(rows, **wanted)), None)


def count(number: int, noun: str) -> str:
    """`1 round`, `3 rounds`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def percent(fraction: float, digits: int = 0, *, signed: bool = False) -> str:
    """`21 %`, signed `+21 %`."""
    return f"{100 * fraction:{'+' * signed}.{digits}f} %"


def ratio_text(ratio: Ratio) -> str:
    """`18.0x [16.0, 20.3]`, without the brackets where there is no interval."""
    ends = f" [{three_digits(ratio.low)}, {three_digits(ratio.high)}]"
    return f"{three_digits(ratio.value)}x{'' if ratio.verdict == 'no_interval' else ends}"


def ratio_note(ratio: Ratio) -> str:
    """A key number's verdict and sample: `no significant difference; 3 rounds, 9 request pairs`."""
    words = {"slower": "slower", "undecided": "no significant difference"}
    words["no_interval"] = "too few rounds for a CI"
    return "; ".join(filter(None, (words.get(ratio.verdict), sample_text(ratio))))


def sample_text(ratio: Ratio) -> str:
    """`3 rounds, 9 request pairs`, with what was left out."""
    dropped = f" ({ratio.dropped} more left out)" if ratio.dropped else ""
    return f"{count(ratio.rounds, 'round')}, {count(ratio.pairs, 'request pair')}{dropped}"


def _prompts(plan: ExperimentPlan) -> str:
    """`22,660-token prompts`, or `prompts of up to 4,096 tokens` where lengths differ."""
    lengths = {request.prompt_tokens for request in plan.workload.sample.requests}
    if len(lengths) > 1:
        return f"prompts of up to {max(lengths):,} tokens"
    return f"{max(lengths):,}-token prompts"


def _ratios(rows: Iterable[Comparison]) -> str:
    """`0.787x to 0.860x`, or the only one."""
    values = sorted(row.ratio.value for row in rows)
    ends = [f"{three_digits(value)}x" for value in (values[0], values[-1])]
    return " to ".join(dict.fromkeys(ends))


def subjects(plan: ExperimentPlan) -> set[str]:
    """Labels of the arms that are measured for themselves, not as a baseline."""
    return {arm.label for arm in plan.arms if arm.role != "opponent"}


def warm_rows(plan: ExperimentPlan, rows: Iterable[Comparison], state: str) -> list[Comparison]:
    """The subjects' warm passes in this state, each against its cold pass."""
    own = subjects(plan)
    return [r for r in matching(rows, kind="cache-state", pass_name=state) if r.arm in own]


def _has_interval(rows: Iterable[Comparison]) -> bool:
    return any(row.ratio.verdict != "no_interval" for row in rows)
