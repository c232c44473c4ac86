"""The tables of operating points and of the decision, cell by cell."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.finding_rows import DecisionRow, EnergyRow, PointRow
from workbench.experiment.result.point_tables import (
    decision_lines,
    decision_table,
    load_text,
    point_frame,
    point_table,
)
from workbench.metrics.gates.gate import Gate
from workbench.metrics.statistics import Estimate

UNKNOWN = Estimate(value=nan, low=nan, high=nan, n=0, note="no price given")


def known(value):
    return Estimate(value=value, low=0.9 * value, high=1.1 * value, n=3)


POINT = PointRow(
    arm="1p1d lmcache", pass_name="cold at 4/s", gpus=2, rate_per_s=4, users=nan, n_requests=120,
    n_rounds=3, user_tps=known(90.0), system_tps=known(124.0), gpu_tps=known(62.0),
    output_cost=known(2.5), total_cost=known(0.025), energy=known(4.0),
    energy_above_idle=known(3.0), power_w=512.0,
)  # fmt: skip
DECIDED = DecisionRow(
    arm="1p1d lmcache", gpus=2, load="rate", met=4, missed=6, pass_name="cold at 4/s",
    settled=True, note="", share=0.98, share_low=0.94, share_high=1.0, throughput_per_s=3.9,
    kv_tokens=349440, request_tokens=1056, running=6, head_room=324, hand_offs=4,
    gate="14 gates passed",
)  # fmt: skip
ENERGY = EnergyRow(
    arm="1p1d lmcache", round=0, pass_name="cold at 4/s", meter="GPU 0", source="NVML", joules=1.0,
    seconds=2.0, idle_w=0.1, samples=9, counted=True,
)  # fmt: skip
RUN = RunFacts(
    notebook="pd_sweep", run_id="x", status="success", machine={"platform": "cuda"},
    points=(POINT,), decisions=(DECIDED,), energy=(ENERGY,), decision="1p1d serves 4 req/s.",
    power="Power was measured for GPU 0.", parameters={"gpu_hour_price": "2.5 USD"},
)  # fmt: skip


def test_a_decision_has_load_room_cost_energy_and_gate():
    (row,) = decision_table(RUN).to_dict("records")
    assert row == {
        "arm": "1p1d lmcache",
        "GPUs": "2",
        "req/s within limits": "4",
        "requests within limits": "98 % [94, 100]",
        "KV headroom": "324 hand-offs (4 used)",
        "USD per M output tokens": "2.50 [2.25, 2.75]",
        "J per output token": "4.00 [3.60, 4.40]",
        "gate": "14 gates passed",
    }


def test_without_price_and_meters_there_are_no_columns_for_them():
    run = replace(RUN, parameters={}, energy=())
    for table in (decision_table(run), point_table(run)):
        assert not [name for name in table if "USD" in name or "J per" in name or "W" in name]


@pytest.mark.parametrize(
    ("changed", "cell"),
    [
        ({"met": nan}, "less than 6"),
        ({"missed": nan}, "4 or more"),
        ({"settled": False}, "about 4"),
        ({"load": "users", "met": 16}, "16"),
    ],
)
def test_how_well_the_load_is_known_is_in_its_cell(changed, cell):
    run = replace(RUN, decisions=(replace(DECIDED, **changed),))
    (row,) = decision_table(run).to_dict("records")
    unit = "users" if changed.get("load") == "users" else "req/s"
    assert row[f"{unit} within limits"] == cell


def test_an_arm_that_serves_nothing_has_no_cost():
    poor = replace(DECIDED, arm="2a", met=nan)
    rows = decision_table(replace(RUN, decisions=(poor, DECIDED))).to_dict("records")
    assert rows[0]["USD per M output tokens"] == rows[0]["J per output token"] == "-"


def test_head_room_without_hand_offs_counts_requests_and_may_be_unknown():
    for changed, cell in (
        ({"hand_offs": nan, "head_room": 1324}, "1,324 requests"),
        ({"head_room": nan}, "not known"),
    ):
        run = replace(RUN, decisions=(replace(DECIDED, **changed),))
        assert decision_table(run)["KV headroom"][0] == cell


def test_points_have_every_number_with_its_interval():
    (row,) = point_table(RUN).to_dict("records")
    assert row["requests"] == "120 in 3 rounds"
    assert row["tok/s per GPU"] == "62.0 [55.8, 68.2]"
    assert row["tok/s per user"] == "90.0 [81.0, 99.0]"
    assert row["USD per M tokens"] == "0.0250 [0.0225, 0.0275]"
    assert (row["J above idle"], row["mean W"]) == ("3.00 [2.70, 3.30]", "512")


def test_an_unknown_number_says_why_and_is_not_0():
    run = replace(RUN, points=(replace(POINT, energy=replace(UNKNOWN, note="GPU is lost")),))
    (row,) = point_table(run).to_dict("records")
    assert row["J per output token"] == "not known (GPU is lost)"


def test_on_a_cpu_an_instance_stands_for_a_gpu():
    run = replace(RUN, machine={"platform": "cpu"})
    assert "tok/s per instance" in point_table(run)
    assert "instances" in decision_table(run)


def test_the_frame_has_a_column_for_each_end():
    (row,) = point_frame(RUN.points).to_dict("records")
    assert (row["gpu_tps"], row["gpu_tps_low"], row["gpu_tps_high"]) == pytest.approx(
        (62.0, 55.8, 68.2)
    )
    assert point_frame([]).empty and decision_table(replace(RUN, decisions=())).empty


def test_the_sentences_are_decision_notes_and_power():
    run = replace(RUN, decisions=(replace(DECIDED, note="few requests"),))
    assert decision_lines(run) == [
        "1p1d serves 4 req/s.",
        "1p1d lmcache: few requests.",
        "Power was measured for GPU 0.",
    ]
    assert decision_lines(replace(run, decision="", power="", decisions=())) == []


def test_a_note_about_a_void_arm_says_so():
    failed = Gate(name="no failures", outcome="FAIL", sentence="Two", arms=("1p1d lmcache",))
    other = replace(DECIDED, arm="2a", note="few requests")
    rows = (replace(DECIDED, note="few requests"), other)
    assert decision_lines(replace(RUN, decisions=rows, gates=(failed,)))[1:3] == [
        "Not valid (requests failed): 1p1d lmcache: few requests.",
        "2a: few requests.",
    ]


@pytest.mark.parametrize(
    ("load", "said"), [(4.0, "4"), (52.314, "52.3"), (0.5, "0.5"), (100, "100"), (1234, "1,234")]
)
def test_a_load_has_three_digits(load, said):
    assert load_text(load) == said
