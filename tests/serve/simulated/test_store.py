from workbench.metrics.prometheus import parse
from workbench.serve.simulated.store import CHUNK_BYTES, ChunkStore


def store(*kept: str, capacity: int = 100) -> ChunkStore:
    made = ChunkStore(capacity)
    made.write(chunks(*kept))
    return made


def chunks(*keys: str) -> dict[str, list[str]]:
    return {key: [f"{key}1", f"{key}2"] for key in keys}


def value(host: ChunkStore, series: str) -> float:
    """A counter or gauge; it is not on the page before it is born."""
    return parse(host.page(), "store").sum(f"lmcache_mp_{series}")


def test_a_lookup_finds_the_longest_prefix_of_whole_chunks():
    host = store("a", "b")
    assert host.lookup(chunks("a", "b", "c")) == [["a1", "a2"], ["b1", "b2"]]
    assert host.lookup(chunks("c", "a")) == []


def test_what_is_counted():
    host = store("a", "b")
    host.write(chunks("b", "c"))
    host.lookup(chunks("a", "x"))
    assert value(host, "l1_write_chunks_total") == 3  # b was there
    assert value(host, "lookup_requested_tokens_total") == 512
    assert value(host, "lookup_hit_tokens_total") == 256
    assert value(host, "l1_read_chunks_total") == 1
    assert value(host, "l1_memory_usage_bytes") == 3 * CHUNK_BYTES
    assert value(host, "l1_usage_ratio") == 0.03
    assert "l1_evicted_chunks_total" not in host.page()
    host.clear()
    assert value(host, "l1_evicted_chunks_total") == 3
    assert host.lookup(chunks("a")) == []


def test_a_prompt_below_one_chunk_is_looked_up_and_asks_for_no_tokens():
    host = store()
    host.lookup(chunks())
    assert value(host, "lookups_requests_total") == 1
    assert value(host, "lookup_early_exit_requests_total") == 1
    assert "lookup_requested_tokens_total" not in host.page()


def test_a_fifth_is_evicted_above_the_watermark_and_the_latest_use_counts():
    host = store(*"abcdefgh", capacity=10)
    host.lookup(chunks("a"))
    host.write(chunks("i"))
    assert value(host, "l1_evicted_chunks_total") == 1
    assert host.lookup(chunks("a")) and not host.lookup(chunks("b"))
