"""The answer of a sweep over rates in three numbers."""

from dataclasses import replace
from math import nan

import pytest

from workbench.experiment.findings.load_findings import load_cards, load_headline
from workbench.experiment.load_unit import USERS
from workbench.experiment.plan.offered_load.loads import Loads
from workbench.experiment.plan.offered_load.search import Answer, Limits
from workbench.experiment.result.finding_rows import LoadRow


def row(rate, achieved, ttft_s, **given):
    fields = {
        "arm": "1p1d", "rate_per_s": rate, "n_requests": 80, "n_rounds": 2, "share": 0.95,
        "share_low": 0.88, "share_high": 0.98, "offered_per_s": 0.9 * rate,
        "achieved_per_s": achieved, "goodput_per_s": 0.95 * achieved, "ttft_s": ttft_s,
        "ttft_low_s": 0.9 * ttft_s, "ttft_high_s": 1.1 * ttft_s, "ttft_p90_s": 2 * ttft_s,
        "tpot_s": 0.004,
    }  # fmt: skip
    return LoadRow(**fields | given)


ROWS = [row(2, 1.8, 0.04), row(8, 5.0, 0.4), row(20, 4.8, 2.0)]
ANSWER = Answer(met=2, missed=8, resolved=True, reason="")
SWEEP = Loads(given=(2, 8, 20), limits=Limits(ttft_s=0.5))


def test_a_sweep_is_told_by_its_top_and_by_ttft_at_both_ends():
    ended, slow, fast = load_cards(SWEEP, ROWS, {})
    assert (ended.label, ended.value, ended.unit) == (
        "Peak throughput, 1p1d",
        5,
        "req/s",
    )
    assert ended.note == "with 7.2 req/s offered; 2 rounds"
    assert (slow.label, slow.value) == ("Median TTFT at 1.8 req/s, 1p1d", 40)
    assert (fast.value, fast.low, fast.high) == pytest.approx((2000, 1800, 2200))
    easy = load_cards(SWEEP, [row(2, 1.8, 0.04), row(8, 7.5, 0.05)], {})[0]
    assert (easy.label, easy.value) == ("Highest offered rate, 1p1d", 7.2)
    assert easy.note == "throughput kept up; 2 rounds"
    spoiled = load_cards(SWEEP, ROWS, {}, ["client kept up"])
    assert all(card.note.startswith("rough; ") for card in spoiled)


def test_a_resolved_search_is_told_by_its_answer_and_another_is_not():
    card = load_cards(SWEEP, ROWS, {"1p1d": ANSWER})[0]
    assert (card.label, card.value) == ("Highest rate within the limits, 1p1d", 1.8)
    assert card.note == "TTFT at most 500 ms; missed at 7.2 req/s"
    card = load_cards(SWEEP, ROWS, {"1p1d": replace(ANSWER, resolved=False, reason="few")})[0]
    assert card.label == "Peak throughput, 1p1d"


@pytest.mark.parametrize(
    ("rows", "answer", "said"),
    [
        (ROWS, None, "1p1d: throughput peaked at 5 req/s with 7.2 req/s offered"),
        (ROWS[:1], None, "1p1d: throughput matched every rate up to 1.8 req/s"),
        (ROWS, ANSWER, "1p1d: the highest rate within the limits is 1.8 req/s"),
        (
            ROWS,
            replace(ANSWER, resolved=False),
            "1p1d: the highest rate within the limits was not resolved",
        ),
        ([], None, ""),
    ],
)
def test_the_headline_is_what_the_first_arm_reached(rows, answer, said):
    assert load_headline(rows, {"1p1d": answer} if answer else {}) == said
    assert len(said.replace("1p1d", "(rough) 1p4d lmcache, 1+4 GPU").split()) <= 14


LOOP = [
    row(nan, 6.0, 0.1, offered_per_s=nan, users=2),
    row(nan, 9.0, 0.4, offered_per_s=nan, users=8),
    row(nan, 8.0, 2.0, offered_per_s=nan, users=16),
]
USER_SWEEP = Loads(given=(2, 8, 16), unit=USERS, limits=Limits(ttft_s=0.5))


def test_a_sweep_over_users_is_told_in_users():
    peak, slow, fast = load_cards(USER_SWEEP, LOOP, {})
    assert (peak.label, peak.value, peak.unit) == ("Peak throughput, 1p1d", 9, "req/s")
    assert peak.note == "with 8 users; 2 rounds"
    assert (slow.label, slow.value) == ("Median TTFT at 2 users, 1p1d", 100)
    assert fast.label == "Median TTFT at 16 users, 1p1d"
    assert load_cards(USER_SWEEP, LOOP[:2], {})[0].label == "Highest throughput, 1p1d"
    answer = Answer(met=8, missed=16, resolved=True, reason="")
    card = load_cards(USER_SWEEP, LOOP, {"1p1d": answer})[0]
    assert (card.label, card.value) == ("Highest number of users within the limits, 1p1d", 8)
    assert (card.unit, card.note) == ("users", "TTFT at most 500 ms; missed at 16 users")
    said = load_headline(LOOP, {"1p1d": answer})
    assert said == "1p1d: the highest number of users within the limits is 8"
    assert load_headline(LOOP, {}) == "1p1d: throughput peaked at 9 req/s with 8 users"


def test_without_rates_or_answers_there_are_no_cards():
    assert load_cards(None, [], {}) == ()
    assert load_cards(SWEEP, [row(2, nan, nan)], {}) == ()
    assert len(load_cards(SWEEP, ROWS[:1], {})) == 2
