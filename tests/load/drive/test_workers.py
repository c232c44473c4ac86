from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import ParameterError
from workbench.load.drive import workers as module
from workbench.load.drive.driver import LoadRun, drive
from workbench.load.drive.workers import drive_in_workers, share
from workbench.load.workload.arrivals import closed, poisson
from workbench.load.workload.workload import Workload, short
from workbench.records import RequestRecord


def workload(requests: int) -> Workload:
    return short(requests=requests, prompt_tokens=64, output_tokens=3, salt="run")


async def by_two(requests: int, url: str, **options: Any) -> LoadRun:
    """So many requests, two at a time, sent by two workers."""
    return await drive_in_workers(
        workload(requests), closed(2), workers=2, base_url=url, model="tiny", **options
    )


def asked(vllm: Any) -> list[tuple[str, bytes]]:
    """Index and body of every request, in the order of the workload."""
    found = [(each.headers["x-workbench-index"], each.body) for each in vllm.asked]
    return sorted(found, key=lambda pair: int(pair[0]))


@pytest.mark.parametrize("workers", [1, 2, 3])
async def test_any_number_of_workers_sends_the_same_requests(vllm: Any, workers: int) -> None:
    work, arrivals = workload(7), poisson(200.0, 7, seed=1)
    await drive(work, arrivals, base_url=vllm.url, model="tiny")
    expected = asked(vllm)
    vllm.asked.clear()
    records: list[RequestRecord] = []
    run = await drive_in_workers(
        work, arrivals, workers=workers, base_url=vllm.url, model="tiny", on_record=records.append
    )
    assert asked(vllm) == expected
    assert [record.index for record in run.records] == list(range(7))
    assert sorted(records, key=lambda record: record.index) == list(run.records)
    assert [record.error for record in run.records] == [""] * 7
    assert run.health.workers == workers
    for record, offset_s in zip(run.records, arrivals.offsets_s, strict=True):
        assert record.scheduled_s == run.started_s + offset_s  # one clock
        assert record.sent_s >= record.scheduled_s
        assert len(record.chunk_s) == 3


async def test_workers_share_the_concurrency(vllm: Any) -> None:
    vllm.plays(first_s=0.02)
    run = await drive_in_workers(
        workload(9), closed(3), workers=2, base_url=vllm.url, model="tiny", kernel_stamps=True
    )
    assert all(record.ok for record in run.records)
    assert vllm.accepts == 3
    assert run.health.kernel_stamped_share in (0.0, 1.0)


def test_a_share_is_every_nth_request_and_what_is_left_of_the_concurrency() -> None:
    work, arrivals = workload(5), poisson(10.0, 5, seed=0)
    parts = [share(work, arrivals, worker=k, workers=2) for k in range(2)]
    assert [[r.index for r in part.requests] for part, _ in parts] == [[0, 2, 4], [1, 3]]
    assert [times.offsets_s for _, times in parts] == [
        arrivals.offsets_s[0::2], arrivals.offsets_s[1::2]
    ]  # fmt: skip
    at_once = [share(work, closed(5), worker=k, workers=3)[1].concurrency for k in range(3)]
    assert at_once == [2, 2, 1]


