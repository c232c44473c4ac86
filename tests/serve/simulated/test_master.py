"""A simulated Mooncake master alone: what it keeps, evicts and counts."""

import pytest

from workbench.metrics.prometheus import parse
from workbench.serve.simulated import master as module
from workbench.serve.simulated.master import BLOCK_BYTES, Master


def blocks(first: int, count: int) -> dict[str, str]:
    return {f"k{n}": f"c{n}" for n in range(first, first + count)}


@pytest.fixture
def master() -> Master:
    """Room for 100 blocks, lent by two instances."""
    made = Master()
    made.mount("prefill-0", 60 * BLOCK_BYTES)
    made.mount("decode-0", 40 * BLOCK_BYTES)
    return made


def value(master: Master, series: str) -> float:
    return parse(master.page(), "store").sum(series)


def test_what_is_counted(master: Master):
    assert master.exist(["k0", "k1"]) == [False, False]
    assert master.put(blocks(0, 3)) == 3
    assert master.exist(["k0", "k9"]) == [True, False]
    assert master.get(["k1", "k2"]) == ["c1", "c2"]
    for series, expected in {
        "master_batch_exist_key_requests_total": 2,
        "master_batch_exist_key_items_total": 4,
        "master_batch_put_end_items_total": 3,
        "master_batch_get_replica_list_items_total": 2,
        "mem_cache_hit_nums_": 2,
        "mem_cache_hit_bytes_total": 2 * BLOCK_BYTES,
        "master_key_count": 3,
        "master_allocated_bytes": 3 * BLOCK_BYTES,
        "master_total_capacity_bytes": 100 * BLOCK_BYTES,
        "master_active_clients": 2,
    }.items():
        assert value(master, series) == expected, series


def test_a_reset_empties_it_at_once(master: Master):
    master.put(blocks(0, 3))
    assert master.remove_all() == 3
    assert value(master, "master_key_count") == 0
    assert value(master, "master_evicted_key_count") == 0  # a reset evicts nothing


def test_above_the_watermark_the_oldest_are_evicted(master: Master):
    master.put(blocks(0, 90))
    assert value(master, "master_evicted_key_count") == 0
    master.put(blocks(90, 5))
    # As a real master: 95 blocks x (0.95 - 0.9 + 0.05), rounded up.
    assert value(master, "master_evicted_key_count") == 10
    assert master.exist(["k9", "k10"]) == [False, True]


def test_a_block_that_was_read_is_not_evicted_while_its_lease_runs(
    master: Master, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LEASE_S", 60.0)
    master.put(blocks(0, 90))
    master.get([f"k{n}" for n in range(90)])
    master.put(blocks(90, 8))
    assert master.exist(["k0", "k90", "k97"]) == [True, False, False]
    assert value(master, "master_evicted_key_count") == 8


def test_what_does_not_fit_is_not_stored(master: Master):
    assert master.put(blocks(0, 104)) == 100
    assert value(master, "master_put_start_alloc_failures_total") == 4
