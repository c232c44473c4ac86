"""Which arms and passes of a plan are compared, and whether its targets can be answered."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from workbench.errors import PlanError
from workbench.experiment.plan.arm import Arm
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.plan.which_connectors import rivals_of
from workbench.params.notebooks import LoadParams
from workbench.params.targets import Named, Target, not_answered
from workbench.serve.connectors import CONNECTORS

Side = tuple[Arm, str]
"""An arm and one of its passes."""
Kind = Literal["cache-state", "opponent", "cache-off", "no-offload"]


def pairs(
    plan: ExperimentPlan, at_loads: Mapping[str, Collection[str]]
) -> Iterator[tuple[Kind, Side, Side]]:
    """Each comparison of one model's plan: its kind, what is judged, and the baseline.

    `at_loads` has the passes of each arm at the loads of a sweep or search.
    """
    for arm in plan.arms:
        for measured in arm.passes[1:]:
            if measured.state != "cold":
                yield "cache-state", (arm, measured.name), (arm, measured.after)
    for subject, rival in rivals(plan.arms):
        shared = [p.name for p in subject.passes if p.name in {q.name for q in rival.passes}]
        if plan.loads is not None:  # each arm of a search has loads of its own
            theirs = at_loads.get(rival.label, ())
            shared += [name for name in at_loads.get(subject.label, ()) if name in theirs]
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


def check_targets(plan: ExperimentPlan) -> None:
    """Refuse targets that no comparison of the plan answers. Raises PlanError."""
    if not isinstance(plan.params, LoadParams) or not plan.params.targets:
        return
    # A search finds its loads only while it runs.
    names = [*map(plan.loads.unit.pass_name, plan.loads.given)] if plan.loads else []
    at_loads = {arm.label: names for arm in plan.arms}
    answered = [
        (kind, named(arm), name)
        for part in plan.parts
        for kind, (arm, name), _ in pairs(part, at_loads)
    ]
    for text in plan.params.targets:
        if refusal := not_answered(Target.parse(text), answered):
            raise PlanError(refusal)


def named(arm: Arm) -> Named:
    """The arm as a target may name it."""
    return Named(
        label=arm.label, topology=arm.topology_text, model=arm.model,
        subject=arm.role != "opponent",
    )  # fmt: skip
