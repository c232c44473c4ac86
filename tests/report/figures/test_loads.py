import pandas as pd
import pytest

from workbench.report.figures import cache_size, loads


@pytest.fixture
def swept() -> pd.DataFrame:
    row = {"arm": "1p1d", "share": 1.0, "ttft_s": 0.02, "ttft_low_s": 0.018, "ttft_high_s": 0.03}
    row |= {"users": None}
    rows = [
        row | {"offered_per_s": 2.0, "achieved_per_s": 2.0, "goodput_per_s": 2.0},
        row | {"offered_per_s": 8.0, "achieved_per_s": 5.0, "goodput_per_s": 1.0, "share": 0.2},
    ]
    return pd.DataFrame(rows)


def test_rates_say_what_was_achieved_of_what_was_offered(swept):
    chart = loads(swept)
    assert "Throughput peaks at 5 req/s (1p1d)" in chart.alt
    assert (
        "1p1d at 8 req/s: TTFT 20.0 ms, 5.00 req/s completed, 20 % within the limits" in chart.alt
    )


def test_users_of_a_closed_loop_have_no_offered_rate(swept):
    chart = loads(swept.assign(users=[2, 8], offered_per_s=None))
    assert chart.alt.startswith("Highest throughput: 5 req/s (1p1d, 8 users).")
    assert "1p1d at 2 users: TTFT 20.0 ms, 2.00 req/s completed" in chart.alt
    assert chart.caption.endswith(
        "and goodput, which counts only requests within the limits (open). Each user has one"
        " request in flight."
    )
    assert "offered rate" in loads(swept).caption


def test_throughput_that_keeps_up_has_shown_no_peak(swept):
    chart = loads(swept[:1])
    assert chart.alt.startswith("Throughput matches every offered rate up to 2 req/s")


def test_without_limits_there_is_no_goodput(swept):
    with_limits = loads(swept)
    swept.attrs["limited"] = False
    without = loads(swept)
    assert "goodput" in with_limits.caption
    assert "goodput" not in without.caption
    assert "within the limits" not in without.alt


def test_goodput_of_requests_that_all_met_the_limits_is_only_told(swept):
    assert "(open)" in loads(swept).caption
    met = loads(swept.assign(goodput_per_s=swept["achieved_per_s"]))
    assert "All requests are within the limits, so goodput is the same." in met.caption
    assert "(open)" not in met.caption


def test_rates_at_which_nothing_ended_can_be_drawn(swept):
    nothing = swept.assign(achieved_per_s=None, goodput_per_s=0.0, ttft_s=None, ttft_low_s=None)
    chart = loads(nothing)
    assert "unknown" in chart.alt


def test_a_median_without_an_interval_is_drawn(swept):
    few = swept.assign(ttft_low_s=None, ttft_high_s=None)  # as a result has it: of type object
    assert "1p1d at 2 req/s: TTFT 20.0 ms" in loads(few).alt


def test_without_rates_or_sharing_there_is_no_figure(swept):
    assert loads(swept.iloc[:0]) is None
    assert cache_size(pd.DataFrame({"cache_tokens": [], "hit_rate": []})) is None


def test_the_cache_that_is_enough_is_the_title():
    frame = pd.DataFrame({"cache_tokens": [128, 1280, 12_800], "hit_rate": [0.1, 0.78, 0.8]})
    frame.attrs |= {"ideal_reuse": 0.85, "requests": 40, "block_tokens": 128, "workload": "batch"}
    chart = cache_size(frame)
    assert chart.alt.endswith("A cache of 1,280 tokens reaches a hit rate of 78 % (ideal: 85 %).")
