from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from workbench.errors import ParameterError
from workbench.load.workload.arrivals import (
    Arrivals,
    at_times,
    closed,
    constant,
    gamma,
    poisson,
    ramp,
)


@pytest.mark.parametrize(
    ("arrivals", "said"),
    [
        (closed(4), "closed loop, 4 at a time"),
        (poisson(2.5, 3, seed=7), "open loop, Poisson at 2.5 requests/s (seed 7)"),
        (constant(4.0, 3), "open loop, constant 4 requests/s"),
        (
            gamma(2.5, 3, 1, burstiness=4),
            "open loop, gamma at 2.5 requests/s, burstiness 4 (seed 1)",
        ),
        (ramp(1.0, 9.0, 5), "open loop, 1 to 9 requests/s (ramp)"),
        (at_times([0, 1.5]), "open loop, 2 recorded arrival times"),
    ],
)
def test_each_describes_itself(arrivals: Arrivals, said: str) -> None:
    assert arrivals.describe() == said


def test_poisson_gaps_are_exponential_with_the_asked_mean() -> None:
    offsets_s = np.array(poisson(50.0, 20_000, seed=1).offsets_s)
    gaps_s = np.diff(offsets_s, prepend=0.0)  # the first request comes after one gap
    assert gaps_s.min() >= 0 < offsets_s[0]
    # The mean of n exponential gaps has a relative deviation of 1 / sqrt(n) = 0.7 %.
    assert gaps_s.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps_s.std() == pytest.approx(1 / 50, rel=0.05)
    assert (gaps_s > 3 / 50).mean() == pytest.approx(np.exp(-3), rel=0.2)  # nothing clipped


def test_the_seed_decides_the_times() -> None:
    assert poisson(5.0, 10, seed=3) == poisson(5.0, 10, seed=3)
    assert poisson(5.0, 10, seed=3) != poisson(5.0, 10, seed=4)
    assert poisson(5.0, 20, seed=3).offsets_s[:10] == poisson(5.0, 10, seed=3).offsets_s


def test_constant_arrivals_have_equal_gaps() -> None:
    assert constant(4.0, 3).offsets_s == (0.25, 0.5, 0.75)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_keep_the_rate_and_spread_as_asked(burstiness: float) -> None:
    arrivals = gamma(50.0, 40_000, 1, burstiness=burstiness)
    gaps_s = np.diff(np.array(arrivals.offsets_s), prepend=0.0)
    assert gaps_s.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps_s.std() == pytest.approx(1 / 50 / np.sqrt(burstiness), rel=0.05)


@pytest.mark.parametrize(("start", "end"), [(1.0, 9.0), (9.0, 1.0), (5.0, 5.0)])
def test_a_ramp_changes_its_rate_evenly(start: float, end: float) -> None:
    offsets_s = np.array(ramp(start, end, 5_000).offsets_s)
    assert offsets_s[-1] == pytest.approx(5_000 / 5)  # the mean rate is 5 in all cases
    rates = 1 / np.diff(offsets_s)
    assert rates[0] == pytest.approx(start, rel=0.02)
    assert rates[-1] == pytest.approx(end, rel=0.02)
    halfway = np.searchsorted(offsets_s, offsets_s[-1] / 2)
    assert rates[halfway] == pytest.approx(5.0, rel=0.02)


def test_times_of_a_trace_are_kept() -> None:
    arrivals = at_times([0, 0, 1.5, 4])
    assert arrivals.offsets_s == (0.0, 0.0, 1.5, 4.0)
    assert arrivals.rate_per_s == 0.75


@pytest.mark.parametrize("times_s", [[-1.0], [1.0, 0.5], [nan], [0.0, inf]])
def test_times_that_do_not_ascend_are_refused(times_s: list[float]) -> None:
    with pytest.raises(ParameterError, match="ascending times from 0"):
        at_times(times_s)


@pytest.mark.parametrize("rate_per_s", [0.0, -1.0, inf, nan])
def test_a_rate_is_above_zero(rate_per_s: float) -> None:
    with pytest.raises(ParameterError, match="rate_per_s must be a number above 0"):
        poisson(rate_per_s, 1, seed=0)
