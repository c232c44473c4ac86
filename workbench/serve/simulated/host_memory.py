"""The host memory of a simulated instance, with the counters of vLLM's OffloadingConnector 0.32."""

from __future__ import annotations

from collections import OrderedDict

from workbench.serve.simulated.exposition import Series
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, TOKEN_BYTES
from workbench.serve.simulated.scheduler import Sequence

BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES


class HostMemory:
    """Block contents by hash, the least recently used first (vLLM's LRU policy)."""

    pins_blocks = False

    def __init__(self, capacity_bytes: int, series: Series) -> None:
        self._capacity = capacity_bytes // BLOCK_BYTES
        self._series = series
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        # Until the first load and store vLLM shows only the deprecated series.
        series.add("vllm:kv_offload_total_bytes_total", 0, transfer_type="CPU_to_GPU")

    async def lookup(self, sequence: Sequence) -> int:
        """Tokens of the longest prefix of whole blocks, the one with the last token too."""
        sequence.found, sequence.tier = [], "host"
        for key in sequence.hashes:
            if key not in self._held:
                break
            self._held.move_to_end(key)
            sequence.found.append(self._held[key])
        return len(sequence.found) * BLOCK_TOKENS

    async def load(self, sequence: Sequence, blocks: range) -> list[bytes]:
        """The contents of these blocks, counted as copied into the KV space."""
        self._series.add("vllm:kv_offload_load_bytes_total", len(blocks) * BLOCK_BYTES)
        return sequence.found[blocks.start : blocks.stop]

    def saves(self, sequence: Sequence, before: int, new: int) -> bool:
        """Whether blocks are stored after a step that computes `new` tokens."""
        return not sequence.outputs and before + new == len(sequence.prompt)

    async def save(self, sequence: Sequence, tokens: int) -> None:
        """Store a prompt's blocks that are not held; others must go for them."""
        new = {
            key: content
            for key, content in zip(sequence.hashes, sequence.contents, strict=False)
            if key not in self._held
        }
        if len(new) > self._capacity:
            self._series.add("vllm:kv_offload_allocation_failure_total", 1)
            return
        while len(self._held) + len(new) > self._capacity:
            self._held.popitem(last=False)
        self._held |= new
        if new:
            self._series.add("vllm:kv_offload_store_bytes_total", len(new) * BLOCK_BYTES)

    async def reset(self) -> bool:
        """Remove all blocks; no counter says so."""
        self._held.clear()
        return True
