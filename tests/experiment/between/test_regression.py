from dataclasses import replace
from math import inf, isnan

import pandas as pd
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


def twice(result):
    """The same numbers as those of another run."""
    run = replace(result.run, started_at="2020-01-01T00:00:00+00:00")
    return replace(result, run=run, folder=result.folder.with_name("twice"))


def part_of(result, **changes):
    """It with other requests; each change is a function of the frame."""
    return replace(result, frames={"requests": result.requests.assign(**changes)})


def failed_in(result, cache_state):
    """It with every request of a pass failed."""
    rows = result.requests.copy()
    lost = rows["pass"] == cache_state
    rows.loc[lost, "error"] = "http"
    rows.loc[lost, ["ttft_s", "tpot_s", "e2e_s", "output_tokens"]] = float("nan")
    return replace(result, frames={"requests": rows})


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
    both = replace(
        base,
        run=replace(base.run, arms=(arm, twin)),
        frames={"requests": pd.concat([base.requests, rows], ignore_index=True)},
    )
    found = judge(runs["again"], [both], allow=0.9, arm="1p1d nixl")
    assert found.floor.source.startswith("unknown")  # the twin was not selected
    found = judge(twice(both), [both], allow=0.9)
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
    with pytest.raises(ResultError, match=r"arm must be one of 1p1d nixl in .*, got '5a'"):
        judge(runs["again"], [runs["base"]], allow=0.05, arm="5a")
    with pytest.raises(ResultError, match=r"pass must be one of cold, engine-warm in .*'warm'"):
        judge(runs["again"], [runs["base"]], allow=0.05, cache_state="warm")


def test_a_run_given_twice_is_refused(runs):
    """Its launches would count twice: the noise floor would be 0 and each interval too narrow."""
    base, again = runs["base"], runs["again"]
    copied = replace(base, folder=base.folder.with_name("copy"))
    for run, bases in (
        (runs["third"], [base, base]),
        (runs["third"], [base, copied]),
        (base, [base]),
        (again, [base, again]),
        (copied, [base]),
    ):
        with pytest.raises(ResultError, match="each run must be given once, got "):
            judge(run, bases, allow=0.9)


def test_a_run_that_did_not_finish_never_passes(runs):
    base, again = runs["base"], runs["again"]

    def ended(result, status):
        return replace(result, run=replace(result.run, status=status))

    assert judge(again, [base], allow=0.9).outcome == "no regression"
    for run, bases in (
        (ended(again, "cancelled"), [base]),
        (again, [ended(base, "failed")]),
        (again, [base, ended(runs["third"], "started")]),
    ):
        found = judge(run, bases, allow=0.9)
        assert (found.outcome, len(found.unfinished)) == ("undecided", 1)
    assert judge(ended(runs["slow"], "failed"), [base], allow=0.05).outcome == "regression"


def test_an_interval_beyond_the_limit_that_holm_stops_says_so_and_needs_more_rounds(runs):
    """At 45 % some intervals lie beyond the limit, but their p values are not low enough."""
    found = judge(runs["slow"], [runs["base"]], allow=0.45)
    stopped = [each for each in found.judged if "Holm" in each.why]
    assert stopped
    for each in stopped:
        limit = 1 - 0.45 if each.row.metric == "system_tps" else 1 / 1.45
        assert each.row.ratio.high < limit
        assert each.rounds >= 5  # both runs have 4
        assert each.why == (
            f"beyond the limit only without Holm's correction; needs {each.rounds:.0f} rounds in"
            " each run"
        )


def test_the_interval_that_is_shown_is_the_widened_one_that_decides(runs):
    found = judge(runs["third"], [runs["base"], runs["again"]], allow=0.9)
    for each in found.judged:
        width = 1 + found.floor.of[each.row.metric]
        value, low, high = each.row.change
        assert each.change[0] == value
        assert 1 + each.change[1] == pytest.approx((1 + low) / width)
        assert 1 + each.change[2] == pytest.approx((1 + high) * width)


def test_a_pass_that_failed_altogether_in_the_run_is_undecided_with_the_number_of_requests(runs):
    found = judge(failed_in(runs["again"], "cold"), [runs["base"]], allow=0.9)
    cold = [each for each in found.judged if each.row.kind[1] == "cold"]
    assert {each.why for each in cold} == {"the run has no value: all 16 requests failed"}
    assert (len(cold), found.outcome) == (3, "undecided")


def test_a_pass_that_failed_altogether_in_the_base_is_named(runs):
    found = judge(runs["again"], [failed_in(runs["base"], "cold")], allow=0.9)
    assert found.added == ("1p1d nixl, cold (no value in the baseline)",)
    without = part_of(runs["base"], tpot_s=float("nan"))
    found = judge(runs["again"], [without], allow=0.9)
    assert found.added == tuple(
        f"TPOT, 1p1d nixl, {name} (no value in the baseline)" for name in ("cold", "engine-warm")
    )
    both = part_of(runs["again"], tpot_s=float("nan"))
    assert judge(both, [without], allow=0.9).added == ()  # nothing was lost


@pytest.mark.parametrize("field", ["short_model", "model", "topology"])
def test_arms_of_two_models_are_no_equal_arms(runs, field):
    """Command lines are compared without folders: /a/llama and /b/llama look alike."""
    base = runs["base"]
    (arm,) = base.run.arms
    twin = replace(arm, label="b 1p1d nixl", **{field: "b"})
    rows = base.requests.assign(arm=twin.label)
    both = replace(
        base,
        run=replace(base.run, arms=(arm, twin)),
        frames={"requests": pd.concat([base.requests, rows], ignore_index=True)},
    )
    assert judge(runs["again"], [both], allow=0.9).floor.source.startswith("unknown")


@pytest.mark.parametrize("text", ["5", "", "0%", "-5%", "100%", "five%", "5%%", "nan%"])
def test_an_allowed_loss_is_a_percentage(text):
    with pytest.raises(ParameterError, match=r"--allow must be a percentage above 0.*--allow 5%"):
        allowed_loss(text)


def test_an_allowed_loss_may_have_a_space():
    assert allowed_loss("5 %") == allowed_loss("5%") == 0.05
