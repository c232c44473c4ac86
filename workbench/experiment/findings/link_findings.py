"""What links between hosts did to a PD split, and the link rate above which it is faster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isnan, nan
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from workbench.errors import PlanError, ResultError, must_be
from workbench.experiment.findings.crossing import Crossing, LinkPoint, crossing
from workbench.experiment.findings.sentences import first, matching
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.finding_rows import Comparison, LinkRow, SummaryRow
from workbench.experiment.result.result_file import read_facts
from workbench.metrics.passes import PassCounters
from workbench.metrics.statistics import Estimate, Ratio, quantile, three_digits
from workbench.params.pd_sweep import PdSweep
from workbench.records import LinkRate

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLE = "outputs/pd_sweep/1a2b3c4d"
_MAY_DIFFER = frozenset({"link_runs", "output_dir", "ray_address", "rounds", "spread", "targets"})
_NO_RATIO = Ratio(value=nan, low=nan, high=nan, rounds=0, pairs=0, note="no opponent")
ACROSS = ("ttft_s", "e2e_s")
"""The metrics that a slow link makes longer."""


def link_rows(
    plan: ExperimentPlan,
    run_id: str,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    passes: Sequence[PassCounters],
    measured: Iterable[tuple[str, LinkRate, bool]],
    waterfall: pd.DataFrame,
) -> tuple[LinkRow, ...]:
    """A row per arm across hosts, baseline and metric of the cold pass.

    `measured` are arm, rate, and whether it is from a prefill host to a decode host.
    """
    rates: dict[str, list[tuple[float, bool]]] = {}
    for label, rate, forward in measured:
        rates.setdefault(label, []).append((1e-9 * rate.bit_s, forward))
    rows = []
    for arm in (arm for arm in plan.arms if arm.label in rates):
        all_ways = [gbit_s for gbit_s, _ in rates[arm.label]]
        mine = waterfall[waterfall["arm"].eq(arm.label) & waterfall["pass"].eq("cold")]
        for metric in ACROSS:
            made = matching(
                comparisons, kind="opponent", arm=arm.label, pass_name="cold", metric=metric
            )
            against = {row.baseline_arm: row.ratio for row in made} or {"": _NO_RATIO}
            rows += [
                LinkRow(
                    run_id=run_id,
                    arm=arm.label,
                    baseline_arm=baseline_arm,
                    metric=metric,
                    gbit_s=median(g for g, forward in rates[arm.label] if forward),
                    gbit_low=min(all_ways),
                    gbit_high=max(all_ways),
                    kv_bytes=_kv_bytes(passes, arm.label),
                    transfer=quantile(mine["transfer_queue_s"], 0.5),
                    value=_estimate(summary, arm.label, metric),
                    baseline=_estimate(summary, baseline_arm, metric),
                    ratio=ratio,
                )
                for baseline_arm, ratio in against.items()
            ]
    return tuple(rows)


def _estimate(summary: Sequence[SummaryRow], arm: str, metric: str) -> Estimate:
    found = first(summary, arm=arm, pass_name="cold", metric=metric)
    return found.estimate if found else Estimate(value=nan, low=nan, high=nan)


def _kv_bytes(passes: Sequence[PassCounters], arm: str) -> float:
    """KV per request that decode instances got in the cold pass; NaN if unknown.

    What the connector counted, else the tokens that it brought.
    """
    moved = sent = 0.0
    for counted in passes:
        if (counted.arm, counted.pass_name) != (arm, "cold"):
            continue
        sent += counted.requests_sent
        if counted.transfers is not None and counted.transfers.bytes_moved > 0:
            moved += counted.transfers.bytes_moved
        elif "decode" in counted.sources:
            moved += counted.sources["decode"].external_hit * counted.kv_bytes_per_token
    return moved / sent if sent else nan


def earlier_links(plan: ExperimentPlan) -> tuple[LinkRow, ...]:
    """What the runs in `link_runs` measured over their links.

    Raises PlanError for a run that cannot be read, has no links, or has other parameters.
    """
    if not isinstance(plan.params, PdSweep):
        return ()
    found: list[LinkRow] = []
    for folder in plan.params.link_runs:
        allowed = "folders of runs of pd_sweep with place=ray"
        try:
            run = read_facts(Path(folder) / "result.json")
        except ResultError as error:
            raise PlanError(must_be("link_runs", allowed, str(error), _EXAMPLE)) from error
        if not run.links:
            got = f"{folder}, which moved no KV between hosts"
            raise PlanError(must_be("link_runs", allowed, got, _EXAMPLE))
        ours = plan.parameters
        for name in ours.keys() - _MAY_DIFFER:
            theirs = run.parameters.get(name, ours[name])
            if theirs != ours[name]:
                raise PlanError(
                    f"link_runs must have the parameters of this run, but {folder} has"
                    f" {name}={theirs}, and this run has {name}={ours[name]}. Repeat one of them"
                    f" with the value of the other (example: -p {name} {theirs})"
                )
        known = {row.run_id for row in found}
        found += [row for row in run.links if row.run_id not in known]
    return tuple(found)


def crossings(rows: Sequence[LinkRow]) -> dict[tuple[str, str, str], Crossing]:
    """The crossing of each arm, baseline and metric, of all runs together."""
    groups: dict[tuple[str, str, str], list[LinkRow]] = {}
    for row in rows:
        if row.kv_bytes > 0 and row.baseline.value > 0 and row.ratio.value > 0:
            groups.setdefault((row.arm, row.baseline_arm, row.metric), []).append(row)
    return {key: crossing([link_point(row) for row in group]) for key, group in groups.items()}


def link_point(row: LinkRow) -> LinkPoint:
    """The row as a point of the line whose crossing is searched."""
    return LinkPoint(
        gbit_s=row.gbit_s, ratio=row.ratio.value, low=row.ratio.low, high=row.ratio.high,
        slope=8e-9 * row.kv_bytes / row.baseline.value,
    )  # fmt: skip


def link_sentences(rows: Sequence[LinkRow]) -> list[str]:
    """The link rate above which each arm is faster than its baseline, and the measured rates."""
    said = []
    for (arm, baseline, metric), found in crossings(rows).items():
        mine = [r for r in rows if (r.arm, r.baseline_arm, r.metric) == (arm, baseline, metric)]
        seen = ", ".join(
            f"{three_digits(r.gbit_s)}" for r in sorted(mine, key=lambda row: row.gbit_s)
        )
        said.append(
            f"{metric.removesuffix('_s').upper()} of {arm} over {baseline}:"
            f" {crossing_text(found)} (measured at {seen} Gbit/s)."
        )
    return said


def crossing_text(found: Crossing) -> str:
    """`the split is faster above 0.42 Gbit/s [0.38, 0.50]`"""
    if found.kind == "unclear":
        return "unclear, because the split was faster on a slower link"
    known = not (isnan(found.low) or isnan(found.high))
    if found.kind == "always":
        return "the split is faster on any link"
    if found.kind == "never" and known and found.low < inf:
        return (
            "not decided: the split is slower on any link, or faster above"
            f" {three_digits(found.low)} Gbit/s"
        )
    if found.kind == "never":
        unsure = "" if known else " (no CI: too few rounds)"
        return f"the split is slower on any link, even if the transfer took no time{unsure}"
    high = "no link" if found.high == inf else three_digits(found.high)
    bounds = f"{three_digits(found.low)}, {high}" if known else "no CI: too few rounds"
    beyond = " (not measured)" * (found.kind == "extrapolated")
    return f"the split is faster above {three_digits(found.gbit_s)} Gbit/s [{bounds}]{beyond}"
