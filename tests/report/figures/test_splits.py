"""Predicted splits: hollow marks, an arrow for an open end, a cross where nothing is predicted."""

from math import inf, nan

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.report.conftest import text, words
from workbench.report.figures import splits

ROWS = (
    ("1p3d", True, 4, 2.0, 1.5, 2.5, "prefill queue", False, "", 9.0, 8.0, 12.0),
    ("2p2d", True, 4, 5.0, 5.0, inf, "profiled range", True, "", 4.0, nan, 4.0),
    ("3p1d", True, 4, nan, nan, nan, "", False, "near saturation", nan, nan, nan),
    ("4a", False, 4, 6.0, 6.0, 8.0, "engine steps", True, "", 6.0, 5.0, 6.0),
    ("1p2d", True, 3, 2.0, 1.9, 2.1, "decode steps", False, "", 5.0, 4.0, 7.0),
    ("1p1d", True, 2, 1.0, 0.9, 1.1, "decode steps", False, "", 10.0, 9.0, 11.0),
)
COLUMNS = (
    "topology", "split", "gpus", "rate_per_s", "low", "high", "limited_by", "at_least", "refused",
    "cost", "cost_low", "cost_high",
)  # fmt: skip


def chart(currency="USD", rows=ROWS):
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).assign(missed=False)
    frame.attrs |= {"unit": "GPU", "gpus": 4, "simulated": True, "currency": currency,
                    "limits": "TTFT at most 500 ms", "interval": "83 % interval"}  # fmt: skip
    return splits(frame, "4 GPUs: 2p2d would serve at least 5 req/s")


@pytest.fixture
def axes(monkeypatch):
    """The two panels, as they were painted."""
    kept = []
    subplots = Figure.subplots

    def keep(figure, *given, **options):
        kept[:] = subplots(figure, *given, **options)
        return kept

    monkeypatch.setattr(Figure, "subplots", keep)
    return kept


def test_what_is_not_predicted_is_a_cross_with_words_and_no_number():
    drawn = chart()
    assert "not predicted" in text(drawn) and "3p1d near saturation" in drawn.alt
    assert "Cross: no rate" in drawn.caption
    assert {"limit: prefill queue", "limit: profiled range", "simulated"} <= set(words(drawn))
    assert "2p2d at least 5 req/s" in drawn.alt


def test_the_second_panel_has_cost_where_there_is_a_price():
    assert "USD per million output tokens" in text(chart())
    assert "highest rate per GPU, req/s" in text(chart(currency=""))


@pytest.mark.parametrize(("currency", "most"), [("", 2.0), ("USD", 11.0)])
def test_the_axes_hold_every_interval(axes, currency, most):
    chart(currency)
    left, right = axes
    assert left.get_ylim()[1] > 8.0  # the end of the aggregated interval
    assert right.get_ylim()[1] > most


def test_what_may_be_better_outside_the_profiled_range_is_marked_and_not_joined(axes):
    said = chart().caption
    assert '"at least" (cost: at the high end, "at most"); the bar reaches' in said
    assert "Arrow: higher rates, so lower costs, are outside the profiled range." in said
    assert "Not joined: a split of this size" in said
    joined = axes[1].lines[0].get_ydata()
    assert [*joined[:2]] == [10.0, 5.0] and pd.isna(joined[2])


def test_a_bar_is_explained_only_where_one_is():
    said = chart("", [row for row in ROWS if row[0] != "4a"]).caption
    assert "Mark" not in said and "Arrow: higher rates are outside the profiled range." in said


def test_without_open_ends_nothing_is_said_of_them():
    said = chart("", [row for row in ROWS if row[0] in ("1p3d", "1p2d", "1p1d")]).caption
    assert not any(word in said for word in ("Mark", "Arrow", "Not joined", "Cross"))
