"""The recipes of the kernel level, and how long each takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from workbench.claims.kernels import attention
from workbench.claims.kernels.memory_outcomes import of_allocation, of_quantisation
from workbench.claims.kernels.outcomes import of_attention, of_copying, of_paging
from workbench.claims.recipe import Outcome, Recipe, Setting
from workbench.claims.rows import START_S, Rows, gather

__all__ = ["RECIPES"]

_HERE = "workbench.claims.kernels"
ATTENTION_RUN_S = 20.0
"""One run over all lengths; the budget may leave the longer ones out."""


def _runner(
    name: str,
    job: Callable[[Setting], Mapping[str, Any]],
    outcome: Callable[[Rows, Setting], Outcome],
    warm: tuple[str, ...] = ("torch",),
) -> Callable[[Setting], Awaitable[Outcome]]:
    async def run(setting: Setting) -> Outcome:
        rows = await gather(
            setting, name, f"{_HERE}.{name}:measure", job(setting), warm=warm,
            after_first=lambda result: {"cells": result["cells"]} if "cells" in result else {},
        )  # fmt: skip
        return outcome(rows, setting)

    return run


def _seconds(run_s: float, start_s: float = START_S) -> Callable[[Setting], float]:
    def estimate_s(setting: Setting) -> float:
        starts = 1 if setting.platform == "cpu" else setting.runs
        return start_s * starts + run_s * setting.runs

    return estimate_s


def _attention_s(setting: Setting) -> float:
    return min(_seconds(ATTENTION_RUN_S)(setting), max(setting.budget_s, _seconds(2.0)(setting)))


def _lengths(setting: Setting) -> dict[str, Any]:
    longer = () if setting.platform == "cpu" else attention.LONGER
    return {"lengths": [*attention.LENGTHS, *longer]}


def _model(setting: Setting) -> dict[str, Any]:
    return {"model": str(setting.model), "tokens": 512}


RECIPES = (
    Recipe(
        name="attention",
        level="kernel",
        claims=("OWN-FUSED", "S003-ATTN-SPEEDUP", "S003-ATTN-RANGE"),
        what="Attention by each backend of torch beside a naive one, for lengths from 128 on.",
        estimate_s=_attention_s,
        run=_runner("attention", _lengths, of_attention),
    ),
    Recipe(
        name="paging",
        level="kernel",
        claims=("OWN-PAGED",),
        what="Append and lookup of KV through a block table beside KV in one piece.",
        estimate_s=_seconds(1.5),
        run=_runner("paging", lambda _: {"shapes": [[4, 256], [4, 1024], [4, 2048]]}, of_paging),
    ),
    Recipe(
        name="allocation",
        level="kernel",
        claims=("OWN-POOL", "S003-POOL"),
        what="Blocks from a pool beside fresh ones, alone and with KV written into them.",
        estimate_s=_seconds(1.5),
        run=_runner("allocation", lambda _: {"block_kib": [64, 512, 2048]}, of_allocation),
    ),
    Recipe(
        name="quantisation",
        level="kernel",
        claims=("OWN-KV-BYTES", "OWN-KV-ERROR", "LLMIR-QUANT", "S003-QUANT"),
        what="Bytes and attention error of INT8, FP8 and INT4 KV beside bf16 and float64.",
        estimate_s=_seconds(1.0, 10.0),
        run=_runner(
            "quantisation", _model, of_quantisation,
            ("torch", "transformers", "transformers.models.auto.modeling_auto"),
        ),
    ),
    Recipe(
        name="copying",
        level="kernel",
        claims=("S003-MEMBW",),
        what="Copy bandwidth of the device by size.",
        estimate_s=_seconds(0.7),
        run=_runner("copying", lambda _: {"mib": [1, 16, 128]}, of_copying),
    ),
)  # fmt: skip
