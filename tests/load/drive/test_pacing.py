"""How late a request leaves is measured by benchmarks/exactness.py; here, that it is held back."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from pathlib import Path
from time import monotonic

import pytest

from workbench.load.drive.pacing import Alarm, Starts


async def test_the_kernels_timer_is_set_to_the_very_time() -> None:
    async with Alarm() as alarm:
        due_s = monotonic() + 60
        waiting = asyncio.create_task(alarm.until(due_s))
        await asyncio.sleep(0)
        before_s = monotonic()
        timer = Path(f"/proc/self/fdinfo/{alarm._fd}").read_text()
        after_s = monotonic()
        left = re.search(r"it_value: \((\d+), (\d+)\)", timer)
        assert left is not None
        left_s = int(left[1]) + int(left[2]) / 1e9
        assert due_s - after_s - 1e-6 <= left_s <= due_s - before_s + 1e-6
        waiting.cancel()


async def test_it_wakes_at_each_time_and_not_before() -> None:
    async with Alarm() as alarm:
        for _ in range(5):
            due_s = monotonic() + 0.01
            await alarm.until(due_s)
            assert monotonic() >= due_s


async def test_a_time_in_the_past_is_no_sleep() -> None:
    async with Alarm() as alarm:
        waits = alarm.until(monotonic() - 1)
        with pytest.raises(StopIteration):  # it ended without giving the loop a turn
            waits.send(None)


async def turns_of(starts: Starts, arrivals: list[int]) -> list[int]:
    """The turn of the loop in which each task has passed; so many come in each turn."""
    turn, come, passed = 0, itertools.count(), []

    async def one() -> None:
        number = next(come)
        await starts.allowed()
        passed.append((number, turn))

    tasks: list[asyncio.Task[None]] = []
    while arrivals or not all(task.done() for task in tasks):
        tasks += [asyncio.create_task(one()) for _ in range(arrivals.pop(0) if arrivals else 0)]
        await asyncio.sleep(0)
        turn += 1
    assert [number for number, _ in passed] == list(range(len(tasks)))  # in their order
    return [turn for _, turn in passed]


async def test_few_pass_at_once_and_many_a_few_in_each_turn() -> None:
    assert len(set(await turns_of(Starts(4), [3]))) == 1
    turns = await turns_of(Starts(4), [50])
    assert max(turns.count(turn) for turn in turns) == 4


@pytest.mark.parametrize("seed", range(40))
async def test_newcomers_pass_behind_those_that_wait_and_in_nobodys_turn(seed: int) -> None:
    pattern = random.Random(seed)
    turns = await turns_of(Starts(8), [pattern.choice((0, 0, 1, 7, 30)) for _ in range(30)])
    assert max(turns.count(turn) for turn in turns) <= 8


async def test_a_cancelled_one_takes_nobodys_turn() -> None:
    starts = Starts(1)
    _, _, cancelled, next_one = (asyncio.create_task(starts.allowed()) for _ in range(4))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait_for(next_one, 20)
    assert cancelled.cancelled()


async def test_later_tasks_find_a_new_turn() -> None:
    starts = Starts(1)
    for _ in range(3):
        await asyncio.wait_for(starts.allowed(), 20)
        await asyncio.sleep(0)
