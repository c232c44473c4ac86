"""The recipes of the kernel level, and how long each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from workbench.claims.kernels import attention
from workbench.claims.kernels.memory_outcomes import of_allocation, of_quantisation
from workbench.claims.kernels.outcomes import of_attention, of_copying, of_paging
from workbench.claims.recipe import Outcome, Recipe, Setting
from workbench.claims.rows import START_S, Rows, gather

__all__ = ["RECIPES"]

ATTENTION_S = 2.0, 20.0
"""One run over the shorter lengths, and over all of them."""


def _recipe(
    name: str,
    claims: tuple[str, ...],
    what: str,
    *,
    estimate_s: Callable[[Setting], float],
    job: Callable[[Setting], Mapping[str, Any]],
    outcome: Callable[[Rows, Setting], Outcome],
    warm: tuple[str, ...] = ("torch",),
    most_s: Callable[[Setting], float] | None = None,
) -> Recipe:
    """The recipe whose runs are `measure` of the module of that name."""

    async def run(setting: Setting) -> Outcome:
        rows = await gather(
            replace(setting, budget_s=estimate_s(setting)), name,
            f"workbench.claims.kernels.{name}:measure", job(setting), warm=warm,
            after_first=lambda result: {"cells": result["cells"]} if "cells" in result else {},
        )  # fmt: skip
        return outcome(rows, setting)

    return Recipe(
        name=name, level="kernel", claims=claims, what=what, estimate_s=estimate_s,
        most_s=most_s, run=run,
    )  # fmt: skip


def _seconds(run_s: float, start_s: float = START_S) -> Callable[[Setting], float]:
    def estimate_s(setting: Setting) -> float:
        starts = 1 if setting.platform == "cpu" else setting.runs
        return start_s * starts + run_s * setting.runs

    return estimate_s


def _attention_s(setting: Setting) -> float:
    return max(_seconds(ATTENTION_S[0])(setting), setting.allotted_s)


def _lengths(setting: Setting) -> dict[str, Any]:
    longer = () if setting.platform == "cpu" else attention.LONGER
    return {"lengths": [*attention.LENGTHS, *longer]}


def _copies(setting: Setting) -> dict[str, Any]:
    """The largest shows the memory: a GPU's last cache holds up to 256 MiB."""
    return {"mib": [1, 16, 128] if setting.platform == "cpu" else [1, 16, 128, 2048]}


RECIPES = (
    _recipe(
        "attention",
        ("OWN-FUSED", "S003-ATTN-SPEEDUP", "S003-ATTN-RANGE"),
        "Attention by each backend of torch beside a naive one, for lengths from 128 on.",
        estimate_s=_attention_s,
        most_s=_seconds(ATTENTION_S[1]),
        job=_lengths,
        outcome=of_attention,
    ),
    _recipe(
        "paging",
        ("OWN-PAGED",),
        "Append and lookup of KV through a block table beside KV in one piece.",
        estimate_s=_seconds(1.5),
        job=lambda _: {"shapes": [[4, 256], [4, 1024], [4, 2048]]},
        outcome=of_paging,
    ),
    _recipe(
        "allocation",
        ("OWN-POOL", "S003-POOL"),
        "Blocks from a pool beside fresh ones, alone and with KV written into them.",
        estimate_s=_seconds(1.5),
        job=lambda _: {"block_kib": [64, 512, 2048]},
        outcome=of_allocation,
    ),
    _recipe(
        "quantisation",
        ("OWN-KV-BYTES", "OWN-KV-ERROR", "LLMIR-QUANT", "S003-QUANT"),
        "Bytes and attention error of INT8, FP8 and INT4 KV beside bf16 and float64.",
        estimate_s=_seconds(1.0, 10.0),
        job=lambda setting: {"model": str(setting.model), "tokens": 512},
        outcome=of_quantisation,
        warm=("torch", "transformers.models.auto.modeling_auto"),
    ),
    _recipe(
        "copying",
        ("S003-MEMBW",),
        "Copy bandwidth of the device by size.",
        estimate_s=_seconds(0.7),
        job=_copies,
        outcome=of_copying,
    ),
)
