import asyncio
import json
from dataclasses import replace
from itertools import count

import pandas as pd
import pytest

from workbench.errors import DeploymentError
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.launch import energy
from workbench.experiment.run.launch import measure as measure_module
from workbench.experiment.run.launch.measure import _while_servers_live, measure_arm
from workbench.experiment.run.run_log import Log
from workbench.hardware.hosts import Host
from workbench.hardware.power import Meter, Meters
from workbench.serve.deployed import Deployment, Instance
from workbench.serve.processes.launcher import Process, ProcessSpec


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


async def test_a_pass_of_which_nothing_was_answered_has_no_ttft(measure):
    _, said, _ = await measure(url="http://127.0.0.1:9")
    assert all("TTFT unknown" in line and "2 of 2 failed" in line for line in said)


async def test_a_launch_is_noted_with_its_arm(measure):
    log, _, _ = await measure()
    assert log.launches_s == [2.5]
    assert log.measuring_s > 0
    arm = log.arms["attached"]
    assert (arm.role, arm.instances, arm.passes) == (
        "attached", 1, ("cold", "engine-warm")
    )  # fmt: skip


async def test_gates_get_what_was_sent_and_what_was_counted(measure):
    log, _, _ = await measure()
    cold, warm = log.passes
    assert (cold.pass_name, cold.requests_sent, cold.prompt_tokens_sent) == ("cold", 2, 1000)
    assert cold.sources["aggregated"].computed == 1000
    assert warm.sources["aggregated"].engine_hit == 2 * 384
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
    log, said, _ = await measure(processes=(Process(spec, log_file, exited),))
    assert set(log.frame("requests")["pass"]) == {"cold"}  # it is noticed after the first pass
    (doubt,) = (doubt for doubt in log.doubts if "decode-0" in doubt)
    assert doubt == (
        "attached, round 1: decode-0 ended by itself: RuntimeError: NIXL_ERR_REMOTE_DISCONNECT"
        f" (log: {log_file})"
    )
    assert said[-1] == f"decode-0 ended by itself; log: {log_file}"


async def test_a_busy_proxy_is_a_doubt(measure, vllm):
    vllm.cpu_s = [0.0, 100.0]
    log, _, _ = await measure(proxy_url=vllm.url)
    assert any("of a core in a pass and may add to TTFT" in doubt for doubt in log.doubts)


async def test_an_idle_proxy_is_none(measure, vllm):
    log, _, _ = await measure(proxy_url=vllm.url)
    assert not [doubt for doubt in log.doubts if "proxy" in doubt]
    assert "GET /legs" in vllm.asked


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


async def test_a_host_that_is_lost_ends_a_pass_whatever_it_waits_for(tmp_path):
    """Counters of a host that is cut off are read until a timeout, for example."""
    spec = ProcessSpec(
        name="decode-0", role="decode", program=(), args=(), port=1, ready_url="",
        host=Host(name="host-2", address="10.0.0.2"),
    )  # fmt: skip
    exited = asyncio.get_running_loop().create_future()
    process = Process(spec, tmp_path / "decode-0.log", exited, end="host-2 did not answer")
    running = Deployment(url="", processes=(process,))
    said = "decode-0 ended by itself, and the pass was stopped: host-2 did not answer"
    asyncio.get_running_loop().call_later(0.1, exited.set_result, -9)
    with pytest.raises(DeploymentError, match=said):
        await asyncio.wait_for(_while_servers_live(running, asyncio.sleep(60)), 5)


async def test_a_launch_notes_the_kv_space_of_the_instances_that_decode(measure, vllm):
    log, _, _ = await measure()
    (space,) = log.arms["attached"].decode_kv_tokens
    assert space == 128 * vllm.instance.settings.blocks


async def test_each_pass_has_the_energy_of_its_devices(measure, monkeypatch):
    monkeypatch.setattr(energy, "IDLE_S", 0.05)
    joules = count(0, 5)
    counter = Meter(name="GPU 0", source="NVML", energy_j=lambda: float(next(joules)))
    monkeypatch.setattr(measure_module, "meters_of", lambda *_: Meters(found=(counter,)))
    log, _, _ = await measure()
    assert [(row.arm, row.round, row.pass_name, row.meter) for row in log.energy] == [
        ("attached", 0, "cold", "GPU 0"), ("attached", 0, "engine-warm", "GPU 0")
    ]  # fmt: skip
    for row in log.energy:
        assert row.joules == 5 * (row.samples - 1)
        assert row.seconds > 0 and row.idle_w > 0 and row.counted
    assert log.unmetered == {}


async def test_a_driver_that_vanishes_in_a_pass_keeps_what_was_measured(measure, monkeypatch):
    monkeypatch.setattr(energy, "IDLE_S", 0.05)
    readings = iter([100.0, 100.0, 100.0])

    def power_w():
        for watts in readings:
            return watts
        raise RuntimeError("GPU is lost")

    meter = Meter(name="GPU 0", source="NVML", power_w=power_w)
    monkeypatch.setattr(measure_module, "meters_of", lambda *_: Meters(found=(meter,)))
    log, _, _ = await measure()
    assert (log.frame("requests")["error"] == "").all()
    assert len(log.passes) == len(log.energy) == 2
    assert log.energy[-1].problem == "it stopped responding (GPU is lost)"


async def test_attached_servers_are_not_metered(measure):
    log, _, _ = await measure()
    assert log.energy == []
    assert log.unmetered == {"attached": "the servers were not started here"}
