"""Rounds of launches gathered into a table, with pretended launches and a clock of the test's."""

import asyncio
from pathlib import Path

import pytest

from workbench.claims.recipes import rounds
from workbench.claims.recipes.recipe import Setting
from workbench.claims.recipes.rounds import gather
from workbench.errors import DeploymentError
from workbench.experiment.run import time_limit
from workbench.experiment.run.time_limit import TimeLimit

ARMS = [{"engine": "one"}, {"engine": "other"}]


@pytest.fixture
def launched(monkeypatch):
    """`launched(n)` is the list of jobs that are launched; the time is up in launch n."""
    jobs, timers, stuck = [], [], []

    def timer(_):
        timers.append(asyncio.timeout(None))
        return timers[-1]

    class Pretended:
        def __init__(self, **fields):
            pass

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            pass

        async def run(self, job, *, timeout_s):
            jobs.append(job)
            if len(jobs) - 1 in stuck:
                timers[0].reschedule(asyncio.get_running_loop().time())
                await asyncio.Event().wait()
            row = {"quantity": "time", "arm": job["engine"], "cell": "a", "order": 0,
                   "value": 1.0, "unit": "s", "steady": True}  # fmt: skip
            return {"rows": [row], "notes": []}

    def start(*numbers):
        stuck.extend(numbers)
        return jobs

    monkeypatch.setattr(rounds, "Launches", Pretended)
    monkeypatch.setattr(time_limit, "timeout", timer)
    return start


def asked(tmp_path: Path, limit: TimeLimit):
    setting = Setting(
        platform="cpu", hardware="2 CPU cores", model=tmp_path, output_dir=tmp_path,
        budget_s=100, runs=5, limit=limit,
    )  # fmt: skip
    return gather(setting, "r", "module:measure", {}, arms=ARMS, warm=("torch",), start_s=5.0)


async def test_every_round_has_a_launch_of_each_arm_in_mirrored_order(launched, tmp_path):
    jobs = launched()
    found = await asked(tmp_path, TimeLimit())
    assert [job["engine"] for job in jobs[:4]] == ["one", "other", "other", "one"]
    assert [job["seed"] for job in jobs] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (len(found.table), found.runs) == (10, 5)


async def test_rounds_end_where_the_limit_says_and_keep_what_they_measured(launched, tmp_path):
    launched()
    limit = TimeLimit(goes_on=lambda limit, planned: limit.rounds < 2)
    found = await asked(tmp_path, limit)
    assert (found.runs, limit.cut, limit.broken_off) == (2, True, False)


@pytest.mark.parametrize(("stuck", "kept"), [(3, [0, 0]), (1, [0])])
async def test_a_launch_that_takes_too_long_leaves_the_whole_rounds_before_it(
    launched, tmp_path, stuck, kept
):
    """In the first round, where none is whole, it leaves the launches that ended."""
    launched(stuck)
    limit = TimeLimit()
    found = await asked(tmp_path, limit)
    assert limit.broken_off
    assert found.table["run"].tolist() == kept


async def test_a_first_launch_that_takes_too_long_is_a_sentence(launched, tmp_path):
    launched(0)
    with pytest.raises(DeploymentError, match="before its first launch finished"):
        await asked(tmp_path, TimeLimit())
