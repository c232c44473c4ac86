"""What becomes of the engines' rows; the rows are made here, as a real run has them."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from workbench.claims.engines import generation
from workbench.claims.recipes.rows import Rows, row
from workbench.claims.registry.claim import BUILT_IN
from workbench.claims.verdict.verdict import Conditions, judge

SPEEDS = {  # tokens/s of the A800 document by batch
    "transformers": {1: 45.6, 4: 184.6, 8: 356.2, 16: 669.2, 32: 1236.4, 64: 2006.8},
    "vllm": {1: 93.7, 4: 375.1, 8: 742.6, 16: 1449.9, 32: 2477.9, 64: 4716.8},
}
SPEEDS["vllm, prefix cache on"] = SPEEDS["vllm"]


def launches(*, runs=5, calls=2, first=lambda arm: 7, speeds=SPEEDS):
    """Rows of runs that differ in speed by 1 % each, as much in every arm."""
    rows = []
    for run in range(runs):
        for arm, by_batch in speeds.items():
            for batch, speed in by_batch.items():
                seconds = batch * 16 / speed * (1 + run / 100)
                values = {"time": seconds, "output tokens": batch * 16,
                          "first token": first(arm), "cached tokens": 0,
                          "time when repeated": seconds / 2,
                          "peak memory": 1 + batch / 10}  # fmt: skip
                rows += [
                    row(quantity, arm, f"batch {batch}", value, "", order=call) | {"run": run}
                    for call in range(calls)
                    for quantity, value in values.items()
                ]
    return Rows(table=pd.DataFrame(rows), results=({"threads": 1},) * runs, doubts=())


def of_time(rows):
    return rows.table["quantity"].eq("time")


@pytest.fixture
def read(cpu):
    return lambda rows: generation.read(rows, cpu)


@pytest.fixture
def gpu(cpu, monkeypatch):
    """An A800; `model_facts` says how many parameters a token passes."""
    parameters = SimpleNamespace(parameters=7.62e9)
    monkeypatch.setattr(generation, "model_facts", lambda _: parameters)
    monkeypatch.setattr(generation, "INPUT_TOKENS", 0)  # the document's prompts are a few tokens
    return replace(cpu, platform="cuda", hardware="A800 80GB PCIe"), parameters


@pytest.mark.parametrize(("faster", "code"), [(1, "confirmed"), (1.5, "unreliable_run")])
def test_a_run_of_ours_above_the_memory_bandwidth_is_void(gpu, published, faster, code):
    """93.7 tokens/s at batch 1 read 1.43 TB/s of 15 GB weights; a half more is no A800's."""
    setting, _ = gpu
    speeds = {arm: {b: faster * v for b, v in by.items()} for arm, by in SPEEDS.items()}
    outcome = generation.read(launches(speeds=speeds), setting)
    conditions = Conditions(
        platform="cuda", hardware=setting.hardware, model="Qwen2.5-7B", checks=outcome.checks
    )
    claim = "OWN-VLLM-HF"
    verdict = judge(published[claim], conditions, outcome.measurements[claim])
    assert verdict.code == code
    assert (faster > 1) == ("TB/s is 1.1x the bandwidth of one A800" in verdict.reason)


def test_of_a_cpu_or_a_model_of_unknown_size_no_ceiling_is_known(gpu, read):
    setting, facts = gpu
    claim = "OWN-VLLM-HF"
    assert generation.read(launches(), setting).measurements[claim].bounds
    assert not read(launches()).measurements[claim].bounds
    facts.parameters = 0.0
    assert not generation.read(launches(), setting).measurements[claim].bounds


def test_equal_batches_give_2_to_2_35_times_where_the_peaks_gave_3_7(read, judged):
    """The published table again, as if we had measured it: the corrected comparison."""
    speeds = SPEEDS | {"vllm": SPEEDS["vllm"] | {128: 7431.5}}
    outcome = read(launches(speeds=speeds))
    ratios = [cell.estimate for cell in outcome.measurements["OWN-VLLM-HF"].effects["throughput"]]
    assert (round(min(ratios), 2), round(max(ratios), 2)) == (2.0, 2.35)
    assert len(ratios) == 6  # batch 128 has no counterpart
    peak = outcome.measurements["S003-VLLM-VS-HF-PEAK"].effects["throughput"][0]
    assert peak.estimate == pytest.approx(270.3, abs=0.1)
    assert judged(outcome, "S003-VLLM-VS-HF-PEAK").code == "same_batch_and_concurrency"


