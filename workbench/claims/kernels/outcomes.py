"""What attention, paged KV and copies measured: intervals, counts, checks and curves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from workbench.claims.conditions import (
    by_construction,
    curve,
    known,
    left_out,
    limits,
    proven,
    state,
    times,
    truth,
    where,
)
from workbench.claims.decision import difference
from workbench.claims.intervals import mean_of_runs, noise_floor, of_runs, points, ratios
from workbench.claims.kernels import attention, paging
from workbench.claims.recipe import Outcome
from workbench.claims.verdict import Measurement

if TYPE_CHECKING:
    from workbench.claims.recipe import Setting
    from workbench.claims.rows import Rows

__all__ = ["of_attention", "of_copying", "of_paging"]

EXACT_ENOUGH = {"cpu": 1e-5, "cuda": 2e-2}
"""Largest error of an attention output beside float64: of float32, and of bf16 on a GPU."""
FUSED = "flash"


def of_attention(rows: Rows, setting: Setting) -> Outcome:
    """Naive over fused at each length, and the errors of both beside float64."""
    table = rows.table
    fused = partial(ratios, table, "time", over=attention.NAIVE, under=FUSED)
    cells = list(dict.fromkeys(table["cell"]))
    prefill = fused(cells=[cell for cell in cells if "prefill" in cell])
    decode = fused(cells=[cell for cell in cells if "decode" in cell])
    causal = {cell: ratio for cell, ratio in prefill.items() if "causal" in cell}
    worst = float(table.loc[table["quantity"] == "error", "value"].max())
    same = worst <= EXACT_ENOUGH[setting.device]
    floor = noise_floor(table, "time", one=attention.NAIVE, other=attention.AGAIN)
    by_length = {f"length {_last(cell)}": (ratio,) for cell, ratio in causal.items()}
    lines = [
        *points("prefill, causal", causal, {cell: _last(cell) for cell in causal}),
        *points("prefill, full", prefill, {c: _last(c) for c in prefill if c not in causal}),
        *points("decode", decode, {cell: _last(cell) for cell in decode}),
    ]
    missing = set(attention.LENGTHS) - {_last(cell) for cell in cells}
    seconds = of_runs(table, "time", FUSED).min(axis="columns")
    rates = [
        1e-12 * attention.prefill_flop(cell, setting.device) / seconds[cell] for cell in prefill
    ]
    bounds = limits(setting, matrix_rate=max(rates, default=0.0))
    return Outcome(
        measurements={
            "OWN-FUSED": Measurement(
                effects={"causal prefill": tuple(causal.values()), "same outputs": (truth(same),)},
                counted=frozenset({"same outputs"}), noise_floor=floor, bounds=bounds,
            ),
            "S003-ATTN-SPEEDUP": Measurement(
                effects=by_length, noise_floor=floor, bounds=bounds
            ),
            "S003-ATTN-RANGE": Measurement(
                effects={"speed-up": tuple(prefill.values())}, noise_floor=floor, bounds=bounds
            ),
        },
        table=table,
        says=f"Time of naive attention over that of torch's {FUSED} backend at equal work,"
        f" {where(rows, setting)}. The largest error beside float64 is {worst:.1g} of the largest"
        f" value; equal arms differ by {difference(floor)}.",
        checks=proven(rows) | by_construction("subject_is_measured", "same_layer_scope") | {
            "output_quality_checked": state(same), "aa_noise_floor": known(floor),
        },
        curves=(
            curve("Naive attention over fused", "tokens", "times as long as fused", lines),
        ),
        doubts=(*rows.doubts, *left_out("lengths", missing)),
    )  # fmt: skip


def of_paging(rows: Rows, setting: Setting) -> Outcome:
    """Paged over contiguous, for lookups and appends."""
    table = rows.table
    lookup, append = (
        ratios(table, quantity, over=paging.PAGED, under=paging.CONTIGUOUS)
        for quantity in ("lookup", "append")
    )
    equal = bool((table.loc[table["quantity"] == "equal", "value"] == 1).all())
    floor = noise_floor(table, "lookup", one=paging.CONTIGUOUS, other=paging.AGAIN)
    x = {cell: float(cell.split()[2]) for cell in lookup}
    return Outcome(
        measurements={
            "OWN-PAGED": Measurement(
                effects={
                    "lookup": tuple(lookup.values()), "append": tuple(append.values()),
                    "same values": (truth(equal),),
                },
                counted=frozenset({"same values"}), noise_floor=floor,
            ),
        },
        table=table,
        says=f"Time through a table of {paging.BLOCK}-token blocks over that of KV in one piece,"
        f" {where(rows, setting)}; equal arms differ by {difference(floor)}.",
        checks=proven(rows) | {
            "output_quality_checked": state(equal), "aa_noise_floor": known(floor),
        },
        curves=(
            curve(
                "KV through a block table", "tokens of each of 4 sequences",
                "times as long as in one piece",
                [*points("lookup", lookup, x), *points("append", append, x)],
            ),
        ),
        doubts=rows.doubts,
    )  # fmt: skip


def of_copying(rows: Rows, setting: Setting) -> Outcome:
    """The bandwidth of a copy by its size."""
    table = rows.table
    speeds = of_runs(table, "bandwidth", "copy")
    cells = {str(cell): mean_of_runs(row.to_numpy(float)) for cell, row in speeds.iterrows()}
    largest = list(cells.values())[-1]
    return Outcome(
        measurements={
            "S003-MEMBW": Measurement(
                effects={"bandwidth": (times(largest, 1e-3),)},
                bounds=limits(setting, memory_bandwidth=1e-3 * largest.estimate),
            ),
        },
        table=table,
        says=f"Bytes read and written by a copy, {where(rows, setting)}: {largest.estimate:.3g}"
        f" GB/s at {list(cells)[-1]}; smaller sizes show the caches.",
        checks=proven(rows),
        curves=(
            curve(
                "Copy bandwidth", "MiB copied", "GB/s, read and written",
                points("copy", cells, {cell: float(cell.split()[0]) for cell in cells}),
            ),
        ),
        doubts=rows.doubts,
    )  # fmt: skip


def _last(cell: str) -> int:
    """The length in the name of a cell: `prefill causal 512`."""
    return int(cell.split()[-1])
