"""The passes of a working-set sweep: how many prompts are sent, and sent again, beside what an
instance's KV space holds."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

from workbench.errors import PlanError, must_be, needs
from workbench.experiment.plan.arm import Arm, Pass
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.params.pd_sweep import PdSweep

AGAIN = "again"


def size_name(times: float) -> str:
    """`2x KV space`"""
    return f"{times:g}x KV space"


def with_working_sets(made: ExperimentPlan) -> ExperimentPlan:
    """The plan with two passes for each size: its prompts cold, and the same prompts again.

    Raises PlanError if the KV space is unknown or a size has no whole prompt.
    """
    assert isinstance(made.params, PdSweep)
    sizes, space_tokens = sorted(made.params.working_sets), made.kv_space_tokens
    prompt_tokens = made.workload.longest_prompt_tokens
    if isnan(space_tokens):
        needed = "a known KV space (on a GPU in engine_args, in bytes)"
        example = "-p engine_args '--kv-cache-memory-bytes 8589934592'"
        raise PlanError(needs("working_sets", needed, "", example))
    if sizes[0] * space_tokens < prompt_tokens:
        least = f"{prompt_tokens / space_tokens:.2g}"
        allowed = (
            f"at least {least}: one prompt has {prompt_tokens:,} tokens, the KV space"
            f" {space_tokens:,.0f}"
        )
        raise PlanError(must_be("working_sets", allowed, sizes, [float(least), 2 * float(least)]))
    arms, most = [], 0
    for arm in made.arms:
        counts = {size: _prompts(arm, size * space_tokens / prompt_tokens) for size in sizes}
        most = max(most, *counts.values())
        passes = [one for size, count in counts.items() for one in _passes(size, count)]
        arms.append(replace(arm, passes=tuple(passes)))
    options = made.workload.options | {"requests": most}
    return replace(made, arms=tuple(arms), workload=replace(made.workload, options=options))


def _prompts(arm: Arm, of_one_instance: float) -> int:
    assert arm.topology is not None
    return arm.topology.instances * max(1, round(of_one_instance))


def _passes(size: float, count: int) -> tuple[Pass, Pass]:
    cold = Pass(name=f"cold at {size_name(size)}", state="cold", requests=count)
    # Nothing is reset before it: what the caches still hold is the question.
    again = Pass(
        name=f"{AGAIN} at {size_name(size)}", state="engine-warm", requests=count, after=cold.name
    )
    return cold, again
