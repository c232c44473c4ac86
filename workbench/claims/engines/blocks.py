"""KV space as vLLM itself counts it: tokens that fit by number format, blocks that sequences hold.

Counts and no times: they are the same in every launch and on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from workbench.claims.engines.generation import FIRST_TOKEN_ID, start_vllm

__all__ = ["FORMATS", "measure"]

FORMATS = ("auto", "fp8")
"""The first takes the format of the weights, bf16."""
SEQUENCES = 32
STEPS = 4
"""After so many steps every sequence is in mid-generation."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one launch with `job["kv_dtype"]`: tokens that fit, and of each sequence its blocks.

    `blocks` counts those that a sequence holds, `tokens` those that it has computed.
    """
    engine = start_vllm(
        job,
        kv_cache_dtype=job["kv_dtype"],
        block_size=job["block_tokens"],
        enable_prefix_caching=False,
        max_num_seqs=SEQUENCES,
    )
    config = engine.llm_engine.vllm_config.cache_config
    rows: list[dict[str, Any]] = []

    def row(quantity: str, cell: str, value: float, unit: str) -> None:
        rows.append(
            {"quantity": quantity, "arm": job["kv_dtype"], "cell": cell, "value": value,
             "unit": unit, "order": len(rows), "steady": True}
        )  # fmt: skip

    row("KV tokens", "all", config.block_size * config.num_gpu_blocks, "tokens")
    row("block", "all", config.block_size, "tokens")
    if job["kv_dtype"] == FORMATS[0]:
        for name, tokens, blocks in _held(engine, job):
            row("tokens", name, tokens, "tokens")
            row("blocks", name, blocks, "count")
    return {"rows": rows, "notes": [], "threads": 1}


def _held(engine: Any, job: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Sequences in mid-generation: name, computed tokens, blocks held, from vLLM's scheduler."""
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
