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


@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        ((0.995, 1.005), "confirmed"),
        ((0.97, 0.985), "contradicted"),
        # No difference is seen, but one of 5 % would not be seen either.
        ((0.95, 1.05), "inconclusive"),
    ],
)
def test_no_significant_difference_is_no_equivalence(effect, bounds, code):
    unchanged = effect("unchanged", 1.0, margin=0.01)
    assert decide(unchanged, cells(bounds)).code == code


def test_an_open_answer_says_what_the_run_could_have_told(effect):
    decision = decide(effect("unchanged", 1.0, margin=0.01), cells((0.95, 1.05)))
    assert decision.reason == (
        "The interval is too wide to decide. Measured 1x (0.95 to 1.05); claimed unchanged within"
        " 1 %. Effects below 5 % are not visible here."
    )


@pytest.mark.parametrize(
    ("bounds", "code"),
    [
        ([(2.0, 2.5), (3.0, 3.5), (3.5, 4.2)], "confirmed"),
        ([(1.0, 1.1), (1.2, 1.3), (3.5, 4.2)], "contradicted"),  # the median cell is below
        ([(1.0, 1.1), (3.0, 3.5), (3.5, 4.2)], "inconclusive"),  # only two of three meet it
        ([(4.1, 4.2)], "contradicted"),
    ],
)
def test_a_range_is_met_by_most_cells(effect, bounds, code):
    assert decide(effect("range", 2.0, high=4.0), cells(*bounds)).code == code


@pytest.mark.parametrize(
    ("measured", "code"),
    [((496, 496), "confirmed"), ((480, 480), "contradicted"), ((480, 500), "inconclusive")],
)
def test_a_count_is_exact_after_one_run(effect, measured, code):
    count = effect("exact", 496, type="absolute", unit="tokens")
    assert decide(count, cells(measured, runs=1)).code == code


def test_few_launches_are_no_verdict(effect):
    decision = decide(effect(), cells((1.9, 2.1), runs=4))
    assert decision.code == "too_few_runs"


def test_a_difference_within_the_noise_has_no_direction(effect):
    above = cells((2.01, 2.03))
    assert decide(effect("higher"), above).code == "confirmed"
    assert decide(effect("higher"), above, noise_floor=0.02).code == "inconclusive"


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


def test_nothing_measured_is_not_an_answer(effect):
    assert decide(effect(), []).code == "not_measured"
    assert decide(effect(), cells((math.nan, math.nan))).code == "inconclusive"


@pytest.mark.parametrize(
    ("quantifier", "estimate", "low", "high", "code"),
    [
        # equal arms differ by a factor of 1.6
        ("lower", 0.5, 0.45, 0.6, "confirmed"),
        ("lower", 0.6, 0.5, 0.7, "inconclusive"),
        ("higher", 2.0, 1.7, 2.3, "confirmed"),
    ],
)
def test_half_as_fast_is_as_far_from_equal_as_twice_as_fast(
    effect, quantifier, estimate, low, high, code
):
    cell = Interval(estimate=estimate, low=low, high=high)
    assert decide(effect(quantifier, 1.0), [cell], noise_floor=0.6).code == code


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
