from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from workbench.errors import ParameterError
from workbench.load.arrivals import closed, poisson


def test_a_closed_loop_has_no_times() -> None:
    arrivals = closed(4)
    assert (arrivals.kind, arrivals.concurrency, arrivals.offsets_s) == ("closed", 4, ())
    assert arrivals.describe() == "closed loop, 4 at a time"


def test_poisson_gaps_are_exponential_with_the_asked_mean() -> None:
    offsets_s = np.array(poisson(50.0, 20_000, seed=1).offsets_s)
    gaps_s = np.diff(offsets_s, prepend=0.0)
    # The mean of n exponential gaps has a relative deviation of 1 / sqrt(n) = 0.7 %.
    assert gaps_s.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps_s.std() == pytest.approx(1 / 50, rel=0.05)
    assert (gaps_s > 3 / 50).mean() == pytest.approx(np.exp(-3), rel=0.2)  # nothing clipped


def test_poisson_times_ascend_from_the_first_gap() -> None:
    offsets_s = poisson(2.0, 100, seed=0).offsets_s
    assert offsets_s[0] > 0
    assert list(offsets_s) == sorted(offsets_s)


def test_the_seed_decides_the_times() -> None:
    assert poisson(5.0, 10, seed=3) == poisson(5.0, 10, seed=3)
    assert poisson(5.0, 10, seed=3) != poisson(5.0, 10, seed=4)


def test_a_longer_run_starts_like_a_shorter_one() -> None:
    assert poisson(5.0, 20, seed=3).offsets_s[:10] == poisson(5.0, 10, seed=3).offsets_s


def test_an_open_loop_describes_itself() -> None:
    assert poisson(2.5, 3, seed=7).describe() == "open loop, Poisson at 2.5 requests/s (seed 7)"


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ParameterError, match="concurrency is 0"):
        closed(0)
    for rate_per_s in (0.0, -1.0, inf, nan):
        with pytest.raises(ParameterError, match="requests per second above 0"):
            poisson(rate_per_s, 1, seed=0)
    with pytest.raises(ParameterError, match="n is 0"):
        poisson(1.0, 0, seed=0)
