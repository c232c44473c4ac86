"""KV space as vLLM counts it: tokens that fit by number format, and blocks that sequences hold.

These counts are the same in every launch and on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.claims.engines.engine import ENGINE, FIRST_TOKEN_ID, WARM, engine_job, start_vllm
from workbench.claims.recipes.recipe import Outcome, Setting
from workbench.claims.recipes.rounds import launched_recipe
from workbench.claims.recipes.rows import Rows, row
from workbench.claims.verdict.decision import Interval
from workbench.claims.verdict.verdict import Measurement, by_construction, state

FORMATS = ("auto", "fp8")
"""The first has the format of the weights, bf16."""
SEQUENCES = 32
STEPS = 4
"""After so many steps, every sequence is in the middle of its output."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one launch with `job["kv_dtype"]`: tokens that fit, and each sequence's blocks."""
    engine = start_vllm(
        job,
        kv_cache_dtype=job["kv_dtype"],
        block_size=job["block_tokens"],
        enable_prefix_caching=False,
        max_num_seqs=SEQUENCES,
    )
    config = engine.llm_engine.vllm_config.cache_config
    arm = job["kv_dtype"]
    rows = [
        row("KV tokens", arm, "all", config.block_size * config.num_gpu_blocks, "tokens"),
        row("block", arm, "all", config.block_size, "tokens"),
    ]
    if arm == FORMATS[0]:
        for name, tokens, blocks in _held(engine, job):
            rows.append(row("tokens", arm, name, tokens, "tokens"))
            rows.append(row("blocks", arm, name, blocks, "count"))
    return {"rows": rows, "threads": 1}


def _held(engine: Any, job: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Running sequences: name, computed tokens, blocks held, from vLLM's scheduler."""
    from vllm import SamplingParams

    drawn = random.Random(job["seed"])
    sampling = SamplingParams(max_tokens=job["output_tokens"], ignore_eos=True, temperature=0.0)
    for number in range(SEQUENCES):
        length = drawn.randint(16, job["input_tokens"])
        ids = drawn.choices(range(FIRST_TOKEN_ID, job["vocab_tokens"]), k=length)
        engine.llm_engine.add_request(f"sequence {number}", {"prompt_token_ids": ids}, sampling)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    running: list[Any] = []
    for _ in range(200):
        engine.llm_engine.step()
        running = [request for request in scheduler.running if request.num_output_tokens >= STEPS]
        if len(running) == SEQUENCES:
            break
    return [
        (
            f"sequence {place}",
            int(request.num_computed_tokens),
            sum(
                map(len, scheduler.kv_cache_manager.get_blocks(request.request_id).get_block_ids())
            ),
        )
        for place, request in enumerate(running)
    ]


def read(rows: Rows, setting: Setting) -> Outcome:
    """Tokens that fit by number format, and blocks that sequences hold beyond the fewest."""
    space = rows.of("KV tokens").set_index("arm")["value"]
    fit = {str(arm): float(tokens) for arm, tokens in space.items()}
    block = float(rows.of("block")["value"].iloc[0])
    tokens, blocks = (rows.medians(name, FORMATS[0])[0] for name in ("tokens", "blocks"))
    beyond = tuple(Interval.counted([more]) for more in blocks - np.ceil(tokens / block))
    lengths = len(tokens) > 0 and bool(((tokens > 0) & (blocks > 0)).all())
    waste = 100 * (1 - tokens.sum() / (blocks.sum() * block))
    measurements = {
        "OWN-BLOCKS": Measurement(effects={"blocks beyond the fewest": beyond}),
        "VLLM-WASTE": _counted("paged waste", waste),
    }
    if "fp8" in fit:
        measurements["VLLM-FP8KV"] = _counted("KV tokens", fit["fp8"] / fit["auto"])
    return Outcome(
        measurements=measurements,
        table=rows.table,
        says=f"KV space of equal bytes as vLLM counts it: {fit.get('auto', 0):,.0f} tokens in bf16,"
        f" {fit.get('fp8', 0):,.0f} in FP8; {len(tokens)} sequences of {tokens.mean():.0f} tokens"
        f" on average hold {blocks.sum():.0f} blocks of {block:.0f} tokens ({waste:.1f} % unused).",
        # Blocks are compared with the fewest for the counted tokens of the same sequence.
        checks=by_construction("one_factor_changed")
        | {"same_token_lengths_ignore_eos": state(lengths)},
        doubts=rows.doubts,
    )


def _counted(name: str, value: float) -> Measurement:
    return Measurement(effects={name: (Interval.counted([value]),)}, counted=frozenset({name}))


RECIPE = launched_recipe(
    "blocks", "engine", ("VLLM-FP8KV", "OWN-BLOCKS", "VLLM-WASTE"),
    "KV tokens that fit in bf16 and FP8, and blocks that sequences hold, as vLLM counts them.",
    target=f"{__name__}:measure",
    # Nothing is timed, so bf16 does not matter for speed; the claims compare FP8 with it.
    job=lambda setting: engine_job(
        setting, dtype="bfloat16", input_tokens=1000, output_tokens=32,
        block_tokens=32 if setting.platform == "cpu" else 16,
    ),
    arms=[{"kv_dtype": kind} for kind in FORMATS],
    rounds=1,
    outcome=read,
    cost=ENGINE,
    each_s=2.0,
    warm=WARM,
)  # fmt: skip
