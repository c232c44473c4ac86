"""How late it wakes is measured by benchmarks/exactness.py; here, that it wakes, and by what."""

from __future__ import annotations

import asyncio
import ctypes
import sys
from time import monotonic
from typing import Any

import pytest

from workbench.load.drive.alarm import Alarm


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")
async def test_the_kernels_timer_wakes_it_at_each_time_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def none(_seconds: float) -> None:
        raise AssertionError("it slept by asyncio's timer, which goes by milliseconds")

    async with Alarm() as alarm:
        monkeypatch.setattr(asyncio, "sleep", none)
        for _ in range(5):
            due_s = monotonic() + 0.01
            await alarm.until(due_s)
            assert monotonic() >= due_s


async def test_a_time_in_the_past_is_no_sleep() -> None:
    async with Alarm() as alarm:
        waits = alarm.until(monotonic() - 1)
        with pytest.raises(StopIteration):  # it ended without giving the loop a turn
            waits.send(None)


async def test_without_timerfd_asyncio_wakes_it_and_never_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sleep, slept = asyncio.sleep, []

    async def early(seconds: float) -> Any:
        slept.append(seconds)
        await sleep(seconds / 2)

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    async with Alarm() as alarm:
        monkeypatch.setattr(asyncio, "sleep", early)
        due_s = monotonic() + 0.01
        await alarm.until(due_s)
        assert monotonic() >= due_s
    assert len(slept) > 1
