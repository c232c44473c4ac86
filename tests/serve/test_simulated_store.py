from workbench.serve.simulated.store import ChunkStore


def store(capacity: int = 100, fault: str = "") -> ChunkStore:
    return ChunkStore(capacity, chunk_bytes=1000.0, fault=fault)


def chunks(*keys: str) -> dict[str, list[str]]:
    return {key: [f"{key}1", f"{key}2"] for key in keys}


def value(host: ChunkStore, series: str) -> float | None:
    """A counter's value; None before it is born, as on LMCache's page."""
    for line in host.series.page({}, {}).split("\n"):
        if line.startswith(f"lmcache_mp_{series}{{"):
            return float(line.split()[-1])
    return None


def test_a_lookup_finds_the_longest_prefix_of_whole_chunks():
    host = store()
    host.write(chunks("a", "b"))
    assert host.lookup(["a", "b", "c"]) == [["a1", "a2"], ["b1", "b2"]]
    assert host.lookup(["c", "a"]) == []


def test_what_is_counted():
    host = store()
    host.write(chunks("a", "b"))
    host.write(chunks("b", "c"))
    host.lookup(["a", "x"])
    assert value(host, "l1_write_chunks_total") == 3  # b was there
    assert value(host, "lookup_requested_tokens_total") == 512
    assert value(host, "lookup_hit_tokens_total") == 256
    assert value(host, "l1_read_chunks_total") == 1
    assert value(host, "l1_evicted_chunks_total") is None
    host.clear()
    assert value(host, "l1_evicted_chunks_total") == 3
    assert host.lookup(["a"]) == []


def test_a_prompt_below_one_chunk_is_looked_up_and_asks_for_no_tokens():
    host = store()
    host.lookup([])
    assert value(host, "lookups_requests_total") == 1
    assert value(host, "lookup_early_exit_requests_total") == 1
    assert value(host, "lookup_requested_tokens_total") is None


def test_a_fifth_is_evicted_above_the_watermark_and_the_latest_use_counts():
    host = store(capacity=10)
    host.write(chunks(*"abcdefgh"))
    host.lookup(["a"])
    host.write(chunks("i"))
    assert value(host, "l1_evicted_chunks_total") == 1
    assert host.lookup(["a"]) and not host.lookup(["b"])


def test_gauges():
    host = store(capacity=10)
    host.write(chunks("a", "b"))
    assert host.gauges["lmcache_mp_l1_memory_usage_bytes"] == 2000
    assert host.gauges["lmcache_mp_l1_usage_ratio"] == 0.2
