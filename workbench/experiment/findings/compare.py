"""From request rows to medians per arm and pass, and to paired ratios between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING

from workbench.experiment.plan.compared import Kind, Side, pairs
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.finding_rows import Comparison, SummaryRow
from workbench.metrics.latency import buffered, comparable, succeeded, system_tps
from workbench.metrics.statistics import (
    describe,
    pair,
    paired_ratio,
    quantile,
    ratio_of_rounds,
)

if TYPE_CHECKING:
    import pandas as pd

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")


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
    different models are not compared, nor the passes of a profile.
    """
    if plan.profiles:
        return ()
    held_back = set(requests.loc[buffered(requests), "arm"])
    usable = comparable(requests)
    measured = requests[["arm", "pass"]].drop_duplicates()
    at_rates = {str(arm): list(rows) for arm, rows in measured.groupby("arm", sort=False)["pass"]}
    return tuple(
        _withheld(row) if held_back & {row.arm, row.baseline_arm} else row
        for part in plan.parts
        for kind, value, baseline in pairs(part, at_rates)
        for row in _ratios(kind, usable, value, baseline)
    )


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
