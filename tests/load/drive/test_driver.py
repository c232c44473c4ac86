from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from math import isnan
from statistics import median
from typing import Any

import pytest

from workbench.errors import ParameterError
from workbench.load.drive.driver import LoadRun, drive, drive_in_thread
from workbench.load.workload.arrivals import closed, poisson
from workbench.load.workload.workload import Workload, shared_prefix, short
from workbench.records import RequestRecord

Drive = Callable[..., Coroutine[Any, Any, LoadRun]]


def workload(requests: int) -> Workload:
    return short(requests=requests, prompt_tokens=64, output_tokens=3, salt="run")


@pytest.fixture(params=[drive, drive_in_thread])
def driven(request: pytest.FixtureRequest) -> Drive:
    drive: Drive = request.param
    return drive


async def test_a_closed_loop_sends_every_prompt_once_and_in_order(driven: Drive, vllm: Any) -> None:
    run = await driven(workload(5), closed(1), base_url=vllm.url, model="tiny")
    assert [record.index for record in run.records] == [0, 1, 2, 3, 4]
    assert all(record.ok for record in run.records)
    sent = [(a.headers["x-workbench-index"], a.json["prompt"]) for a in vllm.asked]
    assert sent == [(str(r.index), r.prompt_ids.tolist()) for r in workload(5).requests]
    assert vllm.accepts == 1


async def test_a_closed_loop_keeps_to_its_concurrency(driven: Drive, vllm: Any) -> None:
    vllm.plays(first_s=0.02)
    run = await driven(workload(7), closed(3), base_url=vllm.url, model="tiny")
    changes = [(r.sent_s, 1) for r in run.records] + [(r.stream_end_s, -1) for r in run.records]
    in_flight, most = 0, 0
    for _, change in sorted(changes):
        in_flight += change
        most = max(most, in_flight)
    assert most == 3
    assert vllm.accepts == 3


async def test_more_concurrency_than_requests(driven: Drive, vllm: Any) -> None:
    run = await driven(workload(12), closed(100), base_url=vllm.url, model="tiny")
    assert len(run.records) == len(vllm.asked) == 12


async def test_records_carry_what_the_workload_knows(driven: Drive, vllm: Any) -> None:
    shared = shared_prefix(
        requests=2, prompt_tokens=64, shared_tokens=32, output_tokens=2, salt="run"
    )
    run = await driven(shared, closed(1), base_url=vllm.url, model="tiny")
    assert [record.ideal_reuse_tokens for record in run.records] == [0, 32]
    assert [record.output_tokens for record in run.records] == [2, 2]
    assert {record.prompt_tokens for record in run.records} == {64}


