"""One instance without a KV store, again without, and with LMCache."""

from __future__ import annotations

from dataclasses import replace
from math import nan

from workbench.claims.recipes.recipe import Outcome, Recipe, Setting
from workbench.claims.serving import served
from workbench.claims.serving.served import AGAIN, OUTPUT_TOKENS, WARM
from workbench.claims.verdict.decision import Interval
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.result import Result
from workbench.hardware.kv import chunk_hit_tokens, engine_hit_tokens
from workbench.params.notebooks import EngineParams

ALONE, STORE, STORE_WARM = "no store", "lmcache", "store-warm"
CHUNK_TOKENS = 256
LENGTHS = (700, 1024, 1900, 2048)
"""Whole chunks of 256 tokens, and lengths between."""


def recipe(params: EngineParams) -> Recipe:
    """The recipe, for servers as `params` describes them."""
    return served.served_recipe(
        params, "store", ("S002-TARGET-TTFT", "LMCACHE-3-10", "OWN-STORE-TTFT", "OWN-STORE-CREDIT"),
        "One instance without a KV store (measured twice) and with LMCache: cold, engine-warm and"
        " store-warm.",
        make=store_plan, read=read,
    )  # fmt: skip


def store_plan(params: EngineParams, setting: Setting) -> ExperimentPlan:
    """One instance without a KV store, again, and with LMCache (cold, engine-warm, store-warm)."""
    lengths = served.kept_lengths(LENGTHS, setting)
    with_store, without = (
        served.swept(
            params, setting, topology="1a", connector=connector, prompt_tokens=max(LENGTHS),
            requests=served.requests_of(lengths, setting),
        )
        for connector in ("lmcache", "none")
    )  # fmt: skip
    (lmcache,), (alone,) = with_store.arms, without.arms
    alone = replace(alone, label=ALONE, passes=alone.passes[:1])
    arms = (alone, served.again(alone), replace(lmcache, label=STORE))
    return served.of_lengths(with_store, "store", arms, lengths)


def read(result: Result) -> Outcome:
    """The outcome of a run."""
    requests = result.requests
    floor = served.noise_of_rounds(requests, ALONE + AGAIN, ALONE)
    warm, alone = (STORE, STORE_WARM), (ALONE, "cold")
    ratio = served.latency_ratio(requests, warm, alone, "ttft_s")
    inverse = served.latency_ratio(requests, alone, warm, "ttft_s")
    make = served.timed(result, floor)
    measurements = {
        "OWN-STORE-TTFT": make(effects={"TTFT": (ratio,)}),
        "LMCACHE-3-10": make(effects={"TTFT": (inverse,)}),
        "S002-TARGET-TTFT": make(effects={"TTFT saved": (ratio.saved_percent,)}),
        "OWN-STORE-CREDIT": served.exact(result, _credit(result, served.block_tokens(result))),
    }
    return served.outcome_of(
        result, measurements, value=STORE, baseline=ALONE,
        says=f"Prompts of {served.lengths_in_words(requests)} tokens, {OUTPUT_TOKENS} output tokens"
        f" each, one in flight; chunks of {CHUNK_TOKENS} tokens.",
        floor=floor,
    )  # fmt: skip


def _credit(result: Result, block: int) -> dict[str, Interval]:
    """Tokens loaded from the store minus those expected, in each round.

    Expected are whole chunks beyond the engine's own hit, and never the last token of a prompt.
    """
    loaded = result.token_sources.set_index(["arm", "round", "pass"])["external_hit"]
    off: dict[str, list[float]] = {"warm in the engine": [], "warm in the store": []}
    for number, group in served.rows_of(result.requests, (STORE, STORE_WARM)).groupby("round"):
        lengths = [int(n) for n in group["prompt_tokens"]]
        offered = [min(chunk_hit_tokens(n, chunk_tokens=CHUNK_TOKENS), n - 1) for n in lengths]
        held = [engine_hit_tokens(n, block_tokens=block) if block else n for n in lengths]
        beyond = sum(max(0, o - h) for o, h in zip(offered, held, strict=True))
        for name, state, tokens in (
            ("warm in the engine", WARM, beyond), ("warm in the store", STORE_WARM, sum(offered)),
        ):  # fmt: skip
            off[name].append(float(loaded.get((STORE, number, state), nan)) - tokens)
    return {name: Interval.counted(values) for name, values in off.items()}
