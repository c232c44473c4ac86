"""What is launched for claims about serving: arms, passes and prompts, as plans of the spine.

Each has an A/A arm, the same configuration once more, whose difference is the noise floor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workbench.claims.recipe import Setting
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.plan import Arm, ExperimentPlan
from workbench.experiment.plan.speed import TYPICAL
from workbench.experiment.plan.traffic import WorkloadSpec
from workbench.params.notebooks import EngineParams, PdSweep, PrefixCache
from workbench.serve.tiny_model import LAYERS, model_facts

__all__ = [
    "AGAIN",
    "CACHE_LENGTHS",
    "STORE_LENGTHS",
    "cache_plan",
    "estimate_s",
    "lengths",
    "store_plan",
    "topology_plan",
]

AGAIN = " again"
"""Ends the label of an A/A arm."""

CACHE_LENGTHS = (512, 700, 1024, 1500, 2048, 2049)
"""Whole blocks of 16 and 128 tokens, one token more, and lengths between."""
STORE_LENGTHS = (700, 1024, 1900, 2048)
"""Whole chunks of 256 tokens, and lengths between."""
_KEPT_LONGEST = (1024, 700, 2049, 1900, 512, 1500, 2048)
"""Lengths in the order in which a short run keeps them: a whole block, one between, one more."""
PD_REQUESTS = 6
SHARES = (0.25, 0.5, 0.75)
OUTPUT_TOKENS = 16
SHORT_BUDGET_S = 300.0


def cache_plan(params: EngineParams, setting: Setting) -> ExperimentPlan:
    """One instance with the prefix cache off, off again, and on (cold, partly warm, warm)."""
    asked = PrefixCache(
        prompt_tokens=max(CACHE_LENGTHS), output_tokens=OUTPUT_TOKENS,
        requests=_each(setting) * len(lengths(CACHE_LENGTHS, setting)), concurrency=1,
        shares=list(SHARES), **_common(params, setting),
    )  # fmt: skip
    made = plan(asked)
    off, on = made.arms
    return replace(
        made,
        notebook="prefix_cache",
        arms=(off, _again(off), on),
        workload=_lengths(made, lengths(CACHE_LENGTHS, setting)),
    )


def store_plan(params: EngineParams, setting: Setting) -> ExperimentPlan:
    """One instance without a KV store, again, and with LMCache (cold, engine-warm, store-warm)."""
    with_store = plan(_sweep(params, setting, topology="1a", connector="lmcache"))
    without = plan(_sweep(params, setting, topology="1a", connector="none"))
    (lmcache,), (alone,) = with_store.arms, without.arms
    alone = replace(alone, label="no store", passes=alone.passes[:1])
    return replace(
        with_store,
        notebook="store",
        arms=(alone, _again(alone), replace(lmcache, label="lmcache")),
        workload=_lengths(with_store, lengths(STORE_LENGTHS, setting)),
    )


def topology_plan(
    params: EngineParams, setting: Setting, topology: str, rival: str
) -> ExperimentPlan:
    """A PD topology over LMCache beside as many aggregated instances, once more; cold prompts.

    `rival` is the connector of the aggregated instances, none or lmcache.
    """
    made = plan(
        _sweep(
            params, setting, topology=topology, connector="lmcache", opponents=True,
            concurrency=2, requests=max(2, round(PD_REQUESTS * setting.requests_share)),
            prompt_tokens=1500, output_tokens=32,
        )
    )  # fmt: skip
    chosen = [arm for arm in made.arms if arm.role == "subject" or arm.connector == rival]
    arms = [replace(arm, passes=arm.passes[:1]) for arm in chosen]
    return replace(made, notebook=f"pd_{topology}", arms=(*arms, _again(arms[-1])))


def estimate_s(made: ExperimentPlan, *, launch_s: float, instance_s: float) -> float:
    """Seconds that a plan takes with the tiny model on a CPU; on a GPU a guess from below.

    `launch_s` and `instance_s`: what a launch costs, and each instance of it.
    """
    requests = made.workload.build("estimate").requests
    speed = made.speed or TYPICAL
    settings = made.arms[0].settings
    layers = model_facts(settings.model).layers if made.speed and settings else LAYERS
    cold_s = sum(
        speed.prefill_s(r.prompt_tokens, layers=layers) + speed.step_s * r.max_tokens
        for r in requests
    )
    total_s = 0.0
    launch_s *= speed.fork_server_s / TYPICAL.fork_server_s
    once_s = speed.fork_server_s if made.params.fork and made.platform == "cpu" else 0.0
    for arm in made.arms:
        instances = arm.topology.instances if arm.topology else 1
        shares = sum(1.0 if p.state == "cold" else 1.1 - p.share for p in arm.passes)
        total_s += launch_s + instance_s * instances + cold_s * shares + 0.15 * len(arm.passes)
        total_s += 2.0 if arm.means and arm.means.store else 0.0
    return once_s + made.rounds * total_s


def lengths(wanted: tuple[int, ...], setting: Setting) -> tuple[int, ...]:
    """The lengths that a run with this share of its requests asks, at least two; in order."""
    number = max(2, round(len(wanted) * setting.requests_share))
    return tuple(sorted(sorted(wanted, key=_KEPT_LONGEST.index)[:number]))


def _each(setting: Setting) -> int:
    """Requests of each length in a pass; more launches are worth more than more requests."""
    return 1 if setting.budget_s < SHORT_BUDGET_S or setting.requests_share < 1 else 2


def _common(params: EngineParams, setting: Setting) -> dict[str, Any]:
    return {
        "rounds": setting.runs,
        "seed": setting.seed,
        "output_dir": str(setting.output_dir),
        "engine": params.engine,
        "fault": params.fault,
        "platform": params.platform,
        "model": params.model,
        "dtype": params.dtype,
        "context_tokens": params.context_tokens,
        "kv_cache_mib": params.kv_cache_mib,
        "gpu_memory_share": params.gpu_memory_share,
        "fork": params.fork,
        "timeout_s": params.timeout_s,
        "kernel_stamps": params.kernel_stamps,
        "client_workers": params.client_workers,
    }


def _sweep(params: EngineParams, setting: Setting, **options: Any) -> PdSweep:
    defaults = {
        "opponents": False, "store_gb": 0.5, "prompt_tokens": max(STORE_LENGTHS),
        "output_tokens": OUTPUT_TOKENS,
        "requests": _each(setting) * len(lengths(STORE_LENGTHS, setting)),
    }  # fmt: skip
    return PdSweep(**{**defaults, **_common(params, setting), **options})


def _again(arm: Arm) -> Arm:
    return replace(arm, label=arm.label + AGAIN, passes=arm.passes[:1])


def _lengths(made: ExperimentPlan, kept: tuple[int, ...]) -> WorkloadSpec:
    options = made.workload.options
    return WorkloadSpec(name="lengths", lengths=kept, options=dict(options))
