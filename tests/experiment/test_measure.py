import asyncio
import json
import os
from dataclasses import replace
from math import nan

import pandas as pd
import pytest

from workbench.experiment.measure import Log, _watch_client, _workers, measure_arm
from workbench.experiment.run_folder import RunFolder
from workbench.load.health import ClientHealth
from workbench.serve.deployment import Deployment, Instance
from workbench.serve.plan import ProcessSpec
from workbench.serve.processes import Process


@pytest.fixture
def deployment(vllm):
    instance = Instance(name="aggregated-0", role="aggregated", url=vllm.url)
    return Deployment(url=vllm.url, model="their-model", instances=(instance,), started_s=2.5)


@pytest.fixture
def measure(attached, deployment, tmp_path):
    """Measure one launch of the attached arm on `deployment`, changed as told."""

    async def run(*, plan=None, **changed):
        plan = plan or attached()
        folder = RunFolder.open(str(tmp_path), "pd_sweep", plan.run_id)
        log, said = Log(), []
        await measure_arm(
            plan, plan.arms[0], 0, replace(deployment, **changed), folder, log, said.append
        )
        return log, said, folder

    return run


async def test_every_pass_is_on_disk_when_it_has_ended(measure):
    log, said, folder = await measure()
    rows = pd.read_parquet(folder.attempt / "requests.parquet")
    assert rows["pass"].tolist() == ["cold", "cold", "engine-warm", "engine-warm"]
    assert len(log.frame("requests")) == 4
    assert len(said) == 2
    gauges = pd.read_parquet(folder.attempt / "gauges.parquet")
    assert {"pass", "instance", "running", "kv_usage"} <= set(gauges.columns)


async def test_a_launch_is_noted_with_its_arm(measure):
    log, _, _ = await measure()
    assert log.launches_s == [2.5]
    assert log.measuring_s > 0
    arm = log.arms["attached"]
    assert (arm["role"], arm["instances"], arm["passes"]) == (
        "attached", 1, ["cold", "engine-warm"]
    )  # fmt: skip


async def test_gates_get_what_was_sent_and_what_was_counted(measure):
    log, _, _ = await measure()
    cold, warm = log.passes
    assert (cold.pass_name, cold.requests_sent, cold.prompt_tokens_sent) == ("cold", 2, 1000)
    assert cold.sources["aggregated"].computed == 1000
    assert warm.sources["aggregated"].engine_hit == 2 * 496
    assert warm.requests == {"aggregated": 2}


async def test_rows_carry_what_they_were_measured_with(measure):
    log, _, _ = await measure()
    columns = ["arm", "topology", "connector", "workload", "round", "pass"]
    rows = log.frame("requests")
    assert list(rows.columns[:6]) == columns
    assert rows.iloc[0][columns].tolist() == [
        "attached", "attached", "unknown", "reference", 0, "cold"
    ]  # fmt: skip


async def test_a_server_that_ended_by_itself_ends_its_launch(measure, vllm, tmp_path):
    log_file = tmp_path / "decode-0.log"
    log_file.write_text("RuntimeError: NIXL_ERR_REMOTE_DISCONNECT\n")
    spec = ProcessSpec(
        name="decode-0", role="decode", program=("x",), args=(), port=1, ready_url=vllm.url
    )
    exited = asyncio.get_running_loop().create_future()
    exited.set_result(-9)
    log, said, _ = await measure(processes=(Process(spec, 1, log_file, exited),))
    assert set(log.frame("requests")["pass"]) == {"cold"}  # it is noticed after the first pass
    (doubt,) = (doubt for doubt in log.doubts if "decode-0" in doubt)
    assert doubt.startswith(
        "attached, round 1: decode-0 ended by itself: RuntimeError: NIXL_ERR_REMOTE_DISCONNECT\n"
        f"  log: {log_file}"
    )
    assert said[-1] == f"decode-0 ended by itself; log: {log_file}"


async def test_a_busy_proxy_is_a_doubt(measure, vllm):
    vllm.cpu_s = [0.0, 100.0]
    log, _, _ = await measure(proxy_url=vllm.url)
    assert any("of a core in a pass: it may be part of TTFT" in doubt for doubt in log.doubts)


async def test_an_idle_proxy_is_none(measure, vllm):
    log, _, _ = await measure(proxy_url=vllm.url)
    assert not [doubt for doubt in log.doubts if "proxy" in doubt]
    assert "GET /legs" in vllm.asked


