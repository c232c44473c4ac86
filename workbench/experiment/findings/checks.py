"""Which gates a run is asked, and what each is asked with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from workbench.experiment.findings.ceilings import ceilings
from workbench.experiment.findings.histories import with_same_history
from workbench.experiment.plan.plan import ExperimentPlan, rate_pass
from workbench.load.drive.workers import most_workers
from workbench.metrics.gates import answer_gates as gates
from workbench.metrics.gates import cache_gates, conduct_gates
from workbench.metrics.gates.client_gate import (
    LAG_P99_S,
    OTHERS_SHARE,
    client_kept_up,
    clock_not_set,
)
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.roofline_gate import below_ceilings
from workbench.metrics.ledger.ledger import ledger_closes
from workbench.metrics.passes import PassCounters

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check"]


def check(
    plan: ExperimentPlan,
    requests: pd.DataFrame,
    legs: pd.DataFrame,
    passes: Sequence[PassCounters],
    *,
    client: Mapping[str, float],
    reasons: Sequence[str],
    refusals: Sequence[str],
) -> list[Gate]:
    """The gates that apply to this plan.

    `client` is the worst reading of the client's health; `reasons` say why passes were not run,
    `refusals` which caches were not emptied.
    """
    clock = clock_not_set(client)
    busy = client.get("others_cpu_share", 0.0) > OTHERS_SHARE
    late = client.get("loop_lag_p99_s", 0.0) > LAG_P99_S
    return [
        *_conduct(plan, requests, passes, reasons),
        *([conduct_gates.caches_emptied(refusals)] if _resets(plan) else []),
        *_states(plan, passes),
        ledger_closes(passes),
        *_told(requests, passes, disturbed=busy or late),
        *_answers(plan, requests, legs, busy=busy),
        client_kept_up(client, most_workers=most_workers(plan.workload.sample, plan.arrivals)),
        *([clock] if clock else []),
    ]


def _resets(plan: ExperimentPlan) -> bool:
    """Whether caches can be emptied at all; attached servers that are not listed cannot be."""
    return any(arm.settings is not None for arm in plan.arms)


def _conduct(
    plan: ExperimentPlan,
    requests: pd.DataFrame,
    passes: Sequence[PassCounters],
    reasons: Sequence[str],
) -> list[Gate]:
    planned = [
        (arm.label, number, p)
        for number in range(plan.rounds)
        for arm in plan.arms
        for p in [*(p.name for p in arm.passes), *_rate_passes(plan, requests, arm.label)]
    ]
    measured = [(p.arm, p.round, p.pass_name) for p in passes]
    asked = [
        conduct_gates.every_pass_ran(planned, measured, reasons),
        gates.no_failures(requests),
    ]
    if any(arm.means and arm.means.pulls for arm in plan.arms):
        asked.append(conduct_gates.no_failed_transfers(passes))
    return asked


def _rate_passes(plan: ExperimentPlan, requests: pd.DataFrame, arm: str) -> list[str]:
    """Given rates, or those that the first round of a search has tried."""
    if plan.rates is None:
        return []
    points = plan.rates.points(requests, arm) if plan.rates.search else ()
    rates = plan.rates.given or tuple(point.rate_per_s for point in points)
    return [rate_pass(rate).name for rate in rates]


def _states(plan: ExperimentPlan, passes: Sequence[PassCounters]) -> list[Gate]:
    """States that no pass has need no gate; PD has one even when no pass of it could run."""
    states = {p.name for arm in plan.arms for p in arm.passes}
    asked = [cache_gates.cold_was_cold(passes)]
    split = [arm for arm in plan.arms if arm.disaggregated and arm.settings is not None]
    if split or any({"prefill", "decode"} & p.sources.keys() for p in passes):
        asked.append(cache_gates.kv_moved(passes))
    for state, gate in (
        ("engine-warm", cache_gates.engine_warm),
        ("cross-instance", cache_gates.cross_instance),
        ("store-warm", cache_gates.store_warm),
        ("disk-warm", cache_gates.disk_warm),
    ):
        if state in states:
            asked.append(gate(passes))
    return asked


def _told(requests: pd.DataFrame, passes: Sequence[PassCounters], *, disturbed: bool) -> list[Gate]:
    """Whether answers came as servers made them, and tell what can be."""
    asked = (
        conduct_gates.streamed(requests, disturbed=disturbed),
        conduct_gates.cached_plausible(requests, passes),
    )
    return [gate for gate in asked if gate is not None]


def _answers(
    plan: ExperimentPlan, requests: pd.DataFrame, legs: pd.DataFrame, *, busy: bool
) -> list[Gate]:
    asked = [gates.output_counts_equal(requests), conduct_gates.possible(requests)]
    partly = {p.name for arm in plan.arms for p in arm.passes if p.share < 1}
    if partly:
        unit = max(256, *(arm.chunk_tokens for arm in plan.arms), 0)
        asked.append(gates.cached_as_planned(requests, partly, block=unit))
    reference = plan.text_reference
    same_prompts = requests[~requests["pass"].isin(partly)]
    same_prompts = with_same_history(same_prompts, plan.workload.sample, reference)
    batched = plan.arrivals.kind != "closed" or plan.arrivals.concurrency > 1
    if plan.rates is None:
        asked.append(gates.same_text(same_prompts, reference, batched=batched))
    if "decode_instance" in legs:
        alike = conduct_gates.instances_alike(requests, legs, busy=busy)
        asked += [alike] if alike else []
    if plan.platform in ("cuda", "rocm"):
        asked.append(below_ceilings(requests, *ceilings(plan)))
    if plan.rates is not None:
        return asked  # rates are raised until the queue grows: that is what they are for
    drift = conduct_gates.steady(requests, concurrency=plan.arrivals.concurrency, busy=busy)
    return [*asked, *([drift] if drift else [])]
