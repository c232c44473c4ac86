import re

import numpy as np
import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.report import figures


def test_the_four_panels_have_units_and_count_the_failed(requests):
    chart = figures.latency_panels(requests)
    assert {
        "TTFT, ms (log scale)",
        "throughput per request, tok/s",
        "end-to-end latency, ms (log scale)",
        "output length, tokens",
        "off",
        "cold",
        "warm",
    } < set(words(chart))
    assert chart.caption == (
        "Requests: 23 off; 24 cold; 24 warm. 1 failed (not drawn). A speed-up is the paired ratio,"
        " not the ratio of these medians."
    )


def test_a_response_of_one_read_does_not_hide_the_rates_of_the_others(requests):
    burst = requests.assign(request_tps=[700_000.0, *requests["request_tps"][1:]])
    chart = figures.latency_panels(burst)
    assert "throughput per request, tok/s" in words(chart)  # no log scale
    assert "Throughput leaves out responses that arrived in one socket read (1)." in chart.caption


def test_lines_are_told_apart_by_arm_where_there_are_several(requests):
    both = pd.concat([requests, requests.assign(arm="2a none")])
    assert {"1a none, cold", "2a none, warm"} < set(words(figures.latency_panels(both)))


def test_cached_share_gives_the_medians_at_both_ends(requests):
    chart = figures.ttft_against_cached_share(requests)
    assert re.search(r"\d+ ms with at most 20 % cached, 1\d\d ms with", chart.alt)
    assert "cached fraction of the prompt, %" in words(chart)


def test_points_of_many_groups_are_told_apart_by_their_state(requests):
    many = pd.concat([requests.assign(arm=arm) for arm in ("1a", "2a", "3a")])
    shown = words(figures.ttft_against_cached_share(many))
    assert {"off", "cold", "warm"} < set(shown)
    assert "1a, cold" not in shown


def test_hits_are_a_share_of_the_ideal():
    frame = pd.DataFrame(
        {
            "prompt_tokens": 2048,
            "cached_tokens": [0, 1000, 1000],
            "ideal_tokens": [0, 1250, 1250],
            "pass": ["cold", "warm", "warm"],
        }
    )
    chart = figures.hit_against_ideal(frame)
    assert "The cache served 80.0 % of the ideal reuse (2,000 of 2,500 tokens)" in words(chart)
    assert "(up to 2)" in chart.caption
    assert "no prompt repeats another" in text(figures.hit_against_ideal(frame[:1]))


def test_a_slow_start_of_a_pass_is_called_a_warm_up(requests):
    off = requests[requests["pass"] == "off"]
    slow = off.assign(ttft_s=off["ttft_s"].where(off["index"] > 4, 4 * off["ttft_s"]))
    for rows, found in (
        (off, "No warm-up: TTFT of the first 5 requests is at most"),
        (slow, "Warm-up in off: TTFT of the first 5 requests is"),
        (off[:10], "too short to show a warm-up"),
    ):
        assert found in figures.requests_over_time(rows).alt


def test_no_data_names_the_most_frequent_error(requests):
    failed = requests.assign(error="timeout", ttft_s=np.nan, e2e_s=np.nan)
    assert "Most frequent error: timeout." in figures.latency_panels(failed).alt
    silent = requests.assign(cached_tokens=-1)
    assert "the server did not report" in figures.ttft_against_cached_share(silent).alt


@pytest.fixture(scope="module")
def many() -> pd.DataFrame:
    """200,000 requests of two cache states, one of them rare."""
    draw, n = np.random.default_rng(0), 200_000
    prompt = draw.integers(500, 30_000, n)
    return pd.DataFrame(
        {
            "arm": "1p4d",
            "round": 0,
            "pass": np.where(np.arange(n) < 100, "warm", "cold"),
            "error": "",
            "sent_s": np.arange(n) * 0.01,
            "ttft_s": draw.lognormal(-2, 0.7, n),
            "request_tps": draw.normal(80, 5, n),
            "e2e_s": draw.lognormal(0, 0.4, n),
            "output_tokens": draw.integers(1, 500, n),
            "prompt_tokens": prompt,
            "cached_tokens": (prompt * draw.random(n)).astype(int),
            "ideal_tokens": prompt,
        }
    )


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        (figures.latency_panels, ""),  # the path is simplified to half a pixel
        # 750 of the common state, all 100 of the rare one, and the two extremes
        (figures.requests_over_time, "a sample of 852 of 200,000 requests"),
        (figures.ttft_against_cached_share, "a sample of 852 of 200,000 requests"),
        (figures.hit_against_ideal, "Token counts are rounded to 1,200."),
    ],
)
def test_many_requests_are_drawn_from_reduced_data_and_the_caption_says_so(many, figure, sentence):
    chart = figure(many)
    assert sentence in chart.caption
    assert "199,900 cold" in chart.caption  # what is counted and said rests on all of them
    assert len(chart.svg) < 200_000
    assert chart.svg == figure(many).svg  # the same sample each time
    assert not sentence or sentence not in figure(many[:300:3]).caption


def test_an_arm_without_a_value_keeps_its_name_in_the_panels_of_the_others(requests):
    single = requests.assign(arm="2a none", request_tps=np.nan)  # one token has no rate
    assert "2a none, cold" in words(figures.latency_panels(pd.concat([requests, single])))
