"""The recipes of the engine level, and how long each takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workbench.claims.engines.blocks import FORMATS
from workbench.claims.engines.generation import ENGINES, VLLM
from workbench.claims.engines.outcomes import of_generation
from workbench.claims.engines.vllm_outcomes import (
    PUBLISHED_INPUT_TOKENS,
    of_blocks,
    of_published,
)
from workbench.claims.recipe import Outcome, Recipe, Setting
from workbench.claims.rows import Rows, gather
from workbench.serve.tiny_model import model_facts

__all__ = ["RECIPES"]

_HERE = "workbench.claims.engines"
_WARM = (f"{_HERE}.warm:load",)
START_S = 20.0
"""Imports of vLLM and transformers, once on a CPU."""
LAUNCH_S = 4.0
"""An engine ready in a forked process; a GPU's takes a minute, imports included."""
GPU_LAUNCH_S = 60.0
GENERATION_S = 0.5, 16.0
"""Measuring in one launch: small batches at the least, all of BATCHES on a CPU of 2 cores."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
INPUT_TOKENS, OUTPUT_TOKENS = 160, 16
"""160 tokens hold one block of 128, so that a repeated prompt can hit on a CPU as well."""


def _launches_s(setting: Setting, launches: int, measuring_s: float) -> float:
    if setting.platform == "cpu":
        return START_S + launches * (LAUNCH_S + measuring_s)
    return launches * (GPU_LAUNCH_S + measuring_s)


def _job(setting: Setting, **fields: Any) -> dict[str, Any]:
    facts = model_facts(setting.model)
    return {
        "model": str(setting.model), "vocab_tokens": facts.vocab_tokens, "dtype": setting.dtype,
    } | fields  # fmt: skip


def _generation_least_s(setting: Setting) -> float:
    return _launches_s(setting, len(ENGINES) * setting.runs, GENERATION_S[0])


def _generation_most_s(setting: Setting) -> float:
    return _launches_s(setting, len(ENGINES) * setting.runs, GENERATION_S[1])


def _generation_s(setting: Setting) -> float:
    return max(_generation_least_s(setting), setting.allotted_s)


async def _generation(setting: Setting) -> Outcome:
    rows: Rows = await gather(
        replace(setting, budget_s=_generation_s(setting)),
        "generation", f"{_HERE}.generation:measure",
        _job(setting, batches=list(BATCHES), calls=2,
             input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS),
        arms=[{"engine": engine} for engine in ENGINES],
        warm=_WARM, start_s=START_S,
        after_first=lambda result: {"batches": result["done"], "budget_s": 1e6},
    )  # fmt: skip
    return of_generation(
        rows, setting, input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, wanted=BATCHES,
        parameters=model_facts(setting.model).parameters,
    )  # fmt: skip


async def _blocks(setting: Setting) -> Outcome:
    rows = await gather(
        replace(setting, runs=1), "blocks", f"{_HERE}.blocks:measure",
        # Bytes are counted and nothing is timed: bf16 is what the claims compare FP8 with.
        _job(setting, dtype="bfloat16", input_tokens=1000, output_tokens=32,
             block_tokens=32 if setting.platform == "cpu" else 16),
        arms=[{"kv_dtype": kind} for kind in FORMATS], warm=_WARM, start_s=START_S,
    )  # fmt: skip
    return of_blocks(rows, setting)


def _published_tokens(setting: Setting) -> int:
    """128 as in the ROCm notes; a CPU judges no magnitude and saves the time."""
    return 32 if setting.platform == "cpu" else 128


async def _published(setting: Setting) -> Outcome:
    rows = await gather(
        setting, "published", f"{_HERE}.published:measure",
        _job(setting, batch=8, batches=[8], calls=3, input_tokens=PUBLISHED_INPUT_TOKENS,
             output_tokens=_published_tokens(setting), temperature=1.0, text=True),
        arms=[{"bench": "latency"}, {"engine": VLLM}, {"bench": "throughput", "batch": 16}],
        warm=_WARM, start_s=START_S,
    )  # fmt: skip
    return of_published(rows, setting, output_tokens=_published_tokens(setting))


RECIPES = (
    Recipe(
        name="generation",
        level="engine",
        claims=("OWN-VLLM-HF", "OWN-BATCHING", "VLLM-24X", "S003-VLLM-VS-HF-PEAK",
                "S003-HF-TPUT", "S003-VLLM-TPUT"),
        what="vLLM, with and without its prefix cache, beside transformers at equal batch.",
        estimate_s=_generation_s,
        most_s=_generation_most_s,
        run=_generation,
    ),
    Recipe(
        name="blocks",
        level="engine",
        claims=("VLLM-FP8KV", "OWN-BLOCKS", "VLLM-WASTE"),
        what="KV tokens that fit as bf16 and FP8, and blocks that sequences hold, as vLLM counts.",
        estimate_s=lambda setting: _launches_s(setting, len(FORMATS), 2.0),
        run=_blocks,
    ),
    Recipe(
        name="published",
        level="engine",
        claims=("OWN-BENCH", "S001-LAT", "S001-TPUT"),
        what="`vllm bench latency` and `throughput` as they are, beside our timing of a batch.",
        estimate_s=lambda setting: _launches_s(setting, 3 * setting.runs, 1.5),
        run=_published,
    ),
)  # fmt: skip
