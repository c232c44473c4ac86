from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.metrics.statistics import (
    Ratio,
    describe,
    holm,
    mean_of_rounds,
    needed_n,
    noise_floor,
    pair,
    paired_ratio,
    quantile,
    ratio_of_rounds,
    rounds_to_decide,
    t_interval,
    unpaired_ratio,
)


def rounds_of(*speedups: float, pairs: int = 6) -> pd.DataFrame:
    """One round for each speed-up, in which every pair shows just that."""
    return pd.DataFrame(
        [
            {"round": number, "baseline_s": s * (1.0 + i), "value_s": 1.0 + i}
            for number, s in enumerate(speedups, start=1)
            for i in range(pairs)
        ]
    )


def test_the_median_of_equal_values_is_that_value_and_its_interval_has_no_width():
    e = quantile([2.0] * 20, 0.5)
    assert (e.value, e.low, e.high, e.n, e.note) == (2.0, 2.0, 2.0, 20, "")


def test_six_values_bound_the_median_by_the_smallest_and_the_largest():
    e = quantile([6, 1, 5, 2, 4, 3], 0.5)
    assert (e.value, e.low, e.high) == (3.5, 1, 6)


def test_the_interval_of_a_table():
    # n = 25: ranks 8 and 18 for the median's 95 % interval (Conover, table of the sign test)
    e = quantile(range(1, 26), 0.5)
    assert (e.low, e.high) == (8, 18)


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.01, 368)])
def test_an_interval_begins_at_needed_n(q, n):
    assert needed_n(q) == n
    assert quantile(range(n), q).note == ""
    assert np.isfinite([quantile(range(n), q).low, quantile(range(n), q).high]).all()
    short = quantile(range(n - 1), q)
    assert short.note == f"needs {n}, has {n - 1}"
    assert math.isnan(short.low)
    assert math.isnan(short.high)
    assert math.isfinite(short.value)


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan, math.nan]])
def test_nothing_is_nan_and_not_zero(values):
    e = quantile(values, 0.5)
    assert math.isnan(e.value)
    assert (e.n, e.note) == (0, "no values")


def test_failed_requests_are_not_counted():
    assert quantile([1.0, 2.0, math.nan, 3.0], 0.5).n == 3


@pytest.mark.parametrize("q", [0, 1, -0.5, 95, math.nan])
def test_a_quantile_lies_between_0_and_1(q):
    with pytest.raises(ValueError, match=r"between 0 and 1, e\.g\. 0\.5 or 0\.99"):
        quantile([1.0], q)


@pytest.mark.parametrize(("q", "n"), [(0.5, 12), (0.5, 30), (0.9, 60)])
def test_the_interval_covers_the_true_quantile_about_95_times_in_100(q, n):
    draws = np.random.default_rng(20261120).exponential(size=(2000, n))
    truth = -math.log(1 - q)
    intervals = [quantile(draw, q) for draw in draws]
    covered = np.mean([e.low <= truth <= e.high for e in intervals])
    # Order statistics are discrete: at least 95 %, and at these n at most 98.6 %.
    assert 0.94 <= covered <= 0.99


@settings(deadline=None)  # other programs may take the cores
@given(st.lists(st.floats(0.001, 1000), min_size=6, max_size=60))
def test_the_interval_holds_the_estimate_and_stays_within_the_sample(values):
    e = quantile(values, 0.5)
    assert min(values) <= e.low <= e.value <= e.high <= max(values)


def test_twice_as_fast_in_every_pair_is_exactly_twice():
    ratio = paired_ratio(rounds_of(2, 2, 2, 2, 2))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    assert (ratio.rounds, ratio.pairs, ratio.dropped, ratio.note) == (5, 30, 0, "")


def test_the_interval_is_the_t_interval_of_the_rounds_not_of_the_pairs():
    # log-ratios 0, 1, 2: mean 1, standard error 1 / sqrt(3), t(0.975, 2) = 4.303
    few_pairs = paired_ratio(rounds_of(1, math.e, math.e**2, pairs=2))
    many_pairs = paired_ratio(rounds_of(1, math.e, math.e**2, pairs=200))
    reach = 4.302653 / math.sqrt(3)
    assert few_pairs.value == pytest.approx(math.e)
    assert few_pairs.low == pytest.approx(math.exp(1 - reach), rel=1e-5)
    assert few_pairs.high == pytest.approx(math.exp(1 + reach), rel=1e-5)
    assert many_pairs.low == pytest.approx(few_pairs.low)


def test_a_round_counts_once_however_many_of_its_pairs_are_left():
    pairs = rounds_of(1, 4, 4)
    pairs.loc[pairs["round"].eq(1) & (pairs.index > 0), "value_s"] = math.nan
    ratio = paired_ratio(pairs)
    assert ratio.value == pytest.approx(4 ** (2 / 3))
    assert (ratio.pairs, ratio.dropped) == (13, 5)
    assert "5 of 18 pairs left out" in ratio.note


