"""The plan of a sweep over several models."""

import json
import shutil
from math import isnan

import pytest

from workbench.errors import ParameterError
from workbench.topology import TensorParallel


@pytest.fixture
def two(sweep, model, tmp_path):
    """`two(topology="1p1d")` is a sweep of `small` (1 KiB of KV a token) and `large` (4 KiB)."""

    def plan(own=None, **params):
        folders = [tmp_path / name for name in ("small", "large")]
        for folder, layers in zip(folders, (4, 16), strict=True):
            shutil.copytree(model, folder, dirs_exist_ok=True)
            sizes = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": layers}
            (folder / "config.json").write_text(json.dumps(sizes))
        given = {str(folder): (own or {}).get(folder.name, {}) for folder in folders}
        return sweep(**{"topology": "1p1d", "models": json.dumps(given), **params})

    return plan


def test_each_model_has_the_arms_of_a_sweep_of_its_own(two, sweep, model):
    plan, alone = two(), sweep(topology="1p1d", model=str(model))
    labels = [arm.label for arm in alone.arms]
    assert [a.label for a in plan.arms] == [f"{m} {n}" for m in ("small", "large") for n in labels]
    assert [part.model for part in plan.parts] == ["small", "large"]
    for part in plan.parts:
        assert {arm.model for arm in part.arms} == {part.model}
        assert [arm.passes for arm in part.arms] == [arm.passes for arm in alone.arms]
        assert part.text_reference == f"{part.model} {alone.text_reference}"
        assert all(plan.part_of(arm) == part for arm in part.arms)


def test_a_sweep_of_one_model_is_its_own_part(sweep):
    plan = sweep(topology="1p1d")
    assert plan.parts == (plan,) and plan.part_of(plan.arms[0]) is plan
    assert {arm.model for arm in plan.arms} == {""}


def test_bytes_and_servers_are_those_of_the_model(two):
    small, large = two().parts
    assert (small.kv_bytes_per_token, large.kv_bytes_per_token) == (1024, 4096)
    assert small.kv_space_tokens == 4 * large.kv_space_tokens
    argv = str(large.arms[0].deployment(range(20_000, 20_100)))
    assert "/large" in argv and "/small" not in argv


def test_a_doubt_about_one_model_begins_with_its_name(two):
    (doubt,) = (d for d in two(kv_cache_mib=100).doubts if "Raise kv_cache_mib" in d)
    assert doubt.startswith("large: The workload has ")
    both = [d for d in two(kv_cache_mib=16).doubts if "Raise kv_cache_mib" in d]
    assert [d.split(":")[0] for d in both] == ["small", "large"]


def test_rounds_rotate_over_the_arms_of_all_models(two):
    plan = two(topology="1a", connector="none")
    orders = [[arm.model for arm in plan.order(number)] for number in range(4)]
    small, large = "small", "large"
    assert orders == [[small, large], [large, small], [large, small], [small, large]]


def test_a_model_has_its_own_gpus(two, machine_has):
    machine_has("cuda", gpus=8)
    own = {"large": {"prefill_tp": 2, "decode_tp": 2, "aggregated_tp": 2, "store_gb": 4}}
    small, large = two(own, platform="cuda").parts
    assert small.arms[0].label == "small 1p1d lmcache, 1+1 GPU"
    assert large.arms[0].label == "large 1p1d lmcache, 2+2 GPU"
    assert large.arms[0].tp == TensorParallel(prefill=2, decode=2, aggregated=2)
    assert (small.arms[0].store_gb, large.arms[0].store_gb) == (1.0, 4.0)


def test_what_one_model_cannot_hold_is_refused_with_its_name(two):
    with pytest.raises(ParameterError, match=r"models, .*large: context_tokens must be at least"):
        two({"large": {"context_tokens": 4096}})


def test_the_plan_names_models_in_its_first_lines_and_in_its_run(two):
    plan = two()
    first, second, *_ = str(plan).splitlines()
    assert "small-large-1p1d-lmcache" in first and first.endswith("6 arms x 3 rounds")
    assert second == "models small, large"
    assert two({"large": {"store_gb": 2}}).run_id != plan.run_id


def test_the_estimate_is_the_sum_over_models(sweep):
    plan = sweep(topology="1p1d", engine="simulated", models="tiny,tiny-wide")
    assert plan.estimate_s == pytest.approx(sum(part.estimate_s for part in plan.parts))
    assert not isnan(plan.estimate_s)


def test_a_long_run_sends_fewer_requests_to_all_models(sweep):
    plan = sweep(topology="1p4d", models="tiny,tiny-wide")
    assert [len(part.workload.sample.requests) for part in plan.parts] == [2, 2]
    assert any(note.startswith("Passes send 2 requests instead of 3") for note in plan.notes)
