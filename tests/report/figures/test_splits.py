"""Predicted splits: hollow marks, an arrow for an open end, a cross where nothing is predicted."""

from math import inf, nan

import pandas as pd

from tests.report.conftest import text, words
from workbench.report.figures import splits

ROWS = (
    ("1p3d", True, 4, 2.0, 1.5, 2.5, "prefill queue", "", "", 9.0),
    ("2p2d", True, 4, 5.0, 4.0, inf, "profiled range", "not predicted: batches", "", 4.0),
    ("3p1d", True, 4, nan, nan, nan, "", "", "near saturation", nan),
    ("4a", False, 4, 3.0, 2.0, 4.0, "engine steps", "", "", 6.0),
    ("1p1d", True, 2, 1.0, 0.9, 1.1, "decode steps", "", "", 10.0),
)
COLUMNS = (
    "topology", "split", "gpus", "rate_per_s", "low", "high", "limited_by", "open_end", "refused",
    "cost",
)  # fmt: skip


def chart(currency="USD"):
    frame = pd.DataFrame(ROWS, columns=list(COLUMNS)).assign(missed=False)
    frame.attrs |= {"unit": "GPU", "gpus": 4, "simulated": True, "currency": currency,
                    "limits": "TTFT at most 500 ms", "interval": "83 % interval"}  # fmt: skip
    return splits(frame, "4 GPUs: 2p2d would serve at least 5 req/s")


def test_what_is_not_predicted_is_a_cross_with_words_and_no_number():
    drawn = chart()
    assert "not predicted" in text(drawn) and "3p1d near saturation" in drawn.alt
    assert "Cross: not predicted" in drawn.caption
    assert "Arrow: higher rates are outside" in drawn.caption
    assert {"limit: prefill queue", "limit: profiled range", "simulated"} <= set(words(drawn))
    assert "2p2d at least 5 req/s" in drawn.alt


def test_the_second_panel_has_cost_where_there_is_a_price():
    assert "USD per million output tokens" in text(chart())
    assert "highest rate per GPU, req/s" in text(chart(currency=""))
