from statistics import mean

import pytest

from workbench.serve.simulated.instance import Latency


def steps(latency: Latency, new: int, before: int = 0) -> float:
    return mean(latency.step_s([(new, before)]) for _ in range(200))


def test_a_seed_repeats_itself():
    a, b, c = Latency(seed=1), Latency(seed=1), Latency(seed=2)
    assert [a.step_s([(1, 0)]) for _ in range(5)] == [b.step_s([(1, 0)]) for _ in range(5)]
    assert a.step_s([(1, 0)]) != c.step_s([(1, 0)])


def test_prefill_grows_with_the_prompt_and_decode_is_cheap():
    latency = Latency(seed=0)
    assert steps(latency, 20_000) > 4 * steps(latency, 5_000) * 0.9
    assert steps(latency, 5_000) > 5 * steps(latency, 1, 5_000)
    assert steps(latency, 1_000, 20_000) > steps(latency, 1_000)


def test_speed_divides_everything():
    slow, fast = Latency(seed=3, speed=1.0), Latency(seed=3, speed=10.0)
    assert slow.step_s([(100, 0)]) == pytest.approx(10 * fast.step_s([(100, 0)]))
    assert slow.transfer_s(1e6) == pytest.approx(10 * fast.transfer_s(1e6))


def test_a_transfer_takes_longer_for_more_bytes():
    latency = Latency(seed=0)
    assert latency.transfer_s(1e8) > 10 * latency.transfer_s(1e4)
