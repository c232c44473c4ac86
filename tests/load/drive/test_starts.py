from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from workbench.load.drive.starts import Starts


async def passing(count: int, per_turn: int) -> list[int]:
    """The turn of the loop in which each of `count` tasks has passed."""
    starts, turn, passed = Starts(per_turn), 0, []

    async def one(number: int) -> None:
        await starts.allowed()
        passed.append((number, turn))

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turn += 1
    assert [number for number, _ in passed] == list(range(count))
    return [turn for _, turn in passed]


async def test_few_pass_at_once():
    assert len(set(await passing(3, per_turn=4))) == 1


async def test_many_pass_a_few_in_each_turn_and_in_order():
    turns = await passing(50, per_turn=4)
    assert max(turns.count(turn) for turn in turns) == 4


@pytest.mark.parametrize("seed", range(40))
async def test_newcomers_pass_behind_those_that_wait_and_in_nobodys_turn(seed: int):
    starts, turn, per_turn = Starts(8), 0, 8
    come, passed = itertools.count(), []

    async def one() -> None:
        number = next(come)
        await starts.allowed()
        passed.append((number, turn))

    pattern, tasks = random.Random(seed), []
    for _ in range(30):
        tasks += [asyncio.create_task(one()) for _ in range(pattern.choice((0, 0, 1, 7, 30)))]
        await asyncio.sleep(0)
        turn += 1
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turn += 1
    assert [number for number, _ in passed] == list(range(len(tasks)))
    turns = [turn for _, turn in passed]
    assert all(turns.count(turn) <= per_turn for turn in turns)


async def test_a_cancelled_one_takes_nobodys_turn():
    starts = Starts(1)
    _, _, cancelled, next_one = (asyncio.create_task(starts.allowed()) for _ in range(4))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait_for(next_one, 20)
    assert cancelled.cancelled()


async def test_later_tasks_find_a_new_turn():
    starts = Starts(1)
    for _ in range(3):
        await asyncio.wait_for(starts.allowed(), 20)
        await asyncio.sleep(0)
