from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from workbench.load.drive.driver import drive_in_thread
from workbench.load.http import kernel_stamps
from workbench.load.http.kernel_stamps import KernelClock, ask_for_stamps
from workbench.load.workload.arrivals import closed
from workbench.load.workload.workload import short


@pytest.fixture
def clock() -> Iterator[KernelClock]:
    clock = KernelClock.begin()
    assert clock is not None
    yield clock
    clock.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """A connection over the loopback; the second end asks for stamps."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        reader, _ = listener.accept()
    ask_for_stamps(reader)
    return sender, reader


def test_a_late_read_has_the_time_of_its_arrival(clock: KernelClock) -> None:
    sender, reader = pair()
    with sender, reader:
        before_s = time.monotonic()
        sender.sendall(b"token")
        after_s = time.monotonic()
        time.sleep(0.05)  # this process is busy with something else
        data, arrived_s = clock.read(reader)
    assert data == b"token"
    assert before_s - 0.001 <= arrived_s <= after_s + 0.001
    assert (clock.stamped, clock.unstamped) == (1, 0)


def test_two_events_before_one_read_share_the_stamp_of_the_second(clock: KernelClock) -> None:
    sender, reader = pair()
    with sender, reader:
        sender.sendall(b"one ")
        time.sleep(0.02)
        before_s = time.monotonic()
        sender.sendall(b"two")
        data, arrived_s = clock.read(reader)
    assert data == b"one two"
    assert arrived_s >= before_s - 0.001


def test_a_system_without_stamps_gives_the_time_of_the_read(clock: KernelClock) -> None:
    sender, reader = pair()
    reader.setsockopt(socket.SOL_SOCKET, 35, 0)
    with sender, reader:
        sender.sendall(b"token")
        before_s = time.monotonic()
        _, arrived_s = clock.read(reader)
    assert before_s <= arrived_s <= time.monotonic()
    assert (clock.stamped, clock.unstamped) == (0, 1)


def test_a_time_of_day_that_was_set_is_noticed(
    clock: KernelClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clock.moved_s() < 0.001
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + 2_000_000_000)
    assert clock.moved_s() == pytest.approx(2, abs=0.01)


def test_where_no_stamps_come_there_is_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_stamps, "ask_for_stamps", lambda _sock: None)
    assert KernelClock.begin() is None


async def test_a_drive_with_kernel_stamps(vllm: Any) -> None:
    vllm.plays(first_s=0.02, gap_s=0.01)
    run = await drive_in_thread(
        short(requests=4, prompt_tokens=64, output_tokens=3, salt="s"),
        closed(2),
        base_url=vllm.url,
        model="tiny",
        kernel_stamps=True,
    )
    assert [record.error for record in run.records] == [""] * 4
    assert run.health.kernel_stamped_share == 1.0
    assert run.health.clock_moved_s < 0.001
    assert vllm.accepts == 2
    for record in run.records:
        assert record.sent_s < record.head_s <= record.chunk_s[0]
        assert 0.02 <= record.chunk_s[0] - record.sent_s < 1
        assert list(record.chunk_s) == sorted(record.chunk_s)
