from dataclasses import replace

import numpy as np
import pytest

from tests.experiment.between.recorded import quiet, recorded
from workbench.experiment.between.unpaired import Launches, compared, launches_of, pairs_of
from workbench.experiment.result.facts import ArmFacts, ModelRow
from workbench.experiment.result.result import load_result
from workbench.metrics.latency import system_tps


def test_a_launch_has_one_number_per_metric_arm_and_pass():
    result = load_result(recorded("base"))
    found = launches_of(result)
    assert found.kinds == (("1p1d nixl", "cold"), ("1p1d nixl", "engine-warm"))
    cold = result.requests[result.requests["pass"] == "cold"]
    logs = np.log(cold["ttft_s"]).groupby(cold["round"]).mean()
    assert found.numbers["ttft_s", ("1p1d nixl", "cold")] == pytest.approx(np.exp(logs).to_list())
    rates = [system_tps(part) for _, part in cold.groupby("round")]
    assert found.numbers["system_tps", ("1p1d nixl", "cold")] == pytest.approx(rates)


def test_a_slower_engine_is_a_ratio_below_one(tmp_path):
    slow, base = (launches_of(load_result(quiet(name, tmp_path))) for name in ("slow", "base"))
    rows = {(row.metric, row.kind[1]): row for row in compared(slow, base)}
    tpot = rows["tpot_s", "cold"]
    assert tpot.ratio.verdict == "slower"
    assert tpot.ratio.value == pytest.approx(tpot.theirs / tpot.ours)
    assert tpot.ratio.low < tpot.ratio.value < 0.5
    value, low, high = tpot.change  # latency is 292 % higher
    assert value == pytest.approx(tpot.ours / tpot.theirs - 1)
    assert low < value < high
    rate = rows["system_tps", "cold"]
    assert rate.change[0] == pytest.approx(rate.ours / rate.theirs - 1)
    assert rate.change[0] < 0
    assert (tpot.ratio.rounds, tpot.ratio.baseline_rounds) == (4, 4)


def test_gates_of_either_run_take_the_number_away(tmp_path):
    void, base = (launches_of(load_result(quiet(name, tmp_path))) for name in ("void", "base"))
    for pair in ((void, base), (base, void)):
        assert {row.spoilt.said for row in compared(*pair)} == {
            "not valid: KV transfers failed, and 1 more gate failed"
        }


def of(models, arms, *, name="tiny"):
    """Launches of a run with these arms, as (model, label without it); one pass each."""
    facts = load_result(recorded("base")).run
    labels = [f"{model} {label}".strip() for model, label in arms]
    run = replace(
        facts,
        engine=replace(facts.engine, model="" if models else name),
        models=tuple(
            ModelRow(
                model=short, name=full, layers=1, dtype="float32", kv_bytes_per_token=1.0,
                prompt_tokens=9, workload_hash="a",
            )
            for short, full in models.items()
        ),
        arms=tuple(
            ArmFacts(label=label, topology=arm.split()[0], short_model=model)
            for label, (model, arm) in zip(labels, arms, strict=True)
        ),
    )  # fmt: skip
    return Launches(run=run, numbers={("ttft_s", (label, "cold")): (1.0,) for label in labels})


def paired(run, base, *, any_topology=False):
    pairs, (ours, theirs) = pairs_of(run, base, any_topology=any_topology)
    return {one[0]: other[0] for one, other in pairs}, len(ours), len(theirs)


BOTH = {"tiny": "tiny", "wide": "models/wide"}


def test_sweeps_of_several_models_with_another_connector_are_paired_by_model():
    one = of(BOTH, [(model, "1p1d nixl") for model in BOTH])
    other = of(BOTH, [(model, "1p1d lmcache") for model in BOTH])
    assert paired(one, other) == (
        {"tiny 1p1d nixl": "tiny 1p1d lmcache", "wide 1p1d nixl": "wide 1p1d lmcache"}, 0, 0
    )  # fmt: skip


def test_a_run_of_one_model_is_paired_with_that_model_of_a_sweep():
    arms = [(model, arm) for model in BOTH for arm in ("1p1d nixl", "2a")]
    sweep = of(BOTH, arms)
    single = [("", "1p1d nixl"), ("", "2a")]
    for name, short in (("tiny", "tiny"), ("models/wide", "wide")):
        expected = {label: f"{short} {label}" for _, label in single}
        assert paired(of({}, single, name=name), sweep) == (expected, 0, 2)
    # Several arms of one topology: the connector tells which one.
    three = of(BOTH, [*arms, ("tiny", "1p1d lmcache")])
    assert paired(of({}, single), three)[0]["1p1d nixl"] == "tiny 1p1d nixl"
    assert paired(of({}, single, name="other"), sweep) == ({}, 2, 4)


def test_two_runs_of_one_model_each_are_paired_whatever_the_models():
    one, other = of({}, [("", "1p1d nixl")]), of({}, [("", "1p1d lmcache")], name="other")
    assert paired(one, other) == ({"1p1d nixl": "1p1d lmcache"}, 0, 0)


def test_two_deployments_of_one_arm_each_are_paired_whatever_the_topologies():
    split, aggregated = of({}, [("", "1p1d")]), of({}, [("", "2a")])
    assert paired(split, aggregated, any_topology=True) == ({"1p1d": "2a"}, 0, 0)
    assert paired(split, aggregated) == ({}, 1, 1)  # a gate judges the same topology only
    both = of({}, [("", "1p1d"), ("", "4a")])
    assert paired(both, aggregated, any_topology=True) == ({}, 2, 1)


def test_a_selection_of_arm_and_pass():
    result = load_result(recorded("base"))
    assert launches_of(result, cache_state="cold").kinds == (("1p1d nixl", "cold"),)
    assert launches_of(result, arm="2a").kinds == ()
    none, all_ = launches_of(result, arm="2a"), launches_of(result)
    assert pairs_of(none, all_) == ([], [[], list(all_.kinds)])
