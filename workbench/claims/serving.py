"""Claims about serving, measured through the spine on real servers: what each recipe reads.

One run serves several claims, since launches are what costs time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from workbench.claims import serving_plans as plans
from workbench.claims.decision import Interval, difference
from workbench.claims.intervals import gained_percent
from workbench.claims.proofs import faults, proofs
from workbench.claims.readings import (
    EQUIVALENCE,
    counted,
    latency_ratio,
    noise_floor,
    rows_of,
    saved_percent,
    throughput_ratio,
)
from workbench.claims.recipe import Curve, Outcome, Recipe, Setting
from workbench.claims.serving_counts import (
    block_tokens,
    credit,
    hit_curve,
    hits,
    same_text,
    tokens_twice,
    ttft_steps,
)
from workbench.claims.verdict import Measurement
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run
from workbench.params.notebooks import EngineParams

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_cache", "read_store", "read_topology", "serving_recipes"]

OFF, ON, NO_STORE, STORE = "cache off", "cache on", "no store", "lmcache"
LAUNCH_S, INSTANCE_S = 1.6, 0.6
"""What a launch costs, and each instance of it: 310 s of a quiet run on 2 cores."""
_PRETENDED = "A simulated engine answered, which measures nothing."
_FEWER = (0.5, 0.34)
_CACHE = (
    "VLLM-APC", "VLLM-APC-COST", "OWN-HIT-TOKENS", "OWN-SAME-TEXT", "OWN-TTFT-MONOTONE",
    "OWN-TOKEN-IDENTITY", "OWN-EQUAL-ARMS",
)  # fmt: skip
_STORE = ("S002-TARGET-TTFT", "LMCACHE-3-10", "OWN-STORE-TTFT", "OWN-STORE-CREDIT")
_TOPOLOGY = ("VLLM-PD", "S002-TARGET-TPOT", "S002-TARGET-TPUT")


def serving_recipes(params: EngineParams) -> tuple[Recipe, ...]:
    """The recipes of the serving level, for servers as `params` describes them."""
    return (
        _recipe(
            params, "prefix_cache", _CACHE, plans.cache_plan, read_cache,
            "One instance with its prefix cache off, off once more, and on: cold, partly warm and"
            " warm prompts of six lengths.",
        ),
        _recipe(
            params, "store", _STORE, plans.store_plan, read_store,
            "One instance without a KV store, once more, and with LMCache: cold, warm in the"
            " engine, and warm in the store alone.",
        ),
        _recipe(
            params, "pd_1p1d", _TOPOLOGY, 
            partial(plans.topology_plan, topology="1p1d", rival="none"),
            read_topology,
            "1p1d over LMCache beside two aggregated instances, and those once more.",
        ),
        _recipe(
            params, "pd_2p1d", ("S000-L70-REGRESS",),
            partial(plans.topology_plan, topology="2p1d", rival="lmcache"),
            read_topology,
            "2p1d over LMCache beside three aggregated instances with LMCache, and those again.",
        ),
    )  # fmt: skip


Read = Callable[[Result], Outcome]


def _recipe(
    params: EngineParams,
    name: str,
    claims: tuple[str, ...],
    make: Callable[[EngineParams, Setting], ExperimentPlan],
    read: Read,
    what: str,
) -> Recipe:
    known: dict[Any, tuple[float, float]] = {}

    def estimate_s(setting: Setting) -> float:
        key = (setting.platform, setting.model, setting.budget_s, setting.requests_share)
        if key not in known:
            launch_s = LAUNCH_S if params.fork or setting.platform != "cpu" else 17.0
            one, two = (
                plans.estimate_s(made, launch_s=launch_s, instance_s=INSTANCE_S)
                for plan in [make(params, replace(setting, runs=1))]
                for made in (plan, replace(plan, rounds=2))
            )
            known[key] = 2 * one - two, two - one
        once_s, round_s = known[key]
        return once_s + setting.runs * round_s

    async def measure(setting: Setting) -> Outcome:
        made = make(params, setting)
        result = await run(made, echo=setting.echo, limit=setting.limit, progress=False)
        outcome = read(result)
        if params.engine != "simulated":
            return outcome
        void = {
            claim: replace(measured, faults=(_PRETENDED, *measured.faults))
            for claim, measured in outcome.measurements.items()
        }
        return replace(outcome, measurements=void)

    return Recipe(
        name=name, level="serving", claims=claims, what=what, estimate_s=estimate_s, run=measure,
        fewer=_FEWER,
    )  # fmt: skip


def read_cache(result: Result) -> Outcome:
    """What a run of `cache_plan` says about its claims."""
    requests, facts = result.requests, result.facts
    block = block_tokens(result)
    warm, cold, off = (ON, "engine-warm"), (ON, "cold"), (OFF, "cold")
    floor = noise_floor(requests, OFF + plans.AGAIN, OFF)
    tps_floor = noise_floor(requests, OFF + plans.AGAIN, OFF, "system_tps")
    timed, exact = faults(facts, timed=True), faults(facts, timed=False)
    steps, curve = ttft_steps(requests, ON)
    # A run that was broken off may lack the arm that the claim is about: equal arms prove nothing.
    asked = all(len(rows_of(requests, side)) for side in (warm, cold))
    texts = same_text(requests, OFF) if asked else counted([])
    make = partial(Measurement, faults=timed, noise_floor=floor)
    measurements = {
        "VLLM-APC": make(
            effects={
                "TTFT": (latency_ratio(requests, warm, cold, "ttft_s"),),
                "TPOT": (latency_ratio(requests, warm, cold, "tpot_s", confidence=EQUIVALENCE),),
            }
        ),
        "VLLM-APC-COST": make(
            effects={
                "throughput": (throughput_ratio(requests, cold, off, confidence=EQUIVALENCE),)
            },
            noise_floor=tps_floor,
        ),
        "OWN-EQUAL-ARMS": make(
            effects={
                "throughput": (
                    throughput_ratio(
                        requests, (OFF + plans.AGAIN, "cold"), off, confidence=EQUIVALENCE
                    ),
                )
            },
            noise_floor=0.0,
        ),
        "OWN-HIT-TOKENS": _exact({"tokens off": hits(requests, ON, block)}, exact),
        "OWN-SAME-TEXT": _exact({"answers that differ": texts}, exact),
        "OWN-TOKEN-IDENTITY": _exact({"tokens off": tokens_twice(result)}, exact),
        "OWN-TTFT-MONOTONE": make(effects={"TTFT": steps}),
    }
    return _outcome(
        result, measurements, proofs(facts, requests, value=ON, baseline=OFF),
        says=f"Prompts of {_words(_sent(requests))} tokens, {plans.OUTPUT_TOKENS} output tokens"
        f" each, one at a time; KV blocks of {block} tokens.",
        curves=(curve, hit_curve(requests, ON, block)), floor=floor,
    )  # fmt: skip


def read_store(result: Result) -> Outcome:
    """What a run of `store_plan` says about its claims."""
    requests, facts = result.requests, result.facts
    floor = noise_floor(requests, NO_STORE + plans.AGAIN, NO_STORE)
    warm, alone = (STORE, "store-warm"), (NO_STORE, "cold")
    ratio = latency_ratio(requests, warm, alone, "ttft_s")
    inverse = latency_ratio(requests, alone, warm, "ttft_s")
    make = partial(Measurement, faults=faults(facts, timed=True), noise_floor=floor)
    measurements = {
        "OWN-STORE-TTFT": make(effects={"TTFT": (ratio,)}),
        "LMCACHE-3-10": make(effects={"TTFT": (inverse,)}),
        "S002-TARGET-TTFT": make(effects={"TTFT saved": (saved_percent(ratio),)}),
        "OWN-STORE-CREDIT": _exact(
            credit(result, STORE, block_tokens(result)), faults(facts, timed=False)
        ),
    }
    return _outcome(
        result, measurements, proofs(facts, requests, value=STORE, baseline=NO_STORE),
        says=f"Prompts of {_words(_sent(requests))} tokens, {plans.OUTPUT_TOKENS} output tokens"
        " each, one at a time; chunks of 256 tokens.",
        floor=floor,
    )  # fmt: skip


def read_topology(result: Result) -> Outcome:
    """What a run of `topology_plan` says about its claims."""
    requests, facts = result.requests, result.facts
    arms = [str(arm["label"]) for arm in facts["arms"]]
    pd = next(arm for arm in arms if "d" in arm.split()[0])
    alone = next(arm for arm in arms if arm != pd and not arm.endswith(plans.AGAIN))
    floor = noise_floor(requests, alone + plans.AGAIN, alone, "system_tps")
    value, baseline = (pd, "cold"), (alone, "cold")
    make = partial(Measurement, faults=faults(facts, timed=True), noise_floor=floor)
    tps = throughput_ratio(requests, value, baseline)
    tpot = latency_ratio(requests, value, baseline, "tpot_s", confidence=EQUIVALENCE)
    measurements = {
        "VLLM-PD": make(effects={"throughput": (tps,)}),
        "S002-TARGET-TPUT": make(effects={"throughput": (gained_percent(tps),)}),
        "S002-TARGET-TPOT": make(effects={"TPOT": (tpot,)}, noise_floor=0.0),
        "S000-L70-REGRESS": make(effects={"TPS": (tps,)}),
    }
    wanted = _TOPOLOGY if pd.startswith("1p1d") else ("S000-L70-REGRESS",)
    return _outcome(
        result, {name: measurements[name] for name in wanted},
        proofs(facts, requests, value=pd, baseline=alone),
        says=f"{pd} beside {alone}: cold prompts of 1,500 tokens, 32 output tokens, two at a time.",
        floor=floor,
    )  # fmt: skip


def _exact(effects: Mapping[str, Interval], faults: tuple[str, ...]) -> Measurement:
    return Measurement(
        effects={name: (interval,) for name, interval in effects.items()},
        faults=faults,
        counted=frozenset(effects),
    )


def _outcome(
    result: Result,
    measurements: Mapping[str, Measurement],
    checks: Mapping[str, str],
    *,
    says: str,
    floor: float,
    curves: tuple[Curve, ...] = (),
) -> Outcome:
    rounds = int(result.requests["round"].nunique())
    known = rounds >= 2 and isfinite(floor)
    return Outcome(
        measurements=measurements,
        table=_table(result.requests),
        says=f"{says} {rounds} rounds, each with a launch of every arm, in turns; two equal arms"
        f" differ by up to {difference(floor)} in a round.",
        checks={**checks, "aa_noise_floor": "pass" if known else "unknown"},
        curves=curves,
        doubts=tuple(result.doubts),
    )


def _table(requests: pd.DataFrame) -> pd.DataFrame:
    """The raw rows in the form that every recipe has."""
    rows = requests.melt(
        id_vars=["arm", "pass", "round", "prompt_tokens", "sent_s"],
        value_vars=["ttft_s", "tpot_s", "cached_tokens"], var_name="quantity",
    )  # fmt: skip
    cell = rows["pass"] + ", " + rows["prompt_tokens"].astype(str) + " tokens"
    unit = rows["quantity"].map({"ttft_s": "s", "tpot_s": "s", "cached_tokens": "tokens"})
    order = rows["sent_s"].rank(method="dense").fillna(0).astype(int)
    columns = ["quantity", "arm", "cell", "run", "order", "value", "unit"]
    return rows.assign(cell=cell, unit=unit, run=rows["round"], order=order)[columns]


def _sent(requests: pd.DataFrame) -> tuple[int, ...]:
    return tuple(sorted({int(n) for n in requests["prompt_tokens"]}))


def _words(lengths: tuple[int, ...]) -> str:
    said = [f"{n:,}" for n in lengths]
    return " and ".join(filter(None, (", ".join(said[:-1]), *said[-1:])))
