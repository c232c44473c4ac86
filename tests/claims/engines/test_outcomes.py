"""What becomes of the engines' rows; the rows are made here, as a real run has them."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from workbench.claims.claim import BUILT_IN
from workbench.claims.engines import outcomes, vllm_outcomes
from workbench.claims.recipe import Setting
from workbench.claims.registry import read_registry
from workbench.claims.rows import Rows
from workbench.claims.verdict import Conditions, judge
from workbench.hardware.machine import repository_root

CLAIMS = read_registry(repository_root() / "params" / "claims").claims
CPU = Setting(
    platform="cpu", hardware="2 cores", model=Path("m"), output_dir=Path("o"), budget_s=10
)
GPU = replace(CPU, platform="cuda", hardware="A800 80GB PCIe")
SPEEDS = {  # tokens/s of the A800 document by batch
    "transformers": {1: 45.6, 4: 184.6, 8: 356.2, 16: 669.2, 32: 1236.4, 64: 2006.8},
    "vllm": {1: 93.7, 4: 375.1, 8: 742.6, 16: 1449.9, 32: 2477.9, 64: 4716.8},
}
SPEEDS["vllm, prefix cache on"] = SPEEDS["vllm"]


def generation(*, runs=5, calls=2, first=lambda arm: 7, output=16, speeds=SPEEDS):
    """Rows of runs that differ in speed by 1 % each, as much in every arm."""
    rows = []
    for run in range(runs):
        for arm, by_batch in speeds.items():
            for batch, speed in by_batch.items():
                seconds = batch * output / speed * (1 + run / 100)
                values = {"time": seconds, "output tokens": batch * output,
                          "first token": first(arm), "cached tokens": 0,
                          "time when repeated": seconds / 2,
                          "peak memory": 1 + batch / 10}  # fmt: skip
                rows += [
                    {"quantity": quantity, "arm": arm, "cell": f"batch {batch}", "run": run,
                     "order": call, "value": value, "unit": "", "steady": True}
                    for call in range(calls)
                    for quantity, value in values.items()
                ]  # fmt: skip
    return Rows(table=pd.DataFrame(rows), results=({"threads": 1},) * runs, doubts=())


def judged(outcome, claim_id):
    conditions = Conditions(platform="cpu", hardware="2 cores", checks=outcome.checks)
    return judge(CLAIMS[claim_id], conditions, outcome.measurements[claim_id])


def of_generation(rows, output=16):
    return outcomes.of_generation(
        rows, CPU, output_tokens=output, wanted=(1, 4, 8, 16, 32, 64, 128)
    )


@pytest.mark.parametrize(("faster", "code"), [(1, "confirmed"), (1.5, "unreliable_run")])
def test_a_run_of_ours_above_the_memory_bandwidth_is_void(faster, code):
    """93.7 tokens/s at batch 1 read 1.43 TB/s of 15 GB weights; a half more is no A800's."""
    speeds = {arm: {b: faster * v for b, v in by.items()} for arm, by in SPEEDS.items()}
    outcome = outcomes.of_generation(
        generation(speeds=speeds), GPU, output_tokens=16, wanted=(1,), parameters=7.62e9
    )
    conditions = Conditions(
        platform="cuda", hardware=GPU.hardware, model="Qwen2.5-7B", checks=outcome.checks
    )
    verdict = judge(CLAIMS["OWN-VLLM-HF"], conditions, outcome.measurements["OWN-VLLM-HF"])
    assert verdict.code == code
    if faster > 1:
        assert "2.1437 TB/s is 1.1 times the bandwidth of 1 x A800 80GB PCIe" in verdict.reason


@pytest.mark.parametrize(
    ("setting", "parameters", "known"),
    [(CPU, 7.62e9, False), (GPU, 0.0, False), (GPU, 7.62e9, True)],
)
def test_of_a_cpu_or_a_model_of_unknown_size_no_ceiling_is_known(setting, parameters, known):
    outcome = outcomes.of_generation(
        generation(), setting, output_tokens=16, wanted=(1,), parameters=parameters
    )
    assert bool(outcome.measurements["OWN-VLLM-HF"].bounds) == known


