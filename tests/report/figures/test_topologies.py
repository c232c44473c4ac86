import numpy as np
import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.report import figures


def test_ttft_has_arms_states_unit_and_speed_up(summary, comparisons):
    chart = figures.ttft_by_topology(summary, comparisons)
    shown = words(chart)
    assert shown.count("15.0x [14.0, 16.0]") == 2
    assert "TTFT is 15.0 times lower store-warm than cold" in shown
    assert {"1p4d lmcache", "5a lmcache", "cold", "engine-warm", "store-warm speed-up"} < set(shown)
    assert "TTFT, ms (log scale)" in shown
    assert "1p4d lmcache store-warm 200 ms" in chart.alt
    assert "30 requests in 5 rounds" in chart.caption


def test_ttft_of_ten_seconds_and_more_is_in_seconds(summary):
    slow = summary.assign(**{key: 10 * summary[key] for key in ("median", "low", "high")})
    assert "TTFT, s (log scale)" in words(figures.ttft_by_topology(slow, pd.DataFrame()))


@pytest.mark.parametrize(
    ("judged", "title"),
    [
        ({"ratio": 1.01, "low": 0.9, "high": 1.1}, "no difference detectable"),
        ({"low": [0.9, 14, 0.9]}, "TTFT is 15.0 times lower store-warm than cold in 1 of 2 arms"),
        ({"low": np.nan, "high": np.nan}, "too few rounds to judge a difference"),
    ],
)
def test_an_undecided_speed_up_is_not_a_finding(summary, comparisons, judged, title):
    assert title in text(figures.ttft_by_topology(summary, comparisons.assign(**judged)))


def test_without_an_interval_the_caption_explains_hollow_marks(summary):
    bare = figures.ttft_by_topology(summary.assign(low=None, high=np.nan), pd.DataFrame())
    assert "Hollow: too few requests for an interval." in bare.caption
    assert "Hollow" not in figures.ttft_by_topology(summary, pd.DataFrame()).caption


def test_tps_starts_at_zero_and_names_both_ends(summary):
    summary.loc[summary["pass"] == "cold", "median"] = 30.0
    chart = figures.tps_by_topology(summary)
    assert "0" in words(chart)
    assert "TPS per request is from 30.0 (1p4d lmcache, cold)" in text(chart)
    system = figures.tps_by_topology(summary, metric="system_tps")
    assert "output tokens per second of all requests together" in words(system)


def test_a_ratio_whose_interval_holds_one_is_no_difference(comparisons):
    chart = figures.speedups(comparisons, "ttft_s")
    shown = words(chart)
    assert shown.count("no difference detectable") == 1
    assert "TTFT differs detectably in 2 of 3 comparisons" in shown
    assert "1p4d lmcache, cold, against 5a lmcache: 0.970x [0.930, 1.02]" in chart.alt
    warm = figures.speedups(comparisons, "ttft_s", kind="cache-state")
    assert "no difference detectable" not in words(warm)


def test_a_ratio_of_too_few_rounds_says_so(comparisons):
    chart = figures.speedups(comparisons.assign(low=None, high=None, n_rounds=1), "ttft_s")
    assert words(chart).count("too few rounds for an interval") == 3
    assert "TTFT: too few rounds to judge 3 comparisons" in words(chart)
    assert "over 1 round," in chart.caption


def test_a_sweep_over_rates_has_no_empty_panel_of_ratios():
    nothing = pd.DataFrame()
    assert "as many aggregated" in figures.speedups(nothing, "ttft_s", kind="opponent").alt
    nothing.attrs["swept"] = True
    assert figures.speedups(nothing, "ttft_s", kind="opponent") is None
