import pytest

from tests.report.conftest import words
from tests.report.figures.test_topologies import of_two_models
from workbench.report import figures


@pytest.fixture
def two(summary, comparisons):
    """1p4d and its baseline with the store, measured with `small` and `large`."""
    faster = of_two_models(comparisons)
    large = faster["model"].eq("large")
    faster.loc[large, ["ratio", "low", "high"]] /= 5
    return of_two_models(summary), faster


def test_speed_ups_of_models_stand_side_by_side(two):
    chart = figures.speedups_by_model(*two)
    shown = words(chart)
    found = "TTFT speed-up, 1p4d lmcache, store-warm vs cold: 15x on small, 3.0x on large"
    assert found in " ".join(shown)
    assert {"small", "large", "1p4d lmcache, store-warm vs cold"} <= set(shown)
    assert "1p4d lmcache, cold vs 5a lmcache" in shown
    assert "engine-warm" not in " ".join(shown)  # the warmest state only
    assert chart.caption.startswith("Paired TTFT ratios with 95 % CI (5 rounds,")


def test_one_model_has_nothing_beside_it(summary, comparisons):
    assert figures.speedups_by_model(summary, comparisons) is None


def test_an_arm_that_failed_is_left_out_and_named(two):
    summary, comparisons = two
    comparisons.attrs["failed_gates"] = {"same text": ("large 1p4d lmcache",)}
    chart = figures.speedups_by_model(summary, comparisons)
    assert "large" not in words(chart)
    assert "large 1p4d lmcache" in chart.caption
