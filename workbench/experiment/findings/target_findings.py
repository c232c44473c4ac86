"""Whether a run met its targets: by the intervals of its comparisons, and by its gates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Literal

from workbench.errors import ParameterError
from workbench.experiment.result.facts import ArmFacts, RunFacts
from workbench.experiment.result.finding_rows import Comparison, TargetRow
from workbench.metrics.gates.gate_effects import Failed, spoil
from workbench.params.targets import Named, Target, not_answered

_WORST_FIRST = ("not met", "undecided", "met")


def targets_of(run: RunFacts, sentences: Sequence[str] = ()) -> tuple[TargetRow, ...]:
    """The targets of a run that was measured, or other `sentences`.

    Raises ParameterError for a sentence of another form, for one that no comparison of the run
    answers, and if there is none.
    """
    targets = list(sentences) or list(run.parameters.get("targets") or ())
    if not targets:
        raise ParameterError(
            "targets must be given, because this run has none (example: workbench targets RUN"
            " 'store-warm ttft cut >= 60%')"
        )
    arms = {arm.label: _named(arm) for arm in run.arms}
    answered = [(row.kind, arms[row.arm], row.pass_name) for row in run.comparisons]
    for text in targets:
        if refusal := not_answered(Target.parse(text), answered):
            raise ParameterError(refusal)
    return target_rows(targets, run.arms, run.comparisons, run.failed_gates)


def target_rows(
    targets: Iterable[str],
    arms: Iterable[ArmFacts],
    comparisons: Sequence[Comparison],
    failed: Failed,
) -> tuple[TargetRow, ...]:
    """One row per target. It is met if it is met in every arm, pass and baseline that it names.

    A comparison meets a target if its whole 95 % interval does, and misses it if none of it does.
    One that a failed gate makes invalid or rough is undecided. Each interval is at 95 %: "met"
    needs all of them, so it needs no correction for their number.
    """
    known = {arm.label: _named(arm) for arm in arms}
    found = []
    for target in map(Target.parse, targets):
        rows = [
            _judged(target, row, failed)
            for row in comparisons
            if row.metric == target.metric
            and target.selects(row.kind, known[row.arm], row.pass_name)
        ]
        found.append(_whole(target, rows))
    return tuple(found)


def _named(arm: ArmFacts) -> Named:
    return Named(
        label=arm.label,
        topology=arm.topology,
        model=arm.short_model,
        subject=arm.role != "opponent",
    )


def _whole(target: Target, rows: Sequence[TargetRow]) -> TargetRow:
    if not rows:
        return TargetRow(
            target=target.text, outcome="undecided", why="no comparison that it names was measured"
        )
    worst = min(rows, key=lambda row: (_WORST_FIRST.index(row.outcome), _margin(target, row)))
    return replace(worst, comparisons=len(rows))


def _margin(target: Target, row: TargetRow) -> float:
    """How far a value is on the good side, for choosing the comparison that is shown."""
    if isnan(row.value):
        return -1e9
    value = abs(row.value) if target.measure == "within" else row.value
    return value if target.at_least and target.measure != "within" else -value


def _judged(target: Target, row: Comparison, failed: Failed) -> TargetRow:
    ratio = row.ratio
    ends = (ratio.value, ratio.low, ratio.high)
    if target.metric != "system_tps":  # of latencies a ratio is baseline / arm
        ends = (1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    value, *sides = (100 * target.measured(end) for end in ends)
    low, high = (min(sides), max(sides)) if not isnan(sides[0]) else (nan, nan)
    does = spoil(failed, "ratios", passes=row.passes, arms=row.arms, interval=not isnan(ratio.low))
    held = [target.holds(end) for end in ends[1:]]
    inside = ends[1] <= 1 <= ends[2]  # `within` may hold in the middle only
    outcome: Literal["met", "not met", "undecided"] = "undecided"
    if does.effect in ("struck", "rough"):
        why = does.said
    elif isnan(ratio.low):
        why = ratio.note
    elif all(held):
        outcome, why = "met", does.said
    elif not any(held) and not (target.measure == "within" and inside):
        outcome, why = "not met", does.said
    else:
        why = "the 95 % interval contains the limit"
    return TargetRow(
        target=target.text, outcome=outcome, value=value, low=low, high=high,
        arm=row.arm, pass_name=row.pass_name, baseline_arm=row.baseline_arm,
        baseline_pass=row.baseline_pass, comparisons=1, why=why,
    )  # fmt: skip
