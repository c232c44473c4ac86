"""The arms themselves, on shapes small enough for a unit test."""

import pytest
import torch

from workbench.claims.kernels import allocation, attention, copying, paging, quantisation
from workbench.claims.kernels.timing import Arm
from workbench.hardware.kv import quantisation_ratio

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(result, quantity):
    return [row for row in result["rows"] if row["quantity"] == quantity]


def test_every_backend_agrees_with_float64_and_all_runs_hold_the_same_cells():
    job = {"device": "cpu", "seed": 1, "lengths": [16, 32], "budget_s": 60}
    first = attention.measure(job)
    again = attention.measure(job | {"cells": first["cells"][:3]})
    assert {row["arm"] for row in first["rows"]} >= {"naive", "naive again", "flash", "math"}
    assert max(row["value"] for row in rows_of(first, "error")) < 1e-5
    assert len(first["cells"]) == 6 and again["cells"] == first["cells"][:3]


def test_lengths_that_the_budget_has_no_room_for_are_left_out():
    job = {"device": "cpu", "seed": 1, "lengths": [16, 32, 64], "budget_s": 0.0}
    assert {cell[2] for cell in attention.measure(job)["cells"]} == {16}


def test_a_wrong_output_is_found():
    q, k, v = attention._tensors("cpu", "prefill", 32)
    arms = attention._arms(q, k, v, causal=True) | {"wrong": Arm(call=lambda: torch.zeros_like(q))}
    errors = attention._errors(arms, q, k, v, causal=True)
    assert errors["wrong"] == 1 and errors["flash"] < 1e-5
    uncausal = attention._errors(arms, q, k, v, causal=False)
    assert uncausal["flash"] > 0.1


def test_the_table_leads_to_the_same_kv():
    result = paging.measure({"device": "cpu", "seed": 1, "shapes": [[2, 32]]})
    assert [row["value"] for row in rows_of(result, "equal")] == [1]
    kv = paging._Kv("cpu", 2, 32)
    kv.appends()["paged"].call()
    assert not kv.equal()  # one side has the new token
    kv.appends()["contiguous"].call()
    assert kv.equal()


def test_a_pool_keeps_its_blocks():
    result = allocation.measure({"device": "cpu", "block_kib": [4]})
    assert {row["arm"] for row in rows_of(result, "take")} == {"fresh", "fresh again", "pool"}
    pool = [torch.empty(8, dtype=torch.uint8) for _ in range(allocation.BLOCKS)]
    allocation._pooled(pool, torch.full((8,), 7, dtype=torch.uint8))
    assert len(pool) == allocation.BLOCKS and all((block == 7).all() for block in pool)


def test_bandwidth_counts_bytes_read_and_written():
    result = copying.measure({"device": "cpu", "mib": [1]})
    assert {(row["cell"], row["unit"]) for row in result["rows"]} == {("1 MiB", "GB/s")}
    assert 0.1 < result["rows"][0]["value"] < 2000


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("int8", {"bits": 8, "group": 128}),
        ("int4", {"bits": 4, "group": 32, "zero_bits": 16}),
        ("bf16", {"bits": 16, "group": 1, "scale_bits": 0}),
    ],
)
def test_bytes_stored_are_those_of_the_formula(name, formula):
    kv = torch.randn(1, 2, 16, 128)
    assert kv.numel() * 2 / quantisation.quantised(kv, name)[1] == quantisation_ratio(**formula)


def test_a_coarser_format_is_further_off_and_none_is_wrong():
    kv = torch.randn(1, 2, 64, 128)
    error = {
        name: float((quantisation.quantised(kv, name)[0] - kv).norm() / kv.norm())
        for name in quantisation.FORMATS
    }
    assert 0 < error["bf16"] < error["int8"] < error["fp8"] < error["int4"] < 0.15


def test_zeros_come_back_as_zeros():
    for name in quantisation.FORMATS:
        back = quantisation.quantised(torch.zeros(1, 1, 2, 32), name)[0]
        assert (back == 0).all(), name
