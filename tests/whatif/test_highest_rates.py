from dataclasses import replace
from math import inf, nan

import pytest

from tests.whatif.known import COSTS, known_profile
from workbench.errors import ParameterError, PlanError
from workbench.topology import TensorParallel, Topology
from workbench.whatif import highest_rates as rates
from workbench.whatif.highest_rates import (
    Highest,
    Served,
    highest_rates,
    of_draws,
    sentence,
    topologies_of,
    verdicts,
)
from workbench.whatif.prediction import SATURATED, case_of

LOAD = {"workload": "short", "prompt_tokens": 4_000, "requests": 60, "ttft_limit_ms": 400}
PROFILE = known_profile(largest_batch=256)
BOUND_PER_S = 1 / COSTS.prefill_s(4_000)
"""Of one prefill instance."""


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(rates, "DRAWS", 2)


def by_name(gpus=2, profile=PROFILE, **given):
    found = highest_rates(profile, LOAD | given, gpus)
    return found, {str(row.topology): row for row in found.served}


def test_every_split_of_two_to_n_gpus_is_there():
    assert [*map(str, topologies_of(4, TensorParallel()))] == ["1p3d", "2p2d", "3p1d", "4a"]
    wide = TensorParallel(prefill=2, aggregated=3)
    assert [*map(str, topologies_of(4, wide))] == ["1p2d"]
    found, rows = by_name(3)
    assert [*rows] == ["1p1d", "2a", "1p2d", "2p1d", "3a"]
    assert [row.gpus for row in found.served] == [2, 2, 3, 3, 3]


def test_a_loose_limit_ends_near_the_saturation_of_prefill():
    _, rows = by_name(3, ttft_limit_ms=60_000)
    for name, count in (("1p2d", 1), ("2p1d", 2)):
        row = rows[name]
        assert row.rate_per_s == pytest.approx(SATURATED * count * BOUND_PER_S, rel=0.01)
        assert row.limited_by == "prefill queue" and "saturates at" in row.open_end
        assert row.at_least and row.rate_per_s == row.low
        assert row.high == pytest.approx(count * BOUND_PER_S)


def test_a_tight_ttft_limit_is_missed_by_the_prefill_queue():
    _, rows = by_name(ttft_limit_ms=200)
    row = rows["1p1d"]
    assert 0 < row.low <= row.rate_per_s <= row.high < SATURATED * BOUND_PER_S
    assert row.limited_by == "prefill queue" and row.open_end == "" == row.refused


def test_a_tight_tpot_limit_is_missed_by_decode_steps():
    _, rows = by_name(3, ttft_limit_ms=0, tpot_limit_ms=11)
    assert rows["2p1d"].limited_by == "decode steps"
    assert rows["3a"].limited_by == "engine steps"
    assert rows["2p1d"].rate_per_s < 2 * rows["1p2d"].rate_per_s


def test_a_slow_shared_link_limits():
    fit = replace(PROFILE.transfer, coefficients=(0.05, 1e-9, 0.1), resamples=((0.05, 1e-9, 0.1),),
                  ranges={"bytes": (1e6, 1e7), "others": (0.0, 99.0)})  # fmt: skip
    _, rows = by_name(3, replace(PROFILE, transfer=fit))
    assert rows["2p1d"].limited_by == "link" != rows["1p1d"].limited_by


def test_a_limit_that_is_missed_at_any_rate_gives_no_number():
    found, rows = by_name(ttft_limit_ms=120)
    row = rows["1p1d"]
    assert row.missed and row.refused == "limits missed at every rate"
    assert not row.rate_per_s > 0 and row.limited_by == "prefill time"
    assert found.frame()["cost"].isna().all()


def test_more_decode_instances_do_not_lower_the_rate(monkeypatch):
    """Prefill limits all three; only a different number of requests would tell them apart."""
    monkeypatch.setattr(rates, "REQUESTS", 80)
    load = {name: LOAD[name] for name in ("workload", "prompt_tokens")} | {"ttft_limit_ms": 200}
    found = highest_rates(PROFILE, load, 4)
    one = [row.rate_per_s for row in found.served if row.topology.prefill == 1]
    assert one == sorted(one) and "80 requests" in found.load


