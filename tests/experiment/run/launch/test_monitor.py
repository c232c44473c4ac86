import asyncio
import os
import time
from dataclasses import MISSING, fields, replace
from math import nan

import pytest

from workbench.experiment.run.launch import monitor
from workbench.experiment.run.launch.monitor import watch_client, watched_gauges, worker_count
from workbench.experiment.run.run_log import Log
from workbench.load.drive.health import ClientHealth
from workbench.serve.deployed import Deployment, Instance


class Health:
    """A pass of one second, and how the client fared in it."""

    def __init__(self, *, lag_s=0.0, share=0.0, late_s=nan, seconds=1.0):
        self.started_s, self.ended_s = 0.0, seconds
        needed = (field.name for field in fields(ClientHealth) if field.default is MISSING)
        unknown = dict.fromkeys(needed, nan)
        shares = {"thread_cpu_share": share, "process_cpu_share": share}
        seen = {"lateness_p99_s": late_s, "loop_lag_max_s": lag_s} | shares
        self.health = ClientHealth(**unknown | seen)


@pytest.mark.parametrize(
    ("load", "kept"),
    [
        (Health(), {"loop_lag_max_s": 0.0, "thread_cpu_share": 0.0}),
        (Health(lag_s=nan, share=nan), {}),
        (Health(lag_s=0.2, share=0.9), {"loop_lag_max_s": 0.2, "thread_cpu_share": 0.9}),
        (Health(late_s=0.2, lag_s=nan, share=nan), {"lateness_p99_s": 0.2}),
        # A pass that fails at once is all client, and no beat was due in it.
        (Health(share=0.9, lag_s=nan, seconds=0.005), {}),
    ],
)
def test_each_reading_of_the_clients_health_is_kept(load, kept):
    log = Log()
    watch_client(load, nan, log)
    watch_client(Health(), nan, log)
    for name in ("process_cpu_share", "workers"):
        log.client.pop(name)
    assert log.client == {"loop_lag_max_s": 0.0, "thread_cpu_share": 0.0} | kept


def test_other_programs_that_keep_the_machine_busy_are_a_doubt():
    log = Log()
    watch_client(Health(), 0.05, log)
    assert log.doubts == []
    watch_client(Health(), 0.5, log)
    (doubt,) = log.doubts
    assert "Other programs used more than 10 %" in doubt


def test_the_worst_of_the_clients_health_is_kept():
    log = Log()
    for lag_s, share in ((0.01, 1.0), (0.03, 0.5), (nan, 1.0), (0.02, 1.0)):
        load = Health(lag_s=lag_s)
        load.health = replace(load.health, kernel_stamped_share=share)
        watch_client(load, nan, log)
    assert log.client["loop_lag_max_s"] == 0.03
    assert log.client["kernel_stamped_share"] == 0.5  # of these the smallest
    assert "others_cpu_share" not in log.client


def test_a_client_that_was_too_busy_gets_one_process_more(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    log = Log()
    watch_client(Health(share=0.5), nan, log, most=4)
    assert (log.workers, log.doubts) == (1, [])
    for _ in range(3):
        watch_client(Health(share=0.7), nan, log, most=4)
    assert log.workers == 2  # a core is left for the servers
    assert "later passes used 2 processes. Repeat the run with client_workers 2" in log.doubts[0]


def test_a_busy_client_that_no_process_more_can_help_is_told_why(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    log = Log()
    for _ in range(3):
        watch_client(Health(share=0.7), nan, log, most=2)
    assert log.workers == 2
    assert "later passes used 2 processes." in log.doubts[0]
    assert "and no more than 2 can be used: " in log.doubts[1]


def test_a_number_of_workers_that_was_asked_for_stays_or_is_cut_with_a_doubt(attached):
    log = Log(workers=3)
    plans = [attached(client_workers=n, concurrency=4) for n in (0, 1, 2, 9)]
    assert [worker_count(plan, 4, log) for plan in plans] == [3, 1, 2, 4]
    (doubt,) = log.doubts
    assert doubt.startswith("client_workers is 9, but at most 4 can be used: ")


async def test_a_pass_that_is_broken_off_does_not_wait_for_a_server_that_is_silent(monkeypatch):
    monkeypatch.setattr(monitor, "GAUGE_PERIOD_S", 0.01)
    asked = asyncio.Event()

    async def silent(reader, writer):
        asked.set()
        await asyncio.Event().wait()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    one = Deployment(url=url, instances=(Instance(name="decode-0", role="decode", url=url),))
    with pytest.raises(ZeroDivisionError):
        async with watched_gauges(one):
            await asyncio.wait_for(asked.wait(), 10)
            began_s = time.monotonic()
            raise ZeroDivisionError
    assert time.monotonic() - began_s < 5  # the timeout of a reading is 10 s
    server.close()
