"""Blocks from a pool beside blocks allocated anew, with and without the writing of KV into them.

The second pair is what counts: memory that nobody writes to is not used, and a claim on the first
alone says nothing about serving. vLLM takes its pool at the start. A run is a fresh process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.claims.kernels.timing import Arm, Clock, compare

if TYPE_CHECKING:
    import torch

__all__ = ["AGAIN", "DRIVER", "FRESH", "POOL", "measure"]

FRESH, AGAIN, POOL, DRIVER = "fresh", "fresh again", "pool", "driver"
BLOCKS = 16
"""Blocks taken and given back in one call."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one run: for each block size, to take blocks, and to take and fill them.

    `driver`, on a GPU, empties torch's own cache of allocations first: fresh is a pool there too.
    """
    import torch

    clock = Clock(device=job["device"], host=True)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for kib in job["block_kib"]:
            size = kib * 1024
            pool = [_block(size, job["device"]) for _ in range(BLOCKS)]
            values = torch.ones(size, dtype=torch.uint8, device=job["device"])
            for quantity, fill in (("take", None), ("take and fill", values)):
                fresh = Arm(call=partial(_fresh, size, job["device"], fill))
                arms = {FRESH: fresh, AGAIN: fresh, POOL: Arm(call=partial(_pooled, pool, fill))}
                if job["device"] != "cpu":
                    arms[DRIVER] = Arm(
                        call=partial(_fresh, size, job["device"], fill, torch.cuda.empty_cache)
                    )
                rows += [
                    {"quantity": quantity, "cell": f"{kib} KiB", "unit": "s", **row}
                    for row in compare(clock, arms)
                ]
    return {"rows": rows, "notes": [], "threads": torch.get_num_threads()}


def _block(size: int, device: str) -> torch.Tensor:
    import torch

    return torch.empty(size, dtype=torch.uint8, device=device)


def _fresh(
    size: int, device: str, fill: torch.Tensor | None, before: Callable[[], None] | None = None
) -> None:
    if before is not None:
        before()
    blocks = [_block(size, device) for _ in range(BLOCKS)]
    if fill is not None:
        for block in blocks:
            block.copy_(fill)


def _pooled(pool: list[torch.Tensor], fill: torch.Tensor | None) -> None:
    blocks = [pool.pop() for _ in range(BLOCKS)]
    if fill is not None:
        for block in blocks:
            block.copy_(fill)
    pool += blocks
