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
    assert "Storing in LMCache changes cold TTFT by +11.1 % [+1.01, +23.5]" in text(chart)
    assert {"all prompts", "400 tokens", "3,900 tokens"} <= set(words(chart))


def test_a_cost_that_may_be_none_is_called_so(ratios):
    chart = figures.cost_of_storing(ratios.assign(high=1.2))
    assert "No significant effect of storing on cold TTFT" in text(chart)


def test_break_even_has_a_line_for_each_state(ratios):
    chart = figures.break_even(ratios)
    shown = words(chart)
    assert {"store-warm", "50% in LMCache", "as fast as recomputing", "400", "3,900"} <= set(shown)
    assert "50% in LMCache at 3,900 tokens 1.2x" in chart.alt


@pytest.mark.parametrize(
    ("judged", "title"),
    [
        ({}, "Loading 3,900 tokens is 2.0x faster than recomputing (store-warm)"),
        ({"ratio": 0.5, "low": 0.4, "high": 0.6}, "Loading 3,900 tokens is 2.0x slower than"),
        ({"low": 0.5}, "No significant speed-up of loading 3,900 tokens (store-warm)"),
        ({"low": nan, "high": nan}, "Loading 3,900 tokens: too few rounds to judge"),
    ],
)
def test_the_title_says_what_the_interval_of_the_longest_prompt_allows(ratios, judged, title):
    assert title in text(figures.break_even(ratios.assign(**judged)))


def test_the_chunk_shows_share_and_ttft(ratios):
    chart = figures.chunk_effect(ratios)
    assert "Prompt tokens loaded: 80 % with chunk 256, 50 % with chunk 512" in text(chart)
    assert "over 256-token chunks" in chart.caption


def test_a_log_has_none_of_these():
    chart = figures.break_even(pd.DataFrame())
    assert "No data: a log has no TTFT. Run without log_file to measure it." in chart.alt