def test_a_faster_engine_is_confirmed_as_a_shape_and_magnitudes_are_not_judged(read, judged):
    outcome = read(launches())
    assert judged(outcome, "OWN-VLLM-HF").word == "confirmed (on CPU)"
    assert judged(outcome, "S003-VLLM-TPUT").code == "hardware"
    assert outcome.doubts[0] == "No time for batches 2, 128."
    assert "batch 64 (not yet saturated)" in outcome.says


def test_batching_pays_less_than_in_proportion(read, judged):
    outcome = read(launches())
    parts = outcome.measurements["OWN-BATCHING"].effects
    assert len(parts["with each larger batch"]) == 5
    (share,) = parts["fraction of a proportional gain"]
    assert share.estimate == pytest.approx(4716.8 / 93.7 / 64)
    assert judged(outcome, "OWN-BATCHING").word == "confirmed (on CPU)"


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (launches(runs=4), "too_few_runs"),
        (launches(first=lambda arm: hash(arm)), "output_quality_checked"),
    ],
)
def test_an_unsound_run_confirms_nothing(read, judged, rows, code):
    assert judged(read(rows), "OWN-VLLM-HF").code == code


@pytest.mark.parametrize(
    ("quantity", "change", "check"),
    [
        ("output tokens", -1, "same_token_lengths_ignore_eos"),
        ("cached tokens", 128, "cache_state_controlled"),
    ],
)
def test_one_wrong_count_fails_its_check(read, judged, quantity, change, check):
    rows = launches()
    rows.table.loc[rows.table["quantity"].eq(quantity).idxmax(), "value"] += change
    outcome = read(rows)
    assert outcome.checks[check] == "fail"
    assert judged(outcome, "OWN-VLLM-HF").code == check


def test_a_peak_that_falls_behind_in_most_runs_is_a_loss(read):
    """Of gains of -20, -10, -30, -5 and +4 % none may be left out of the mean."""
    rows = launches(speeds=SPEEDS | {"vllm": SPEEDS["transformers"]})
    table = rows.table
    for run, ratio in enumerate((0.8, 0.9, 0.7, 0.95, 1.04)):
        of_run = of_time(rows) & table["arm"].eq("vllm") & table["run"].eq(run)
        table.loc[of_run, "value"] /= ratio
    outcome = read(rows)
    (peak,) = outcome.measurements["S003-VLLM-VS-HF-PEAK"].effects["throughput"]
    assert (peak.estimate, peak.runs) == (pytest.approx(-13.02, abs=0.01), 5)
    assert peak.low < peak.estimate < peak.high


def test_launches_and_calls_that_differ_by_a_quarter_are_a_floor_of_a_quarter(read):
    rows = launches()
    table = rows.table
    table.loc[of_time(rows), "value"] = 1.0
    table.loc[of_time(rows) & table["run"].mod(2).eq(1), "value"] = 1.25
    measured = read(rows).measurements
    assert measured["OWN-VLLM-HF"].noise_floor == pytest.approx(0.25)
    table.loc[of_time(rows), "value"] = 1 + 0.25 * table["order"]
    measured = read(rows).measurements
    assert measured["OWN-BATCHING"].noise_floor == pytest.approx(0.25)


def test_the_noise_is_known_where_equal_sides_were_compared_and_nowhere_else(read, judged):
    assert read(launches()).checks["aa_noise_floor"] == "pass"
    for rows in (launches(runs=1), launches(calls=1)):
        outcome = read(rows)
        assert outcome.checks["aa_noise_floor"] == "unknown"
    assert outcome.checks["same_model_and_weights"] == BUILT_IN
    assert judged(outcome, "OWN-BATCHING").code == "inconclusive"


def test_every_number_has_a_name_that_its_claim_knows(read, published):
    for claim_id, measurement in read(launches()).measurements.items():
        assert set(measurement.effects) <= {e.name for e in published[claim_id].effects}, claim_id
