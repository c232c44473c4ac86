"""The rows of one side: chosen by arm and pass, selected by a box, listed by their values."""

import numpy as np
import pytest

from workbench.explorer.side import side_of
from workbench.explorer.sources import source_of

COLD = ["cold"]


@pytest.fixture
def side(recorded):
    return side_of(source_of(recorded))


@pytest.fixture
def ttft_ms(side):
    return side.source.metrics["TTFT, ms"]


def test_rows_are_chosen_by_arm_and_pass_and_need_a_value(side, ttft_ms):
    unknown = np.flatnonzero(side.source.rows["pass"] == "cold")[0]
    values = ttft_ms.copy()
    values[unknown] = np.nan
    side.choose(values, side.arms[1], COLD)
    assert not side.chosen[unknown]
    assert set(side.source.rows["pass"][side.chosen]) == set(COLD)


def test_a_box_on_the_distribution_takes_the_lower_half_of_each_curve(side, ttft_ms):
    side.choose(ttft_ms, side.arms[1], side.passes[1])
    side.brushed = side.inside("spread", ttft_ms, (0, np.inf), (0, 50))
    for name, values in side.selected(ttft_ms):
        of_series = ttft_ms[side.series == side.names.index(name)]
        assert len(values) == len(of_series) // 2 and values.max() <= np.median(of_series)


def test_the_largest_come_first_and_a_number_finds_its_requests(side, ttft_ms):
    side.choose(ttft_ms, side.arms[1], side.passes[1])
    assert ttft_ms[side.largest(ttft_ms, "", 3)].tolist() == sorted(ttft_ms)[:-4:-1]
    found = side.source.rows["request_id"].iloc[side.largest(ttft_ms, "1", 500)]
    assert len(found) and found.str.endswith("-1").all()


def test_only_what_is_zoomed_to_is_near(side, ttft_ms):
    side.choose(ttft_ms, side.arms[1], side.passes[1])
    assert side.near().sum() == len(ttft_ms)
    side.zoomed = (0.0, float(np.median(side.x)))
    assert 0 < side.near().sum() < len(ttft_ms)
