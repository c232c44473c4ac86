"""From request rows to medians per arm and pass, and to paired ratios between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.experiment.plan.plan import Arm, ExperimentPlan
from workbench.metrics.latency import succeeded, system_tps
from workbench.metrics.statistics import (
    Ratio,
    describe,
    pair,
    paired_ratio,
    quantile,
    ratio_of_rounds,
)
from workbench.topology import Topology

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare", "summarise"]

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
SPEEDUPS = ("ttft_s", "tpot_s", "e2e_s")


def summarise(requests: pd.DataFrame) -> list[dict[str, Any]]:
    """Median with its 95 % interval for each arm, pass and metric.

    Latencies and request_tps over requests; system_tps (tokens per second of a whole pass) over
    rounds.
    """
    rows: list[dict[str, Any]] = []
    keys = ["arm", "topology", "connector", "pass"]
    for values, group in requests.groupby(keys, sort=False):
        head = dict(zip(keys, values, strict=True)) | {
            "n_requests": len(group),
            "n_failed": int((~succeeded(group)).sum()),
            "n_rounds": int(group["round"].nunique()),
        }
        per_round = [system_tps(rows) for _, rows in group.groupby("round")]
        for metric in (*LATENCIES, "request_tps", "system_tps"):
            estimate = quantile(per_round if metric == "system_tps" else group[metric], 0.5)
            rows.append(
                head
                | {
                    "metric": metric,
                    "median": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "note": estimate.note,
                }
            )
    return rows


def compare(plan: ExperimentPlan, requests: pd.DataFrame) -> list[dict[str, Any]]:
    """Every speed-up that the plan allows, each a ratio above 1 when better than its baseline.

    `cache-state`: a warm pass beside the cold pass of the same arm. `opponent`: a subject beside
    an aggregated arm of as many GPUs, in the same state. `cache-off`: an arm with the prefix
    cache beside the one without.
    """
    rows: list[dict[str, Any]] = []
    for arm in plan.arms:
        for measured in arm.passes[1:]:
            rows += _ratios("cache-state", requests, (arm, measured.name), (arm, "cold"))
    for subject, rival in _rivals(plan.arms):
        shared = [p.name for p in subject.passes if p.name in {q.name for q in rival.passes}]
        if plan.rates is not None:  # each arm of a search has rates of its own
            mine, theirs = (
                set(requests.loc[requests["arm"] == arm.label, "pass"]) for arm in (subject, rival)
            )
            shared += [name for name in requests["pass"].unique() if name in mine & theirs]
        for name in shared:
            rows += _ratios("opponent", requests, (subject, name), (rival, name))
    labels = {arm.label: arm for arm in plan.arms}
    if "cache off" in labels:
        for measured in labels["cache on"].passes:
            on, off = (labels["cache on"], measured.name), (labels["cache off"], "cold")
            rows += _ratios("cache-off", requests, on, off)
    return rows


def _rivals(arms: tuple[Arm, ...]) -> list[tuple[Arm, Arm]]:
    """Each disaggregated subject with the aggregated arms of as many GPUs (rounded down)."""
    return [
        (subject, rival)
        for subject in arms
        if subject.role == "subject" and subject.disaggregated
        for rival in arms
        if rival.topology == Topology(aggregated=subject.gpus // subject.tp.aggregated)
    ]


def _ratios(
    kind: str, requests: pd.DataFrame, value: tuple[Arm, str], baseline: tuple[Arm, str]
) -> list[dict[str, Any]]:
    frames = [
        requests[(requests["arm"] == arm.label) & (requests["pass"] == name)]
        for arm, name in (value, baseline)
    ]
    if frames[0].empty or frames[1].empty:
        return []
    ratios = {m: paired_ratio(pair(frames[1], frames[0], m)) for m in SPEEDUPS}
    tps: list[dict[int, float]] = [
        {int(n): system_tps(frame[frame["round"] == n]) for n in frame["round"].unique()}
        for frame in frames
    ]
    ratios["system_tps"] = ratio_of_rounds(*tps)
    return [
        {
            "kind": kind,
            "metric": metric,
            "arm": value[0].label,
            "pass": value[1],
            "baseline_arm": baseline[0].label,
            "baseline_pass": baseline[1],
            **_columns(ratio),
        }
        for metric, ratio in ratios.items()
    ]


def _columns(ratio: Ratio) -> dict[str, Any]:
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "n_rounds": ratio.rounds,
        "n_pairs": ratio.pairs,
        "note": ratio.note,
        "sentence": describe(ratio),
    }
