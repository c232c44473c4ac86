"""What a KV store costs and gains."""

from math import nan

import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.report import figures


@pytest.fixture
def ratios() -> pd.DataFrame:
    rows = []
    for what, arm, name, base, value in (
        ("storing", "lmcache", "cold", "no store", 0.9),
        ("loading", "lmcache", "store-warm", "no store", 2.0),
        ("loading", "lmcache", "50% in LMCache", "no store", 1.2),
        ("chunk", "lmcache", "store-warm", "lmcache", 1.0),
        ("chunk", "chunk 512", "store-warm", "lmcache", 0.8),
    ):
        for length in (0, 400, 3900):
            rows.append(
                {"what": what, "arm": arm, "pass": name, "baseline_arm": base,
                 "baseline_pass": "cold", "prompt_tokens": length, "ratio": value,
                 "low": 0.9 * value, "high": 1.1 * value, "n_rounds": 3, "n_pairs": 6,
                 "loaded_share": 0.8 if arm == "lmcache" else 0.5,
                 "chunk_tokens": 512 if arm == "chunk 512" else 256}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_cost_of_storing_is_a_change_of_ttft(ratios):
    chart = figures.cost_of_storing(ratios)
    assert "LMCache changes cold TTFT by +11.1 % [+1.0, +23.5]" in text(chart)
    assert {"all prompts", "400 tokens", "3,900 tokens"} <= set(words(chart))


def test_a_cost_that_may_be_none_is_called_so(ratios):
    chart = figures.cost_of_storing(ratios.assign(high=1.2))
    assert "What LMCache costs a cold prompt is not told from noise" in text(chart)


def test_break_even_has_a_line_for_each_state(ratios):
    chart = figures.break_even(ratios)
    shown = words(chart)
    assert {"store-warm", "50% in LMCache", "as fast as recomputing", "400", "3900"} <= set(shown)
    assert "store-warm 2x" in text(chart)
    assert "50% in LMCache 1.2x" in text(chart)


def test_without_intervals_marks_are_hollow_and_the_title_says_so(ratios):
    chart = figures.break_even(ratios.assign(low=nan, high=nan))
    assert "(no interval)" in text(chart)


def test_the_chunk_shows_share_and_ttft(ratios):
    chart = figures.chunk_effect(ratios)
    assert "80.0% with 256, 50.0% with 512" in text(chart)
    assert "against chunk 256" in chart.caption


def test_a_log_has_none_of_these():
    chart = figures.break_even(pd.DataFrame())
    assert "No data: a log has no TTFT; a live run measures it." in chart.alt