def test_swapping_the_sides_inverts_the_ratio():
    pairs = rounds_of(1.5, 2, 3)
    swapped = pairs.rename(columns={"baseline_s": "value_s", "value_s": "baseline_s"})
    a, b = paired_ratio(pairs), paired_ratio(swapped)
    assert (a.value, a.low, a.high) == pytest.approx((1 / b.value, 1 / b.high, 1 / b.low))


@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0, math.inf])
def test_pairs_without_two_values_are_dropped_and_counted(bad):
    pairs = rounds_of(2, 2, 2, 2, 2)
    pairs.loc[0, "baseline_s"] = bad
    ratio = paired_ratio(pairs)
    assert (ratio.value, ratio.pairs, ratio.dropped) == (pytest.approx(2), 29, 1)


def test_pairs_meet_by_round_and_index():
    cold = pd.DataFrame({"round": [1, 1, 2], "index": [0, 1, 0], "ttft_s": [4.0, 6.0, 8.0]})
    warm = pd.DataFrame({"round": [2, 1, 1], "index": [0, 0, 2], "ttft_s": [2.0, 1.0, 9.0]})
    pairs = pair(cold, warm, "ttft_s")
    assert list(pairs.columns) == ["round", "index", "baseline_s", "value_s"]
    ratio = paired_ratio(pairs)
    assert ratio.value == pytest.approx(4)  # 4/1 in round 1, 8/2 in round 2
    assert ratio.dropped == 2  # index 1 only cold, index 2 only warm


def test_a_request_that_occurs_twice_is_refused():
    twice = pd.DataFrame({"round": [1, 1], "index": [3, 3], "ttft_s": [1.0, 2.0]})
    with pytest.raises(ValueError, match="not unique"):
        pair(twice, twice, "ttft_s")


def test_throughput_of_rounds_with_the_baseline_second():
    ratio = ratio_of_rounds(
        {1: 20, 2: 30, 3: 40, 4: 50, 5: 60}, {1: 10, 2: 15, 3: 20, 4: 25, 5: 30}
    )
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    assert ratio.sample == "5 rounds"


def test_rounds_that_one_side_lacks_are_dropped():
    ratio = ratio_of_rounds(
        pd.Series({1: 2.0, 2: 2.0, 3: math.nan}), {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
    )
    assert (ratio.value, ratio.rounds, ratio.dropped) == (pytest.approx(2), 2, 2)


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        (
            Ratio(value=18.12, low=16.94, high=19.38, rounds=5, pairs=30),
            "18.1x [16.9, 19.4], 5 rounds, 30 request pairs",
        ),
        (
            Ratio(value=1.014, low=0.968, high=1.062, rounds=5, pairs=30),
            "no significant difference: 1.01x [0.968, 1.06], 5 rounds, 30 request pairs",
        ),
        (
            Ratio(value=0.5, low=0.4, high=0.6, rounds=3, pairs=3, note="few rounds"),
            "0.500x [0.400, 0.600], 3 rounds (few rounds)",
        ),
        (
            Ratio(value=1234.5, low=1000, high=1500, rounds=6, pairs=29, dropped=1),
            "1,234x [1,000, 1,500], 6 rounds, 29 request pairs",
        ),
    ],
)
def test_a_ratio_in_one_sentence(ratio, sentence):
    assert describe(ratio) == sentence


@pytest.mark.parametrize(
    ("rounds", "sentence"),
    [
        (1, "2.00x, 1 round, 6 request pairs (no interval: needs 3 rounds)"),
        (2, "2.00x, 2 rounds, 12 request pairs (no interval: needs 3 rounds)"),
        (4, "2.00x [2.00, 2.00], 4 rounds, 24 request pairs (few rounds)"),
        (5, "2.00x [2.00, 2.00], 5 rounds, 30 request pairs"),
    ],
)
def test_few_rounds_are_said(rounds, sentence):
    assert describe(paired_ratio(rounds_of(*[2.0] * rounds))) == sentence


def test_no_pair_at_all_is_not_known():
    empty = rounds_of().reindex(columns=["round", "baseline_s", "value_s"])
    assert describe(paired_ratio(empty)) == "not known: no complete pair"
    assert describe(ratio_of_rounds({}, {})) == "not known: no complete pair"


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (2.0, 1.5, 2.7, "faster"),
        (0.5, 0.4, 0.6, "slower"),
        (1.1, 0.9, 1.3, "undecided"),
        (1.1, 1.0, 1.2, "undecided"),
        (2.0, math.nan, math.nan, "no_interval"),
        (math.nan, math.nan, math.nan, "no_interval"),
    ],
)
def test_the_verdict_of_a_ratio_is_what_its_interval_allows(value, low, high, verdict):
    assert Ratio(value=value, low=low, high=high, rounds=3, pairs=3).verdict == verdict


