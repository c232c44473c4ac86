"""From real rows of tiny shapes to verdicts. Times are real: only what must hold is asserted."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from workbench.claims.kernels import allocation, attention, paging
from workbench.claims.kernels.memory_outcomes import of_allocation, of_quantisation
from workbench.claims.kernels.outcomes import of_attention, of_paging
from workbench.claims.recipe import Setting
from workbench.claims.recipes import ENGINES, KERNELS
from workbench.claims.registry import read_registry
from workbench.claims.rows import Rows
from workbench.claims.verdict import Conditions, judge
from workbench.hardware.machine import repository_root

CLAIMS = read_registry(repository_root() / "params" / "claims").claims
CPU = Setting(
    platform="cpu", hardware="2 cores", model=Path("m"), output_dir=Path("o"), budget_s=60
)


pytestmark = pytest.mark.usefixtures("one_thread")


def rows(measure, **job):
    results = [measure({"device": "cpu", "seed": run, **job}) for run in range(5)]
    frames = [
        pd.DataFrame(result.pop("rows")).assign(run=run) for run, result in enumerate(results)
    ]
    return Rows(table=pd.concat(frames, ignore_index=True), results=tuple(results), doubts=())


def judged(outcome, claim_id):
    conditions = Conditions(platform="cpu", hardware="2 cores", checks=outcome.checks)
    return judge(CLAIMS[claim_id], conditions, outcome.measurements[claim_id])


def test_recipes_name_claims_that_exist_and_no_claim_twice():
    named = [claim for recipe in (*KERNELS, *ENGINES) for claim in recipe.claims]
    assert set(named) <= set(CLAIMS) and len(named) == len(set(named))


def test_a_recipe_that_can_be_longer_fills_what_it_is_given_from_its_least_to_its_most():
    for recipe in (*KERNELS, *ENGINES):
        least_s, given_s = (recipe.estimate_s(replace(CPU, allotted_s=s)) for s in (0, 150))
        assert least_s >= 5, recipe.name
        if recipe.most_s is None:
            assert given_s == least_s
        else:
            assert least_s < recipe.most_s(CPU) and given_s == 150


def test_attention_on_a_gpu_is_held_to_its_matrix_rate():
    measured = rows(attention.measure, lengths=[128], budget_s=60)
    gpu = replace(CPU, platform="cuda", hardware="H200")
    ((bound,),) = {
        tuple(measurement.bounds)
        for measurement in of_attention(measured, gpu).measurements.values()
    }
    table = measured.table
    of_flash = table[(table["arm"] == "flash") & (table["cell"] == "prefill full 128")]
    seconds = of_flash[of_flash["quantity"] == "time"].groupby("run")["value"].median().min()
    rate = 4 * 16 * 128 * 128**2 / seconds / 1e12
    assert bound.limit == "matrix_rate" and bound.value >= rate * (1 - 1e-9)


def test_attention_without_a_fused_backend_is_an_outcome_without_a_number():
    measured = rows(attention.measure, lengths=[128], budget_s=60)
    without = replace(measured, table=measured.table[measured.table["arm"] != "flash"])
    assert judged(of_attention(without, CPU), "OWN-FUSED").verdict == "not_tested"


def test_attention_keeps_outputs_and_says_which_lengths_are_missing():
    outcome = of_attention(rows(attention.measure, lengths=[128], budget_s=60), CPU)
    parts = judged(outcome, "OWN-FUSED").parts
    assert parts["same outputs"].code == "confirmed"
    assert [cell.runs for cell in parts["causal prefill"].cells] == [5]
    assert outcome.doubts[-1].startswith("The budget had no room for lengths 256, 512")
    assert judged(outcome, "S003-ATTN-SPEEDUP").code == "subject_is_measured"


def test_a_wrong_output_makes_the_comparison_unfair():
    measured = rows(attention.measure, lengths=[16], budget_s=60)
    errors = measured.table["quantity"] == "error"
    measured.table.loc[errors.idxmax(), "value"] = 0.5
    assert judged(of_attention(measured, CPU), "OWN-FUSED").code == "output_quality_checked"


@pytest.mark.alone
def test_a_pool_hands_out_blocks_faster_than_an_allocator():
    outcome = of_allocation(rows(allocation.measure, block_kib=[512]), CPU)
    take = outcome.measurements["OWN-POOL"].effects["take"][0]
    assert take.estimate > 2
    assert judged(outcome, "S003-POOL").code == "same_metric_definition"


@pytest.mark.alone
def test_the_paged_append_costs_more_and_values_are_equal():
    measured = rows(paging.measure, shapes=[[2, 64]])
    outcome = of_paging(measured, CPU)
    parts = judged(outcome, "OWN-PAGED").parts
    assert parts["same values"].code == "confirmed"
    assert outcome.measurements["OWN-PAGED"].effects["append"][0].estimate > 1
    assert outcome.checks["aa_noise_floor"] == "pass"
    alone = replace(measured, table=measured.table[measured.table["arm"] != paging.AGAIN])
    unknown = of_paging(alone, CPU)
    assert unknown.checks["aa_noise_floor"] == "unknown"
    assert "equal arms differ by an unknown share" in unknown.says


def test_true_ratios_are_confirmed_and_the_published_ones_stay_what_they_are():
    values = {"int8": (1.969, 0.012), "fp8": (2.0, 0.07), "int4": (3.2, 0.18), "bf16": (1, 0.004)}
    table = pd.DataFrame(
        [
            {"quantity": quantity, "arm": arm, "cell": cell, "run": run, "order": 0, "unit": "",
             "value": value * (1 + run / 100 * (quantity == "error")), "steady": True}
            for run in range(5)
            for arm, pair in values.items()
            for quantity, cell, value in (
                ("ratio", "128 wide", pair[0]), ("error", "layer 1", pair[1]),
            )
        ]
    )  # fmt: skip
    outcome = of_quantisation(Rows(table=table, results=({"threads": 1},) * 5, doubts=()), CPU)
    assert outcome.checks["output_quality_checked"] == "pass"
    once = Rows(table=table[table["run"] == 0], results=({"threads": 1},), doubts=())
    # One run gives the error no interval.
    assert of_quantisation(once, CPU).checks["output_quality_checked"] == "unknown"
    assert judged(outcome, "OWN-KV-BYTES").verdict == "confirmed"
    assert judged(outcome, "OWN-KV-ERROR").verdict == "confirmed"
    published = outcome.measurements["LLMIR-QUANT"].effects
    assert published["INT8 ratio"][0].estimate == pytest.approx(3.938)  # beside FP32, not 4
    assert judged(outcome, "LLMIR-QUANT").code == "contradicted_by_source"
