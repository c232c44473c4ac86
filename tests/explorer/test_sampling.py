import numpy as np

from workbench.explorer.sampling import distribution, drawn_note, sample, shuffled


def test_few_rows_are_all_drawn():
    groups = [np.arange(5), np.arange(5, 9)]
    assert [list(part) for part in sample(groups, np.ones(9), shuffled(9), most=9)] == [
        [0, 1, 2, 3, 4], [5, 6, 7, 8],
    ]  # fmt: skip


def test_a_sample_keeps_small_series_whole_and_the_extremes_of_large_ones():
    values = np.random.default_rng(1).lognormal(size=10_010)
    small, large = np.arange(10), np.arange(10, 10_010)
    first, second = sample([small, large], values, shuffled(10_010), most=1_000)
    assert list(first) == list(small)
    assert 985 <= len(second) <= 990
    assert {values[large].argmin() + 10, values[large].argmax() + 10} <= set(second)
    again = sample([small, large], values, shuffled(10_010), most=1_000)
    assert list(again[1]) == list(second)


def test_a_distribution_is_that_of_all_rows_with_few_points():
    values, percent = distribution(np.arange(100_000.0, 0, -1))
    assert len(values) <= 400
    assert (values[0], values[-1], percent[-1]) == (1, 100_000, 100)
    assert abs(np.interp(50, percent, values) - 50_000) < 1
    assert distribution(np.zeros(0))[0].size == 0


def test_the_note_says_what_is_drawn():
    assert drawn_note(10_000, 100_000, "requests").startswith("10,000 of 100,000 requests are")
    assert drawn_note(7, 7, "lookups") == "All 7 lookups are drawn."
    assert drawn_note(0, 0, "requests") == "No requests to draw."
