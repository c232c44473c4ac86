from __future__ import annotations

import ctypes
from time import monotonic

import pytest

from workbench.load.alarm import Alarm


async def test_it_wakes_at_each_time_and_not_before() -> None:
    async with Alarm() as alarm:
        for _ in range(5):
            due_s = monotonic() + 0.01
            await alarm.until(due_s)
            assert 0 <= monotonic() - due_s < 0.5


async def test_a_time_in_the_past_is_no_sleep() -> None:
    async with Alarm() as alarm:
        before_s = monotonic()
        await alarm.until(before_s - 1)
        assert monotonic() - before_s < 0.5


async def test_without_timerfd_it_still_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    async with Alarm() as alarm:
        due_s = monotonic() + 0.01
        await alarm.until(due_s)
        assert 0 <= monotonic() - due_s < 0.5
