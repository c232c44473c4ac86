from math import isnan, nan

import pandas as pd
import pytest

from workbench.experiment.load_unit import USERS
from workbench.experiment.plan.offered_load.search import Limits, Point, Search

SEARCH = Search(limits=Limits(ttft_s=0.5, share=0.9), first=1.0, bottom=0.01, top=100.0)


def point(rate_per_s, share, *, sent=100, rounds=1):
    return Point(load=rate_per_s, sent=(sent,) * rounds, met=(round(share * sent),) * rounds)


def searched(edge_per_s, search=SEARCH):
    """The rates that are tried on a server that meets the limits up to an edge."""
    points = []
    while (rate := search.next_load(points)) is not None:
        points.append(point(rate, 1.0 if rate <= edge_per_s else 0.2))
    return points


@pytest.mark.parametrize(
    ("edge_per_s", "first"),
    [(5.0, [1.0, 2.0, 4.0, 8.0]), (0.3, [1.0, 0.5, 0.25])],  # doubled, or halved
)
def test_the_edge_is_bracketed_and_then_bisected(edge_per_s, first):
    points = searched(edge_per_s)
    rates = [p.load for p in points]
    assert rates[: len(first)] == first
    low, high = sorted(first[-2:])
    assert all(low < rate < high for rate in rates[len(first) :])
    answer = SEARCH.answer(points)
    assert answer.resolved and answer.missed <= 1.1 * answer.met


@pytest.mark.parametrize("edge_per_s", [0.013, 0.7, 1.0, 3.3, 42.0, 99.0])
def test_wherever_the_edge_is_the_answer_holds_it_in_nine_points(edge_per_s):
    points = searched(edge_per_s)
    answer = SEARCH.answer(points)
    assert len(points) <= 9
    assert answer.met <= edge_per_s < answer.missed


# The first round met 36/s and bisected above it; the second missed it there.
GAP = [
    Point(load=24.0, sent=(200, 200), met=(199, 199)),
    Point(load=36.0, sent=(200, 200), met=(185, 20)),
]


@pytest.mark.parametrize(
    ("points", "met_per_s", "missed_per_s", "reason"),
    [
        (searched(1e9), 100.0, nan, "all rates up to 100 req/s met the limits"),
        (searched(0.0), nan, 0.01, "even 0.01 req/s missed the limits"),
        ([point(2, 1.0), point(4, 0.9), point(8, 0.3)], 2, 8, "at 4 req/s 90 % of 100"),
        ([point(1, 1.0, sent=20), point(1.1, 0.0, sent=20)], nan, 1.1, "95 % CI 84 to 100 %"),
        (
            [point(1, 0.2), point(2, 1.0)],
            2,
            1,
            "met the limits, but a lower rate of 1 req/s missed them",
        ),
        (GAP, 24.0, 36.0, "nothing was measured between 24 and 36 req/s; start there"),
        ([], nan, nan, "no rate was measured"),
    ],
)
def test_an_edge_that_is_not_resolved_has_its_reason(points, met_per_s, missed_per_s, reason):
    answer = SEARCH.answer(points)
    assert len(points) <= 9 and not answer.resolved
    assert answer.met == pytest.approx(met_per_s, nan_ok=True)
    assert answer.missed == pytest.approx(missed_per_s, nan_ok=True)
    assert reason in answer.reason


USERS_SEARCH = Search(
    limits=Limits(ttft_s=0.5, share=0.9),
    first=1.0,
    bottom=1.0,
    top=50.0,
    unit=USERS,
    at_top="too many requests are sent at once; use more requests",
)


@pytest.mark.parametrize(
    ("edge", "tried"),
    [
        (5, [1, 2, 4, 8, 6, 5]),
        (1, [1, 2]),
        (3, [1, 2, 4, 3]),
        (20, [1, 2, 4, 8, 16, 32, 23, 19, 21]),
    ],
)
def test_users_are_whole_and_bisected_to_one(edge, tried):
    points = searched(edge, USERS_SEARCH)
    assert [p.load for p in points] == tried
    answer = USERS_SEARCH.answer(points)
    assert answer.resolved and answer.met <= edge < answer.missed
    assert answer.missed - answer.met <= max(1, 0.11 * answer.met)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (searched(0, USERS_SEARCH), "even 1 user missed the limits; raise the limits"),
        (
            searched(99, USERS_SEARCH),
            "all loads up to 50 users met the limits, and above 50 users too many requests are"
            " sent at once; use more requests",
        ),
        (
            [point(2, 1.0), point(8, 0.2)],
            "nothing was measured between 2 and 8 users; start there (example: -p concurrency 4)",
        ),
    ],
)
def test_a_number_of_users_that_is_not_resolved_has_its_reason(points, reason):
    answer = USERS_SEARCH.answer(points)
    assert not answer.resolved and answer.reason == reason


def test_forty_requests_can_prove_a_share_of_ninety_percent():
    assert SEARCH.answer([point(1, 1.0, sent=40), point(1.1, 0.0, sent=40)]).resolved


def test_rounds_that_differ_widen_the_interval():
    alike = Point(load=1, sent=(40, 40, 40), met=(36, 36, 36))
    unlike = Point(load=1, sent=(40, 40, 40), met=(40, 40, 28))
    assert alike.share == unlike.share
    assert unlike.interval[0] < alike.interval[0]
    # Wilson (1927) for 108 of 120, as scipy.stats.binomtest gives it.
    assert alike.interval == pytest.approx((0.8333, 0.9419), abs=1e-4)
    assert isnan(Point(load=1, sent=(), met=()).share)


def test_a_request_meets_both_limits_or_misses():
    ttft_s = pd.Series([0.5, 0.51, 0.1, nan, 0.1])
    tpot_s = pd.Series([0.02, 0.01, 0.021, nan, nan])
    met = Limits(ttft_s=0.5, tpot_s=0.02).met(ttft_s, tpot_s)
    assert met.tolist() == [True, False, False, False, True]