OUTCOMES = {
    "median": ([(2.0, 2.1), (3.0, 3.1), (4.0, 4.1)], (3.0, 2.0, 4.0, False)),
    "one is open": ([(2.0, 2.1), (3.0, 3.1), (9.0, nan)], (3.0, 2.0, BOUND_PER_S, False)),
    "most are open": ([(2.0, 2.1), (9.0, nan), (9.0, nan)], (2.0, 2.0, BOUND_PER_S, True)),
    "one misses": ([(0.0, 0.1), (3.0, 3.1), (4.0, 4.1)], (3.0, 0.0, 4.0, False)),
}


def summary(draws):
    params = PROFILE.params(LOAD | {"rate_per_s": 1.0})
    topology = Topology.parse("1p1d")
    case, empty = case_of(PROFILE, params, topology), Served(topology=topology, gpus=2)
    found = [Highest(draw=0, met=met, missed=missed) for met, missed in draws]
    return of_draws(case, case.closed_form(), found, {}, empty)


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_rate_and_its_interval_never_contradict_each_other(name):
    draws, expected = OUTCOMES[name]
    row = summary(draws)
    got = row.rate_per_s, row.low, row.high, row.at_least
    assert got == pytest.approx(expected)
    assert bool(row.open_end) == (row.high == pytest.approx(BOUND_PER_S))


def test_a_rate_between_nothing_and_the_unknown_is_not_resolved():
    row = summary([(0.0, 0.1), (9.0, nan), (9.0, nan)])
    assert row.refused.startswith("not resolved: 1 of 3 simulations miss the limits at every rate")
    assert not row.rate_per_s > 0 and not row.missed


def test_an_at_least_rate_costs_at_most_and_is_not_said_to_be_limited():
    found, _ = by_name(ttft_limit_ms=60_000, gpu_hour_price="4 USD")
    assert "at least" in sentence(found) and "limited by" not in sentence(found)
    assert "1p1d at most " in verdicts(found)[-1]
    row = found.frame().query("topology == '1p1d'").iloc[0]
    assert row["cost"] == row["cost_high"]


@pytest.mark.parametrize(("largest", "tokens"), [(2.0, 400), (5.0, 64)])
def test_beyond_the_profiled_batches_there_is_no_number(largest, tokens):
    _, rows = by_name(3, known_profile(largest_batch=largest), output_tokens=tokens)
    row = rows["2p1d"]
    if largest == 2:
        assert "profiled up to 2" in row.refused and not row.rate_per_s > 0
    else:
        assert "profiled up to 5" in row.open_end and row.limited_by == "profiled range"
        assert row.high == inf and 0 < row.rate_per_s < SATURATED * 2 * BOUND_PER_S


def test_the_sentence_names_the_best_and_what_limits_it_and_the_cost():
    found, rows = by_name(3, gpu_hour_price="4 USD")
    said = sentence(found)
    assert said.startswith("3 instances: ")
    assert "3a" in said and any(name in said for name in ("1p2d", "2p1d"))
    plain = rows["3a"]
    per_hour = 3600 * plain.rate_per_s * 32
    cost = f"{4 * 3 / per_hour * 1e6:.3g}"
    assert f"3a {'at most ' * plain.at_least}{cost}" in verdicts(found)[-1]


@pytest.mark.parametrize(
    ("gpus", "given", "error", "says"),
    [
        (1, {}, ParameterError, "--splits must be 2 to 16, got 1"),
        (2, {"rate_per_s": 3}, ParameterError, "rate_per_s=3 does not apply to --splits"),
        (2, {"topology": "1p1d"}, ParameterError, "topology=1p1d does not apply to --splits"),
        (2, {"ttft_limit_ms": 0}, ParameterError, "--splits needs ttft_limit_ms or tpot_limit"),
        (2, {"prompt_tokens": 500}, PlanError, "prompt_tokens must be within the profiled"),
        (2, {"arrivals": "closed"}, ParameterError, "arrivals must be"),
    ],
)
def test_what_cannot_be_searched_is_refused(gpus, given, error, says):
    with pytest.raises(error, match=says):
        highest_rates(PROFILE, LOAD | given, gpus)
