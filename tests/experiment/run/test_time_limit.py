"""Rounds that are begun and broken off on a clock that the test turns."""

import asyncio
from math import isnan

import pandas as pd
import pytest

from workbench.errors import DeploymentError
from workbench.experiment.result.facts import PassTime, SessionFacts
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run import time_limit
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Log
from workbench.experiment.run.time_limit import TimeLimit, keep_rounds
from workbench.metrics.passes import PassCounters
from workbench.records import LinkRate


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def rounds(limit, clock, planned, *, once_s=0.0, each_s):
    """The rounds that are begun where one takes `each_s`, and `once_s` comes before the first."""
    begun = []
    for number in limit.rounds_of(planned):
        clock.now_s += each_s + (0.0 if begun else once_s)
        begun.append(number)
    return begun


def test_all_rounds_run_where_nothing_limits_them(clock):
    limit = TimeLimit(clock=clock)
    assert rounds(limit, clock, 5, each_s=1e6) == [0, 1, 2, 3, 4]
    assert not limit.cut and isnan(limit.slowness)


@pytest.mark.parametrize("times", [1, 3, 10])
def test_the_first_round_shows_the_pace_of_the_machine(clock, times):
    asked = []

    def goes_on(limit, planned):
        asked.append((limit.rounds, planned, limit.slowness, limit.each_s, limit.elapsed_s))
        return limit.rounds < 2

    limit = TimeLimit(goes_on=goes_on, fixed_s=20, round_s=8, clock=clock)
    assert rounds(limit, clock, 5, once_s=20 * times, each_s=8 * times) == [0, 1]
    assert limit.cut and not limit.broken_off
    assert asked == [
        (1, 5, times, 8 * times, 28 * times),
        (2, 5, times, 8 * times, 36 * times),
    ]


def break_off(monkeypatch):
    """A function that lets the limit of the next run end at once."""
    timers = []

    def timer(_):
        timers.append(asyncio.timeout(None))
        return timers[-1]

    monkeypatch.setattr(time_limit, "timeout", timer)
    return lambda: timers[0].reschedule(asyncio.get_running_loop().time())


def broken_off(plan, limit, at, monkeypatch):
    """The run of `plan`, broken off after the line that has all of the words `at`."""
    end = break_off(monkeypatch)

    def echo(line):
        if all(word in line for word in at):
            end()

    return run(plan, echo=echo, limit=limit)


async def test_a_round_that_is_broken_off_leaves_the_rounds_before_it(attached, vllm, monkeypatch):
    limit = TimeLimit()
    result = await broken_off(attached(rounds=3), limit, ("round 2/3", "cold"), monkeypatch)
    assert (limit.rounds, limit.broken_off) == (1, True)
    assert result.facts["status"] == "success"
    assert set(result.requests["round"]) == {0} and len(result.requests) == 4
    outcomes = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert (outcomes["every pass ran"], outcomes["no failures"]) == ("PASS", "PASS")
    kept = {name: pd.read_parquet(result.folder / f"{name}.parquet") for name in
            ("requests", "counters", "requests_broken_off")}  # fmt: skip
    assert [set(rows["round"]) for rows in kept.values()] == [{0}, {0}, {1}]


async def test_of_a_first_round_that_is_broken_off_the_passes_that_ended_are_kept(
    attached, vllm, monkeypatch
):
    limit = TimeLimit()
    result = await broken_off(attached(rounds=3), limit, ("round 1/3", "cold"), monkeypatch)
    assert limit.rounds == 0
    assert set(result.requests["pass"]) == {"cold"}
    assert len(result.facts["arms"]) == 1
    outcomes = {gate["name"]: gate["outcome"] for gate in result.facts["gates"]}
    assert outcomes["every pass ran"] == "PASS"
    assert set(pd.read_parquet(result.folder / "counters.parquet")["pass"]) == {"cold"}


def test_all_that_is_of_a_round_that_is_left_out_is_removed(sweep, tmp_path):
    """Of two arms in round 1, and one in round 2, of a second session."""
    plan = sweep(topology="1a,2a", connector="none", engine="simulated")
    log = Log(launches_s=[1.0, 2.0, 3.0], launch_rounds=[0, 0, 1], measuring_s=30.0)
    log.ended = [(0, "1a"), (0, "2a"), (1, "2a")]
    log.took_s = {"1a": [10.0], "2a": [20.0, 21.0]}
    sent = {"pass_name": "cold", "requests_sent": 2, "prompt_tokens_sent": 9}
    log.passes = [PassCounters(arm=arm, round=n, **sent) for n, arm in log.ended]
    log.pass_times = [
        PassTime(arm=arm, round=n, pass_name="cold", from_s=0.0, to_s=10.0) for n, arm in log.ended
    ]
    rate = LinkRate(sender="a", receiver="b", bit_s=1e9)
    log.links = [(arm, n, rate, True) for n, arm in log.ended]
    began = "2026-01-01T00:00:00+00:00"
    log.sessions = [
        SessionFacts(number=1, started_at=began, launches=("1a, round 1",)),
        SessionFacts(number=2, started_at=began, launches=("2a, round 1", "2a, round 2")),
    ]
    folder = RunFolder.open(str(tmp_path), "pd_sweep", "run")
    assert keep_rounds(plan, log, 1, folder).rounds == 1
    folder.let_go()
    assert (log.launches_s, log.launch_rounds, log.measuring_s) == ([1.0, 2.0], [0, 0], 20.0)
    assert log.took_s == {"1a": [10.0], "2a": [20.0]}
    assert log.ended == [(0, "1a"), (0, "2a")]
    assert [one.launches for one in log.sessions] == [("1a, round 1",), ("2a, round 1",)]
    assert {one.round for one in (*log.passes, *log.pass_times)} == {0}
    assert {number for _, number, _, _ in log.links} == {0}


async def test_a_run_without_time_has_measured_nothing_and_says_so(attached, vllm):
    with pytest.raises(DeploymentError, match="no pass could be measured"):
        await run(attached(), echo=lambda _: None, limit=TimeLimit(most_s=0.0))


async def test_a_cancellation_from_outside_goes_on():
    limit = TimeLimit(most_s=60)
    with pytest.raises(asyncio.CancelledError):
        async with limit.enforced():
            raise asyncio.CancelledError
    assert not limit.cut
    with pytest.raises(TimeoutError):  # of what runs inside, not of the limit
        async with limit.enforced():
            raise TimeoutError
    assert not limit.broken_off
