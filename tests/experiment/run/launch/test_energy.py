"""Which devices belong to an arm, and what they use when idle."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from math import isnan

import pytest

from workbench.experiment.run.launch import energy
from workbench.experiment.run.launch.energy import energy_rows, idle_watts, meters_of
from workbench.hardware.power import Meter, Meters, Used
from workbench.serve.deployed import Deployment


@pytest.fixture
def asked(monkeypatch):
    """The platform and GPUs whose meters were looked for."""
    seen = []

    def find(platform, devices):
        seen.append((platform, devices))
        return Meters()

    monkeypatch.setattr(energy, "find_meters", find)
    return seen


def running(arm):
    return Deployment(url="http://127.0.0.1:1", plan=arm.deployment(count(20_000)))


def test_only_the_gpus_of_the_arm_are_looked_for_each_once(sweep, machine_has, asked):
    machine_has("cuda", gpus=8, visible="2,3,GPU-aa,5,6,7", free_gb=500)
    plan = sweep(topology="1p1d", opponents=False, decode_tp=2)
    meters_of(plan.arms[0], running(plan.arms[0]))
    shared = sweep(topology="2a", connector="none", instances_per_gpu=6)
    meters_of(shared.arms[0], running(shared.arms[0]))
    assert asked == [("cuda", ["2", "3", "GPU-aa"]), ("cuda", ["2", "3"])]


def test_on_a_cpu_the_packages_are_looked_for(sweep, asked):
    arm = sweep(topology="1a", connector="none").arms[0]
    meters_of(arm, running(arm))
    assert asked == [("cpu", [])]


def test_simulated_and_attached_servers_and_other_hosts_are_not_metered(sweep, asked):
    arm = sweep(topology="1a", connector="none", engine="simulated").arms[0]
    assert meters_of(arm, running(arm)).missing == "simulated servers compute nothing"
    found = meters_of(arm, Deployment(url="http://127.0.0.1:1"))
    assert found.missing == "the servers were not started here"
    assert asked == []


async def test_idle_power_is_the_mean_while_nothing_is_sent(monkeypatch):
    monkeypatch.setattr(energy, "IDLE_S", 0.05)
    meter = Meter(name="GPU 0", source="NVML", power_w=lambda: 70.0)
    assert await idle_watts(Meters(found=(meter,))) == {"GPU 0": pytest.approx(70.0)}
    assert await idle_watts(Meters(missing="no library")) == {}


def test_a_device_without_idle_power_is_unknown_above_idle():
    used = Used(
        meter="GPU 0", source="NVML", joules=600.0, seconds=2.0, samples=9, counted=True
    )  # fmt: skip
    where = {"arm": "2a", "number": 1, "pass_name": "cold"}
    (row,) = energy_rows([used], {}, **where)
    assert (row.arm, row.round, row.pass_name, row.joules) == ("2a", 1, "cold", 600.0)
    assert isnan(row.idle_w)
    (row,) = energy_rows([replace(used, problem="lost")], {"GPU 0": 80.0}, **where)
    assert (row.idle_w, row.problem) == (80.0, "lost")
