import numpy as np
import pandas as pd
import pytest

from workbench.claims.recipes.rows import Rows, mean_of_runs


def rows(**values):
    """Rows of the quantity `time`: arm -> a value for each run, of each cell `a` and `b`."""
    table = pd.DataFrame(
        [
            {"quantity": "time", "arm": arm, "cell": cell, "run": run, "value": value}
            for arm, per_run in values.items()
            for cell in "ab"
            for run, value in enumerate(per_run)
        ]
    )
    return Rows(table=table, results=(), doubts=())


def test_a_ratio_is_paired_by_run_so_that_the_speed_of_a_run_cancels():
    speeds = np.array([1.0, 3.0, 0.5, 2.0, 1.5])
    found = rows(naive=3 * speeds, fused=speeds).ratios("time", over="naive", under="fused")
    assert set(found) == {"a", "b"}
    assert found["a"].low == pytest.approx(3) == pytest.approx(found["a"].high)
    assert found["a"].runs == 5


def test_the_interval_is_a_t_interval_of_logarithms():
    logs = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    found = mean_of_runs(np.exp(logs))
    reach = 2.776 * logs.std(ddof=1) / 5**0.5
    assert np.log([found.estimate, found.low, found.high]) == pytest.approx(
        [0.3, 0.3 - reach, 0.3 + reach], abs=1e-3
    )


def test_more_cells_make_each_interval_wider():
    values = [1.0, 1.1, 1.2, 1.1, 1.0]
    assert mean_of_runs(values, cells=6).high > mean_of_runs(values).high


def test_too_few_values_have_no_interval():
    assert np.isnan(mean_of_runs([]).estimate)
    one = mean_of_runs([2.0])
    assert (one.estimate, one.runs) == (2, 1) and np.isnan([one.low, one.high]).all()


def test_the_noise_floor_is_of_equal_arms():
    pairs = rows(one=[1, 1, 1, 1, 1], other=[1, 1, 1, 1, 1.25])
    assert pairs.noise("time", one="one", other="other") == pytest.approx(0.25)


def test_a_value_that_is_not_positive_is_not_left_out_of_the_mean():
    for bad in (0.0, -0.3, np.inf):
        found = mean_of_runs([2.0, 2.1, bad])
        assert np.isnan([found.estimate, found.low, found.high]).all() and found.runs == 3
    assert mean_of_runs([2.0, 2.0, np.nan]).runs == 2  # a run that is missing
