"""KV through a block table compared with contiguous KV: append and lookup at equal bytes.

The layout is that of vLLM: blocks of tokens in one pool, a table of block numbers per sequence
(Kwon et al., PagedAttention, SOSP'23, section 4). Both sides copy KV into a buffer that
exists already, so only the table differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.claims.kernels.timing import TORCH, Arm, Clock, compare
from workbench.claims.recipes.recipe import Curve, Outcome, Setting
from workbench.claims.recipes.rounds import launched_recipe
from workbench.claims.recipes.rows import Rows, row
from workbench.claims.verdict.decision import Interval
from workbench.claims.verdict.verdict import Measurement, state

if TYPE_CHECKING:
    import torch

CONTIGUOUS, AGAIN, PAGED = "contiguous", "contiguous again", "paged"
BLOCK = 16
"""Tokens in a block, as vLLM has on a GPU."""
HEADS, WIDTH = 8, 128
"""KV heads and head width of Llama-3-8B; 16-bit elements."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one run: time to append one token to each sequence, and to look all of them up."""
    import torch

    torch.manual_seed(job["seed"])
    clock = Clock(device=job["device"])
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for batch, length in job["shapes"]:
            kv = TwoLayouts(job["device"], batch, length)
            cell = f"{batch} x {length} tokens"
            rows += compare(clock, kv.appends(), quantity="append", cell=cell)
            rows += compare(clock, kv.lookups(), quantity="lookup", cell=cell)
            rows.append(row("equal", PAGED, cell, float(kv.equal()), "bool"))
    return {"rows": rows, "threads": torch.get_num_threads()}


class TwoLayouts:
    """The same KV twice: contiguous, and in blocks in random order."""

    def __init__(self, device: str, batch: int, length: int) -> None:
        import torch

        blocks = batch * length // BLOCK
        self.last = length - 1
        kv = torch.randn(batch, length, HEADS, WIDTH, device=device).to(torch.bfloat16)
        self.table = torch.randperm(blocks, device=device).view(batch, length // BLOCK)
        self.whole = kv
        self.pool = torch.empty(blocks, BLOCK, HEADS, WIDTH, dtype=kv.dtype, device=device)
        self.pool[self.table.flatten()] = kv.reshape(blocks, BLOCK, HEADS, WIDTH)
        self.buffer = torch.empty_like(kv)
        self.new = torch.randn(batch, HEADS, WIDTH, device=device).to(kv.dtype)
        # vLLM's slot mapping: block number x block size + place in the block.
        self.slots = self.table[:, self.last // BLOCK] * BLOCK + self.last % BLOCK

    def lookups(self) -> dict[str, Arm]:
        whole = Arm(call=partial(self.buffer.copy_, self.whole))
        return {CONTIGUOUS: whole, AGAIN: whole, PAGED: Arm(call=self._gather)}

    def appends(self) -> dict[str, Arm]:
        whole = Arm(call=partial(self.whole[:, self.last].copy_, self.new))
        flat = self.pool.view(-1, HEADS, WIDTH)
        paged = Arm(call=partial(flat.index_copy_, 0, self.slots, self.new))
        return {CONTIGUOUS: whole, AGAIN: whole, PAGED: paged}

    def equal(self) -> bool:
        """Whether both layouts give the same KV, the appended token included."""
        return bool((self._gather() == self.whole).all())

    def _gather(self) -> torch.Tensor:
        import torch

        blocks = self.table.flatten()
        out = self.buffer.view(len(blocks), BLOCK, HEADS, WIDTH)
        torch.index_select(self.pool, 0, blocks, out=out)
        return self.buffer


def read(rows: Rows, setting: Setting) -> Outcome:
    """Paged over contiguous, for lookups and appends."""
    lookup, append = (
        rows.ratios(quantity, over=PAGED, under=CONTIGUOUS) for quantity in ("lookup", "append")
    )
    equal = bool((rows.of("equal")["value"] == 1).all())
    floor = rows.noise("lookup", one=CONTIGUOUS, other=AGAIN)
    return rows.outcome(
        {
            "OWN-PAGED": Measurement(
                effects={
                    "lookup": tuple(lookup.values()), "append": tuple(append.values()),
                    "same values": (Interval.counted([equal]),),
                },
                counted=frozenset({"same values"}), noise_floor=floor,
            ),
        },
        says=f"Time through a table of {BLOCK}-token blocks over that of contiguous KV,"
        f" {rows.where(setting)}.",
        floor=floor,
        checks={"output_quality_checked": state(equal)},
        curves=(
            Curve.of(
                "KV through a block table", "tokens of each of 4 sequences",
                "time, contiguous = 1", {"lookup": lookup, "append": append},
                at=lambda cell: float(cell.split()[2]),
            ),
        ),
    )  # fmt: skip


RECIPE = launched_recipe(
    "paging", "kernel", ("OWN-PAGED",),
    "Append and lookup of KV through a block table compared with contiguous KV.",
    target=f"{__name__}:measure",
    job=lambda _: {"shapes": [[4, 256], [4, 1024], [4, 2048]]},
    outcome=read,
    cost=TORCH,
    each_s=1.5,
)  # fmt: skip
