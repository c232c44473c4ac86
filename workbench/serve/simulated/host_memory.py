"""The host memory of a simulated instance, with the counters of vLLM's OffloadingConnector 0.32."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from workbench.serve.simulated.exposition import Series
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, TOKEN_BYTES

BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES


class HostMemory:
    """Block contents by hash, the least recently used first (vLLM's LRU policy)."""

    def __init__(self, capacity_bytes: int, series: Series) -> None:
        self._capacity = capacity_bytes // BLOCK_BYTES
        self._series = series
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        # Until the first load and store vLLM shows only the deprecated series.
        series.add("vllm:kv_offload_total_bytes_total", 0, transfer_type="CPU_to_GPU")

    def lookup(self, hashes: Sequence[bytes]) -> list[bytes]:
        """Contents of the longest prefix of whole blocks, the one with the last token too."""
        found: list[bytes] = []
        for key in hashes:
            if key not in self._held:
                break
            self._held.move_to_end(key)
            found.append(self._held[key])
        return found

    def write(self, hashes: Sequence[bytes], contents: Sequence[bytes]) -> None:
        """Store a prompt's blocks that are not held; others must go for them."""
        new = {
            key: content
            for key, content in zip(hashes, contents, strict=False)
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

    def loaded(self, blocks: int) -> None:
        """Count blocks that were copied into the KV space."""
        self._series.add("vllm:kv_offload_load_bytes_total", blocks * BLOCK_BYTES)

    def clear(self) -> None:
        """Remove all blocks; no counter says so."""
        self._held.clear()