def test_equal_batches_give_2_to_2_35_times_where_the_peaks_gave_3_7():
    """The published table again, as if we had measured it: the corrected comparison."""
    speeds = SPEEDS | {"vllm": SPEEDS["vllm"] | {128: 7431.5}}
    outcome = of_generation(generation(speeds=speeds))
    ratios = [cell.estimate for cell in outcome.measurements["OWN-VLLM-HF"].effects["throughput"]]
    assert (round(min(ratios), 2), round(max(ratios), 2)) == (2.0, 2.35)
    assert len(ratios) == 6  # batch 128 has no counterpart
    peak = outcome.measurements["S003-VLLM-VS-HF-PEAK"].effects["throughput"][0]
    assert peak.estimate == pytest.approx(270.3, abs=0.1)
    assert judged(outcome, "S003-VLLM-VS-HF-PEAK").code == "same_batch_and_concurrency"


def test_a_faster_engine_is_confirmed_as_a_shape_and_magnitudes_are_not_judged():
    outcome = of_generation(generation())
    assert judged(outcome, "OWN-VLLM-HF").word == "confirmed (shape)"
    assert judged(outcome, "S003-VLLM-TPUT").code == "hardware"
    assert outcome.doubts[0] == "The budget had no room for batches 128."
    assert "batch 64 (not yet saturated)" in outcome.says


def test_batching_pays_less_than_in_proportion():
    outcome = of_generation(generation())
    parts = outcome.measurements["OWN-BATCHING"].effects
    assert len(parts["with each larger batch"]) == 5
    (share,) = parts["share of a proportional gain"]
    assert share.estimate == pytest.approx(4716.8 / 93.7 / 64)
    assert judged(outcome, "OWN-BATCHING").word == "confirmed (shape)"


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (generation(runs=4), "too_few_runs"),
        (generation(first=lambda arm: hash(arm)), "output_quality_checked"),
    ],
)
def test_an_unsound_run_confirms_nothing(rows, code):
    assert judged(of_generation(rows), "OWN-VLLM-HF").code == code


def test_answers_that_are_too_short_fail_the_check_of_lengths():
    rows = generation()
    rows.table.loc[rows.table["quantity"].eq("output tokens").idxmax(), "value"] -= 1
    outcome = of_generation(rows)
    assert judged(outcome, "OWN-VLLM-HF").code == "same_token_lengths_ignore_eos"


def test_a_cache_that_found_something_fails_the_check_of_cache_states():
    rows = generation()
    rows.table.loc[rows.table["quantity"].eq("cached tokens").idxmax(), "value"] = 128
    assert of_generation(rows).checks["cache_state_controlled"] == "fail"


def test_a_peak_that_falls_behind_in_most_runs_is_a_loss():
    """Of gains of -20, -10, -30, -5 and +4 % none may be left out of the mean."""
    rows = generation(speeds=SPEEDS | {"vllm": SPEEDS["transformers"]})
    table = rows.table
    for run, ratio in enumerate((0.8, 0.9, 0.7, 0.95, 1.04)):
        of_run = table["arm"].eq("vllm") & table["quantity"].eq("time") & table["run"].eq(run)
        table.loc[of_run, "value"] /= ratio
    outcome = of_generation(rows)
    (peak,) = outcome.measurements["S003-VLLM-VS-HF-PEAK"].effects["throughput"]
    assert (peak.estimate, peak.runs) == (pytest.approx(-13.02, abs=0.01), 5)
    assert peak.low < peak.estimate < peak.high


def test_launches_and_calls_that_differ_by_a_quarter_are_a_floor_of_a_quarter():
    rows = generation()
    table = rows.table
    table.loc[table["quantity"].eq("time"), "value"] = 1.0
    table.loc[table["quantity"].eq("time") & table["run"].mod(2).eq(1), "value"] = 1.25
    measured = of_generation(rows).measurements
    assert measured["OWN-VLLM-HF"].noise_floor == pytest.approx(0.25)
    table.loc[table["quantity"].eq("time"), "value"] = 1 + 0.25 * table["order"]
    measured = of_generation(rows).measurements
    assert measured["OWN-BATCHING"].noise_floor == pytest.approx(0.25)