class Health:
    """A pass of one second, and how the client fared in it."""

    def __init__(self, *, lag_s=0.0, share=0.0, late_s=nan, seconds=1.0):
        self.started_s, self.ended_s = 0.0, seconds
        self.health = ClientHealth(
            lateness_p50_s=nan,
            lateness_p99_s=late_s,
            loop_lag_p99_s=nan,
            loop_lag_max_s=lag_s,
            thread_cpu_share=share,
            process_cpu_share=share,
            merged_share=nan,
            kernel_stamped_share=nan,
            clock_moved_s=nan,
        )


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
    _watch_client(load, nan, log)
    _watch_client(Health(), nan, log)
    for name in ("process_cpu_share", "workers"):
        log.client.pop(name)
    assert log.client == {"loop_lag_max_s": 0.0, "thread_cpu_share": 0.0} | kept


def test_other_programs_that_keep_the_machine_busy_are_a_doubt():
    log = Log()
    _watch_client(Health(), 0.05, log)
    assert log.doubts == []
    _watch_client(Health(), 0.5, log)
    (doubt,) = log.doubts
    assert "other programs kept more than 10%" in doubt


def test_the_worst_of_the_clients_health_is_kept():
    log = Log()
    for lag_s in (0.01, 0.03, nan, 0.02):
        _watch_client(Health(lag_s=lag_s), nan, log)
    assert log.client["loop_lag_max_s"] == 0.03
    assert "others_cpu_share" not in log.client


def test_the_smallest_share_of_kernel_stamps_is_the_worst():
    log = Log()
    for share in (1.0, 0.5, 1.0):
        load = Health()
        load.health = replace(load.health, kernel_stamped_share=share)
        _watch_client(load, nan, log)
    assert log.client["kernel_stamped_share"] == 0.5


def test_a_client_that_was_too_busy_gets_one_process_more(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    log = Log()
    _watch_client(Health(share=0.5), nan, log, most=4)
    assert (log.workers, log.doubts) == (1, [])
    for _ in range(3):
        _watch_client(Health(share=0.7), nan, log, most=4)
    assert log.workers == 2  # a core is left for the servers
    assert "later passes were sent by 2. Measure again with client_workers 2" in log.doubts[0]


def test_a_busy_client_that_no_process_more_can_help_is_told_why(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    log = Log()
    for _ in range(3):
        _watch_client(Health(share=0.7), nan, log, most=2)
    assert log.workers == 2
    assert "later passes were sent by 2." in log.doubts[0]
    assert "and 2 is the most that can send the load: no more than requests" in log.doubts[1]


def test_a_number_of_workers_that_was_asked_for_stays(attached):
    log = Log(workers=3)
    plans = {n: attached(client_workers=n, concurrency=4) for n in (0, 1, 2)}
    assert [_workers(plan, 4, log) for plan in plans.values()] == [3, 1, 2]
    assert log.doubts == []


def test_a_number_of_workers_that_cannot_be_is_cut_with_a_doubt(attached):
    log = Log()
    assert _workers(attached(client_workers=9, concurrency=4), 4, log) == 4
    assert log.doubts[0].startswith("client_workers is 9 and 4 sent the load: no more than")


async def test_the_trace_of_a_sweep_over_rates_is_that_of_its_first(measure, attached):
    _, said, folder = await measure(plan=attached(rates_per_s=[5.0, 5000.0]))
    assert len(said) == 2
    lines = (folder.attempt / "traces" / "attached.jsonl").read_text().splitlines()
    first_ms, second_ms = (json.loads(line)["timestamp"] for line in lines)
    assert second_ms - first_ms > 20


async def test_a_pass_can_be_sent_by_several_processes(measure, attached):
    plan = attached(client_workers=2, concurrency=2, requests=4)
    log, _, _ = await measure(plan=plan)
    assert log.client["workers"] == 2
    assert log.frame("requests")["error"].tolist() == [""] * 8
    assert log.frame("requests")["index"].tolist() == [0, 1, 2, 3] * 2


def test_a_doubt_is_noted_once():
    log = Log()
    log.doubt("few rounds")
    log.doubt("few rounds")
    assert log.doubts == ["few rounds"]


def test_what_was_not_measured_is_an_empty_table_with_columns():
    rows = Log().frame("requests")
    assert len(rows) == 0
    assert "error" in rows.columns
