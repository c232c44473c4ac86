"""What weakens the result of a run, and what it does not show, each in at most 25 words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan
from typing import TYPE_CHECKING

from workbench.experiment.findings.sentences import REPEATS, count, percent
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import SessionFacts
from workbench.metrics.latency import tpot_unknown
from workbench.metrics.passes import PassCounters
from workbench.metrics.statistics import ROUNDS_FOR_INTERVAL, needed_n, quantile

if TYPE_CHECKING:
    import pandas as pd

ROUNDS_ENOUGH = 5


def round_doubts(plan: ExperimentPlan) -> list[str]:
    """What too few rounds do to intervals."""
    if plan.rounds >= ROUNDS_ENOUGH or plan.profiles:
        return []
    few = f"With only {count(plan.rounds, 'round')},"
    if plan.rounds < ROUNDS_FOR_INTERVAL:
        return [f"{few} ratios have no confidence interval. Use at least 3 rounds, better 5."]
    return [f"{few} confidence intervals of ratios are wide. Use at least {ROUNDS_ENOUGH} rounds."]


def sample_doubts(plan: ExperimentPlan, requests: pd.DataFrame) -> list[str]:
    """What the rows lack: TPOT, enough requests, launches that agree."""
    doubts = [*_launch_doubts(requests), *tpot_unknown(requests)]
    if plan.profiles:  # which needs no percentile of a pass
        return doubts
    n = int(requests.groupby(["arm", "pass"]).size().min())
    missing = [f"p{100 * q:.0f} (needs {needed_n(q)})" for q in (0.9, 0.99) if n < needed_n(q)]
    if missing:
        doubts.append(
            f"{count(n, 'request')} per arm and pass are too few for a confidence interval of"
            f" {' or '.join(missing)}."
        )
    return doubts


def draft_doubts(plan: ExperimentPlan, passes: Iterable[PassCounters]) -> list[str]:
    """How many draft tokens were accepted, which decides TPOT."""
    drafted = [p.drafts for p in passes if p.drafts is not None]
    if not drafted:
        return []
    proposed, accepted = sum(d.proposed for d in drafted), sum(d.accepted for d in drafted)
    made_up = plan.workload.name not in ("text", "prompts")
    return [
        f"Speculative decoding accepted {percent(accepted / proposed, 1)} of {proposed:,.0f} draft"
        " tokens. TPOT depends on that"
        + (", and random prompts do not show it for real text." if made_up else ".")
    ]


def _launch_doubts(requests: pd.DataFrame) -> list[str]:
    """Launches that differ by more than the interval over all their requests says."""
    apart = []
    for (arm, name), rows in requests.groupby(["arm", "pass"], sort=False):
        whole = quantile(rows["ttft_s"], 0.5)
        medians = rows.groupby("round")["ttft_s"].median().dropna()
        if len(medians) > 1 and not isnan(whole.low):
            if ((medians < whole.low) | (medians > whole.high)).any():
                apart.append(f"{arm}, {name}")
    if not apart:
        return []
    first = f"{'for example ' if len(apart) > 1 else ''}“{apart[0]}”"
    return [
        f"In {count(len(apart), 'combination')} of arm and pass ({first}) medians vary more"
        " between launches than their confidence intervals show. Use the ratios instead."
    ]


def limits_of(
    plan: ExperimentPlan, reuse_sent: float, sessions: Sequence[SessionFacts] = ()
) -> list[str]:
    """What this run does not show; `reuse_sent` is the ideal reuse of what was sent cold."""
    limits, reuse = list(plan.notes), plan.workload.sample.ideal_reuse
    if sessions:
        limits.append(
            f"The run was interrupted: its launches were measured in {len(sessions)} sessions, from"
            f" {sessions[0].started_at} to {sessions[-1].started_at} (result.json, sessions)."
        )
    if plan.workload.name == "multi_turn_conversation" and not isnan(reuse_sent):
        limits.append(
            "Later prompts contain real responses. An infinite cache could serve"
            f" {percent(reuse_sent, 1)} of the tokens sent (planned: {percent(reuse, 1)})."
        )
    if reuse >= REPEATS:
        part = "most of a cold pass, and warm passes gain little" if reuse > 0.5 else ""
        limits.append(
            f"Prompts repeat {percent(reuse)} of their tokens within a pass, so caches also serve"
            f" {part or 'part of a cold pass'}."
        )
    elsewhere = plan.settings is not None and plan.settings.cluster is not None
    if plan.platform == "cpu" and plan.params.engine == "vllm" and not elsewhere:
        own = plan.settings is not None and plan.settings.cores_per_instance
        limits += [
            "Each instance has its own cores, but instances share caches and memory bandwidth."
            " The proxy and the load generator may use the same cores."
            if own
            else "On a CPU all instances share the same cores, so adding instances adds no compute."
            " On GPUs each instance has its own.",
            "KV moves over loopback or shared memory. Network transfer between nodes is not"
            " measured.",
        ]
    if plan.arrivals.kind == "closed":
        limits.append(
            "A closed loop measures latency at a fixed concurrency. It does not show what happens"
            " when requests arrive faster than they are served."
        )
    if plan.workload.name in ("reference", "short"):
        limits.append(
            "Prompts are random tokens without shared prefixes. Real traffic shares system prompts"
            " and history, so its cache hit rates differ."
        )
    return limits
