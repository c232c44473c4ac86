"""PD over LMCache compared with the same number of aggregated instances; cold prompts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from workbench.claims.recipes.recipe import Outcome, Recipe, Setting
from workbench.claims.serving.served import (
    AGAIN,
    EQUIVALENCE,
    again,
    latency_ratio,
    noise_of_rounds,
    outcome_of,
    served_recipe,
    swept,
    throughput_ratio,
    timed,
)
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.result import Result
from workbench.params.notebooks import EngineParams

REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 1500, 32
EQUAL, UNEQUAL = ("VLLM-PD", "S002-TARGET-TPOT", "S002-TARGET-TPUT"), ("S000-L70-REGRESS",)


def recipes(params: EngineParams) -> tuple[Recipe, Recipe]:
    """The recipes, for servers as `params` describes them."""
    return tuple(
        served_recipe(
            params, f"pd_{topology}", claims, what,
            make=partial(topology_plan, topology=topology, rival=rival), read=read,
        )
        for topology, rival, claims, what in (
            ("1p1d", "none", EQUAL,
             "1p1d over LMCache compared with two aggregated instances, measured twice."),
            ("2p1d", "lmcache", UNEQUAL,
             "2p1d over LMCache compared with three aggregated LMCache instances, measured twice."),
        )
    )  # type: ignore[return-value]  # fmt: skip


def topology_plan(
    params: EngineParams, setting: Setting, topology: str, rival: str
) -> ExperimentPlan:
    """A PD topology and the same number of aggregated instances, twice for the noise.

    `rival` is the connector of the aggregated instances, none or lmcache.
    """
    made = swept(
        params, setting, topology=topology, connector="lmcache", opponents=True, concurrency=2,
        requests=max(2, round(REQUESTS * setting.requests_share)),
        prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS,
    )  # fmt: skip
    chosen = [arm for arm in made.arms if arm.role == "subject" or arm.connector == rival]
    arms = [replace(arm, passes=arm.passes[:1]) for arm in chosen]
    return replace(made, notebook=f"pd_{topology}", arms=(*arms, again(arms[-1])))


def read(result: Result) -> Outcome:
    """The outcome of a run."""
    requests = result.requests
    arms = [str(arm["label"]) for arm in result.facts["arms"]]
    pd = next(arm for arm in arms if "d" in arm.split()[0])
    alone = next(arm for arm in arms if arm != pd and not arm.endswith(AGAIN))
    floor = noise_of_rounds(requests, alone + AGAIN, alone, "system_tps")
    value, baseline = (pd, "cold"), (alone, "cold")
    make = timed(result, floor)
    tps = throughput_ratio(requests, value, baseline)
    tpot = latency_ratio(requests, value, baseline, "tpot_s", confidence=EQUIVALENCE)
    measurements = {
        "VLLM-PD": make(effects={"throughput": (tps,)}),
        "S002-TARGET-TPUT": make(effects={"throughput": (tps.gained_percent,)}),
        "S002-TARGET-TPOT": make(effects={"TPOT": (tpot,)}, noise_floor=0.0),
        "S000-L70-REGRESS": make(effects={"TPS": (tps,)}),
    }
    wanted = EQUAL if pd.startswith("1p1d") else UNEQUAL
    return outcome_of(
        result, {name: measurements[name] for name in wanted}, value=pd, baseline=alone,
        says=f"{pd} compared with {alone}: cold prompts of {PROMPT_TOKENS:,} tokens,"
        f" {OUTPUT_TOKENS} output tokens, two in flight.",
        floor=floor,
    )  # fmt: skip