def worker_pids() -> set[int]:
    """Processes of this test that are load workers."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if (
                entry.name.isdigit()
                and b"workbench.load.drive.workers" in (entry / "cmdline").read_bytes()
            ):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == os.getpid():
                    found.add(int(entry.name))
    return found


async def test_a_worker_that_is_killed_loses_no_record(vllm: Any) -> None:
    vllm.plays(ending="hang", after=1)
    task = asyncio.create_task(by_two(4, vllm.url, timeout_s=0.5))
    await vllm.hangs(2)
    os.kill(min(worker_pids()), signal.SIGKILL)
    run = await task
    assert [record.index for record in run.records] == [0, 1, 2, 3]
    errors = [record.error for record in run.records]
    assert sorted(errors) == ["client_died", "client_died", "timeout", "timeout"]
    died = next(record for record in run.records if record.error == "client_died")
    assert "died with status -9" in died.error_message


async def test_a_cancelled_drive_has_what_its_workers_have_seen(vllm: Any) -> None:
    vllm.plays(ending="hang", after=2)
    records: list[RequestRecord] = []
    task = asyncio.create_task(by_two(6, vllm.url, on_record=records.append))
    await vllm.hangs(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(record.index for record in records) == list(range(6))
    assert {record.error for record in records} == {"cancelled"}
    assert [r.text for r in records if not isnan(r.sent_s)] == [" t0\u00e9 t1\u00e9"] * 2
    assert worker_pids() == set()


async def test_what_a_worker_stumbled_over_is_in_its_records(vllm: Any) -> None:
    run = await by_two(3, "ftp://x")
    assert [record.error for record in run.records] == ["client_died"] * 3
    assert [record.index for record in run.records] == [0, 1, 2]
    assert "died with status 1: workbench.errors.ParameterError: base_url must be an http" in (
        run.records[0].error_message
    )


async def test_a_worker_that_cannot_start_ends_those_before_it(
    vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_start = module._start

    async def start(folder: Path, worker: int, headers: str) -> asyncio.subprocess.Process:
        if worker:
            raise OSError("no more processes")
        return await true_start(folder, worker, headers)

    monkeypatch.setattr(module, "_start", start)
    records: list[RequestRecord] = []
    with pytest.raises(OSError, match="no more processes"):
        await by_two(4, vllm.url, on_record=records.append)
    assert worker_pids() == set()
    assert sorted((r.index, r.error) for r in records) == [(n, "cancelled") for n in range(4)]


@pytest.mark.parametrize("started", [1, 2])
async def test_a_drive_that_is_cancelled_while_its_workers_start_is_no_death(
    vllm: Any, started: int
) -> None:
    records: list[RequestRecord] = []
    task = asyncio.create_task(by_two(4, vllm.url, on_record=records.append))
    while len(worker_pids()) < started:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker_pids() == set()
    assert sorted((r.index, r.error) for r in records) == [(n, "cancelled") for n in range(4)]
    assert {r.error_message for r in records} == {"never sent: the run was cancelled first"}


async def test_headers_reach_the_server_and_no_file(
    vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: set[Path] = set()
    files: list[bytes] = []
    true_start, true_end = module._start, module._end

    async def start(folder: Path, worker: int, headers: str) -> asyncio.subprocess.Process:
        folders.add(folder)
        return await true_start(folder, worker, headers)

    async def end(running: Any) -> set[int]:
        files.extend(file.read_bytes() for folder in folders for file in folder.iterdir())
        return await true_end(running)

    monkeypatch.setattr(module, "_start", start)
    monkeypatch.setattr(module, "_end", end)
    await by_two(2, vllm.url, headers={"Authorization": "Bearer of-a-key"})
    assert [each.headers["authorization"] for each in vllm.asked] == ["Bearer of-a-key"] * 2
    assert len(files) > 4
    assert not [data for data in files if b"of-a-key" in data]


PARENT = """
import asyncio, sys
from workbench.load.workload.arrivals import closed
from workbench.load.drive.workers import drive_in_workers
from workbench.load.workload.workload import short
work = short(requests=4, prompt_tokens=64, output_tokens=3, salt="s")
asyncio.run(drive_in_workers(work, closed(2), workers=2, base_url=sys.argv[1], model="tiny"))
"""


async def test_workers_end_with_a_parent_that_is_killed(vllm: Any) -> None:
    vllm.plays(ending="hang", after=1)
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, vllm.url)
    await vllm.hangs(2)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 2
    parent.kill()
    await parent.wait()
    deadline_s = time.monotonic() + 20
    while any(_runs(int(pid)) for pid in children) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.01)
    assert not any(_runs(int(pid)) for pid in children)


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize(
    ("work", "arrivals", "workers", "most"),
    [
        (workload(2), closed(2), 3, 2),
        (workload(5), closed(1), 2, 1),
        (workload(5), closed(4), 0, 4),
    ],
)
async def test_workers_without_work_are_refused(
    work: Workload, arrivals: Any, workers: int, most: int
) -> None:
    with pytest.raises(ParameterError, match=f"client_workers must be .*{most} for workload"):
        await drive_in_workers(
            work, arrivals, workers=workers, base_url="http://127.0.0.1:1", model="tiny"
        )


def test_a_worker_imports_no_engine_and_is_small() -> None:
    """Start-up at most 1 s and 150 MB is measured by benchmarks/exactness.py."""
    code = (
        "import sys, workbench.load.drive.workers;"
        "heavy = {'torch', 'pyarrow', 'vllm', 'pandas', 'transformers', 'matplotlib', 'scipy'};"
        "print(heavy & set(sys.modules));"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, peak_kb = told.stdout.split("\n")[:2]
    assert heavy == "set()"
    assert int(peak_kb) < 150_000
