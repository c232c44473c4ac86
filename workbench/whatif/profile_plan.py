"""The passes that a profile needs: 1p1d, cold and warm, over lengths and concurrencies; and 1a."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from workbench.errors import PlanError, must_be
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.engine_setup import engine_of
from workbench.experiment.plan.offered_load.traffic import workload_of
from workbench.experiment.plan.plan import ExperimentPlan, Pass
from workbench.params.pd_sweep import PdSweep
from workbench.serve.connectors import connector
from workbench.topology import Topology

LENGTHS = 6
"""Prompt lengths, from the workload's shortest, or a quarter of its longest, to its longest."""
LARGEST_BATCH = 16
"""Requests in flight in the last pass, unless `concurrency` asks for more."""
REQUESTS = 24
"""Requests per pass unless `requests` is set: four of each length, more if more are in flight."""


def profile_plan(params: PdSweep) -> ExperimentPlan:
    """The plan of the runs from which `profile_of` makes a profile for the workload of `params`.

    Cold passes time prefill and transfer, at 1, 2 and 4 requests in flight. Warm passes, which
    compute little, bring the decode instance to larger batches. The passes of 1a are not fitted:
    they check the profile. Raises PlanError and ParameterError.
    """
    means = connector(params.connector)
    if not means.transfers or means.at_once:
        allowed = "one that moves KV after prefill has ended, such as nixl or lmcache"
        raise PlanError(must_be("connector", allowed, params.connector, "nixl"))
    if params.models:
        raise PlanError(must_be("models", "empty (a profile is of one model)", params.models, ""))
    settings, model, _ = engine_of(params)
    wanted = workload_of(params, settings, model).sample
    tokens = [request.prompt_tokens for request in wanted.requests]
    longest = max(tokens)
    shortest = min(min(tokens), max(longest // 4, 32))
    largest = max(params.concurrency, LARGEST_BATCH)
    asked = replace(
        params, topology="1p1d", opponents=True, workload="short", prompt_tokens=longest,
        requests=params.requests or max(REQUESTS, 3 * largest // 2), rate_per_s=0.0,
        rates_per_s=[], search=False, arrivals="closed", concurrency=largest, rounds=1,
        burstiness=1.0, end_rate_per_s=0.0, target_reuse=0.0, trace_file="", prompts_file="",
        trace_speed=0.0, trace_block_tokens=0, concurrencies=[], predict=False, measure="",
        targets=[], ttft_limit_ms=0.0, tpot_limit_ms=0.0, gpu_hour_price="", time_budget_s=0.0,
    )  # fmt: skip
    made = plan(asked)
    lengths = np.linspace(shortest, longest, LENGTHS).astype(int)
    passes = _passes(asked.concurrency)
    arms = [replace(arm, passes=passes) for arm in made.arms if arm.role == "subject"]
    # The baseline of 1p1d has two aggregated instances, where the profile needs one.
    alone = next(arm for arm in made.arms if arm.role == "opponent" and arm.topology)
    one = Topology(aggregated=1)
    gpus = alone.gpus // alone.topology.aggregated if alone.topology else 0
    label = alone.label.replace(str(alone.topology), str(one))
    cold = [each for each in passes if each.state == "cold"]
    ends = (cold[0], cold[-1])
    arms.append(replace(alone, topology=one, label=label, gpus=gpus, passes=ends))
    return replace(
        made,
        notebook="profile",
        arms=tuple(arms),
        workload=replace(made.workload, lengths=tuple(map(int, lengths))),
    )


def _passes(largest: int) -> tuple[Pass, ...]:
    batches = [2**n for n in range(1, 12) if 2**n < largest]
    cold = [
        Pass(name=f"cold, {n} in flight", state="cold", concurrency=n)
        for n in (1, *(n for n in batches if n <= 4))
    ]
    warm = [
        Pass(name=f"warm, {n} in flight", state="engine-warm", concurrency=n, after=cold[-1].name)
        for n in (*batches, largest)
    ]
    return (*cold, *warm)
