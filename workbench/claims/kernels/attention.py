"""The backends of torch's scaled_dot_product_attention compared with naive attention.

Naive is the baseline of the papers on fused kernels: scores, softmax and values in three steps
(Dao et al., FlashAttention, 2022, alg. 0).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from math import nan
from statistics import median
from typing import TYPE_CHECKING, Any

from workbench.claims.kernels.timing import TORCH, Arm, Clock, compare, expected_s, falls
from workbench.claims.recipes.recipe import Curve, Outcome, Setting, left_out
from workbench.claims.recipes.rounds import launched_recipe
from workbench.claims.recipes.rows import Rows, row
from workbench.claims.verdict.decision import Interval
from workbench.claims.verdict.verdict import Measurement, by_construction, state

if TYPE_CHECKING:
    import torch

NAIVE, AGAIN, FUSED = "naive", "naive again", "flash"
KINDS = (("prefill", "causal"), ("prefill", "full"), ("decode", "full"))
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
LONGER = (8192, 16384)
"""On a GPU."""
GROWTH = 4
"""The next length is twice as long, and attention is quadratic."""
DECODE_BATCH = 8
REFERENCE_ROWS = 32
"""Query rows that are compared with float64; a whole long prompt would take minutes."""
NAIVE_MEMORY_SHARE = 0.2
"""Naive attention is skipped if its scores take more than this of a GPU's free memory."""
EXACT_ENOUGH = {"cpu": 1e-5, "cuda": 2e-2}
"""Largest error of an attention output against float64: float32 on a CPU, bf16 on a GPU."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one run, and the cells measured within `budget_s` (or exactly `cells`)."""
    import torch

    started_s = time.monotonic()
    torch.manual_seed(job["seed"])
    clock = Clock(device=job["device"])
    rows: list[dict[str, Any]] = []
    done: list[list[Any]] = []
    cells = job.get("cells")
    wanted = cells or [[phase, mask, length] for length in job["lengths"] for phase, mask in KINDS]
    needed_s = 0.0
    for length in dict.fromkeys(cell[2] for cell in wanted):
        if done and not cells and time.monotonic() - started_s + needed_s > job["budget_s"]:
            break
        needed_s = 0.0
        for phase, mask, _ in (cell for cell in wanted if cell[2] == length):
            timed = _cell(clock, phase, mask, length)
            rows += timed
            done.append([phase, mask, length])
            needed_s += expected_s(GROWTH * lap_s for lap_s in _laps_s(timed).values())
    fallen = _retimed(clock, rows, done)
    return {"rows": rows, "cells": done, "notes": fallen, "threads": torch.get_num_threads()}


