"""The duration of a plan comes from launches measured here before, else from a rule."""

from math import isnan

import pytest

from workbench.experiment.plan.duration import Duration, measured_before, remember_launch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


def test_launches_of_the_same_kind_are_remembered_by_their_median():
    assert isnan(measured_before("a")[0])
    for took_s in (500.0, 10.0, 12.0, 14.0):
        remember_launch("a", took_s)
    seconds, day = measured_before("a")
    assert seconds == 13.0 and len(day) == 10
    for _ in range(20):
        remember_launch("a", 2.0)
    assert measured_before("a")[0] == 2.0  # the last ones count
    assert isnan(measured_before("b")[0])


def test_a_plan_uses_what_was_measured_and_says_so(sweep):
    plan = sweep(topology="1a,2a", connector="none", rounds=3, requests=2)
    one, two = plan.arms
    by_rule_s = plan.duration.launch_s
    remember_launch(plan.launch_key(one), 100.0)
    assert plan.duration.launch_s == {"1a": 100.0, "2a": by_rule_s["2a"]}
    assert "1 of 2 arms measured before" in str(plan.duration)
    remember_launch(plan.launch_key(two), 50.0)
    assert plan.duration.total_s == plan.once_s + 3 * 150.0
    assert "each arm was measured on this machine before, last on 20" in str(plan)
    other = sweep(topology="1a,2a", connector="none", rounds=3, requests=2, output_tokens=16)
    assert other.duration.launch_s["1a"] != 100.0  # another workload
    more = sweep(topology="1a,2a", connector="none", rounds=9, requests=2)
    assert more.duration.launch_s["1a"] == 100.0


def test_gpu_hours_are_those_of_each_arms_own_gpus():
    duration = Duration(
        rounds=4, once_s=0.0, launch_s={"1p4d": 900.0, "5a": 600.0}, gpus={"1p4d": 5, "5a": 5},
        basis="(each arm was measured on this machine before, last on 2026-11-29)",
    )  # fmt: skip
    assert duration.gpu_hours == 4 * 5 * 1500 / 3600
    assert str(duration).startswith("8 launches in about 1.7 hours, 8.3 GPU-hours (each arm")
    assert [duration.rounds_within(s) for s in (1499, 1500, 3100, 10**6)] == [0, 1, 2, 4]


def test_what_was_never_measured_on_a_gpu_is_unknown(sweep, machine_has, model):
    machine_has("cuda", gpus=8)
    plan = sweep(topology="1p1d", model=str(model), connector="nixl")
    assert str(plan).endswith(
        "duration: 9 launches, duration unknown (a run with rounds 1 measures it)"
    )
    for arm in plan.arms:
        remember_launch(plan.launch_key(arm), 120.0)
    assert "9 launches in about 18.0 minutes, 0.6 GPU-hours (each arm was measured" in str(plan)