@pytest.mark.parametrize("answers", ["as a chat should", "half a stream", "not at all"])
async def test_a_drive_leaves_no_cycles_since_nothing_collects_them_meanwhile(
    answers: str, vllm: Any
) -> None:
    if answers == "half a stream":
        vllm.plays(ending="cut")
    url = "http://127.0.0.1:1" if answers == "not at all" else vllm.url
    await drive(workload(1), closed(1), base_url=url, model="tiny")  # imports and caches
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            await drive(workload(20), closed(4), base_url=url, model="tiny")
        gc.collect()
        left = Counter(type(thing).__name__ for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    # What is left are asyncio's own transports, one at each end of a connection.
    ours = {"HttpResponseParser", "Outgoing", "Response", "PlainConnection", "Transport"}
    assert not left.keys() & (ours | {"coroutine", "frame", "traceback"}), left
    assert gc.isenabled()


async def test_a_prompt_larger_than_a_socket_takes_at_once(driven: Drive, vllm: Any) -> None:
    long = short(requests=1, prompt_tokens=600_000, salt="run")
    run = await driven(long, closed(1), base_url=vllm.url, model="tiny")
    assert run.records[0].ok
    assert vllm.asked[0].json["prompt"] == long.requests[0].prompt_ids.tolist()


async def test_an_id_is_never_sent_twice(vllm: Any) -> None:
    for _ in range(2):
        await drive(workload(3), closed(3), base_url=vllm.url, model="tiny")
    assert len({asked.headers["x-request-id"] for asked in vllm.asked}) == 6


async def test_an_open_loop_sends_at_its_times(driven: Drive, vllm: Any) -> None:
    vllm.plays(first_s=0.05)
    arrivals = poisson(100.0, 12, seed=1)
    run = await driven(workload(12), arrivals, base_url=vllm.url, model="tiny")
    for record, offset_s in zip(run.records, arrivals.offsets_s, strict=True):
        assert record.scheduled_s == run.started_s + offset_s
        assert record.sent_s >= record.scheduled_s
    late_s = [record.sent_s - record.scheduled_s for record in run.records]
    assert run.health.lateness_p50_s == pytest.approx(median(late_s))
    assert run.health.lateness_p50_s <= run.health.lateness_p99_s <= max(late_s)
    assert vllm.accepts > 2  # it did not wait for answers


async def test_a_burst_is_late_and_not_early(vllm: Any) -> None:
    arrivals = replace(poisson(1.0, 20, seed=0), offsets_s=(0.0,) * 20)
    run = await drive(workload(20), arrivals, base_url=vllm.url, model="tiny")
    assert all(record.ok for record in run.records)
    assert {record.scheduled_s for record in run.records} == {run.started_s}
    assert min(record.sent_s for record in run.records) >= run.started_s


async def test_times_and_requests_have_to_agree(driven: Drive, vllm: Any) -> None:
    with pytest.raises(ParameterError, match=r"arrivals must be 3 arrival times.* got 2"):
        await driven(workload(3), poisson(1.0, 2, seed=0), base_url=vllm.url, model="tiny")
    assert vllm.asked == []


@pytest.mark.parametrize("kernel_stamps", [False, True])
async def test_failed_requests_never_stop_the_others(
    driven: Drive, vllm: Any, kernel_stamps: bool
) -> None:
    def fails_at_first(_record: RequestRecord) -> None:
        vllm.plays()

    # A record is made between reads, so it may come a few requests later.
    vllm.plays(ending="reset")
    run = await driven(
        workload(40),
        closed(1),
        base_url=vllm.url,
        model="tiny",
        kernel_stamps=kernel_stamps,
        on_record=fails_at_first,
    )
    assert run.records[0].error == "reset"
    assert run.records[-1].ok
    assert len(run.records) == 40


async def test_no_server_at_all(driven: Drive, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    run = await driven(workload(3), closed(2), base_url=url, model="tiny")
    assert [record.error for record in run.records] == ["connect"] * 3


async def test_a_bad_url_starts_nothing(driven: Drive) -> None:
    with pytest.raises(ParameterError, match=r"base_url must be .* got 'localhost:1'"):
        await driven(workload(1), closed(1), base_url="localhost:1", model="tiny")


async def test_the_health_of_a_quiet_client(driven: Drive, vllm: Any) -> None:
    vllm.plays(first_s=0.05, gap_s=0.01)
    run = await driven(workload(2), closed(1), base_url=vllm.url, model="tiny")
    assert isnan(run.health.lateness_p99_s)  # a closed loop has no schedule
    assert 0 <= run.health.loop_lag_max_s < 1
    assert 0 < run.health.thread_cpu_share < 1
    assert run.health.process_cpu_share < 2
    assert run.health.merged_share < 1
    assert 0.14 <= run.ended_s - run.started_s


async def test_chunks_that_came_in_one_read_are_told(vllm: Any) -> None:
    vllm.plays(one_write=True)
    run = await drive(workload(3), closed(1), base_url=vllm.url, model="tiny")
    assert run.health.merged_share == 1.0


async def test_an_empty_workload_has_a_run_without_numbers(driven: Drive, vllm: Any) -> None:
    empty = Workload(name="none", seed=0, salt="", requests=())
    run = await driven(empty, closed(1), base_url=vllm.url, model="tiny")
    assert run.records == ()
    assert isnan(run.health.merged_share)


async def test_a_cancelled_drive_leaves_a_record_of_every_request(driven: Drive, vllm: Any) -> None:
    vllm.plays(ending="hang", after=2)
    records: list[RequestRecord] = []
    task = asyncio.create_task(
        driven(workload(4), closed(2), base_url=vllm.url, model="tiny", on_record=records.append)
    )
    await vllm.hangs(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(record.index for record in records) == [0, 1, 2, 3]
    assert {record.error for record in records} == {"cancelled"}
    in_flight = [record for record in records if not isnan(record.sent_s)]
    assert [record.text for record in in_flight] == [" t0\u00e9 t1\u00e9"] * 2
    await asyncio.wait_for(vllm.left.wait(), 20)  # nothing goes on at the server
    for thread in threading.enumerate():
        if thread.name == "workbench-load":
            thread.join(2)
            assert not thread.is_alive()


async def test_a_cancelled_open_loop_sends_no_more(driven: Drive, vllm: Any) -> None:
    records: list[RequestRecord] = []
    recorded = asyncio.Event()

    def keep(record: RequestRecord) -> None:
        records.append(record)
        recorded.set()

    arrivals = replace(poisson(1.0, 2, seed=0), offsets_s=(0.0, 60.0))
    task = asyncio.create_task(
        driven(workload(2), arrivals, base_url=vllm.url, model="tiny", on_record=keep)
    )
    await recorded.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(record.index, record.error) for record in records] == [(0, ""), (1, "cancelled")]


async def test_the_thread_calls_back_in_the_callers_thread(vllm: Any) -> None:
    threads: list[int] = []
    await drive_in_thread(
        workload(3),
        closed(1),
        base_url=vllm.url,
        model="tiny",
        on_record=lambda _record: threads.append(threading.get_ident()),
    )
    assert threads == [threading.get_ident()] * 3
