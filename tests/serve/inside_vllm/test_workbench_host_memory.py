"""The copies of the offloading spec, without an engine: what is stored comes back to any blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import GPULoadStoreSpec

    from workbench.serve.inside_vllm.workbench_host_memory import HostMemoryWorker

BLOCKS, PAGE = 12, 64


@pytest.fixture(autouse=True)
def _with_vllm() -> None:
    """Imported by the tests: it takes 10 s, and each process of the tests loads this module."""
    pytest.importorskip("vllm.v1.kv_offload.cpu.spec")


def worker_of(blocks_per_chunk: int = 1, chunks: int = 6) -> HostMemoryWorker:
    """Two layers of 12 blocks; every byte of a block is its number, plus 100 in layer 1."""
    import torch
    from vllm.v1.kv_offload.base import (
        CanonicalKVCacheRef,
        CanonicalKVCaches,
        CanonicalKVCacheTensor,
    )

    from workbench.serve.inside_vllm.workbench_host_memory import HostMemoryWorker

    caches = CanonicalKVCaches(
        tensors=[
            CanonicalKVCacheTensor(
                tensor=(torch.arange(BLOCKS, dtype=torch.int8) + 100 * layer)
                .repeat_interleave(PAGE)
                .reshape(BLOCKS, PAGE),
                page_size_bytes=PAGE,
            )
            for layer in range(2)
        ],
        group_data_refs=[[CanonicalKVCacheRef(0, PAGE), CanonicalKVCacheRef(1, PAGE)]],
    )
    return HostMemoryWorker(caches, blocks_per_chunk=blocks_per_chunk, chunks=chunks)


def in_space(blocks: list[int], *, first: int = 0) -> GPULoadStoreSpec:
    from vllm.v1.kv_offload.base import GPULoadStoreSpec

    return GPULoadStoreSpec(blocks, group_sizes=[len(blocks)], block_indices=[first])


def in_host(*chunks: int) -> SimpleNamespace:
    return SimpleNamespace(block_ids=list(chunks))


def numbers(worker: HostMemoryWorker, blocks: list[int]) -> list[list[int]]:
    return [worker._space[layer][blocks, 0].tolist() for layer in range(2)]


@pytest.mark.parametrize("stored", [[3, 4, 5], [5, 3, 9], [7]])
def test_stored_blocks_come_back_wherever_they_are_wanted(stored: list[int]):
    worker = worker_of()
    before = numbers(worker, stored)
    places, wanted = [4, 0, 1][: len(stored)], [11, 0, 1][: len(stored)]
    assert worker.submit_store(1, in_space(stored), in_host(*places))
    assert worker.submit_load(2, in_host(*places), in_space(wanted))
    assert numbers(worker, wanted) == before
    done = worker.get_finished()
    assert [(d.job_id, d.success) for d in done] == [(1, True), (2, True)]
    assert {d.transfer_size for d in done} == {len(stored) * 2 * PAGE}
    assert worker.get_finished() == []


def test_a_prompt_may_begin_within_its_first_chunk():
    worker = worker_of(blocks_per_chunk=2, chunks=3)
    # Blocks 1 to 3 of the prompt: the second half of chunk 2, and all of chunk 0.
    worker.submit_store(1, in_space([6, 7, 8], first=1), in_host(2, 0))
    worker.submit_load(2, in_host(0), in_space([1, 2], first=2))
    assert numbers(worker, [1, 2])[0] == [7, 8]
    worker.submit_load(3, in_host(2), in_space([3], first=1))
    assert numbers(worker, [3]) == [[6], [106]]
