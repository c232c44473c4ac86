"""Blocks from a pool compared with fresh blocks, with and without writing KV into them.

Only filled blocks matter for serving, and vLLM allocates its pool at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.claims.kernels.timing import TORCH, Arm, Clock, compare
from workbench.claims.recipes.recipe import Curve, Outcome, Setting
from workbench.claims.recipes.rounds import launched_recipe
from workbench.claims.recipes.rows import Rows, means
from workbench.claims.verdict.verdict import Measurement, by_construction

if TYPE_CHECKING:
    import torch

FRESH, AGAIN, POOL, DRIVER = "fresh", "fresh again", "pool", "driver"
BLOCKS = 16
"""Blocks taken and returned in one call."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one run: for each block size, the times to take blocks, and to take and fill them.

    On a GPU, `driver` empties torch's cache of allocations first, since fresh is a pool there too.
    """
    import torch

    device = job["device"]
    clock = Clock(device=device, host=True)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for kib in job["block_kib"]:
            size = kib * 1024
            pool = [_block(size, device) for _ in range(BLOCKS)]
            values = torch.ones(size, dtype=torch.uint8, device=device)
            for quantity, fill in (("take", None), ("take and fill", values)):
                fresh = Arm(call=partial(_fresh, size, device, fill))
                pooled = Arm(call=partial(take_from, pool, fill))
                arms = {FRESH: fresh, AGAIN: fresh, POOL: pooled}
                if device != "cpu":
                    emptied = partial(_fresh, size, device, fill, torch.cuda.empty_cache)
                    arms[DRIVER] = Arm(call=emptied)
                rows += compare(clock, arms, quantity=quantity, cell=f"{kib} KiB")
    return {"rows": rows, "threads": torch.get_num_threads()}


def take_from(pool: list[torch.Tensor], fill: torch.Tensor | None) -> None:
    """Take blocks from the pool, write `fill` into them if given, and return them."""
    blocks = [pool.pop() for _ in range(BLOCKS)]
    if fill is not None:
        for block in blocks:
            block.copy_(fill)
    pool += blocks


def _fresh(
    size: int, device: str, fill: torch.Tensor | None, before: Callable[[], None] | None = None
) -> None:
    if before is not None:
        before()
    take_from([_block(size, device) for _ in range(BLOCKS)], fill)


def _block(size: int, device: str) -> torch.Tensor:
    import torch

    return torch.empty(size, dtype=torch.uint8, device=device)


def read(rows: Rows, setting: Setting) -> Outcome:
    """The gain of a pool, and what is left of it once blocks are filled."""
    quantities = ("take", "take and fill")
    take, fill = (rows.ratios(quantity, over=FRESH, under=POOL) for quantity in quantities)
    alone, filled = (
        rows.medians(quantity, FRESH) / rows.medians(quantity, POOL) for quantity in quantities
    )
    left = (filled / alone).dropna(how="all")
    floor = rows.noise("take", one=FRESH, other=AGAIN)
    speed_up = tuple(take.values())
    return rows.outcome(
        {
            "OWN-POOL": Measurement(
                effects={
                    "take": speed_up,
                    "gain left after filling": tuple(means(left, cells=len(left)).values()),
                },
                noise_floor=floor,
            ),
            "S003-POOL": Measurement(
                effects={"allocation speed-up": speed_up}, noise_floor=floor
            ),
        },
        says=f"Time to take {BLOCKS} fresh blocks over that from a pool, empty and filled with KV,"
        f" {rows.where(setting)}.",
        floor=floor,
        checks=by_construction("same_metric_definition"),
        curves=(
            Curve.of(
                "Fresh over pooled blocks", "KiB per block", "time, pooled = 1",
                {"take": take, "take and fill": fill}, at=lambda cell: float(cell.split()[0]),
            ),
        ),
    )  # fmt: skip


RECIPE = launched_recipe(
    "allocation", "kernel", ("OWN-POOL", "S003-POOL"),
    "Blocks from a pool compared with fresh ones, empty and filled with KV.",
    target=f"{__name__}:measure",
    job=lambda _: {"block_kib": [64, 512, 2048]},
    outcome=read,
    cost=TORCH,
    each_s=1.5,
)  # fmt: skip
