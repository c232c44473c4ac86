"""Where offloading pays, by working set."""

import pandas as pd
import pytest

from tests.report.conftest import text, words
from workbench.report import figures


@pytest.fixture
def sizes() -> pd.DataFrame:
    rows = [
        {"arm": "1a offload", "baseline_arm": "1a", "asked": asked, "times": times,
         "host_times": 4.0, "hit_share": hits, "baseline_hit_share": alone,
         "ratio": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio, "verdict": verdict}
        for times, hits, alone, ratio, verdict in (
            (0.5, 0.98, 0.98, 0.85, "slower"), (2.0, 0.98, 0.0, 9.0, "faster"),
            (8.0, 0.0, 0.0, 1.0, "undecided"),
        )
        for asked in ("cold", "again")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_it_shows_both_limits_and_says_where_it_is_faster(sizes):
    chart = figures.working_sets(sizes)
    shown = text(chart)
    assert "Offloading: TTFT up to 9.0x faster, at working sets of 2x KV space" in shown
    assert {"KV space", "host memory"} <= set(words(chart))
    assert "host memory (4x) hold" in chart.caption


@pytest.mark.parametrize(
    ("verdict", "title"),
    [
        ("slower", "Offloading: TTFT slower at 0.5x, 2x, 8x KV space"),
        ("undecided", "Offloading: no significant effect on TTFT"),
        ("no_interval", "TTFT without and with offloading: too few rounds to compare"),
    ],
)
def test_the_title_says_no_more_than_the_intervals(sizes, verdict, title):
    assert title in text(figures.working_sets(sizes.assign(verdict=verdict)))


def test_without_a_sweep_there_is_no_figure(sizes):
    assert figures.working_sets(sizes.iloc[:0]) is None