def test_the_noise_is_known_where_equal_sides_were_compared_and_nowhere_else():
    assert of_generation(generation()).checks["aa_noise_floor"] == "pass"
    for rows in (generation(runs=1), generation(calls=1)):
        outcome = of_generation(rows)
        assert outcome.checks["aa_noise_floor"] == "unknown"
    assert outcome.checks["same_model_and_weights"] == BUILT_IN
    assert judged(outcome, "OWN-BATCHING").code == "inconclusive"


ASKED = "vllm bench {bench} --model m --{word}input-len 256 --{word}output-len {output}"


def published(*, made=8 * 16, asked=16, benches=("latency", "throughput")):
    """Five launches of each side: our batch of 8, and `vllm bench` with its command line."""
    values = [
        ("time", "vllm", 1.0), ("output tokens", "vllm", made),
        ("time", "vllm bench latency", 1.01), ("requests rate", "vllm bench throughput", 9.0),
        ("tokens rate", "vllm bench throughput", 2448.0),
    ]  # fmt: skip
    table = pd.DataFrame(
        [
            {"quantity": quantity, "arm": arm, "cell": "batch 8", "run": run, "order": 0,
             "value": value * (1 + run / 100 * (quantity == "time")), "unit": "", "steady": True}
            for run in range(5)
            for quantity, arm, value in values
        ]
    )  # fmt: skip
    results = [{"threads": 1}] + [
        {"threads": 1, "command": ASKED.format(
            bench=bench, word="" if bench == "latency" else "random-", output=asked)}
        for bench in benches
    ]  # fmt: skip
    rows = Rows(table=table, results=tuple(results), doubts=())
    return vllm_outcomes.of_published(rows, CPU, output_tokens=16)


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "pass"),
        ({"made": 8 * 16 - 1}, "fail"),
        ({"asked": 128}, "fail"),
        ({"benches": ()}, "unknown"),
    ],
)
def test_lengths_beside_vllms_benchmarks_are_counted_and_read_from_its_commands(changed, state):
    assert published(**changed).checks["same_token_lengths_ignore_eos"] == state


def test_blocks_without_their_tokens_fail_the_check_of_lengths():
    assert blocks([16, 17], [1, 2]).checks["same_token_lengths_ignore_eos"] == "pass"
    assert blocks([16, 0], [1, 2]).checks["same_token_lengths_ignore_eos"] == "fail"


def test_every_number_has_a_name_that_its_claim_knows():
    measured = of_generation(generation()).measurements | blocks([16, 17], [1, 2]).measurements
    for claim_id, measurement in measured.items():
        names = {effect.name for effect in CLAIMS[claim_id].effects}
        assert set(measurement.effects) <= names, claim_id


def blocks(tokens, held, fp8=2000.0):
    named = [("KV tokens", "auto", "all", 1000.0), ("KV tokens", "fp8", "all", fp8),
             ("block", "auto", "all", 16.0)]  # fmt: skip
    for place, (length, count) in enumerate(zip(tokens, held, strict=True)):
        named += [("tokens", "auto", f"s{place}", length), ("blocks", "auto", f"s{place}", count)]
    table = pd.DataFrame(named, columns=["quantity", "arm", "cell", "value"]).assign(run=0)
    return vllm_outcomes.of_blocks(Rows(table=table, results=({"threads": 1},), doubts=()), CPU)


def test_counts_confirm_on_a_cpu_what_they_count():
    outcome = blocks([16, 17, 33], [1, 2, 3])
    assert judged(outcome, "VLLM-FP8KV").verdict == "confirmed"
    assert judged(outcome, "OWN-BLOCKS").verdict == "confirmed"
    waste = outcome.measurements["VLLM-WASTE"].effects["paged waste"][0]
    assert waste.estimate == pytest.approx(100 * (1 - 66 / 96))


def test_one_block_too_many_contradicts():
    assert judged(blocks([16, 17], [1, 3]), "OWN-BLOCKS").code == "contradicted"
    assert judged(blocks([16], [1], fp8=1100.0), "VLLM-FP8KV").code == "contradicted"
