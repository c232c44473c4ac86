"""Operating points: throughput, cost and energy that follow from rows by hand."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, nan

import pandas as pd
import pytest

from workbench.experiment.findings.decision.point_findings import (
    energy_doubts,
    gpus_of,
    point_rows,
    power_sentence,
)
from workbench.experiment.result.finding_rows import EnergyRow
from workbench.serve.checks.capacity import Capacity

USED = EnergyRow(
    arm="2a", round=0, pass_name="cold", meter="GPU 0", source="NVML", joules=600.0, seconds=2.0,
    idle_w=100.0, samples=9, counted=True,
)  # fmt: skip


@pytest.fixture
def measured(sweep, rows):
    """Three rounds of 2a: ten requests of 1,000 prompt and 11 output tokens, 0.4 s each."""

    def points(ttft_s=(0.3, 0.3, 0.3), energy=(), unmetered=None, **given):
        plan = sweep(**{"topology": "2a", "connector": "none"} | given)
        parts = [rows("2a", "cold", [each] * 10, round=n) for n, each in enumerate(ttft_s)]
        parts += [rows("2a", "engine-warm", [0.01] * 10, round=n) for n in range(len(ttft_s))]
        found = point_rows(plan, pd.concat(parts), energy=energy, unmetered=unmetered)
        return found

    return points


def test_a_cold_pass_is_a_point_and_a_warm_one_is_not(measured):
    (point,) = measured()
    assert (point.arm, point.pass_name, point.users, point.n_rounds) == ("2a", "cold", 1, 3)
    assert isnan(point.rate_per_s)
    # 11 tokens in 0.4 s, one request after the other; two instances
    assert point.system_tps.value == pytest.approx(27.5)
    assert point.gpu_tps.value == pytest.approx(13.75)
    # a token every 10 ms
    assert point.user_tps.value == pytest.approx(100.0)


def test_cost_follows_from_throughput_with_its_interval(measured):
    (point,) = measured(ttft_s=(0.3, 0.35, 0.4), gpu_hour_price="2.5 USD")
    cost, tps = point.output_cost, point.system_tps
    hour = 2 * 2.5
    assert cost.value == pytest.approx(hour / 3600 / tps.value * 1e6)
    assert cost.low == pytest.approx(hour / 3600 / tps.high * 1e6)
    assert cost.high == pytest.approx(hour / 3600 / tps.low * 1e6)
    assert cost.low < cost.value < cost.high
    # 1,011 tokens of which 11 are output
    assert point.total_cost.value == pytest.approx(cost.value * 11 / 1011)


def test_one_gpu_at_3_usd_an_hour_and_27_5_tokens_a_second(measured):
    (point,) = measured(gpu_hour_price="3 USD")
    # 2 x 3 USD buy 99,000 tokens
    assert point.output_cost.value == pytest.approx(60.606, rel=1e-4)


def test_two_rounds_have_a_cost_without_an_interval(measured):
    (point,) = measured(ttft_s=(0.3, 0.4), gpu_hour_price="2.5 EUR")
    assert point.output_cost.value > 0
    assert isnan(point.output_cost.low)
    assert point.output_cost.note == "no interval: needs 3 rounds"


def test_without_a_price_there_is_no_cost_and_never_zero(measured):
    (point,) = measured()
    assert isnan(point.output_cost.value)
    assert point.output_cost.note == "no price given"


def test_instances_that_share_a_gpu_occupy_one_together(sweep):
    arm = sweep(topology="2a", connector="none").arms[0]
    assert gpus_of(arm) == 2
    assert gpus_of(replace(arm, capacity=Capacity(devices=("0",), instances_per_gpu=2))) == 1


def test_joules_per_token_with_and_without_idle_power(measured):
    energy = [replace(USED, round=n, joules=j) for n, j in enumerate((600.0, 660.0, 540.0))]
    (point,) = measured(energy=energy)
    # 110 output tokens a round; 200 J of idle power in 2 s
    assert point.energy.value == pytest.approx(600 / 110)
    assert point.energy_above_idle.value == pytest.approx(400 / 110)
    assert point.energy.low < point.energy.value < point.energy.high
    assert point.power_w == pytest.approx(300.0)


def test_all_gpus_of_an_arm_are_added(measured):
    both = [replace(USED, meter=f"GPU {gpu}", round=n) for n in range(3) for gpu in (0, 1)]
    (point,) = measured(energy=both)
    assert point.energy.value == pytest.approx(1200 / 110)
    assert point.power_w == pytest.approx(600.0)


def test_a_round_whose_driver_vanished_is_left_out_and_said(measured):
    energy = [replace(USED, round=n) for n in range(3)]
    energy[1] = replace(energy[1], joules=nan, problem="it stopped responding (GPU is lost)")
    (point,) = measured(energy=energy)
    assert point.energy.value == pytest.approx(600 / 110)
    assert point.energy.note == "1 of 3 rounds unknown; no interval: needs 3 rounds"
    assert power_sentence(energy, {}) == (
        "Power was measured for GPU 0 by NVML (energy counter). Unknown in some passes: GPU 0: it"
        " stopped responding (GPU is lost)."
    )


def test_energy_of_an_arm_with_an_unmetered_gpu_is_unknown(measured):
    energy = [replace(USED, round=n) for n in range(3)]
    why = "GPU 1 reports neither energy nor power (Not Supported)"
    (point,) = measured(energy=energy, unmetered={"2a": why})
    assert isnan(point.energy.value) and isnan(point.power_w)
    assert point.energy.note == why
    assert power_sentence(energy, {"2a": why}).endswith(f"Unknown in some passes: 2a: {why}.")


def test_power_that_was_not_measured_is_said(measured):
    why = "this machine has no RAPL counters"
    assert power_sentence([], {"1p1d": why, "2a": why}) == f"Power was not measured: {why}."
    assert power_sentence([], {}) == "Power was not measured."
    (point,) = measured(unmetered={"2a": why})
    assert isnan(point.energy.value) and point.energy.note == why


def test_rapl_counts_more_than_the_servers():
    rapl = replace(USED, meter="CPU package-0", source="RAPL")
    assert power_sentence([rapl], {}) == (
        "Power was measured for CPU package-0 by RAPL (energy counter). RAPL counts every program"
        " on the CPU, including the client."
    )


def test_sampled_power_of_a_short_pass_is_a_doubt():
    assert energy_doubts([USED]) == []
    (doubt,) = energy_doubts([replace(USED, counted=False, seconds=1.0)])
    assert doubt.startswith("Energy of passes shorter than 2 s is rough")


def test_other_notebooks_and_working_sets_have_no_points(prefix_cache, rows):
    frame = rows("cache on", "cold", [0.1])
    assert point_rows(prefix_cache(), frame) == ()