def _laps_s(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The median call of each arm."""
    times: dict[str, list[float]] = {}
    for timed in rows:
        if timed["quantity"] == "time":
            times.setdefault(timed["arm"], []).append(timed["value"])
    return {arm: median(values) for arm, values in times.items()}


def _cell(clock: Clock, phase: str, mask: str, length: int) -> list[dict[str, Any]]:
    """Times and errors of every arm at one shape."""
    import torch

    q, k, v = _tensors(clock.device, phase, length)
    arms = _arms(q, k, v, causal=mask == "causal")
    name = f"{phase} {mask} {length}"
    with torch.inference_mode():
        timed = compare(clock, arms, quantity="time", cell=name)
        errors = _errors(arms, q, k, v, causal=mask == "causal")
    return timed + [row("error", arm, name, error, "fraction") for arm, error in errors.items()]


def _shape(device: str) -> tuple[int, int]:
    """Heads, and the width of each."""
    return (2, 64) if device == "cpu" else (16, 128)


def _tensors(device: str, phase: str, length: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values: batch x heads x length x width."""
    import torch

    heads, width = _shape(device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    batch, rows = (1, length) if phase == "prefill" else (DECODE_BATCH, 1)

    def normal(tokens: int) -> torch.Tensor:
        return torch.randn(batch, heads, tokens, width, device=device, dtype=dtype)

    return normal(rows), normal(length), normal(length)


def _arms(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> dict[str, Arm]:
    """Naive twice, for the noise floor, and every backend that takes this shape here."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    hidden = None
    if causal:
        rows = q.shape[-2]
        hidden = torch.ones(rows, k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    arms = {}
    if _affordable(q, k):
        naive = partial(_naive, q, k, v, hidden)
        arms = {NAIVE: Arm(call=naive), AGAIN: Arm(call=naive)}
    fused = partial(scaled_dot_product_attention, q, k, v, is_causal=causal)
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        within = partial(sdpa_kernel, getattr(SDPBackend, name))
        if _works(fused, within):
            arms[name.removesuffix("_ATTENTION").lower()] = Arm(call=fused, within=within)
    return arms


def _naive(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None
) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


def _affordable(q: torch.Tensor, k: torch.Tensor) -> bool:
    if q.device.type == "cpu":
        return True
    import torch

    scores = q.numel() // q.shape[-1] * k.shape[-2] * q.element_size()
    return bool(scores < NAIVE_MEMORY_SHARE * torch.cuda.mem_get_info()[0])


def _works(call: Callable[[], Any], within: Callable[[], Any]) -> bool:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with within():
                call()
        except RuntimeError:
            return False
    return True


def _errors(
    arms: Mapping[str, Arm], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool
) -> dict[str, float]:
    """Largest difference from float64 over the largest value, on rows spread over the prompt."""
    import torch

    rows = torch.linspace(0, q.shape[-2] - 1, min(REFERENCE_ROWS, q.shape[-2])).long().to(q.device)
    hidden = None
    if causal:
        hidden = torch.arange(k.shape[-2], device=q.device) > rows[:, None]
    exact = _naive(q[..., rows, :].double(), k.double(), v.double(), hidden)
    errors = {}
    for name, arm in arms.items():
        with arm.within():
            output = arm.call()[..., rows, :].double()
        errors[name] = float((output - exact).abs().max() / exact.abs().max())
    return errors


def _retimed(clock: Clock, rows: list[dict[str, Any]], done: list[list[Any]]) -> list[str]:
    """Times a shape again if a longer one was faster, and reports it."""

    def naive_s(name: str) -> float:
        return _laps_s([timed for timed in rows if timed["cell"] == name]).get(NAIVE, nan)

    notes = []
    for phase, mask in KINDS:
        lengths = [cell[2] for cell in done if cell[:2] == [phase, mask]]
        times = [naive_s(f"{phase} {mask} {length}") for length in lengths]
        for place in falls(times):
            name = f"{phase} {mask} {lengths[place]}"
            rows[:] = [timed for timed in rows if timed["cell"] != name]
            rows += _cell(clock, phase, mask, lengths[place])
            still = "is still" if naive_s(name) > times[place + 1] else "is no longer"
            notes.append(
                f"naive {name} was slower than length {lengths[place + 1]}; after a second"
                f" timing it {still}."
            )
    return notes


def read(rows: Rows, setting: Setting) -> Outcome:
    """Naive over fused at each length, and the errors of both against float64."""
    cells = list(dict.fromkeys(rows.table["cell"]))
    prefill, decode = (
        rows.ratios("time", over=NAIVE, under=FUSED, cells=[c for c in cells if phase in c])
        for phase in ("prefill", "decode")
    )
    causal = {cell: ratio for cell, ratio in prefill.items() if "causal" in cell}
    full = {cell: ratio for cell, ratio in prefill.items() if cell not in causal}
    worst = float(rows.of("error")["value"].max())
    same = worst <= EXACT_ENOUGH[setting.device]
    seconds = rows.medians("time", FUSED).min(axis="columns")
    rates = [1e-12 * _prefill_flop(cell, setting.device) / seconds[cell] for cell in prefill]
    floor = rows.noise("time", one=NAIVE, other=AGAIN)
    make = partial(
        Measurement, noise_floor=floor, bounds=setting.bounds(matrix_rate=max(rates, default=0.0))
    )
    return rows.outcome(
        {
            "OWN-FUSED": make(
                effects={
                    "causal prefill": tuple(causal.values()),
                    "same outputs": (Interval.counted([same]),),
                },
                counted=frozenset({"same outputs"}),
            ),
            "S003-ATTN-SPEEDUP": make(
                effects={f"length {_last(cell)}": (ratio,) for cell, ratio in causal.items()}
            ),
            "S003-ATTN-RANGE": make(effects={"speed-up": tuple(prefill.values())}),
        },
        says=f"Time of naive attention over that of torch's {FUSED} backend at equal shape,"
        f" {rows.where(setting)}. The largest error against float64 is {worst:.1g} of the largest"
        " value.",
        floor=floor,
        checks=by_construction("subject_is_measured", "same_layer_scope")
        | {"output_quality_checked": state(same)},
        curves=(
            Curve.of(
                "Naive over fused attention", "tokens", "time, fused = 1",
                {"prefill, causal": causal, "prefill, full": full, "decode": decode}, at=_last,
            ),
        ),
        doubts=left_out("lengths", set(LENGTHS) - set(map(_last, cells))),
    )  # fmt: skip


def _prefill_flop(cell: str, device: str) -> float:
    """FLOPs of a prefill cell: 4 H D T^2, half if causal (FlashAttention-2, 2023, section 4.1)."""
    heads, width = _shape(device)
    return 4 * heads * width * _last(cell) ** 2 / (2 if "causal" in cell else 1)


def _last(cell: str) -> int:
    """The length in the name of a cell: `prefill causal 512`."""
    return int(cell.split()[-1])


def _lengths(setting: Setting) -> dict[str, Any]:
    return {"lengths": [*LENGTHS, *(() if setting.platform == "cpu" else LONGER)]}


RECIPE = launched_recipe(
    "attention", "kernel", ("OWN-FUSED", "S003-ATTN-SPEEDUP", "S003-ATTN-RANGE"),
    "Each attention backend of torch compared with naive attention, for lengths from 128 on.",
    target=f"{__name__}:measure",
    job=_lengths,
    outcome=read,
    cost=TORCH,
    each_s=2.0,  # the shorter lengths
    most_each_s=20.0,
    after_first=lambda result: {"cells": result["cells"]},
)  # fmt: skip
