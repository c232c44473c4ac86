"""The passes that a profile needs: 1p1d, cold and warm, over lengths and concurrencies; and 1a."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

import numpy as np

from workbench.errors import ParameterError, PlanError, must_be, unused
from workbench.experiment.plan.arm import Pass
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.engine_setup import engine_of
from workbench.experiment.plan.offered_load.traffic import OF_A_FILE, workload_of
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.params.notebooks import as_typed, changed, check_params
from workbench.params.pd_sweep import ALL_CONNECTORS, PdSweep
from workbench.serve.connectors import connector
from workbench.topology import Topology
from workbench.whatif.prediction import check_turns

LENGTHS = 6
"""Prompt lengths, from the workload's shortest, or a quarter of its longest, to its longest."""
LARGEST_BATCH = 16
"""Requests in flight in the last pass, unless `concurrency` asks for more."""
REQUESTS = 24
"""Requests per pass unless `requests` is set: four of each length, more if more are in flight."""
SET: Mapping[str, Any] = {
    "topology": "1p1d", "opponents": True, "arrivals": "closed", "rounds": 1, "rate_per_s": 0.0,
    "rates_per_s": [], "concurrencies": [], "search": False, "burstiness": 1.0,
    "end_rate_per_s": 0.0, "trace_speed": 0.0, "working_sets": [], "predict": False, "measure": "",
    "targets": [], "link_runs": [], "ttft_limit_ms": 0.0, "tpot_limit_ms": 0.0,
    "limits_share": 0.9, "gpu_hour_price": "", "time_budget_s": 0.0,
}  # fmt: skip
"""Parameters that a profile sets itself."""
_SAME = {"topology": "", "arrivals": "auto"}
"""Values with which the profile still sets the parameter itself."""
_ONE_LENGTH = ("reference", "short", "shared_prefix")
"""Workloads with as many requests as each pass of their profile."""
_EXAMPLE = "workbench profile -p connector nixl"


def profile_params(given: Mapping[str, Any]) -> PdSweep:
    """The parameters of `workbench profile`. Raises ParameterError for those without effect."""
    specs = {spec.name: spec for spec in fields(PdSweep)}
    hints = get_type_hints(PdSweep)
    if given.get("engine") == "attach":
        allowed = "vllm or simulated (a profile starts its own servers)"
        raise ParameterError(must_be("engine", allowed, "attach", "vllm"))
    for name in (name for name in SET if name in given):
        value = specs[name].metadata["rule"].read(name, given[name], hints[name])
        if value not in (SET[name], _SAME.get(name)):
            raise ParameterError(unused(name, value, "workbench profile", _EXAMPLE))
    made: PdSweep = check_params("pd_sweep", given)
    if "concurrency" in given and made.concurrency < LARGEST_BATCH:
        allowed = f"at least {LARGEST_BATCH}, which every profile measures"
        raise ParameterError(must_be("concurrency", allowed, made.concurrency, LARGEST_BATCH))
    return made


def profile_plan(params: PdSweep) -> ExperimentPlan:
    """The plan of the runs from which `profile_of` makes a profile for the workload of `params`.

    Cold passes time prefill and transfer, at 1, 2 and 4 requests in flight. Warm passes, which
    compute little, bring the decode instance to larger batches. The passes of 1a are not fitted:
    they check the profile. The plan's parameters are those that repeat it; its passes send random
    prompts in the lengths of the workload. Raises PlanError and ParameterError.
    """
    if params.connector == ALL_CONNECTORS:
        raise PlanError(must_be("connector", "a single one", params.connector, "nixl"))
    means = connector(params.connector)
    if not means.transfers or means.at_once:
        allowed = "one that moves KV after prefill has ended, such as nixl or lmcache"
        raise PlanError(must_be("connector", allowed, params.connector, "nixl"))
    if params.models:
        raise PlanError(must_be("models", "empty (a profile is of one model)", params.models, ""))
    largest = max(params.concurrency, LARGEST_BATCH)
    usual = max(REQUESTS, 3 * largest // 2)
    # With a file, `requests` is the number of rows whose lengths are profiled.
    requests = usual if params.workload in OF_A_FILE else params.requests or usual
    if params.workload in _ONE_LENGTH:
        params = replace(params, requests=requests)
    settings, model, _ = engine_of(params)
    wanted = workload_of(params, settings, model)
    check_turns(params, wanted.sample)
    tokens = [request.prompt_tokens for request in wanted.sample.requests]
    longest = max(tokens)
    shortest = min(min(tokens), max(longest // 4, 32))
    kept = replace(
        params,
        **SET,
        concurrency=largest,
        # Not the longest prompt, which would make a trace or scenario shorter the second time.
        prompt_tokens=wanted.options.get("prompt_tokens", params.prompt_tokens),
    )
    made = plan(
        replace(
            kept, workload="short", prompt_tokens=longest, requests=requests, target_reuse=0.0,
            trace_file="", trace_block_tokens=0, prompts_file="",
        )
    )  # fmt: skip
    lengths = np.linspace(shortest, longest, LENGTHS).astype(int)
    passes = _passes(largest)
    arms = [replace(arm, passes=passes) for arm in made.arms if arm.role == "subject"]
    # The baseline of 1p1d has two aggregated instances, where the profile needs one.
    alone = next(arm for arm in made.arms if arm.role == "opponent" and arm.topology)
    one = Topology(aggregated=1)
    gpus = alone.gpus // alone.topology.aggregated if alone.topology else 0
    label = alone.label.replace(str(alone.topology), str(one))
    cold = [each for each in passes if each.state == "cold"]
    ends = (cold[0], cold[-1])
    arms.append(replace(alone, topology=one, label=label, gpus=gpus, passes=ends))
    own = {name: value for name, value in changed(kept).items() if name not in SET}
    return replace(
        made,
        notebook="profile",
        params=kept,
        command=shlex.join(["workbench", "profile", *as_typed(own)]),
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
