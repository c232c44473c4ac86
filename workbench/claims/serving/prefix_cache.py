"""One instance with its prefix cache off, off again, and on: prompts of six lengths."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import nan
from typing import TYPE_CHECKING

from workbench.claims.recipes.recipe import Curve, Outcome, Point, Recipe, Setting
from workbench.claims.serving import served
from workbench.claims.serving.served import (
    AGAIN,
    EQUIVALENCE,
    OUTPUT_TOKENS,
    WARM,
    latency_ratio,
    noise_of_rounds,
    rows_of,
    throughput_ratio,
)
from workbench.claims.verdict.decision import Interval
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.result import Result
from workbench.hardware.kv import engine_hit_tokens
from workbench.metrics.gates.response_gates import TIE_NAT
from workbench.metrics.latency import succeeded
from workbench.metrics.statistics import quantile
from workbench.params.notebooks import EngineParams, PrefixCache

if TYPE_CHECKING:
    import pandas as pd

OFF, ON = "cache off", "cache on"
LENGTHS = (512, 700, 1024, 1500, 2048, 2049)
"""Whole blocks of 16 and 128 tokens, one token more, and lengths between."""
SHARES = (0.25, 0.5, 0.75)
_TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def recipe(params: EngineParams) -> Recipe:
    """The recipe, for servers as `params` describes them."""
    return served.served_recipe(
        params, "prefix_cache",
        ("VLLM-APC", "VLLM-APC-COST", "OWN-HIT-TOKENS", "OWN-SAME-TEXT", "OWN-TTFT-MONOTONE",
         "OWN-TOKEN-IDENTITY", "OWN-EQUAL-ARMS"),
        "One instance with its prefix cache off (measured twice) and on: cold, partly warm and"
        " warm prompts of six lengths.",
        make=cache_plan, read=read,
    )  # fmt: skip


def cache_plan(params: EngineParams, setting: Setting) -> ExperimentPlan:
    """One instance with the prefix cache off, off again, and on (cold, partly warm, warm)."""
    lengths = served.kept_lengths(LENGTHS, setting)
    made = plan(
        PrefixCache(
            prompt_tokens=max(LENGTHS), output_tokens=OUTPUT_TOKENS, concurrency=1,
            requests=served.requests_of(lengths, setting), shares=list(SHARES),
            **served.shared(params, setting),
        )
    )  # fmt: skip
    off, on = made.arms
    return served.of_lengths(made, "prefix_cache", (off, served.again(off), on), lengths)


def read(result: Result) -> Outcome:
    """The outcome of a run."""
    requests = result.requests
    block = served.block_tokens(result)
    warm, cold, off, off_again = (ON, WARM), (ON, "cold"), (OFF, "cold"), (OFF + AGAIN, "cold")
    floor = noise_of_rounds(requests, OFF + AGAIN, OFF)
    tps_floor = noise_of_rounds(requests, OFF + AGAIN, OFF, "system_tps")
    steps, curve = _ttft_steps(requests)
    # A stopped run may lack the claim's own arm; identical arms show nothing about it.
    asked = all(len(rows_of(requests, side)) for side in (warm, cold))
    make = served.timed(result, floor)

    def tps(value: tuple[str, str]) -> dict[str, tuple[Interval]]:
        ratio = throughput_ratio(requests, value, off, confidence=EQUIVALENCE)
        return {"throughput": (ratio,)}

    measurements = {
        "VLLM-APC": make(
            effects={
                "TTFT": (latency_ratio(requests, warm, cold, "ttft_s"),),
                "TPOT": (latency_ratio(requests, warm, cold, "tpot_s", confidence=EQUIVALENCE),),
            }
        ),
        "VLLM-APC-COST": make(effects=tps(cold), noise_floor=tps_floor),
        "OWN-EQUAL-ARMS": make(effects=tps(off_again), noise_floor=0.0),
        "OWN-HIT-TOKENS": served.exact(result, {"token difference": _hits(requests, block)}),
        "OWN-SAME-TEXT": served.exact(
            result, {"responses that differ": _texts(requests) if asked else Interval.counted([])}
        ),
        "OWN-TOKEN-IDENTITY": served.exact(result, {"token difference": _tokens_twice(result)}),
        "OWN-TTFT-MONOTONE": make(effects={"TTFT": steps}),
    }
    return served.outcome_of(
        result, measurements, value=ON, baseline=OFF,
        says=f"Prompts of {served.lengths_in_words(requests)} tokens, {OUTPUT_TOKENS} output tokens"
        f" each, one in flight; KV blocks of {block} tokens.",
        curves=(curve, _hit_curve(requests, block)), floor=floor,
    )  # fmt: skip


def _hits(requests: pd.DataFrame, block: int) -> Interval:
    """Cached tokens of each warm request minus floor((L - 1) / block) * block."""
    rows = rows_of(requests, (ON, WARM))
    rows = rows[succeeded(rows)]
    if not block or rows["cached_tokens"].lt(0).any():
        return Interval.counted([])
    expected = [engine_hit_tokens(n, block_tokens=block) for n in rows["prompt_tokens"]]
    return Interval.counted(rows["cached_tokens"] - expected)


def _hit_curve(requests: pd.DataFrame, block: int) -> Curve:
    """Cached tokens of warm requests and the formula, by prompt length."""
    rows = rows_of(requests, (ON, WARM))
    points: list[Point] = []
    for length, group in rows[rows["cached_tokens"].ge(0)].groupby("prompt_tokens"):
        tokens, seen = int(str(length)), group["cached_tokens"]
        points.append(("reported by the engine", tokens, seen.median(), seen.min(), seen.max()))
        if block:
            formula = engine_hit_tokens(tokens, block_tokens=block)
            points.append((f"formula, blocks of {block}", tokens, formula, nan, nan))
    return Curve(
        title="Cached tokens of a repeated prompt", x="prompt tokens", y="cached tokens",
        points=points, claims=("OWN-HIT-TOKENS",),
    )  # fmt: skip


def _texts(requests: pd.DataFrame) -> Interval:
    """How many responses of each arm and whole pass differ from those without the cache.

    A difference at a tie of the model's best tokens does not count: rounding decides there.
    """
    keys = ["round", "index"]
    whole = requests[requests["pass"].isin(["cold", WARM]) & succeeded(requests)]
    wanted = rows_of(whole, (OFF, "cold"))[[*keys, "text"]]
    both = whole[whole["arm"] != OFF].merge(wanted, on=keys, suffixes=("", "_wanted"))
    if both.empty or both["text"].eq("").all():
        return Interval.counted([])
    apart = both["text"] != both["text_wanted"]
    both["differs"] = apart & ~both["parting_nat"].le(TIE_NAT) if "parting_nat" in both else apart
    return Interval.counted(both.groupby(["arm", "pass"])["differs"].sum())


def _tokens_twice(result: Result) -> Interval:
    """Tokens counted by the engine minus those counted by the client, in each pass."""
    keys = ["arm", "round", "pass"]
    counted = served.counters(result)
    tokens = counted[counted["series"].isin(_TOKENS)]
    totals = tokens.groupby([*keys, "when"])["value"].sum().unstack("when")
    if totals.empty:
        return Interval.counted([])
    rows = result.requests
    both = rows.groupby(keys)[["prompt_tokens", "output_tokens"]].sum().sum(axis=1)
    return Interval.counted((totals["after"] - totals["before"]).sub(both).dropna())


def _ttft_steps(requests: pd.DataFrame) -> tuple[tuple[Interval, ...], Curve]:
    """TTFT with more of the prompt cached over TTFT with less, for each step; and a curve.

    Only prompts with more cached blocks count in a step; all intervals together are at 95 %
    (Bonferroni).
    """
    rows = requests[(requests["arm"] == ON) & succeeded(requests)]
    steps = list(pairwise(dict.fromkeys(rows["pass"])))
    confidence = 1 - 0.05 / max(1, len(steps))
    cached = rows.groupby(["pass", "index"])["cached_tokens"].median().unstack("pass")
    cells = []
    for less, more in steps:
        grew = cached.index[cached[more] > cached[less]]
        part = rows[rows["index"].isin(grew)]
        found = latency_ratio(part, (ON, more), (ON, less), "ttft_s", confidence=confidence)
        cells.append(replace(found, cell=f"{more} / {less}"))
    points = []
    known = rows[rows["cached_tokens"].ge(0)]
    for (tokens, _), group in known.groupby(["prompt_tokens", "pass"]):
        seen = quantile(1000 * group["ttft_s"], 0.5)
        uncached = float((group["prompt_tokens"] - group["cached_tokens"]).median())
        points.append((f"{tokens:,} tokens", uncached, seen.value, seen.low, seen.high))
    return tuple(cells), Curve(
        title="TTFT by uncached prompt tokens", x="prompt tokens computed", y="TTFT, ms",
        points=points, claims=("VLLM-APC", "OWN-TTFT-MONOTONE"),
    )  # fmt: skip
