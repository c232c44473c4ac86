"""The crossing of a split that takes base + bytes / rate with a baseline that moves nothing."""

from math import inf, isnan

import pytest

from workbench.experiment.findings.crossing import LinkPoint, crossing, excess_at

BASE_S, BASELINE_S, GBIT = 0.9, 1.0, 0.05
CROSSING = GBIT / (BASELINE_S - BASE_S)  # 0.5 Gbit/s


def point(gbit_s: float, *, base_s: float = BASE_S, spread: float = 0.02) -> LinkPoint:
    ratio = BASELINE_S / (base_s + GBIT / gbit_s)
    return LinkPoint(
        gbit_s=gbit_s, ratio=ratio, low=ratio * (1 - spread), high=ratio * (1 + spread),
        slope=GBIT / BASELINE_S,
    )  # fmt: skip


def test_between_two_measured_links_it_is_measured() -> None:
    found = crossing([point(0.2), point(1.0)])
    assert found.kind == "measured"
    assert found.gbit_s == pytest.approx(CROSSING)
    assert found.low < CROSSING < found.high


@pytest.mark.parametrize("measured", [0.2, 2.0])
def test_from_one_link_it_is_extrapolated(measured: float) -> None:
    found = crossing([point(measured)])
    assert found.kind == "extrapolated"
    assert found.gbit_s == pytest.approx(CROSSING)
    assert found.low < CROSSING < found.high


def test_a_split_that_is_slower_without_any_transfer_never_pays() -> None:
    found = crossing([point(0.2, base_s=1.1), point(1.0, base_s=1.1)])
    assert (found.kind, found.gbit_s) == ("never", inf)


def test_an_interval_may_reach_to_never() -> None:
    found = crossing([point(0.2, spread=0.3), point(1.0, spread=0.3)])
    assert found.gbit_s == pytest.approx(CROSSING) and found.high == inf


def test_without_intervals_there_is_none() -> None:
    found = crossing([point(0.2, spread=float("nan")), point(1.0)])
    assert found.gbit_s == pytest.approx(CROSSING) and isnan(found.low) and isnan(found.high)


def test_a_split_that_is_faster_on_the_slower_link_only_is_unclear() -> None:
    found = crossing([point(0.2, base_s=0.5), point(1.0, base_s=1.2)])
    assert found.kind == "unclear" and isnan(found.gbit_s)


def test_a_split_that_moves_nothing_always_pays() -> None:
    still = LinkPoint(gbit_s=1.0, ratio=1.2, low=1.1, high=1.3, slope=0.0)
    assert (crossing([still]).kind, crossing([still]).gbit_s) == ("always", 0.0)


@pytest.mark.parametrize("gbit_s", [0.1, 0.2, 0.4, 1.0, 5.0])
def test_the_excess_is_that_of_the_model_at_any_rate(gbit_s: float) -> None:
    excess = (BASE_S + GBIT / gbit_s) / BASELINE_S - 1
    assert excess_at([point(0.2), point(1.0)], gbit_s) == pytest.approx(excess)
