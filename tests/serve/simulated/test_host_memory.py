from workbench.serve.simulated.exposition import Series
from workbench.serve.simulated.host_memory import BLOCK_BYTES, HostMemory

PROMPT = [b"one", b"two", b"three"]


def counted(series: Series, name: str) -> float:
    lines = [line for line in series.page().splitlines() if line.startswith(f"vllm:{name}{{")]
    return float(lines[0].split()[-1]) if lines else 0.0


def test_it_serves_the_longest_prefix_of_what_was_stored():
    memory = HostMemory(4 * BLOCK_BYTES, Series())
    memory.write(PROMPT[:2], PROMPT[:2])
    assert memory.lookup(PROMPT) == PROMPT[:2]
    assert memory.lookup([b"other", *PROMPT]) == []


def test_it_stores_only_what_it_lacks_and_counts_bytes_as_vllm():
    series = Series()
    memory = HostMemory(4 * BLOCK_BYTES, series)
    memory.write(PROMPT[:2], PROMPT[:2])
    memory.write(PROMPT, PROMPT)
    memory.loaded(3)
    assert counted(series, "kv_offload_store_bytes_total") == 3 * BLOCK_BYTES
    assert counted(series, "kv_offload_load_bytes_total") == 3 * BLOCK_BYTES


def test_the_least_recently_used_go_and_what_never_fits_is_refused():
    series = Series()
    memory = HostMemory(3 * BLOCK_BYTES, series)
    memory.write(PROMPT, PROMPT)
    memory.lookup(PROMPT[:1])
    memory.write([b"new"], [b"new"])
    assert memory.lookup(PROMPT) == [b"one"]  # the second block was the oldest
    memory.write([b"%d" % n for n in range(4)], [b""] * 4)
    assert counted(series, "kv_offload_allocation_failure_total") == 1
    memory.clear()
    assert memory.lookup(PROMPT) == []
