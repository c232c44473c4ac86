"""The engine step by step: no clock, no network."""

from typing import Any

from workbench.metrics.prometheus import parse
from workbench.serve.simulated.exposition import Series
from workbench.serve.simulated.kv_blocks import BlockPool
from workbench.serve.simulated.scheduler import Scheduler, Sequence


def engine(blocks: int = 100) -> Scheduler:
    return Scheduler(Series(), BlockPool(blocks), connector=True)


def run(host: Scheduler, *sequences: Sequence) -> None:
    """Let requests in and step until all have ended; offers arrive at once, as offered."""
    for sequence in sequences:
        host.waiting.append(sequence)
    for now in range(10_000):
        step = host.schedule(now)
        for sequence in step.loads:
            host.loaded(sequence, sequence.hashes[sequence.local // 128 :])
        host.complete(step, now)
        if all(sequence.ended for sequence in sequences):
            return
    raise AssertionError("a request never ended")


def request(tokens: int, *, max_tokens: int = 2, seed: int = 1, **options: Any) -> Sequence:
    return Sequence(
        id=f"r{tokens}-{seed}",
        prompt=[seed] * tokens,
        max_tokens=max_tokens,
        arrived_s=0.0,
        **options,
    )


def value(host: Scheduler, series: str, **labels: str) -> float:
    return parse(host.series.page(), "engine").sum(f"vllm:{series}_total", **labels)


def counted(host: Scheduler) -> tuple[float, ...]:
    """Prompt tokens computed, hit locally, and fetched."""
    sources = ("local_compute", "local_cache_hit", "external_kv_transfer")
    return tuple(value(host, "prompt_tokens_by_source", source=source) for source in sources)


def test_a_repeated_prompt_computes_what_whole_blocks_leave_and_always_its_last_token():
    for tokens, hit in ((128, 0), (129, 128), (256, 128), (300, 256)):
        host = engine()
        run(host, request(tokens))
        run(host, request(tokens))
        assert counted(host) == (2 * tokens - hit, hit, 0)


def test_the_own_cache_is_asked_before_anything_external():
    host = engine()
    run(host, request(300))
    run(host, request(600, offered=512))
    assert counted(host) == (300 + 88, 256, 256)


def test_a_lost_load_is_computed_and_looked_up_twice():
    host = engine()
    sequence = request(300, offered=256)
    host.waiting.append(sequence)
    step = host.schedule(0)
    assert step.loads == [sequence] and not step.batch
    host.lost(sequence)
    host.complete(host.schedule(1), 1)
    assert counted(host) == (300, 0, 0)
    assert value(host, "external_prefix_cache_queries") == 600


def test_the_text_is_a_function_of_the_kv():
    host, other = engine(), engine()
    cold, warm, elsewhere = (request(300, max_tokens=5) for _ in range(3))
    run(host, cold)
    run(host, warm)
    run(other, elsewhere)
    assert cold.outputs == warm.outputs == elsewhere.outputs
    another = request(300, max_tokens=5, seed=2)
    run(host, another)
    assert another.outputs != cold.outputs


def test_wrong_kv_gives_another_text_from_then_on():
    host = engine()
    sound = request(300, max_tokens=5)
    run(engine(), sound)
    spoilt = request(300, max_tokens=5, offered=256)
    host.waiting.append(spoilt)
    host.schedule(0)
    host.loaded(spoilt, [b"other"] * 2)
    while not spoilt.ended:
        host.complete(host.schedule(1), 1)
    again = request(300, max_tokens=5)
    run(host, again)
    assert spoilt.outputs == again.outputs != sound.outputs


def test_requests_that_do_not_fit_wait():
    host = engine(blocks=5)
    first, second = request(400), request(400, seed=2)
    host.waiting.append(first)
    host.waiting.append(second)
    host.schedule(0)
    assert (host.running, host.waiting) == ([first], [second])


def test_a_request_that_outgrows_the_space_is_preempted_and_still_ends():
    host = engine(blocks=5)
    run(host, request(250, max_tokens=200), request(250, max_tokens=200, seed=2))
    assert value(host, "num_preemptions") == 1
    assert counted(host) == (500, 0, 0)  # counted once


def test_held_blocks_stay_in_use_until_they_are_fetched():
    host = engine()
    prefill = request(300, max_tokens=1, hold=True)
    run(host, prefill)
    assert not host.pool.reset()
    assert host.release(prefill.id) is prefill
    assert host.pool.reset()
    assert host.release(prefill.id) is None


def test_an_aborted_request_leaves_no_block_and_no_count_of_success():
    host = engine()
    sequence = request(300, max_tokens=50)
    host.waiting.append(sequence)
    host.complete(host.schedule(0), 0)
    step = host.schedule(1)
    host.abort(sequence)
    assert host.complete(step, 1) == []
    assert host.pool.reset()
    assert "request_success" not in host.series.page()
