"""What a run found, in sentences and numbers computed from its rows; and what it does not show."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from math import isnan, nan
from typing import TYPE_CHECKING

from workbench.experiment.findings.checks import check
from workbench.experiment.findings.compare import compare, summarise
from workbench.experiment.findings.rate_findings import (
    answers,
    rate_cards,
    rate_rows,
    rate_sentences,
)
from workbench.experiment.findings.sentences import (
    REPEATS,
    break_even,
    cards,
    finding,
    headline,
    scope,
    sentences,
    told,
)
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import RunFacts, SearchRow, TokenRow, WorkloadFacts
from workbench.metrics.gates.gate_table import gate_doubts, spoil
from workbench.metrics.latency import succeeded, tpot_unknown
from workbench.metrics.ledger.ledger import accounts
from workbench.metrics.passes import PassCounters
from workbench.metrics.statistics import needed_n, quantile
from workbench.params.notebooks import EngineParams, as_typed, changed

if TYPE_CHECKING:
    import pandas as pd


def conclude(
    facts: RunFacts,
    plan: ExperimentPlan,
    *,
    requests: pd.DataFrame,
    passes: Sequence[PassCounters],
    legs: pd.DataFrame | None = None,
    reasons: Sequence[str] = (),
    refusals: Sequence[str] = (),
) -> RunFacts:
    """The facts of a run with all that follows from its rows and counters.

    `facts` has the doubts and the client's readings so far; `reasons` say why passes were not run,
    `refusals` which caches were not emptied.
    """
    sent = plan.workload.sample
    facts = replace(
        facts,
        scope=scope(plan),
        limits=tuple(_limits(plan, _reuse_sent(requests))),
        repeat=repeat_command(plan.notebook, plan.params),
        workload=WorkloadFacts(
            name=plan.workload.name,
            requests=len(sent.requests),
            prompt_tokens=plan.workload.longest_prompt_tokens,
            output_tokens=plan.workload.options["output_tokens"],
            arrivals=plan.describe_arrivals(),
            hash=sent.hash,
            seed=sent.seed,
            ideal_reuse=sent.ideal_reuse,
            ideal_reuse_sent=_reuse_sent(requests),
        ),
        token_sources=tuple(_token_rows(passes)),
        ledger=tuple(accounts(passes)),
        files={name: f"{name}.parquet" for name in ("requests", "legs", "counters", "gauges")},
    )
    if requests.empty:
        doubts = (*facts.doubts, *_round_doubts(plan))
        return replace(facts, finding="Nothing was measured", doubts=doubts)
    summary, comparisons = summarise(requests), compare(plan, requests)
    rates, answered = rate_rows(plan.rates, requests), answers(plan.rates, requests)
    rates_said = rate_sentences(plan.rates, rates, answered)
    gates = check(
        plan,
        requests,
        legs=requests.iloc[:0] if legs is None else legs,
        passes=passes,
        client=facts.client,
        reasons=reasons,
        refusals=refusals,
    )
    failed = [gate.name for gate in gates if gate.outcome == "FAIL"]
    found, unproven = "No request succeeded", ""
    if succeeded(requests).any():
        found, unproven = headline(
            finding(plan, comparisons, rates_said),
            failed,
            "times" if rates_said else "ratios",
            interval=any(row.ratio.verdict != "no_interval" for row in comparisons),
        )
    pays = break_even(plan, summary, comparisons)
    return replace(
        facts,
        finding=found,
        unproven=unproven,
        numbers=rate_cards(plan.rates, rates, answered, failed)
        or cards(plan, summary, comparisons, failed),
        gates=gates,
        doubts=(
            *gate_doubts(failed),
            *facts.doubts,
            *_round_doubts(plan),
            *_sample_doubts(requests),
        ),
        break_even=told(pays, spoil(failed, "ratios", "times")) if pays else "",
        sentences=(
            *(told(sentence, spoil(failed, "times")) for sentence in rates_said),
            *sentences(plan, summary, comparisons, failed),
        ),
        rates=rates,
        searches=tuple(SearchRow(arm=arm, **asdict(each)) for arm, each in answered.items()),
        summary=summary,
        comparisons=comparisons,
    )


def _reuse_sent(requests: pd.DataFrame) -> float:
    """Ideal reuse of what cold passes sent: conversations hold answers that no list knew."""
    if not len(requests):
        return nan
    cold = requests[requests["pass"].str.startswith("cold")]
    tokens = cold["prompt_tokens"].sum()
    return float(cold["ideal_reuse_tokens"].sum() / tokens) if tokens else nan


def _token_rows(passes: Iterable[PassCounters]) -> Iterable[TokenRow]:
    for p in passes:
        for role, sources in p.sources.items():
            yield TokenRow(
                arm=p.arm,
                round=p.round,
                pass_name=p.pass_name,
                role=role,
                sent=p.prompt_tokens_sent,
                computed=sources.computed,
                engine_hit=sources.engine_hit,
                external_hit=sources.external_hit,
            )


def _round_doubts(plan: ExperimentPlan) -> list[str]:
    if plan.rounds < 3:
        n = f"{plan.rounds} round{'s' if plan.rounds > 1 else ''}"
        return [f"{n}: ratios have no interval. Take rounds 3 or more, better 5."]
    if plan.rounds < 5:
        return [
            f"{plan.rounds} rounds are few: an interval from so few launches is wide. Take rounds"
            " 5 or more."
        ]
    return []


def _sample_doubts(requests: pd.DataFrame) -> list[str]:
    doubts = [*_launch_doubts(requests), *tpot_unknown(requests)]
    n = int(requests.groupby(["arm", "pass"]).size().min())
    missing = [f"p{100 * q:.0f} (needs {needed_n(q)})" for q in (0.9, 0.99) if n < needed_n(q)]
    if missing:
        doubts.append(
            f"{n} requests per arm and pass: too few for an interval of {' or '.join(missing)}."
            " Medians are shown."
        )
    return doubts


def _launch_doubts(requests: pd.DataFrame) -> list[str]:
    """Launches that differ by more than the interval over all their requests says."""
    apart = []
    for (arm, name), rows in requests.groupby(["arm", "pass"], sort=False):
        whole = quantile(rows["ttft_s"], 0.5)
        medians = rows.groupby("round")["ttft_s"].median().dropna()
        if len(medians) > 1 and not isnan(whole.low):
            outside = int(((medians < whole.low) | (medians > whole.high)).sum())
            if outside:
                apart.append(f"{arm}, {name} ({outside} of {len(medians)})")
    if not apart:
        return []
    more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
    return [
        "Launches differ by more than the intervals of medians say, since requests of one launch"
        f" are alike: {'; '.join(apart[:3])}{more}. Trust the ratios, whose unit is the launch."
    ]


def _limits(plan: ExperimentPlan, reuse_sent: float) -> list[str]:
    limits = list(plan.notes)
    if plan.workload.name == "multi_turn_conversation" and not isnan(reuse_sent):
        limits.append(
            "Real answers are part of later prompts, and a cache keeps their KV too: ideal reuse of"
            f" what was sent is {reuse_sent:.1%}, that of the list, with made-up answers,"
            f" {plan.workload.sample.ideal_reuse:.1%}."
        )
    if (reuse := plan.workload.sample.ideal_reuse) >= REPEATS:
        limits.append(
            f"Prompts repeat {reuse:.0%} of their tokens within a pass, so caches serve most of a"
            " cold pass too, after its first prompts: what a warm pass gains is what was left."
            if reuse > 0.5
            else f"Prompts repeat {reuse:.0%} of their tokens within a pass, so caches serve a part"
            " of a cold pass too."
        )
    if plan.platform == "cpu" and plan.params.engine == "vllm":
        limits.append(
            "On a CPU all instances share its cores, so adding instances adds no compute; on GPUs"
            " every instance has its own."
        )
        limits.append(
            "KV moves over loopback or shared memory; a network between nodes is not in these"
            " numbers."
        )
    if plan.arrivals.kind == "closed":
        limits.append(
            "A closed loop waits for answers: it shows latency at this concurrency, not what"
            " happens when requests arrive faster than they are served."
        )
    if plan.workload.name in ("reference", "short"):
        limits.append(
            "Prompts are random tokens that share nothing; real traffic shares system prompts and"
            " history, at a rate that this run does not know."
        )
    return limits


def repeat_command(notebook: str, params: EngineParams) -> str:
    """The papermill line that runs this again: every parameter that is not the default."""
    given = as_typed(changed(params))
    return shlex.join(["papermill", f"notebooks/{notebook}.ipynb", "out.ipynb", *given])
