"""Blocks from a pool beside blocks allocated anew, with and without the writing of KV into them.

The second pair is what counts: memory that nobody writes to is not used, and a claim on the first
alone says nothing about serving. vLLM takes its pool at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.claims.kernels.timing import TORCH, Arm, Clock, compare
from workbench.claims.recipes.recipe import Curve, Outcome, Setting
from workbench.claims.recipes.rounds import launched_recipe
from workbench.claims.recipes.rows import Rows, means
from workbench.claims.verdict.decision import difference
from workbench.claims.verdict.verdict import Measurement, by_construction, known

if TYPE_CHECKING:
    import torch

FRESH, AGAIN, POOL, DRIVER = "fresh", "fresh again", "pool", "driver"
BLOCKS = 16
"""Blocks taken and given back in one call."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one run: for each block size, to take blocks, and to take and fill them.

    `driver`, on a GPU, empties torch's own cache of allocations first: fresh is a pool there too.
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
    """Take blocks from the pool, write into them if `fill` is given, and give them back."""
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
    """What a pool gains, and what is left of it once the blocks are filled."""
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
        says=f"Time to take {BLOCKS} fresh blocks over that from a pool, alone and with KV written"
        f" into them, {rows.where(setting)}; equal arms differ by {difference(floor)}.",
        checks=by_construction("same_metric_definition")
        | {"aa_noise_floor": known(floor)},
        curves=(
            Curve.of(
                "Fresh blocks over blocks from a pool", "KiB a block", "times as long as pooled",
                {"take": take, "take and fill": fill}, at=lambda cell: float(cell.split()[0]),
            ),
        ),
    )  # fmt: skip


RECIPE = launched_recipe(
    "allocation", "kernel", ("OWN-POOL", "S003-POOL"),
    "Blocks from a pool beside fresh ones, alone and with KV written into them.",
    target=f"{__name__}:measure",
    job=lambda _: {"block_kib": [64, 512, 2048]},
    outcome=read,
    cost=TORCH,
    each_s=1.5,
)  # fmt: skip
