"""From real rows of tiny shapes to verdicts. Times are real: only what must hold is asserted."""

from dataclasses import replace

import pandas as pd
import pytest

from workbench.claims.kernels import allocation, attention, copying, paging, quantisation
from workbench.claims.recipes.rows import Rows, row
from workbench.hardware.kv import quantisation_ratio


@pytest.fixture(autouse=True)
def torch():
    """With one thread; imported here, since each process of the tests loads this module."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield torch
    torch.set_num_threads(before)


def values_of(result, quantity, arm=""):
    return [
        each["value"]
        for each in result["rows"]
        if each["quantity"] == quantity and each["arm"].startswith(arm)
    ]


def measured(measure, **job):
    """Five runs of a job, as the rows of a recipe."""
    results = [measure({"device": "cpu", "seed": run, **job}) for run in range(5)]
    frames = [
        pd.DataFrame(result.pop("rows")).assign(run=run) for run, result in enumerate(results)
    ]
    return Rows(table=pd.concat(frames, ignore_index=True), results=tuple(results), doubts=())


def test_every_backend_agrees_with_float64_and_all_runs_hold_the_same_cells():
    job = {"device": "cpu", "seed": 1, "lengths": [16, 32], "budget_s": 60}
    first = attention.measure(job)
    again = attention.measure(job | {"cells": first["cells"][:3]})
    assert {each["arm"] for each in first["rows"]} >= {"naive", "naive again", "flash", "math"}
    assert max(values_of(first, "error")) < 1e-5
    assert len(first["cells"]) == 6 and again["cells"] == first["cells"][:3]
    short = attention.measure(job | {"budget_s": 0.0})
    assert {cell[2] for cell in short["cells"]} == {16}  # no room for longer ones


def test_a_wrong_output_is_found(monkeypatch, torch):
    real = torch.nn.functional.scaled_dot_product_attention
    job = {"device": "cpu", "seed": 1, "lengths": [32], "budget_s": 60}

    def seen(attend):
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        return min(values_of(attention.measure(job), "error", "flash"))

    assert seen(lambda q, k, v, is_causal: torch.zeros_like(q)) == 1
    cells = [["prefill", "causal", 32]]
    job["cells"] = cells
    assert seen(lambda q, k, v, is_causal: real(q, k, v)) > 0.1  # the mask was forgotten


def test_attention_keeps_outputs_and_says_which_lengths_are_missing(cpu, judged):
    rows = measured(attention.measure, lengths=[128], budget_s=60)
    outcome = attention.read(rows, cpu)
    parts = judged(outcome, "OWN-FUSED").parts
    assert parts["same outputs"].code == "confirmed"
    assert [cell.runs for cell in parts["causal prefill"].cells] == [5]
    assert outcome.doubts[-1].startswith("No time for lengths 256, 512")
    assert judged(outcome, "S003-ATTN-SPEEDUP").code == "subject_is_measured"
    without = replace(rows, table=rows.table[rows.table["arm"] != "flash"])
    assert judged(attention.read(without, cpu), "OWN-FUSED").verdict == "not_tested"
    rows.table.loc[rows.of("error")["value"].idxmax(), "value"] = 0.5
    assert judged(attention.read(rows, cpu), "OWN-FUSED").code == "output_quality_checked"


def test_attention_on_a_gpu_is_held_to_its_matrix_rate(cpu):
    rows = measured(attention.measure, lengths=[128], budget_s=60)
    outcome = attention.read(rows, replace(cpu, platform="cuda", hardware="H200"))
    (bound,) = {bound for m in outcome.measurements.values() for bound in m.bounds}
    seconds = rows.medians("time", "flash").loc["prefill full 128"].min()
    rate = 4 * 16 * 128 * 128**2 / seconds / 1e12
    assert bound.limit == "matrix_rate" and bound.value >= rate * (1 - 1e-9)


def test_the_table_leads_to_the_same_kv():
    result = paging.measure({"device": "cpu", "seed": 1, "shapes": [[2, 32]]})
    assert values_of(result, "equal") == [1]
    kv = paging.TwoLayouts("cpu", 2, 32)
    kv.appends()["paged"].call()
    assert not kv.equal()  # one side has the new token
    kv.appends()["contiguous"].call()
    assert kv.equal()


@pytest.mark.alone
def test_the_paged_append_costs_more_and_values_are_equal(cpu, judged):
    rows = measured(paging.measure, shapes=[[2, 64]])
    outcome = paging.read(rows, cpu)
    assert judged(outcome, "OWN-PAGED").parts["same values"].code == "confirmed"
    assert outcome.measurements["OWN-PAGED"].effects["append"][0].estimate > 1
    assert outcome.checks["aa_noise_floor"] == "pass"
    alone = replace(rows, table=rows.table[rows.table["arm"] != paging.AGAIN])
    assert paging.read(alone, cpu).checks["aa_noise_floor"] == "unknown"


def test_a_pool_keeps_its_blocks(torch):
    pool = [torch.empty(8, dtype=torch.uint8) for _ in range(allocation.BLOCKS)]
    allocation.take_from(pool, torch.full((8,), 7, dtype=torch.uint8))
    assert len(pool) == allocation.BLOCKS and all((block == 7).all() for block in pool)


@pytest.mark.alone
def test_a_pool_hands_out_blocks_faster_than_an_allocator(cpu, judged):
    outcome = allocation.read(measured(allocation.measure, block_kib=[512]), cpu)
    assert outcome.measurements["OWN-POOL"].effects["take"][0].estimate > 2
    assert judged(outcome, "S003-POOL").code == "same_metric_definition"


def test_bandwidth_counts_bytes_read_and_written(monkeypatch):
    calls = [row("bandwidth", "copy", "1 MiB", 0.001, "s")]
    monkeypatch.setattr(copying, "compare", lambda *_, **__: calls)
    (found,) = copying.measure({"device": "cpu", "mib": [1]})["rows"]
    assert (found["value"], found["unit"]) == (2 * 2**20 / 1e6, "GB/s")


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("int8", {"bits": 8, "group": 128}),
        ("int4", {"bits": 4, "group": 32, "zero_bits": 16}),
        ("bf16", {"bits": 16, "group": 1, "scale_bits": 0}),
    ],
)
def test_bytes_stored_are_those_of_the_formula(name, formula, torch):
    kv = torch.randn(1, 2, 16, 128)
    assert kv.numel() * 2 / quantisation.quantised(kv, name)[1] == quantisation_ratio(**formula)


def test_a_coarser_format_is_further_off_and_none_is_wrong(torch):
    kv, zeros = torch.randn(1, 2, 64, 128), torch.zeros(1, 1, 2, 32)
    error = {
        name: float((quantisation.quantised(kv, name)[0] - kv).norm() / kv.norm())
        for name in quantisation.FORMATS
    }
    assert 0 < error["bf16"] < error["int8"] < error["fp8"] < error["int4"] < 0.15
    assert all((quantisation.quantised(zeros, name)[0] == 0).all() for name in error)


def test_true_ratios_are_confirmed_and_the_published_ones_stay_what_they_are(cpu, judged):
    values = {"int8": (1.969, 0.012), "fp8": (2.0, 0.07), "int4": (3.2, 0.18), "bf16": (1, 0.004)}
    table = pd.DataFrame(
        [
            row(quantity, arm, cell, value * (1 + run / 100 * (quantity == "error")), "")
            | {"run": run}
            for run in range(5)
            for arm, (ratio, error) in values.items()
            for quantity, cell, value in (
                ("ratio", "128 wide", ratio), ("error", "layer 1", error),
            )
        ]
    )  # fmt: skip
    rows = Rows(table=table, results=({"threads": 1},) * 5, doubts=())
    outcome = quantisation.read(rows, cpu)
    assert outcome.checks["output_quality_checked"] == "pass"
    # One run gives the error no interval.
    once = replace(rows, table=table[table["run"] == 0])
    assert quantisation.read(once, cpu).checks["output_quality_checked"] == "unknown"
    assert judged(outcome, "OWN-KV-BYTES").verdict == "confirmed"
    assert judged(outcome, "OWN-KV-ERROR").verdict == "confirmed"
    published = outcome.measurements["LLMIR-QUANT"].effects
    assert published["INT8 ratio"][0].estimate == pytest.approx(3.938)  # beside FP32, not 4
    assert judged(outcome, "LLMIR-QUANT").code == "contradicted_by_source"
