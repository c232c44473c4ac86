"""What a run found, in sentences and numbers computed from its rows; and what it does not show."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from workbench.experiment.findings.cache_sentences import break_even
from workbench.experiment.findings.checks import check
from workbench.experiment.findings.clauses import REPEATS, told
from workbench.experiment.findings.compare import compare, summarise
from workbench.experiment.findings.rate_table import rate_cards
from workbench.experiment.findings.sentences import cards, finding, headline, scope, sentences
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.plan.rates import answers, rate_rows, rate_sentences
from workbench.metrics.gates.gate_table import gate_doubts, spoil
from workbench.metrics.latency import buffered, comparable, succeeded, tpot_unknown
from workbench.metrics.ledger.ledger import accounts
from workbench.metrics.passes import PassCounters
from workbench.metrics.statistics import needed_n, quantile
from workbench.params.notebooks import EngineParams

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["conclude", "repeat_command"]


def conclude(
    plan: ExperimentPlan,
    requests: pd.DataFrame,
    passes: Sequence[PassCounters],
    doubts: Sequence[str],
    *,
    legs: pd.DataFrame | None = None,
    client: Mapping[str, float] | None = None,
    reasons: Sequence[str] = (),
    refusals: Sequence[str] = (),
) -> dict[str, Any]:
    """The part of result.json that is concluded from rows and counters.

    `client` is the worst reading of the client's health, `reasons` say why passes were not run,
    `refusals` which caches were not emptied.
    """
    measured = len(requests) > 0
    answered = measured and bool(succeeded(requests).any())
    summary = summarise(requests) if measured else []
    comparisons = _told(compare(plan, comparable(requests)), requests) if measured else []
    workload = plan.workload.sample
    rates = rate_rows(plan.rates, requests) if measured else []
    rates_found = answers(plan.rates, requests) if measured else {}
    rates_said = rate_sentences(plan.rates, rates, rates_found)
    checked = []
    if measured:
        seen = requests.iloc[:0] if legs is None else legs
        checked = check(
            plan,
            requests,
            seen,
            passes,
            client=client or {},
            reasons=reasons,
            refusals=refusals,
        )
    failed = [gate.name for gate in checked if gate.outcome == "FAIL"]
    pays = break_even(plan, summary, comparisons)
    if answered:
        found = finding(plan, comparisons, rates_said)
    else:
        found = "No request succeeded" if measured else "Nothing was measured"
    return {
        **headline(
            found,
            failed if answered else (),
            "times" if rates_said else "ratios",
            interval=any(not isnan(row["low"]) for row in comparisons),
        ),
        "scope": scope(plan),
        "numbers": rate_cards(plan.rates, rates, rates_found, failed)
        or cards(plan, summary, comparisons, failed),
        "gates": [asdict(gate) for gate in checked],
        "token_sources": _token_sources(passes),
        "ledger": [
            asdict(a) | {"unexplained": a.unexplained, "closes": a.closes} for a in accounts(passes)
        ],
        "doubts": [*gate_doubts(failed), *doubts, *_sample_doubts(plan, requests)],
        "limits": _limits(plan, _reuse_sent(requests)),
        "break_even": told(pays, spoil(failed, "ratios", "times")) if pays else "",
        "sentences": [
            *(told(sentence, spoil(failed, "times")) for sentence in rates_said),
            *sentences(plan, summary, comparisons, failed),
        ],
        "rates": rates,
        "searches": [{"arm": arm} | asdict(answer) for arm, answer in rates_found.items()],
        "summary": summary,
        "comparisons": comparisons,
        "repeat": repeat_command(plan.notebook, plan.params),
        "workload": {
            "name": plan.workload.name,
            "requests": len(workload.requests),
            "prompt_tokens": plan.workload.longest_prompt_tokens,
            "output_tokens": plan.workload.options["output_tokens"],
            "arrivals": plan.describe_arrivals(),
            "hash": workload.hash,
            "seed": workload.seed,
            "ideal_reuse": workload.ideal_reuse,
            "ideal_reuse_sent": _reuse_sent(requests),
        },
        "files": {name: f"{name}.parquet" for name in ("requests", "legs", "counters", "gauges")},
    }


def _told(comparisons: list[dict[str, Any]], requests: pd.DataFrame) -> list[dict[str, Any]]:
    """The comparisons, with the reason where streams were buffered and no ratio is made of them."""
    held_back = set(requests.loc[buffered(requests), "arm"])
    for row in comparisons:
        if {row["arm"], row["baseline_arm"]} & held_back and row["metric"] in ("ttft_s", "tpot_s"):
            row["note"] = "the stream was buffered"
            row["sentence"] = f"withheld: {row['note']}"
    return comparisons


def _reuse_sent(requests: pd.DataFrame) -> float:
    """Ideal reuse of what cold passes sent: conversations hold answers that no list knew."""
    if not len(requests):
        return nan
    cold = requests[requests["pass"].str.startswith("cold")]
    tokens = cold["prompt_tokens"].sum()
    return float(cold["ideal_reuse_tokens"].sum() / tokens) if tokens else nan


def _token_sources(passes: Sequence[PassCounters]) -> list[dict[str, Any]]:
    """Where each role's prompt tokens came from, one row per pass and role."""
    return [
        {"arm": p.arm, "round": p.round, "pass": p.pass_name, "role": role}
        | {"sent": p.prompt_tokens_sent}
        | {name: getattr(sources, name) for name in ("computed", "engine_hit", "external_hit")}
        for p in passes
        for role, sources in p.sources.items()
    ]


def _sample_doubts(plan: ExperimentPlan, requests: pd.DataFrame) -> list[str]:
    doubts = []
    if plan.rounds < 3:
        doubts.append(
            f"{plan.rounds} round{'s' if plan.rounds > 1 else ''}: ratios have no interval. Take"
            " rounds 3 or more, better 5."
        )
    elif plan.rounds < 5:
        doubts.append(
            f"{plan.rounds} rounds are few: an interval from so few launches is wide. Take rounds"
            " 5 or more."
        )
    if len(requests):
        n = int(requests.groupby(["arm", "pass"]).size().min())
        doubts += [*_launch_doubts(requests), *tpot_unknown(requests)]
        missing = [f"p{100 * q:.0f} (needs {needed_n(q)})" for q in (0.9, 0.99) if n < needed_n(q)]
        if missing:
            doubts.append(
                f"{n} requests per arm and pass: too few for an interval of"
                f" {' or '.join(missing)}. Medians are shown."
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
    words = ["papermill", f"notebooks/{notebook}.ipynb", "out.ipynb"]
    for spec in fields(params):
        value = getattr(params, spec.name)
        default = spec.default_factory() if callable(spec.default_factory) else spec.default
        if value != default:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += ["-p", spec.name, text]
    return shlex.join(words)
