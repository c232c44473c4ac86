from types import SimpleNamespace

from workbench.serve.simulated.exposition import Series
from workbench.serve.simulated.host_memory import BLOCK_BYTES, HostMemory
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS

PROMPT = [b"one", b"two", b"three"]


def prompt(*blocks):
    return SimpleNamespace(hashes=list(blocks), contents=list(blocks), found=[], tier="")


def counted(series: Series, name: str) -> float:
    lines = [line for line in series.page().splitlines() if line.startswith(f"vllm:{name}{{")]
    return float(lines[0].split()[-1]) if lines else 0.0


async def test_it_serves_the_longest_prefix_of_what_was_stored():
    memory = HostMemory(4 * BLOCK_BYTES, Series())
    await memory.save(prompt(*PROMPT[:2]), 0)
    asked = prompt(*PROMPT)
    assert await memory.lookup(asked) == 2 * BLOCK_TOKENS
    assert (asked.found, asked.tier) == (PROMPT[:2], "host")
    assert await memory.lookup(prompt(b"other", *PROMPT)) == 0


async def test_it_stores_only_what_it_lacks_and_counts_bytes_as_vllm():
    series = Series()
    memory = HostMemory(4 * BLOCK_BYTES, series)
    await memory.save(prompt(*PROMPT[:2]), 0)
    await memory.save(asked := prompt(*PROMPT), 0)
    await memory.lookup(asked)
    assert await memory.load(asked, range(1, 3)) == PROMPT[1:]
    assert counted(series, "kv_offload_store_bytes_total") == 3 * BLOCK_BYTES
    assert counted(series, "kv_offload_load_bytes_total") == 2 * BLOCK_BYTES


async def test_the_least_recently_used_go_and_what_never_fits_is_refused():
    series = Series()
    memory = HostMemory(3 * BLOCK_BYTES, series)
    await memory.save(prompt(*PROMPT), 0)
    await memory.lookup(prompt(PROMPT[0]))
    await memory.save(prompt(b"new"), 0)
    await memory.lookup(asked := prompt(*PROMPT))
    assert asked.found == [b"one"]  # the second block was the oldest
    await memory.save(prompt(*(b"%d" % n for n in range(4))), 0)
    assert counted(series, "kv_offload_allocation_failure_total") == 1
    assert await memory.reset()
    assert await memory.lookup(prompt(*PROMPT)) == 0
