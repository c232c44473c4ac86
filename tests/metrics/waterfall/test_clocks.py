"""Clocks of other hosts: what round trips say about them, and what they leave open."""

import pytest

from workbench.metrics.waterfall.clocks import host_clocks
from workbench.records import ClockReading


def reading(at_s: float, offset_s: float, bound_s: float = 0.0005) -> ClockReading:
    return ClockReading(
        host="10.0.0.2", at_s=at_s, offset_s=offset_s, wall_offset_s=1.5, bound_s=bound_s
    )


def test_clocks_of_equal_rate_need_no_factor_whatever_their_offset() -> None:
    (clock,) = host_clocks([reading(100.0, 5000.0)], [reading(110.0, 5000.0004)])
    assert clock.rate == pytest.approx(1.00004)
    assert clock.rate_bound == pytest.approx(0.0001)
    assert clock.factor == 1.0
    assert clock.bound_s == pytest.approx(0.001) and clock.wall_offset_s == 1.5


def test_a_fast_clock_has_a_factor_that_makes_its_seconds_ours() -> None:
    (clock,) = host_clocks([reading(100.0, 0.0)], [reading(110.0, 0.1)])
    assert 10.1 * clock.factor == pytest.approx(10.0)


def test_a_host_that_was_read_only_once_has_no_clock() -> None:
    assert host_clocks([], [reading(110.0, 0.1)]) == ()
