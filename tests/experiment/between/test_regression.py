from dataclasses import replace
from math import inf, isnan

import pytest

from tests.experiment.between.recorded import quiet, recorded
from workbench.errors import ParameterError, ResultError
from workbench.experiment.between.regression import allowed_loss, judge
from workbench.experiment.result.result import load_result


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The recorded runs, on a machine that had nothing else to do."""
    folder = tmp_path_factory.mktemp("quiet")
    names = ("base", "again", "third", "slow", "few", "void")
    return {name: load_result(quiet(name, folder)) for name in names}


def outcomes(found):
    return {each.row.name: each.outcome for each in found.judged}


def test_a_repetition_within_the_allowed_loss_is_no_regression(runs):
    found = judge(runs["again"], [runs["base"]], allow=0.9)
    assert found.outcome == "no regression"
    assert set(outcomes(found).values()) == {"no regression"}
    assert found.settings == "no setting differs: a repetition"
    assert len(found.judged) == 6  # TTFT, TPOT and throughput of two passes


def test_a_slower_engine_is_a_regression(runs):
    found = judge(runs["slow"], [runs["base"]], allow=0.05)
    assert found.outcome == "regression"
    assert outcomes(found)["TPOT, 1p1d nixl, cold"] == "regression"
    assert found.judged[0].row.metric == "tpot_s"  # the worst first


def test_a_repetition_held_to_5_percent_is_undecided_and_says_how_many_rounds_it_needs(runs):
    found = judge(runs["again"], [runs["base"]], allow=0.05)
    assert found.outcome == "undecided"
    assert 4 < found.rounds < 1000
    assert all(f"needs {each.rounds:.0f} rounds" in each.why for each in found.judged)


def test_fewer_than_three_rounds_are_undecided(runs):
    found = judge(runs["few"], [runs["base"]], allow=0.05)
    assert found.outcome == "undecided"
    assert {each.why for each in found.judged} == {
        "an interval needs 3 rounds in each run, one has 2"
    }
    assert min(each.rounds for each in found.judged) >= 3


def test_what_a_gate_takes_away_is_undecided_with_its_name(runs):
    found = judge(runs["void"], [runs["base"]], allow=0.05)
    assert found.outcome == "undecided"
    assert {each.why for each in found.judged} == {
        "not valid: KV transfers failed, and 1 more gate failed"
    }
    assert isnan(found.rounds)  # more rounds do not help


def test_times_of_a_busy_machine_are_rough_and_decide_nothing():
    busy = {name: load_result(recorded(name)) for name in ("slow", "base")}
    found = judge(busy["slow"], [busy["base"]], allow=0.05)
    assert {each.why for each in found.judged} == {"rough: client did not keep up"}


def test_repetitions_of_the_base_give_a_noise_floor_that_widens_every_interval(runs):
    bases = [runs["base"], runs["again"]]
    found = judge(runs["third"], bases, allow=0.9)
    assert found.floor.source == "from 2 runs of the baseline"
    assert all(0 < value < 0.3 for value in found.floor.of.values())
    assert found.judged[0].row.ratio.baseline_rounds == 8  # launches of both
    # A floor above the distance to the limit leaves nothing that rounds can decide.
    noisy = judge(runs["third"], bases, allow=0.05)
    open_ = [each for each in noisy.judged if "closer to the limit than" in each.why]
    assert open_
    assert {each.rounds for each in open_} == {inf}


def test_equal_arms_of_the_base_give_a_noise_floor(runs):
    """Two arms with the same command lines, as an A/A comparison has."""
    base = runs["base"]
    (arm,) = base.run.arms
    twin = replace(arm, label="1p1d nixl again")
    rows = base.requests.assign(arm=twin.label, ttft_s=1.1 * base.requests["ttft_s"])
    import pandas as pd

    both = replace(
        base,
        run=replace(base.run, arms=(arm, twin)),
        frames={"requests": pd.concat([base.requests, rows], ignore_index=True)},
    )
    found = judge(runs["again"], [both], allow=0.9, arm="1p1d nixl")
    assert found.floor.source.startswith("unknown")  # the twin was not selected
    found = judge(both, [both], allow=0.9)
    assert found.floor.source == "from equal arms of the baseline (1p1d nixl, 1p1d nixl again)"
    assert found.floor.of["ttft_s"] == pytest.approx(0.1)
    assert found.floor.of["tpot_s"] == pytest.approx(0.0)


def test_what_the_run_did_not_measure_is_undecided(runs):
    cold = runs["again"].requests
    part = replace(runs["again"], frames={"requests": cold[cold["pass"] == "cold"]})
    found = judge(part, [runs["base"]], allow=0.9)
    assert (found.outcome, found.missing) == ("undecided", ("1p1d nixl, engine-warm",))
    other = judge(runs["base"], [part], allow=0.9)
    assert (other.outcome, other.added) == ("no regression", ("1p1d nixl, engine-warm",))


def test_runs_that_are_no_repetitions_give_no_noise_floor(runs):
    with pytest.raises(ResultError, match="baseline runs must be repetitions of one another, but"):
        judge(runs["again"], [runs["base"], runs["slow"]], allow=0.05)
    with pytest.raises(ResultError, match="have no arm and pass in common; got nothing and not"):
        judge(runs["again"], [runs["base"]], allow=0.05, arm="5a")


@pytest.mark.parametrize("text", ["5", "", "0%", "-5%", "100%", "five%", "5%%", "nan%"])
def test_an_allowed_loss_is_a_percentage(text):
    with pytest.raises(ParameterError, match=r"--allow must be a percentage above 0.*--allow 5%"):
        allowed_loss(text)


def test_an_allowed_loss_may_have_a_space():
    assert allowed_loss("5 %") == allowed_loss("5%") == 0.05
