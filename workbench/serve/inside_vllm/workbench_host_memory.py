"""vLLM's OffloadingConnector without a GPU: an offloading spec whose worker copies with torch.

vLLM copies KV to host memory on CUDA-like and XPU devices only, but takes a spec from outside. This
one replaces only the copy: scheduler, LRU and metrics stay vLLM's own (`CPUOffloadingSpec`, vLLM
0.32). It is imported by vLLM under its bare name, in any interpreter that has vLLM, so it imports
nothing of the workbench.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

_Ids = NDArray[np.int64]


class HostMemoryWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies KV blocks between an engine's KV space and its host memory, at once.

    On a GPU a copy runs beside the engine's steps. Here both are main memory and one thread, so a
    step waits for its copies.
    """

    def __init__(self, kv_caches: Any, *, blocks_per_chunk: int, chunks: int) -> None:
        self._blocks_per_chunk = blocks_per_chunk
        self._space = [kv.tensor for kv in kv_caches.tensors]
        # Zeros take memory only once they are written.
        self._host = [
            torch.zeros((chunks * blocks_per_chunk, kv.page_size_bytes), dtype=torch.int8)
            for kv in kv_caches.tensors
        ]
        self._tensors_of_group = [
            sorted({ref.tensor_idx for ref in group}) for group in kv_caches.group_data_refs
        ]
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Copy blocks to host memory."""
        return self._copy(job_id, src_spec, dst_spec, store=True)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Copy blocks back."""
        return self._copy(job_id, dst_spec, src_spec, store=False)

    def get_finished(self) -> list[TransferResult]:
        """The copies since the last call."""
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is ever in flight."""

    def shutdown(self) -> None:
        """Release the memory."""
        self._space, self._host = [], []

    def _copy(self, job_id: int, in_space: Any, in_host: Any, *, store: bool) -> bool:
        began_s, moved = time.perf_counter(), 0
        for tensors, blocks, places in self._pairs(in_space, in_host):
            for index in tensors:
                space, host = self._space[index], self._host[index]
                for first, last in _runs(blocks, places):
                    block, place, length = blocks[first], places[first], last - first
                    a, b = space[block : block + length], host[place : place + length]
                    (b if store else a).copy_(a if store else b)
                moved += len(blocks) * host.shape[1]
        took_s = time.perf_counter() - began_s
        self._done.append(TransferResult(job_id, True, moved, took_s))
        return True

    def _pairs(self, in_space: Any, in_host: Any) -> Iterator[tuple[list[int], _Ids, _Ids]]:
        """For each group of layers: its tensors, the blocks, and their places in host memory.

        Host memory is handed out in chunks of blocks; a prompt may begin within its first chunk.
        """
        space_at = host_at = 0
        for tensors, blocks, first in zip(
            self._tensors_of_group, in_space.group_sizes, in_space.block_indices, strict=True
        ):
            skipped = first % self._blocks_per_chunk
            chunks = -(-(blocks + skipped) // self._blocks_per_chunk) if blocks else 0
            chunk_ids = np.asarray(in_host.block_ids[host_at : host_at + chunks], np.int64)
            places = chunk_ids[:, None] * self._blocks_per_chunk + np.arange(self._blocks_per_chunk)
            yield (
                tensors,
                np.asarray(in_space.block_ids[space_at : space_at + blocks], np.int64),
                places.ravel()[skipped : skipped + blocks],
            )
            space_at, host_at = space_at + blocks, host_at + chunks


def _runs(blocks: _Ids, places: _Ids) -> Iterator[tuple[int, int]]:
    """Where both go up by one from each to the next, so that one copy moves them all."""
    broken = (np.diff(blocks) != 1) | (np.diff(places) != 1)
    ends = [*(np.flatnonzero(broken) + 1).tolist(), len(blocks)]
    yield from zip([0, *ends[:-1]], ends, strict=True) if len(blocks) else ()


class HostMemorySpec(CPUOffloadingSpec):  # type: ignore[misc]
    """vLLM's spec of host memory, with a worker that needs no GPU."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        """The worker of this process, made once."""
        if not self._worker:
            self._worker: OffloadingWorker = HostMemoryWorker(
                kv_caches, blocks_per_chunk=self.blocks_per_chunk, chunks=self.num_chunks
            )
        return self._worker
