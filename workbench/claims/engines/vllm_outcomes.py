"""What vLLM says itself: its counts of KV space and blocks, and its own benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.claims.engines.generation import VLLM
from workbench.claims.intervals import counted, mean_of_runs, of_runs, points, ratios
from workbench.claims.kernels.conditions import curve, proven, times, where
from workbench.claims.recipe import Outcome
from workbench.claims.verdict import Measurement

if TYPE_CHECKING:
    from workbench.claims.decision import Interval
    from workbench.claims.recipe import Setting
    from workbench.claims.rows import Rows

__all__ = ["PUBLISHED_INPUT_TOKENS", "of_blocks", "of_published"]

PUBLISHED_INPUT_TOKENS = 256


def of_blocks(rows: Rows, setting: Setting) -> Outcome:
    """Tokens that fit by number format, and blocks that sequences hold beyond the fewest."""
    table = rows.table
    space = table[table["quantity"] == "KV tokens"].set_index("arm")["value"]
    fit = {str(arm): float(tokens) for arm, tokens in space.items()}
    block = float(table.loc[table["quantity"] == "block", "value"].iloc[0])
    tokens, blocks = (of_runs(table, name, "auto")[0] for name in ("tokens", "blocks"))
    beyond = tuple(counted([more]) for more in blocks - np.ceil(tokens / block))
    waste = 100 * (1 - tokens.sum() / (blocks.sum() * block))
    measurements = {
        "OWN-BLOCKS": Measurement(effects={"blocks beyond the fewest": beyond}),
        "VLLM-WASTE": Measurement(
            effects={"paged waste": (counted([waste]),)}, counted=frozenset({"paged waste"})
        ),
    }
    if "fp8" in fit:
        measurements["VLLM-FP8KV"] = Measurement(
            effects={"KV tokens": (counted([fit["fp8"] / fit["auto"]]),)},
            counted=frozenset({"KV tokens"}),
        )
    return Outcome(
        measurements=measurements,
        table=table,
        says=f"KV space of equal bytes as vLLM counts it: {fit.get('auto', 0):,.0f} tokens as bf16,"
        f" {fit.get('fp8', 0):,.0f} as FP8; {len(tokens)} sequences of {tokens.mean():.0f} tokens"
        f" on average hold {blocks.sum():.0f} blocks of {block:.0f}, {waste:.1f} % of them empty.",
        checks={"same_token_lengths_ignore_eos": "pass", "one_factor_changed": "pass"},
        doubts=rows.doubts,
    )


def of_published(rows: Rows, setting: Setting, *, output_tokens: int) -> Outcome:
    """vLLM's own benchmarks: their numbers, and whether our timing of the same batch agrees."""
    table = rows.table
    bench, wide = "vllm bench latency", "vllm bench throughput"

    def mean(quantity: str, arm: str) -> Interval:
        return mean_of_runs(of_runs(table, quantity, arm).to_numpy(float).ravel())

    timed = {arm: mean("time", arm) for arm in (bench, VLLM)}
    requests, tokens = mean("requests rate", wide), mean("tokens rate", wide)
    rates = (
        f"{requests.estimate:.3g} requests/s, {tokens.estimate:,.0f} tokens/s in and out"
        if requests.runs
        else "it gave no result"
    )
    agree = ratios(table, "time", over=bench, under=VLLM, confidence=0.9)
    lengths = f"{PUBLISHED_INPUT_TOKENS} tokens in and {output_tokens} out"
    return Outcome(
        measurements={
            "OWN-BENCH": Measurement(effects={"latency": tuple(agree.values())}),
            "S001-LAT": Measurement(effects={"mean": (timed[bench],)}),
            "S001-TPUT": Measurement(
                effects={
                    "requests": (requests,),
                    "all tokens": (tokens,),
                    "output tokens": (times(requests, output_tokens),),
                },
            ),
        },
        table=table,
        says=f"`vllm bench latency` of 8 requests, {lengths}: {timed[bench].estimate:.3g} s, and"
        f" {timed[VLLM].estimate:.3g} s by our own timing; `vllm bench throughput`:"
        f" {rates}, {where(rows, setting)}.",
        checks=proven(rows)
        | {
            "same_model_and_weights": "pass",
            "same_engine_knobs": "pass",
            "same_metric_definition": "pass",
            "same_token_lengths_ignore_eos": "pass",
        },
        curves=(
            curve(
                f"A batch of 8, {lengths}",
                "timed by",
                "seconds",
                points("mean of runs", timed, {arm: arm for arm in timed}),
            ),
        ),
        doubts=rows.doubts,
    )
