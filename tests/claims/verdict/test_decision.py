import math

import pytest

from workbench.claims.verdict.decision import Interval, band, decide
from workbench.metrics.statistics import noise_floor


def cells(*bounds, runs=5):
    return [
        Interval(estimate=(low + high) / 2, low=low, high=high, runs=runs) for low, high in bounds
    ]


@pytest.mark.parametrize(
    ("quantifier", "bounds", "code"),
    [
        # claimed: 2 x; with a tolerance of 10 % the band is 1.8 to 2.2
        ("typical", [(1.9, 2.1)], "confirmed"),
        ("typical", [(1.7, 2.1)], "inconclusive"),
        ("typical", [(1.2, 1.7)], "contradicted"),
        ("typical", [(2.3, 2.4)], "contradicted"),
        ("typical", [(1.0, 1.1), (1.9, 2.1), (2.0, 2.1)], "confirmed"),  # the median cell
        ("up_to", [(1.0, 1.1), (1.9, 2.1)], "confirmed"),  # one cell is enough
        ("up_to", [(1.0, 1.1), (1.2, 1.3)], "contradicted"),
        ("up_to", [(1.0, 1.1), (1.2, 1.9)], "inconclusive"),
        ("at_least", [(1.9, 3.0)], "confirmed"),
        ("at_least", [(1.2, 1.7)], "contradicted"),
        ("at_most", [(1.0, 2.1)], "confirmed"),
        ("at_most", [(2.3, 2.5)], "contradicted"),
        ("at_most", [(2.1, 2.5)], "inconclusive"),
        ("higher", [(2.01, 2.5)], "confirmed"),
        ("higher", [(1.5, 1.9)], "contradicted"),
        ("higher", [(1.9, 2.5)], "inconclusive"),
        ("lower", [(1.5, 1.9)], "confirmed"),
        ("lower", [(2.01, 2.5)], "contradicted"),
    ],
)
def test_intervals_against_two_times(effect, quantifier, bounds, code):
    assert decide(effect(quantifier), cells(*bounds)).code == code


NO_CHANGE = {"quantifier": "unchanged", "value": 1.0, "margin": 0.01}
RANGE = {"quantifier": "range", "value": 2.0, "high": 4.0}
COUNT = {"quantifier": "exact", "value": 496, "type": "absolute", "unit": "tokens"}
HIGHER, LOWER = {"quantifier": "higher"}, {"quantifier": "lower", "value": 1.0}


@pytest.mark.parametrize(
    ("given", "bounds", "noise_floor", "code"),
    [
        (NO_CHANGE, [(0.995, 1.005)], 0, "confirmed"),
        (NO_CHANGE, [(0.97, 0.985)], 0, "contradicted"),
        # No difference is seen, but one of 5 % would not be seen either.
        (NO_CHANGE, [(0.95, 1.05)], 0, "inconclusive"),
        # A range is met by most cells.
        (RANGE, [(2.0, 2.5), (3.0, 3.5), (3.5, 4.2)], 0, "confirmed"),
        (RANGE, [(1.0, 1.1), (1.2, 1.3), (3.5, 4.2)], 0, "contradicted"),  # the median cell
        (RANGE, [(1.0, 1.1), (3.0, 3.5), (3.5, 4.2)], 0, "inconclusive"),  # only two of three
        (RANGE, [(4.1, 4.2)], 0, "contradicted"),
        # A difference within the noise has no direction.
        (HIGHER, [(2.01, 2.03)], 0, "confirmed"),
        (HIGHER, [(2.01, 2.03)], 0.02, "inconclusive"),
        # Half as fast is as far from equal as twice as fast; equal arms differ by a factor of 1.6.
        (LOWER, [(0.45, 0.6)], 0.6, "confirmed"),
        (LOWER, [(0.5, 0.7)], 0.6, "inconclusive"),
        (HIGHER | {"value": 1.0}, [(1.7, 2.3)], 0.6, "confirmed"),
        ({}, [], 0, "not_measured"),
        ({}, [(math.nan, math.nan)], 0, "inconclusive"),
    ],
)
def test_intervals_against_other_claims(effect, given, bounds, noise_floor, code):
    assert decide(effect(**given), cells(*bounds), noise_floor=noise_floor).code == code


@pytest.mark.parametrize(
    ("given", "bounds", "runs", "code"),
    [
        (COUNT, (496, 496), 1, "confirmed"),
        (COUNT, (480, 480), 1, "contradicted"),
        (COUNT, (480, 500), 1, "inconclusive"),
        ({}, (1.9, 2.1), 4, "too_few_runs"),
    ],
)
def test_a_count_needs_one_run_and_a_time_five(effect, given, bounds, runs, code):
    assert decide(effect(**given), cells(bounds, runs=runs)).code == code


def test_an_open_answer_says_what_the_run_could_have_told(effect):
    decision = decide(effect("unchanged", 1.0, margin=0.01), cells((0.95, 1.05)))
    assert decision.reason == (
        "The interval is too wide to decide. Measured 1x (0.95 to 1.05); claimed unchanged within"
        " 1 %. This run cannot resolve effects below 5 %."
    )


def test_equal_sides_that_differ_2_2_fold_leave_a_doubling_open(effect):
    doubled = [Interval(estimate=2.0, low=1.85, high=2.15)]
    floor = noise_floor([math.exp(0.79)])
    assert floor == pytest.approx(1.203, abs=1e-3)
    decision = decide(effect("higher", 1.0), doubled, noise_floor=floor)
    assert decision.code == "inconclusive" and "Identical arms differ by 120 %" in decision.reason


def test_where_the_noise_is_not_known_no_direction_is_confirmed(effect):
    decision = decide(effect("higher"), cells((2.5, 2.6)), noise_floor=math.nan)
    assert decision.code == "inconclusive"
    assert "Identical arms differ by an unknown amount" in decision.reason


def test_a_count_shows_its_worst_value_and_nothing_is_not_none():
    assert Interval.counted([2, 2]) == Interval(estimate=2, low=2, high=2, runs=2)
    assert Interval.counted([0, -3, 1]) == Interval(estimate=-3, low=-3, high=1, runs=3)
    assert math.isnan(Interval.counted([]).estimate)
    assert math.isnan(Interval.counted([0, math.nan]).low)


def test_a_ratio_in_percent_keeps_its_interval():
    ratio = Interval(estimate=0.25, low=0.2, high=0.4)
    gained, saved = ratio.gained_percent, ratio.saved_percent
    assert (gained.estimate, gained.low, gained.high) == pytest.approx((-75, -80, -60))
    assert (saved.estimate, saved.low, saved.high) == pytest.approx((75, 60, 80))


def test_the_band_that_confirms_is_open_where_only_one_side_counts(effect):
    assert band(effect(), 0.1) == pytest.approx((1.8, 2.2))
    assert band(effect("at_least"), 0.1) == (1.8, math.inf)
    assert band(effect("lower"), 0.1) == (-math.inf, 2.0)
