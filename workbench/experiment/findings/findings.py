"""Everything that a run found, from its rows and counters: the facts of its result."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING, TypeVar

from workbench.experiment.findings.checks import check
from workbench.experiment.findings.compare import compare, summarise
from workbench.experiment.findings.decision.decision_findings import (
    decision_headline,
    decision_rows,
    decision_sentence,
)
from workbench.experiment.findings.decision.point_findings import (
    energy_doubts,
    point_rows,
    power_sentence,
)
from workbench.experiment.findings.doubts import (
    draft_doubts,
    limits_of,
    round_doubts,
    sample_doubts,
)
from workbench.experiment.findings.headline import headline, valid_finding
from workbench.experiment.findings.link_findings import link_rows, link_sentences
from workbench.experiment.findings.load_findings import (
    answers,
    load_cards,
    load_headline,
    load_rows,
    load_sentences,
)
from workbench.experiment.findings.model_findings import (
    models_cards,
    models_finding,
    side_by_side,
)
from workbench.experiment.findings.sentences import (
    break_even,
    cards,
    scope,
    sentences,
    told_once,
)
from workbench.experiment.findings.size_findings import (
    size_cards,
    size_headline,
    size_rows,
    size_sentences,
)
from workbench.experiment.findings.target_findings import target_rows
from workbench.experiment.load_unit import USERS
from workbench.experiment.plan.offered_load.search import Answer
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import RunFacts, WorkloadFacts
from workbench.experiment.result.finding_rows import (
    ClockRow,
    Comparison,
    LinkRow,
    LoadRow,
    SearchRow,
    SizeRow,
    SummaryRow,
    TierRow,
    TokenRow,
)
from workbench.experiment.result.result_tables import frame_of
from workbench.metrics.gates.gate_effects import (
    Failed,
    Spoil,
    failed_gates,
    gate_doubts,
    spoil,
    told,
    touching,
)
from workbench.metrics.latency import succeeded
from workbench.metrics.ledger.ledger import accounts
from workbench.metrics.passes import PassCounters, is_cold
from workbench.metrics.waterfall.waterfall import waterfall
from workbench.params.notebooks import EngineParams, as_typed, changed
from workbench.records import LinkRate

if TYPE_CHECKING:
    import pandas as pd


_Compared = TypeVar("_Compared", SizeRow, LinkRow)
_OfArm = TypeVar("_OfArm", LoadRow, SizeRow, Comparison)


def conclude(
    facts: RunFacts,
    plan: ExperimentPlan,
    *,
    requests: pd.DataFrame,
    passes: Sequence[PassCounters],
    legs: pd.DataFrame | None = None,
    reasons: Sequence[str] = (),
    refusals: Sequence[str] = (),
    links: Sequence[tuple[str, LinkRate, bool]] = (),
    earlier: Sequence[LinkRow] = (),
    unmetered: Mapping[str, str] | None = None,
) -> RunFacts:
    """The facts of a run with all that follows from its rows and counters.

    `facts` has the doubts, the clocks and the client's readings so far. `reasons` say why passes
    were not run, `refusals` which caches were not emptied. `links` are the measured link rates of
    arms, `earlier` the results of runs over other links. `unmetered` says why the power of arms is
    unknown. Requests that a cancelled run cut off do not count.
    """
    sent = plan.workload.sample
    if facts.status == "cancelled":
        requests = requests[requests["error"] != "cancelled"]
    facts = replace(
        facts,
        scope=scope(plan),
        limits=tuple(limits_of(plan, _reuse_sent(requests), facts.sessions)),
        repeat=plan.command or repeat_command(plan.notebook, plan.params),
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
        store_tiers=tuple(_tier_rows(passes)),
        ledger=tuple(accounts(passes)),
        files={name: f"{name}.parquet" for name in ("requests", "legs", "counters", "gauges")},
    )
    if requests.empty:
        doubts = (*facts.doubts, *round_doubts(plan))
        return replace(facts, finding="Nothing was measured", doubts=doubts)
    summary, comparisons = summarise(requests), compare(plan, requests)
    loads, answered = load_rows(plan.loads, requests), answers(plan.loads, requests)
    each_arm = dict.fromkeys(row.arm for row in loads)
    loads_said = zip(each_arm, load_sentences(plan.loads, loads, answered), strict=True)
    parts = plan.parts
    sizes = tuple(row for part in parts for row in size_rows(part, requests, comparisons, passes))
    gates = check(
        plan,
        requests,
        legs=requests.iloc[:0] if legs is None else legs,
        passes=passes,
        client=facts.client,
        reasons=reasons,
        refusals=refusals,
        under_way=facts.status == "started",
    )
    failed = failed_gates(gates)
    points = point_rows(plan, requests, energy=facts.energy, unmetered=unmetered)
    decisions = decision_rows(
        plan,
        requests,
        requests.iloc[:0] if legs is None else legs,
        loads=loads,
        found=answered,
        arms=facts.arms,
        points=points,
        gates=gates,
    )
    found, unproven = "No request succeeded", ""
    if succeeded(requests).any():
        if plan.by_model:
            said, limiting = models_finding(plan, comparisons, loads, answered, sizes, failed)
        elif loads:
            said, arms = decision_headline(plan, decisions)
            said = said or load_headline(loads, answered)
            limiting = touching(failed, arms=arms or [loads[0].arm])
        elif sizes:
            said, limiting = size_headline(sizes), touching(failed, arms=sizes[0].arms)
        else:
            said, limiting = valid_finding(plan, comparisons, failed)
        found, unproven = headline(
            said,
            limiting,
            "times" if loads or plan.profiles else "ratios",
            interval=any(row.ratio.verdict != "no_interval" for row in comparisons),
        )
    known = (*earlier, *_links(facts, plan, requests, legs, passes, summary, comparisons, links))
    numbers = [
        load_cards(part.loads, _of(part, loads), answered, failed)
        or size_cards(_of(part, sizes), failed)
        or cards(part, summary, _of(part, comparisons), failed)
        for part in parts
    ]
    pays = break_even(plan, summary, comparisons, cached=_cached_when_warm(requests))
    return replace(
        facts,
        finding=found,
        unproven=unproven,
        numbers=models_cards(numbers) if plan.by_model else numbers[0],
        gates=gates,
        doubts=(
            *gate_doubts(failed),
            *facts.doubts,
            *round_doubts(plan),
            *sample_doubts(plan, requests),
            *draft_doubts(plan, passes),
            *energy_doubts(facts.energy),
        ),
        break_even=told(pays, spoil(failed, "ratios", "times")) if pays else "",
        sentences=(
            *told_once((text, spoil(failed, "times", arms=[arm])) for arm, text in loads_said),
            *told_once(_said_of_arms(sizes, size_sentences, failed)),
            *told_once(_said_of_arms(known, link_sentences, failed)),
            *told_once(
                (text, spoil(failed, "ratios", arms=arms))
                for text, arms in (side_by_side(plan, comparisons) if plan.by_model else ())
            ),
            *(
                text
                for part in (parts if not sizes else ())
                for text in sentences(part, summary, _of(part, comparisons), failed)
            ),
        ),
        rates=loads,
        sizes=sizes,
        links=known,
        points=points,
        decisions=decisions,
        decision=decision_sentence(plan, decisions, failed),
        power=power_sentence(facts.energy, unmetered or {}),
        searches=tuple(_search_row(plan, arm, each) for arm, each in answered.items()),
        summary=summary,
        comparisons=comparisons,
        targets=target_rows(getattr(plan.params, "targets", ()), facts.arms, comparisons, failed),
    )


def _search_row(plan: ExperimentPlan, arm: str, answer: Answer) -> SearchRow:
    at_rates, users = (answer.met, answer.missed), (nan, nan)
    if plan.loads is not None and plan.loads.unit == USERS:
        at_rates, users = users, at_rates
    return SearchRow(
        arm=arm, resolved=answer.resolved, reason=answer.reason,
        met_per_s=at_rates[0], missed_per_s=at_rates[1], met_users=users[0], missed_users=users[1],
    )  # fmt: skip


def _of(part: ExperimentPlan, rows: Sequence[_OfArm]) -> list[_OfArm]:
    """The rows of a model's arms."""
    arms = {arm.label for arm in part.arms}
    return [row for row in rows if row.arm in arms]


