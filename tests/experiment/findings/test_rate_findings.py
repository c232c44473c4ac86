"""The answer of a sweep over rates in three numbers."""

from dataclasses import replace
from math import nan

import pytest

from workbench.experiment.findings.rate_findings import rate_cards
from workbench.experiment.plan.rates import Rates
from workbench.experiment.plan.search import Answer, Limits
from workbench.experiment.result.facts import RateRow


def row(rate, achieved, ttft_s, **given):
    fields = {
        "arm": "1p1d", "rate_per_s": rate, "n_requests": 80, "n_rounds": 2, "share": 0.95,
        "share_low": 0.88, "share_high": 0.98, "offered_per_s": 0.9 * rate,
        "achieved_per_s": achieved, "goodput_per_s": 0.95 * achieved, "ttft_s": ttft_s,
        "ttft_low_s": 0.9 * ttft_s, "ttft_high_s": 1.1 * ttft_s, "ttft_p90_s": 2 * ttft_s,
        "tpot_s": 0.004,
    }  # fmt: skip
    return RateRow(**fields | given)


ROWS = [row(2, 1.8, 0.04), row(8, 5.0, 0.4), row(20, 4.8, 2.0)]
SWEEP = Rates(given=(2, 8, 20), limits=Limits(ttft_s=0.5))


def test_a_sweep_is_told_by_its_top_and_by_ttft_at_both_ends():
    ended, slow, fast = rate_cards(SWEEP, ROWS, {})
    assert (ended.label, ended.value, ended.unit) == (
        "answers ended at most, 1p1d",
        5,
        "/s",
    )
    assert ended.note == "with 7.2/s offered, 2 rounds"
    assert (slow.label, slow.value) == ("median TTFT at 2 requests/s, 1p1d", 40)
    assert (fast.value, fast.low, fast.high) == pytest.approx((2000, 1800, 2200))
    easy = rate_cards(SWEEP, [row(2, 1.8, 0.04), row(8, 7.5, 0.05)], {})[0]
    assert (easy.label, easy.value) == ("highest rate offered, 1p1d", 7.2)
    assert easy.note == "answers kept up with it, 2 rounds"
    spoiled = rate_cards(SWEEP, ROWS, {}, ["client kept up"])
    assert all(card.note.startswith("rough: gate “client kept up” failed;") for card in spoiled)


def test_a_resolved_search_is_told_by_its_answer_and_another_is_not():
    answer = Answer(met_per_s=2, missed_per_s=2.4, resolved=True, reason="")
    card = rate_cards(SWEEP, ROWS, {"1p1d": answer})[0]
    assert (card.label, card.value) == ("highest rate within the limits, 1p1d", 2)
    assert card.note == "TTFT up to 500 ms; 2.4/s missed them"
    card = rate_cards(SWEEP, ROWS, {"1p1d": replace(answer, resolved=False, reason="few")})[0]
    assert card.label == "answers ended at most, 1p1d"


def test_without_rates_or_answers_there_are_no_cards():
    assert rate_cards(None, [], {}) == ()
    assert rate_cards(SWEEP, [row(2, nan, nan)], {}) == ()
    assert len(rate_cards(SWEEP, ROWS[:1], {})) == 2
