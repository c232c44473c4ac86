"""The engine step by step: no clock, no network."""

from workbench.serve.simulated.blocks import BlockPool
from workbench.serve.simulated.engine import Engine
from workbench.serve.simulated.sequence import Offer, Sequence
from workbench.serve.simulated.series import Series

SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")


def engine(blocks: int = 100) -> Engine:
    return Engine(Series(), BlockPool(blocks), connector=True)


def prompt(tokens: int, seed: int = 1) -> list[int]:
    return [seed] * tokens


def run(host: Engine, *sequences: Sequence) -> None:
    """Let requests in and step until all have ended; offers arrive at once, as offered."""
    for sequence in sequences:
        host.add(sequence)
    for now in range(10_000):
        step = host.schedule(now)
        for sequence in step.loads:
            host.loaded(sequence, sequence.hashes[sequence.local // 128 :])
        host.complete(step, now)
        if all(sequence.ended for sequence in sequences):
            return
    raise AssertionError("a request never ended")


def request(tokens: int, *, max_tokens: int = 2, seed: int = 1, **options: object) -> Sequence:
    name = f"r{tokens}-{seed}"
    return Sequence(
        id=name, prompt=prompt(tokens, seed), max_tokens=max_tokens, arrived_s=0.0, **options
    )


def counted(host: Engine) -> tuple[float, ...]:
    """Prompt tokens computed, hit locally, and fetched, as the page has them."""
    page = host.series.page({}, {})
    return tuple(
        next(
            (
                float(line.split()[-1])
                for line in page.split("\n")
                if f'by_source_total{{source="{s}"' in line
            ),
            0.0,
        )
        for s in SOURCES
    )


def test_a_new_prompt_is_computed():
    host = engine()
    run(host, request(300))
    assert counted(host) == (300, 0, 0)


def test_a_repeated_prompt_computes_what_whole_blocks_leave_and_always_its_last_token():
    for tokens, hit in ((128, 0), (129, 128), (256, 128), (300, 256)):
        host = engine()
        run(host, request(tokens))
        run(host, request(tokens))
        assert counted(host) == (2 * tokens - hit, hit, 0)


def test_the_own_cache_is_asked_before_anything_external():
    host = engine()
    run(host, request(300))
    run(host, request(600, offer=Offer(tokens=512)))
    assert counted(host) == (300 + 88, 256, 256)


def test_a_lost_load_is_computed_and_looked_up_twice():
    host = engine()
    sequence = request(300, offer=Offer(tokens=256))
    host.add(sequence)
    step = host.schedule(0)
    assert step.loads == [sequence] and not step.batch
    host.lost(sequence)
    host.complete(host.schedule(1), 1)
    assert counted(host) == (300, 0, 0)
    assert "vllm:external_prefix_cache_queries_total{} 600.0" in host.series.page({}, {})


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
    spoilt = request(300, max_tokens=5, offer=Offer(tokens=256))
    host.add(spoilt)
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
    host.add(first)
    host.add(second)
    host.schedule(0)
    assert (host.running, host.waiting) == ([first], [second])


def test_a_request_that_outgrows_the_space_is_preempted_and_still_ends():
    host = engine(blocks=5)
    run(host, request(250, max_tokens=200), request(250, max_tokens=200, seed=2))
    assert "vllm:num_preemptions_total{} 1.0" in host.series.page({}, {})
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
    host.add(sequence)
    host.complete(host.schedule(0), 0)
    step = host.schedule(1)
    host.abort(sequence)
    assert host.complete(step, 1) == []
    assert host.pool.reset()
    assert "request_success" not in host.series.page({}, {})