def _links(
    facts: RunFacts,
    plan: ExperimentPlan,
    requests: pd.DataFrame,
    legs: pd.DataFrame | None,
    passes: Sequence[PassCounters],
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    measured: Sequence[tuple[str, LinkRate, bool]],
) -> tuple[LinkRow, ...]:
    """The results over the links of this run; empty if all instances are on one host."""
    if not measured or legs is None:
        return ()
    split = waterfall(requests, legs, clocks=frame_of(ClockRow, facts.clocks))
    return link_rows(plan, facts.run_id, summary, comparisons, passes, measured, split)


def _said_of_arms(
    rows: Sequence[_Compared], sentences_of: Callable[[list[_Compared]], list[str]], failed: Failed
) -> Iterable[tuple[str, Spoil]]:
    """The sentences about each arm and its baseline, and the effect of failed gates on them."""
    for arms in dict.fromkeys(row.arms for row in rows):
        does = spoil(failed, "ratios", arms=arms)
        for text in sentences_of([row for row in rows if row.arms == arms]):
            yield text, does


def _reuse_sent(requests: pd.DataFrame) -> float:
    """Ideal reuse of what cold passes sent, which in conversations includes responses."""
    if not len(requests):
        return nan
    cold = requests[requests["pass"].map(is_cold)]
    tokens = cold["prompt_tokens"].sum()
    return float(cold["ideal_reuse_tokens"].sum() / tokens) if tokens else nan


def _cached_when_warm(requests: pd.DataFrame) -> float:
    """Fraction of the engine-warm prompts that responses report as cached; NaN where unknown."""
    warm = requests[requests["pass"].eq("engine-warm") & requests["cached_tokens"].ge(0)]
    tokens = warm["prompt_tokens"].sum()
    return float(warm["cached_tokens"].sum() / tokens) if tokens else nan


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
                loaded=p.loaded(role),
            )


def _tier_rows(passes: Iterable[PassCounters]) -> Iterable[TierRow]:
    for p in passes:
        for tier in p.tiers:
            yield TierRow(
                arm=p.arm, round=p.round, pass_name=p.pass_name, tier=tier.name,
                loads=tier.loads, sent=tier.sent, written=tier.written, held=tier.held,
                evicted=tier.evicted, problem=tier.problem,
            )  # fmt: skip


def repeat_command(notebook: str, params: EngineParams) -> str:
    """The papermill line that runs this again: every parameter that is not the default."""
    given = as_typed(changed(params))
    return shlex.join(["papermill", f"notebooks/{notebook}.ipynb", "out.ipynb", *given])
