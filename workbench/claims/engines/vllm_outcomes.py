"""What vLLM says itself: its counts of KV space and blocks, and its own benchmarks."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from workbench.claims.conditions import (
    by_construction,
    curve,
    proven,
    state,
    times,
    where,
)
from workbench.claims.engines.generation import VLLM
from workbench.claims.intervals import counted, mean_of_runs, of_runs, points, ratios
from workbench.claims.recipe import Outcome
from workbench.claims.verdict import Measurement

if TYPE_CHECKING:
    from workbench.claims.decision import Interval
    from workbench.claims.recipe import Setting
    from workbench.claims.rows import Rows

__all__ = ["PUBLISHED_INPUT_TOKENS", "of_blocks", "of_published"]

PUBLISHED_INPUT_TOKENS = 256
_LENGTHS = ("--input-len", "--output-len"), ("--random-input-len", "--random-output-len")
"""As `vllm bench latency` and `vllm bench throughput` name them."""


def of_blocks(rows: Rows, setting: Setting) -> Outcome:
    """Tokens that fit by number format, and blocks that sequences hold beyond the fewest."""
    table = rows.table
    space = table[table["quantity"] == "KV tokens"].set_index("arm")["value"]
    fit = {str(arm): float(tokens) for arm, tokens in space.items()}
    block = float(table.loc[table["quantity"] == "block", "value"].iloc[0])
    tokens, blocks = (of_runs(table, name, "auto")[0] for name in ("tokens", "blocks"))
    beyond = tuple(counted([more]) for more in blocks - np.ceil(tokens / block))
    lengths = len(tokens) > 0 and bool(((tokens > 0) & (blocks > 0)).all())
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
        # Blocks are held against the fewest for the tokens of the same sequence, counted.
        checks=by_construction("one_factor_changed")
        | {"same_token_lengths_ignore_eos": state(lengths)},
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
        | by_construction("same_model_and_weights", "same_engine_knobs", "same_metric_definition")
        | {"same_token_lengths_ignore_eos": _lengths_agree(rows, output_tokens)},
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


def _lengths_agree(rows: Rows, output_tokens: int) -> str:
    """Lengths of both sides: ours as counted, those of `vllm bench` as its command lines ask.

    vLLM's benchmarks write no count of output tokens; they ignore the end of sequence themselves.
    Unknown where one of the two sides has no row.
    """
    made = rows.table[rows.table["quantity"] == "output tokens"]
    commands = [result["command"].split() for result in rows.results if "command" in result]
    if made.empty or not commands:
        return "unknown"
    asked = [
        int(options[name])
        for words in commands
        for options in [dict(pairwise(words))]
        for names in _LENGTHS
        for name in names
        if name in options
    ]
    wanted = [PUBLISHED_INPUT_TOKENS, output_tokens] * len(commands)
    batches = made["cell"].str.split().str[1].astype(int)
    return state(asked == wanted and bool((made["value"] == batches * output_tokens).all()))
