"""A time budget is spent on whole rounds, and the result says what was left out."""

import pandas as pd
import pytest

from tests.wording import plain
from workbench.errors import PlanError
from workbench.experiment.result.facts import SessionFacts
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Log
from workbench.experiment.run.time_budget import TimeBudget


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def budget(sweep):
    """Two arms in three rounds, 100 s; a first session used 40 s for the first round."""
    clock = Clock()
    first = SessionFacts(
        number=1, started_at="2026-01-01T00:00:00+00:00", ended_at="2026-01-01T00:00:40+00:00"
    )
    log = Log(sessions=[first, SessionFacts(number=2, started_at="2026-01-01T01:00:00+00:00")])
    log.ended = [(0, "1a"), (0, "2a")]
    log.took_s = {"1a": [10.0], "2a": [20.0]}
    plan = sweep(topology="1a,2a", connector="none", time_budget_s=100.0, engine="simulated")
    return TimeBudget(plan, log, clock)


@pytest.fixture
def clock(budget):
    return budget.clock


def test_a_round_begins_only_if_all_its_arms_fit(budget, clock):
    clock.now_s = 30.0  # 40 s of the first session, 30 s of this one, 30 s for a round
    assert budget.allows(1)
    clock.now_s = 30.1
    assert not budget.allows(1)
    (doubt,) = budget.doubts()
    assert doubt == ("time_budget_s 100 was enough for 1 of 3 rounds. The last 2 were not run.")
    plain(doubt, most_words=25)


def test_of_a_round_that_was_begun_before_only_the_missing_launches_count(budget, clock):
    budget.log.ended.append((1, "2a"))
    clock.now_s = 50.0
    assert budget.allows(1)
    clock.now_s = 50.1
    assert not budget.allows(1)
    budget.log.ended.append((1, "1a"))
    assert budget.allows(1)  # nothing is missing


def test_a_round_that_was_begun_before_and_does_not_fit_is_said(budget, clock):
    budget.log.ended.append((1, "2a"))
    clock.now_s = 50.1
    assert not budget.allows(1)
    (doubt,) = budget.doubts()
    assert doubt.endswith("1 of 3 rounds. A later round was begun: its 1 launch is left out.")
    plain(doubt, most_words=25)


def test_an_arm_that_was_given_up_needs_no_time(budget, clock):
    clock.now_s = 49.0  # of 100 s 11 s are left, and 1a alone takes 10 s
    assert not budget.allows(1)
    assert budget.allows(1, left_out={"2a"})


def test_the_first_round_always_runs_and_an_overrun_is_said(budget, clock):
    budget.log.ended, budget.log.took_s = [], {}
    clock.now_s = 500.0
    assert budget.allows(0)
    (doubt,) = budget.doubts()
    assert doubt.startswith("The run took 540 s, longer than time_budget_s 100, because")
    plain(doubt, most_words=25)


async def test_rounds_without_time_are_not_run_and_the_result_says_so(attached, vllm, monkeypatch):
    minutes = property(lambda budget: 60.0 * len(budget.log.ended))
    monkeypatch.setattr(TimeBudget, "spent_s", minutes)
    result = await run(attached(rounds=4, time_budget_s=130.0), echo=lambda _: None)
    assert set(result.requests["round"]) == {0, 1, 2}
    launches = result.run.launches
    assert (launches.planned, launches.measured) == (4, 3)
    assert (launches.planned_rounds, launches.rounds) == (4, 3)
    assert any("was enough for 3 of 4 rounds. The last 1 was not" in one for one in result.doubts)
    (gate,) = [gate for gate in result.run.gates if gate.name == "every pass ran"]
    assert gate.outcome == "PASS"


async def test_launches_of_a_round_that_no_longer_fits_are_taken_out_whole(
    attached, vllm, monkeypatch
):
    """As after a resume: a launch of the round is there, the others have no time."""
    monkeypatch.setattr(TimeBudget, "allows", lambda budget, number, _: _stops(budget, number, 2))
    result = await run(attached(rounds=3, time_budget_s=100.0), echo=lambda _: None)
    assert set(result.requests["round"]) == {0}
    assert result.run.launches.measured == len(result.run.launches_s) == 1
    assert [len(seconds) for seconds in result.run.launches.took_s.values()] == [1]
    times = result.run.pass_times
    assert {one.round for one in times} == {0}
    sent_s = sum(one.to_s - one.from_s for one in times)
    assert result.run.measuring_s == pytest.approx(sent_s, abs=0.1)
    assert set(pd.read_parquet(result.folder / "requests_broken_off.parquet")["round"]) == {1}


def _stops(budget, number, at):
    """Go on until round `at`, then say that only one round is whole."""
    if number < at:
        return True
    budget.rounds = 1
    return False


def test_a_budget_that_is_too_small_for_one_round_is_refused_with_the_numbers(sweep):
    with pytest.raises(PlanError) as refused:
        sweep(topology="1a,2a", connector="none", engine="simulated", time_budget_s=2.0)
    assert str(refused.value) == (
        "time_budget_s must be at least 5 for a round of 2 arms (simulated), got 2"
        " (example: -p time_budget_s 60)"
    )


def test_the_plan_says_how_many_rounds_fit(sweep):
    small = {"topology": "1a,2a", "connector": "none", "engine": "simulated"}
    text = str(sweep(**small, time_budget_s=10.0))
    assert text.splitlines()[-2:] == [
        "duration: 6 launches in about 0.2 minutes (simulated)",
        "time_budget_s 10: about 2 of 3 rounds will be run",
    ]
