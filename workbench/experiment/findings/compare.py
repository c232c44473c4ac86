"""From request rows to medians per arm and pass, and to paired ratios between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING, Literal

from workbench.experiment.plan.plan import Arm, ExperimentPlan
from workbench.experiment.plan.which_connectors import rivals_of
from workbench.experiment.result.facts import Comparison, SummaryRow
from workbench.metrics.latency import buffered, comparable, succeeded, system_tps
from workbench.metrics.statistics import (
    describe,
    pair,
    paired_ratio,
    quantile,
    ratio_of_rounds,
)
from workbench.serve.connectors import CONNECTORS

if TYPE_CHECKING:
    import pandas as pd

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
Side = tuple[Arm, str]
"""An arm and one of its passes."""
Kind = Literal["cache-state", "opponent", "cache-off", "no-offload"]


def summarise(requests: pd.DataFrame) -> tuple[SummaryRow, ...]:
    """Median with its 95 % interval for each arm, pass and metric.

    Latencies and request_tps over requests; system_tps (tokens per second of a whole pass) over
    rounds.
    """
    rows = []
    groups = requests.groupby(["arm", "topology", "connector", "pass"], sort=False)
    for (arm, topology, connector, name), group in groups:
        per_round = [system_tps(part) for _, part in group.groupby("round")]
        rows += [
            SummaryRow(
                arm=str(arm),
                topology=str(topology),
                connector=str(connector),
                pass_name=str(name),
                n_requests=len(group),
                n_failed=int((~succeeded(group)).sum()),
                n_rounds=len(per_round),
                metric=metric,
                estimate=quantile(per_round if metric == "system_tps" else group[metric], 0.5),
            )
            for metric in (*LATENCIES, "request_tps", "system_tps")
        ]
    return tuple(rows)


def compare(plan: ExperimentPlan, requests: pd.DataFrame) -> tuple[Comparison, ...]:
    """Every speed-up of the plan, each a ratio above 1 if better than its baseline.

    `cache-state`: a warm pass against the cold pass of the same arm. `opponent`: a subject against
    an aggregated arm with the same number of GPUs, in the same state. `cache-off`: an arm with the
    prefix cache against one without. `no-offload`: an arm with host memory against
    the same without, in the same pass. A buffered stream has no ratio of TTFT or TPOT. Arms of
    different models are not compared.
    """
    held_back = set(requests.loc[buffered(requests), "arm"])
    usable = comparable(requests)
    return tuple(
        _withheld(row) if held_back & {row.arm, row.baseline_arm} else row
        for part in plan.parts
        for kind, value, baseline in _pairs(part, requests)
        for row in _ratios(kind, usable, value, baseline)
    )


def _pairs(plan: ExperimentPlan, requests: pd.DataFrame) -> Iterator[tuple[Kind, Side, Side]]:
    for arm in plan.arms:
        for measured in arm.passes[1:]:
            if measured.state != "cold":
                yield "cache-state", (arm, measured.name), (arm, measured.after)
    for subject, rival in rivals(plan.arms):
        shared = [p.name for p in subject.passes if p.name in {q.name for q in rival.passes}]
        if plan.rates is not None:  # each arm of a search has rates of its own
            mine, theirs = (
                set(requests.loc[requests["arm"] == arm.label, "pass"]) for arm in (subject, rival)
            )
            shared += [name for name in requests["pass"].unique() if name in mine & theirs]
        for name in shared:
            yield "opponent", (subject, name), (rival, name)
    for arm, without in _without_offload(plan.arms):
        names = {p.name for p in without.passes}
        for name in (p.name for p in arm.passes if p.name in names):
            yield "no-offload", (arm, name), (without, name)
    arms = {arm.label: arm for arm in plan.arms}
    if "cache off" in arms:
        for measured in arms["cache on"].passes:
            yield "cache-off", (arms["cache on"], measured.name), (arms["cache off"], "cold")


def rivals(arms: tuple[Arm, ...]) -> list[tuple[Arm, Arm]]:
    """Each disaggregated subject with the aggregated arms of the same GPU count (rounded down)."""
    return [
        (subject, rival)
        for subject in arms
        if subject.role == "subject" and subject.disaggregated
        for rival in arms
        if rival.topology is not None
        and not rival.disaggregated
        # None where an aggregated instance spans more GPUs than the subject has.
        and rival.topology.aggregated == subject.gpus // subject.tp.aggregated
        and rival.connector in rivals_of(CONNECTORS[subject.connector])
    ]


def _without_offload(arms: tuple[Arm, ...]) -> list[tuple[Arm, Arm]]:
    """Each arm that offloads KV to host memory with the same instances that do not."""
    return [
        (arm, other)
        for arm in arms
        if arm.store and arm.store.private
        for other in arms
        if other.topology == arm.topology and other.connector == "none"
    ]


def _ratios(
    kind: Kind, requests: pd.DataFrame, value: Side, baseline: Side
) -> Iterator[Comparison]:
    own, other = (
        requests[(requests["arm"] == arm.label) & (requests["pass"] == name)]
        for arm, name in (value, baseline)
    )
    if own.empty or other.empty:
        return
    ratios = {metric: paired_ratio(pair(other, own, metric)) for metric in LATENCIES}
    ratios["system_tps"] = ratio_of_rounds(_tps_of_rounds(own), _tps_of_rounds(other))
    for metric, ratio in ratios.items():
        yield Comparison(
            kind=kind,
            metric=metric,
            arm=value[0].label,
            pass_name=value[1],
            baseline_arm=baseline[0].label,
            baseline_pass=baseline[1],
            ratio=ratio,
            sentence=describe(ratio),
        )


def _tps_of_rounds(requests: pd.DataFrame) -> dict[int, float]:
    numbers = requests["round"]
    return {int(n): system_tps(requests[numbers == n]) for n in numbers.unique()}


def _withheld(row: Comparison) -> Comparison:
    if row.metric not in ("ttft_s", "tpot_s"):
        return row
    why = "the stream was buffered"
    ratio = replace(row.ratio, value=nan, low=nan, high=nan, note=why)
    return replace(row, ratio=ratio, sentence=f"withheld: {why}")
