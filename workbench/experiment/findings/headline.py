"""The headline of a run: what its comparisons show, in at most 14 words outside brackets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor, isnan, log10

from workbench.experiment.findings.sentences import (
    REPEATS,
    WARM,
    count,
    first,
    matching,
    overall,
    percent,
    ratio_text,
    subjects,
    unresolved,
    warm_rows,
)
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.finding_rows import Comparison
from workbench.metrics.gates.gate_effects import Failed, listed, spoil, struck_arms, touching
from workbench.metrics.gates.gate_table import Kind, failed_name, gate_row
from workbench.metrics.statistics import Verdict


def valid_finding(
    plan: ExperimentPlan, comparisons: Sequence[Comparison], failed: Failed
) -> tuple[str, Failed]:
    """What the comparisons of valid arms show, and which gates limit that.

    Arms whose ratios are not valid because a gate failed are left out and named in brackets, if
    other subjects still have a baseline. Else the gates of those arms limit the finding.
    """
    bad = struck_arms(failed, "ratios")
    rows = [row for row in comparisons if not {*row.arms} & bad.keys()]
    # A subject that had baselines and lost all of them has nothing to say about its split.
    lost = {r.arm for r in matching(comparisons, kind="opponent")} - {
        r.arm for r in matching(rows, kind="opponent")
    }
    rows = [row for row in rows if row.arm not in lost]
    known = [r for r in matching(rows, metric="ttft_s") if not isnan(r.ratio.value)]
    if not bad or not {row.arm for row in known} & {*subjects(plan)}:
        return finding(plan, comparisons), failed
    left_out = [arm for arm in dict.fromkeys(row.arm for row in comparisons) if arm in bad]
    left_out += [arm for arm in bad if arm not in left_out]
    text = f"{finding(plan, rows)} (left out: {listed(left_out)}, {failed_name(bad[left_out[0]])})"
    return text, touching(failed, arms=[arm.label for arm in plan.arms if arm.label not in bad])


def finding(plan: ExperimentPlan, comparisons: Sequence[Comparison]) -> str:
    """What the comparisons show, in at most 14 words outside brackets."""
    if plan.notebook == "single_instance_prefix_cache":
        return _cache_finding(plan, comparisons)
    if plan.profiles:
        return "The passes for a profile were measured"
    return _sweep_finding(plan, comparisons)


def headline(
    found: str, failed: Failed, kind: Kind = "ratios", *, interval: bool = True
) -> tuple[str, str]:
    """The page's headline, and the one without the gates that failed; empty without such gates.

    `kind` is that of the numbers in `found`; `interval` says whether they have one.
    """
    does = spoil(failed, kind, interval=interval)
    if does.struck:
        return f"Not valid: {gate_row(does.gates[0]).meaning}", found
    return f"{found} (rough)" if does.effect == "rough" else found, ""


def _sweep_finding(plan: ExperimentPlan, comparisons: Sequence[Comparison]) -> str:
    ttft = matching(comparisons, metric="ttft_s")
    known = [row for row in ttft if not isnan(row.ratio.value)]
    rivals = matching(known, kind="opponent")
    for state, what in WARM.items():
        if warm := warm_rows(plan, known, state):
            cost = first(known, kind="no-offload", pass_name="cold")
            return _with_split(what, warm, rivals) + (_cost_of_offloading(cost) if cost else "")
    if rivals:
        return _split_finding([row for row in rivals if row.pass_name == "cold"] or rivals)
    own = subjects(plan)
    notes = [row.ratio.note for row in ttft if row.arm in own]
    if notes:
        return f"No TTFT comparison: {notes[0].partition(';')[0]}"
    return "TTFT was measured in one cache state, without a baseline"


def _with_split(what: str, warm: Sequence[Comparison], rivals: Sequence[Comparison]) -> str:
    """The effect of a warm cache, and of the PD split by itself. The latter is judged on cold
    prompts, as in the key number."""
    cold = [row for row in rivals if row.pass_name == "cold"]
    judged, name = cold or rivals, "cold PD split" if cold else "PD split"
    cache, split = overall(warm), overall(judged)
    if cache == split == "undecided":
        return f"No significant effect of a warm {what} or {name} on TTFT"
    text = _warm_finding(what, warm)
    if not rivals or cache == "no_interval":
        return text
    if split == "no_interval":
        return f"{text}; PD split: not judged"
    undecided = split == "undecided"
    effect = "no significant effect" if undecided else _counted(judged, mixed="mixed")
    return f"{text}; {name}: {effect}"


def _cost_of_offloading(cold: Comparison) -> str:
    """What storing in host memory costs a cold prompt."""
    more = 100 * (1 / cold.ratio.value - 1)
    known = {
        "undecided": "too noisy to tell" if unresolved(cold.ratio) else "not significant",
        "no_interval": "not judged",
    }.get(cold.ratio.verdict, f"{abs(more):.3g} % {'more' if more > 0 else 'less'}")
    return f"; cost on cold prompts {known}"


def _counted(
    rows: Sequence[Comparison], noun: str = "comparison", *, mixed: str = "mixed effect"
) -> str:
    """`slower (9 of 11 comparisons)`, or only the verdict where all have the same."""
    verdicts = [row.ratio.verdict for row in rows]
    found: list[Verdict] = [v for v in ("faster", "slower") if v in verdicts]
    if len(found) > 1:
        each = ", ".join(f"{verdicts.count(v)} {v}" for v in found)
        return f"{mixed} ({each} of {count(len(rows), noun)})"
    number = verdicts.count(found[0])
    among = f" ({number} of {count(len(rows), noun)})" if number < len(rows) else ""
    return f"{found[0]}{among}"


def _warm_finding(what: str, rows: Sequence[Comparison]) -> str:
    """What a warm cache does to TTFT."""
    verdict, lead = overall(rows), f"Warm {what}: TTFT"
    if verdict == "undecided":
        return f"No significant effect of a warm {what} on TTFT"
    if verdict == "no_interval":
        return f"{lead} speed-up {effect(rows, 'arm')} (too few rounds for a CI)"
    if verdict == "mixed":
        return f"Warm {what}: {_counted(rows, 'arm', mixed='mixed effect on TTFT')}"
    return f"{lead} {effect(rows, 'arm')}"


def effect(rows: Sequence[Comparison], noun: str) -> str:
    """`4.6x faster`, `no significant effect` or `faster (2 of 3 arms)`; `not measured` without
    rows, and only the sizes where rounds are too few."""
    verdict = overall(rows) if rows else "undecided"
    if not rows or verdict == "undecided":
        return "no significant effect" if rows else "not measured"
    if verdict == "no_interval":
        return _span(row.ratio.value for row in rows)
    if verdict in ("faster", "slower"):
        sizes = [row.ratio.value if verdict == "faster" else 1 / row.ratio.value for row in rows]
        return f"{_span(sizes)} {verdict}"
    return _counted(rows, noun)


def _split_finding(rows: Sequence[Comparison]) -> str:
    """What the PD split does to cold TTFT, against aggregated instances on the same GPU count."""
    verdict = overall(rows)
    if verdict == "no_interval":
        return "PD split: not judged, too few rounds for intervals"
    if verdict in ("mixed", "undecided"):
        effect = "mixed" if verdict == "mixed" else "no significant"
        return f"PD split: {effect} effect on cold TTFT"
    word = verdict.removeprefix("sometimes_")
    some = [row.ratio.value for row in rows if row.ratio.verdict == word]
    size = _span(some if word == "faster" else [1 / value for value in some])
    among = f" in {len(some)} of {len(rows)} comparisons" if len(some) < len(rows) else ""
    return f"PD split: cold TTFT {size} {word}{among}"


def _cache_finding(plan: ExperimentPlan, comparisons: Sequence[Comparison]) -> str:
    """What a warm prefix cache gains, and what the cache does to cold prompts."""
    warm = first(comparisons, kind="cache-state", metric="ttft_s", pass_name="engine-warm")
    cost = first(comparisons, kind="cache-off", metric="ttft_s", pass_name="cold")
    if warm is None or isnan(warm.ratio.value):
        return "The prefix cache was measured, but no two passes can be compared"
    text = _warm_finding("prefix cache", [warm])
    if cost is None or "no_interval" in (warm.ratio.verdict, cost.ratio.verdict):
        return text
    repeats = plan.workload.sample.ideal_reuse
    if repeats >= REPEATS:
        repeated = f"{percent(repeats)} of tokens repeat"
        gain, loss = _span([cost.ratio.value]), _span([1 / cost.ratio.value])
        return {
            "faster": f"Prefix cache: cold TTFT {gain} faster, since {repeated}",
            "slower": f"Prefix cache: cold TTFT {loss} slower, although {repeated}",
        }.get(cost.ratio.verdict, "No significant effect of the prefix cache on cold TTFT")
    if cost.ratio.verdict == "undecided":
        if warm.ratio.verdict == "undecided":
            return "No significant effect of the prefix cache on warm or cold TTFT"
        known = "too noisy to tell" if unresolved(cost.ratio) else "not significant"
        return f"{text}; cost on cold prompts {known} (cache on vs off: {ratio_text(cost.ratio)})"
    more = 100 * (1 / cost.ratio.value - 1)
    return f"{text}; cold TTFT {abs(more):.3g} % {'higher' if more > 0 else 'lower'}"


def _span(ratios: Iterable[float]) -> str:
    """The only ratio, or `9.0x to 18x`: at most two decimals, and two digits from 2 up."""
    known = [
        f"{ratio:,.{max(0, 1 - floor(log10(ratio))) if ratio >= 2 else 2}f}x"
        for ratio in sorted(ratios)
    ]
    return known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
