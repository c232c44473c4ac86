"""KV through a block table beside KV that lies in one piece: append and lookup, equal bytes.

The layout is that of vLLM: blocks of tokens in one pool, a table of block numbers per sequence
(Kwon et al., PagedAttention, SOSP'23, section 4). Both sides copy the looked-up KV into a buffer
that exists already, so that the table is the one difference. A run is a fresh process.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.claims.kernels.timing import Arm, Clock, compare

if TYPE_CHECKING:
    import torch

__all__ = ["AGAIN", "BLOCK", "CONTIGUOUS", "PAGED", "measure"]

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
            kv = _Kv(job["device"], batch, length)
            cell = f"{batch} x {length} tokens"
            for quantity, arms in (("append", kv.appends()), ("lookup", kv.lookups())):
                rows += [
                    {"quantity": quantity, "cell": cell, "unit": "s", **row}
                    for row in compare(clock, arms)
                ]
            rows.append(
                {"quantity": "equal", "cell": cell, "unit": "bool", "arm": PAGED, "order": 0,
                 "value": float(kv.equal()), "steady": True}
            )  # fmt: skip
    return {"rows": rows, "notes": [], "threads": torch.get_num_threads()}


class _Kv:
    """The same KV twice: in one piece, and in blocks in an order drawn at random."""

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