def test_a_t_interval_of_a_table():
    # 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.303 and t(0.95, 2) = 2.920
    reach = 4.302653 / math.sqrt(3)
    assert t_interval([1, 2, 3]) == pytest.approx((2, 2 - reach, 2 + reach))
    assert t_interval([1, 2, 3], 0.9)[2] == pytest.approx(2 + 2.919986 / math.sqrt(3))
    assert t_interval([4.0]) == pytest.approx((4, math.nan, math.nan), nan_ok=True)
    assert t_interval([]) == pytest.approx((math.nan,) * 3, nan_ok=True)


def test_the_mean_of_rounds_is_geometric_so_that_costs_are_the_inverse_of_throughputs():
    tps = mean_of_rounds([100.0, 200.0, 400.0])
    assert tps.value == pytest.approx(200.0)
    reach = 4.302653 * math.log(2) / math.sqrt(3)
    assert (tps.low, tps.high) == pytest.approx((200 / math.exp(reach), 200 * math.exp(reach)))
    cost = mean_of_rounds([1 / 100, 1 / 200, 1 / 400])
    assert (1 / cost.value, 1 / cost.high) == pytest.approx((tps.value, tps.low))


def test_the_mean_of_rounds_leaves_out_unknown_ones_and_says_so():
    found = mean_of_rounds([1.0, math.nan, 3.0], geometric=False)
    assert (found.value, found.n) == (2.0, 2)
    assert found.note == "1 of 3 rounds unknown; no interval: needs 3 rounds"
    assert math.isnan(found.low)
    assert math.isnan(mean_of_rounds([math.nan]).value)
    assert mean_of_rounds([-1.0, 0.0, 1.0], geometric=False).value == 0.0


def test_the_noise_floor_is_how_far_equal_arms_differ():
    assert noise_floor([1.25] * 10 + [1 / 1.25] * 10) == pytest.approx(0.25)
    assert noise_floor([2.0, math.nan, 0.0]) == pytest.approx(1.0)
    assert math.isnan(noise_floor([math.nan]))


def test_welch_is_as_scipy_has_it():
    stats = pytest.importorskip("scipy.stats")
    value, baseline = [1.1, 1.3, 1.2, 1.25], [1.0, 0.7, 1.4]
    found = unpaired_ratio(value, baseline)
    test = stats.ttest_ind(np.log(value), np.log(baseline), equal_var=False)
    ends = test.confidence_interval(0.95)
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((ends.low, ends.high))
    assert found.freedom == pytest.approx(test.df)
    assert found.p_worse_than(1.0) == pytest.approx(
        stats.ttest_ind(np.log(value), np.log(baseline), equal_var=False, alternative="less").pvalue
    )
    assert (found.rounds, found.baseline_rounds) == (4, 3)


def test_unpaired_launches_without_an_interval():
    assert unpaired_ratio([2.0], [1.0]).value == pytest.approx(2.0)
    few = unpaired_ratio([2.0, 2.0], [1.0, 1.0, 1.0])
    assert few.verdict == "no_interval"
    assert few.spread == 0.0
    assert math.isnan(few.p_worse_than(1.0))
    assert math.isnan(unpaired_ratio([math.nan], [1.0]).value)
    equal = unpaired_ratio([2.0] * 3, [1.0] * 3)
    assert (equal.low, equal.high) == pytest.approx((2.0, 2.0))
    assert (equal.p_worse_than(3.0), equal.p_worse_than(1.5)) == (0.0, 1.0)


def test_as_many_rounds_as_are_said_decide_in_about_80_percent():
    """Drawn anew with that many rounds, most intervals exclude the limit; with fewer, fewer do."""
    draw, limit, spread = np.random.default_rng(0), math.log(1.2), 0.1
    rounds = int(rounds_to_decide(spread * math.sqrt(2), limit))

    def decided(n):
        samples = np.exp(draw.normal(0, spread, (400, 2, n)))
        return np.mean([unpaired_ratio(a, b).high < 1.2 for a, b in samples])

    assert 0.72 < decided(rounds) < 0.92
    assert decided(rounds - 2) < decided(rounds + 3)


def test_rounds_that_cannot_be_said():
    assert math.isnan(rounds_to_decide(math.nan, 0.1))
    assert rounds_to_decide(0.1, 0.0) == math.inf
    assert rounds_to_decide(10.0, 0.001) == math.inf
    assert rounds_to_decide(0.0, 0.1) == 3


def test_holm_by_hand():
    # 0.01 <= 0.05 / 4, 0.015 <= 0.05 / 3, 0.03 > 0.05 / 2: the last two stand.
    assert holm([0.03, 0.01, 0.04, 0.015], alpha=0.05).tolist() == [False, True, False, True]
    # NaN was not tested, so it makes no other hypothesis harder to reject.
    assert holm([math.nan, 0.04], alpha=0.05).tolist() == [False, True]
    assert holm([math.nan, 0.04, 0.03], alpha=0.05).tolist() == [False, False, False]
    assert holm([math.nan], alpha=0.05).tolist() == [False]
    assert holm([]).tolist() == []
