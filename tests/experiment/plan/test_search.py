from math import isnan, nan

import pytest

from workbench.experiment.plan.search import Limits, Point, Search

SEARCH = Search(
    limits=Limits(ttft_s=0.5, share=0.9), first_per_s=1.0, bottom_per_s=0.01, top_per_s=100.0
)


def point(rate_per_s, share, *, sent=100, rounds=1):
    return Point(rate_per_s=rate_per_s, sent=(sent,) * rounds, met=(round(share * sent),) * rounds)


def searched(edge_per_s, search=SEARCH):
    """The rates that are tried on a server that meets the limits up to an edge."""
    points = []
    while (rate := search.next_rate(points)) is not None:
        points.append(point(rate, 1.0 if rate <= edge_per_s else 0.2))
    return points


def test_the_edge_is_bracketed_by_doubling_and_then_bisected():
    rates = [p.rate_per_s for p in searched(5.0)]
    assert rates[:4] == [1.0, 2.0, 4.0, 8.0]
    assert all(4.0 < rate < 8.0 for rate in rates[4:])
    answer = SEARCH.answer(searched(5.0))
    assert answer.resolved and answer.met_per_s <= 5.0 < answer.missed_per_s
    assert answer.missed_per_s <= 1.1 * answer.met_per_s


def test_below_the_first_rate_it_halves():
    assert [p.rate_per_s for p in searched(0.3)][:3] == [1.0, 0.5, 0.25]
    assert SEARCH.answer(searched(0.3)).resolved


@pytest.mark.parametrize("edge_per_s", [0.013, 0.7, 1.0, 3.3, 42.0, 99.0])
def test_wherever_the_edge_is_the_answer_holds_it_in_nine_points(edge_per_s):
    points = searched(edge_per_s)
    answer = SEARCH.answer(points)
    assert len(points) <= 9
    assert answer.met_per_s <= edge_per_s < answer.missed_per_s


def test_a_server_that_meets_everything_reaches_the_end_of_the_bracket():
    answer = SEARCH.answer(searched(1e9))
    assert (answer.met_per_s, answer.resolved) == (100.0, False)
    assert isnan(answer.missed_per_s)
    assert "all rates up to 100 requests/s met the limits" in answer.reason


def test_a_server_that_meets_nothing_is_not_searched_for_ever():
    points = searched(0.0)
    answer = SEARCH.answer(points)
    assert len(points) <= 9 and not answer.resolved
    assert answer.reason.startswith(f"even {points[-1].rate_per_s:g} requests/s missed the limits")


def test_an_interval_that_holds_the_wanted_share_resolves_nothing():
    answer = SEARCH.answer([point(2, 1.0), point(4, 0.9), point(8, 0.3)])
    assert (answer.met_per_s, answer.missed_per_s, answer.resolved) == (2, 8, False)
    assert "at 4 requests/s 90% of 100 requests met the limits" in answer.reason
    assert "send more requests or take more rounds" in answer.reason


def test_too_few_requests_can_prove_no_share():
    answer = SEARCH.answer([point(1, 1.0, sent=20), point(1.1, 0.0, sent=20)])
    assert not answer.resolved and "84% to 100%" in answer.reason
    assert SEARCH.answer([point(1, 1.0, sent=40), point(1.1, 0.0, sent=40)]).resolved


def test_a_higher_rate_that_does_better_is_no_edge():
    answer = SEARCH.answer([point(1, 0.2), point(2, 1.0)])
    assert not answer.resolved and "which no single edge can do" in answer.reason


def test_rounds_that_differ_widen_the_interval():
    alike = Point(rate_per_s=1, sent=(40, 40, 40), met=(36, 36, 36))
    unlike = Point(rate_per_s=1, sent=(40, 40, 40), met=(40, 40, 28))
    assert alike.share == unlike.share
    assert unlike.interval[0] < alike.interval[0]
    # Wilson (1927) for 108 of 120, as scipy.stats.binomtest gives it.
    assert alike.interval == pytest.approx((0.8333, 0.9419), abs=1e-4)


def test_nothing_measured_is_nan_and_not_resolved():
    assert isnan(Point(rate_per_s=1, sent=(), met=()).share)
    answer = SEARCH.answer([])
    assert isnan(answer.met_per_s) and answer.reason == "no rate was measured"


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s", "met"),
    [(0.5, 0.02, True), (0.51, 0.01, False), (0.1, 0.021, False), (nan, nan, False),
     (0.1, nan, True)],
)  # fmt: skip
def test_a_request_meets_both_limits_or_misses(ttft_s, tpot_s, met):
    assert Limits(ttft_s=0.5, tpot_s=0.02).met(ttft_s, tpot_s) is met


def test_a_gap_between_met_and_missed_names_the_rate_to_begin_at():
    # The first round met 36/s and bisected above it; the second missed it there.
    found = [Point(rate_per_s=24.0, sent=(200, 200), met=(199, 199))]
    found.append(Point(rate_per_s=36.0, sent=(200, 200), met=(185, 20)))
    answer = SEARCH.answer(found)
    assert (answer.resolved, answer.met_per_s, answer.missed_per_s) == (False, 24.0, 36.0)
    assert answer.reason.endswith("nothing was measured: begin there, e.g. -p rate_per_s 29.4")
