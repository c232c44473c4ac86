from dataclasses import replace
from math import nan

import pandas as pd
import pytest

from workbench.cli import main
from workbench.errors import ParameterError, PlanError
from workbench.experiment.findings.compare import compare
from workbench.experiment.findings.target_findings import target_rows, targets_of
from workbench.experiment.result.facts import ArmFacts
from workbench.experiment.result.finding_rows import Comparison
from workbench.metrics.statistics import Ratio

PD, BASE, STORED = "1p1d lmcache", "2a", "2a lmcache"
ARMS = [
    ArmFacts(label=PD, topology="1p1d"),
    ArmFacts(label=BASE, topology="2a", role="opponent"),
    ArmFacts(label=STORED, topology="2a", role="opponent"),
]


def ratio(value, low=nan, high=nan, note=""):
    return Ratio(value=value, low=low, high=high, rounds=5, pairs=30, note=note)


def warm(found, metric="ttft_s", arm=PD):
    return Comparison(
        kind="cache-state", metric=metric, arm=arm, pass_name="store-warm", baseline_arm=arm,
        baseline_pass="cold", ratio=found, sentence="",
    )  # fmt: skip


def beside(found, metric, baseline=BASE, pass_name="cold"):
    return Comparison(
        kind="opponent", metric=metric, arm=PD, pass_name=pass_name, baseline_arm=baseline,
        baseline_pass=pass_name, ratio=found, sentence="",
    )  # fmt: skip


def judged(target, *rows, failed=()):
    (row,) = target_rows([target], ARMS, rows, failed)
    return row


@pytest.mark.parametrize(
    ("low", "value", "high", "outcome"),
    [(2.6, 4.0, 5.0, "met"), (2.4, 4.0, 5.0, "undecided"), (1.5, 2.0, 2.4, "not met")],
)
def test_a_cut_is_decided_by_the_interval(low, value, high, outcome):
    """60 % less is 2.5 times faster."""
    row = judged("store-warm ttft cut >= 60%", warm(ratio(value, low, high)))
    assert row.outcome == outcome
    assert (row.value, row.low, row.high) == pytest.approx(
        (100 * (1 - 1 / value), 100 * (1 - 1 / low), 100 * (1 - 1 / high))
    )
    assert row.where == "1p1d lmcache, store-warm vs cold"
    assert row.why == ("the 95 % interval contains the limit" if outcome == "undecided" else "")


@pytest.mark.parametrize(
    ("low", "value", "high", "outcome"),
    [
        (0.9, 1.0, 1.1, "met"),
        (0.7, 1.0, 1.4, "undecided"),  # too wide on both sides
        (0.7, 0.75, 0.8, "not met"),
        (1.3, 1.4, 1.5, "not met"),  # better by more than that is not equal either
    ],
)
def test_within_is_an_equivalence(low, value, high, outcome):
    row = judged("pd tpot within 20% of aggregated", beside(ratio(value, low, high), "tpot_s"))
    assert row.outcome == outcome


def test_throughput_in_percent_of_the_baseline_and_as_a_gain():
    rows = beside(ratio(2.0, 1.8, 2.2), "system_tps")
    share = judged("pd throughput >= 150%", rows)
    assert (share.outcome, share.measured) == ("met", "200 % [180, 220]")
    gain = judged("pd throughput gain >= 150%", rows)
    assert (gain.outcome, gain.measured) == ("not met", "100 % [80.0, 120]")


def test_a_target_must_hold_against_every_baseline_and_the_worst_is_shown():
    rows = [
        beside(ratio(2.0, 1.8, 2.2), "system_tps", BASE),
        beside(ratio(1.2, 1.1, 1.3), "system_tps", STORED),
    ]
    row = judged("pd throughput >= 150%", *rows)
    assert (row.outcome, row.baseline_arm, row.comparisons) == ("not met", STORED, 2)
    assert judged("pd throughput >= 105%", *rows).baseline_arm == STORED  # the closest to it


def test_what_a_gate_takes_away_is_undecided_with_its_name():
    good = warm(ratio(4.0, 3.9, 4.1))
    row = judged("store-warm ttft cut >= 60%", good, failed={"store-warm was store-warm": (PD,)})
    assert (row.outcome, row.why) == ("undecided", "not valid: store-warm state was not reached")
    other = judged("store-warm ttft cut >= 60%", good, failed={"KV moved": (STORED,)})
    assert other.outcome == "met"
    busy = judged("store-warm ttft cut >= 60%", good, failed=["client kept up"])
    assert (busy.outcome, busy.why) == ("met", "use with caution: client did not keep up")


def test_without_interval_value_or_comparison_it_is_undecided():
    few = judged("store-warm ttft cut >= 60%", warm(ratio(4.0, note="no interval: needs 3 rounds")))
    assert (few.outcome, few.why) == ("undecided", "no interval: needs 3 rounds")
    unknown = judged("store-warm ttft cut >= 60%", warm(ratio(nan, note="the stream was buffered")))
    assert (unknown.measured, unknown.why) == ("not known", "the stream was buffered")
    absent = judged("store-warm ttft cut >= 60%")
    assert (absent.outcome, absent.where) == ("undecided", "")
    assert absent.why == "no comparison that it names was measured"


def test_a_plan_refuses_what_it_cannot_answer(sweep):
    with pytest.raises(PlanError, match=r"compares 1p1d nixl, engine-warm with cold, got 'store-"):
        sweep(topology="1p1d", connector="nixl", targets=["store-warm ttft cut >= 60%"])
    with pytest.raises(PlanError, match="compares nothing with aggregated"):
        sweep(topology="1p1d", opponents=False, targets=["pd tpot within 20%"])
    swept = {"topology": "1p1d", "connector": "nixl", "rates_per_s": [2.0]}
    sweep(**swept, targets=["pd cold at 2/s throughput >= 90%"])
    with pytest.raises(PlanError, match="compares 1p1d nixl, cold at 2/s with aggregated"):
        sweep(**swept, targets=["pd cold at 3/s throughput >= 90%"])


def test_what_a_plan_says_it_answers_is_what_is_compared(sweep, rows):
    """A target that was accepted has comparisons once all passes were measured."""
    targets = [
        "store-warm ttft cut >= 60%",
        "pd tpot within 20%",
        "2a lmcache engine-warm e2e <= 90%",
    ]
    plan = sweep(topology="1p1d", targets=targets)
    requests = pd.concat(
        [rows(arm.label, p.name, [1.0, 1.1]) for arm in plan.arms for p in arm.passes],
        ignore_index=True,
    )
    arms = [
        ArmFacts(label=arm.label, topology=arm.topology_text, role=arm.role) for arm in plan.arms
    ]
    found = target_rows(targets, arms, compare(plan, requests), ())
    assert [row.comparisons for row in found] == [1, 2, 1]


def test_targets_leave_the_name_of_other_runs_as_it_was(sweep):
    plain, other = sweep(topology="1p1d"), sweep(topology="1p1d", targets=["pd ttft <= 300%"])
    assert plain.run_id != other.run_id
    assert sweep(topology="1p1d", targets=[]).run_id == plain.run_id


@pytest.fixture(scope="module")
def run():
    from tests.experiment.between.recorded import recorded
    from workbench.experiment.result.result import load_result

    return load_result(recorded("again")).run


def test_a_run_measured_before_is_held_against_targets(run, capsys):
    from tests.experiment.between.recorded import recorded

    assert targets_of(run, ["engine-warm ttft cut >= 10%"])[0].outcome == "met"
    with pytest.raises(ParameterError, match="this run has none"):
        targets_of(run)
    folder = str(recorded("again"))
    for sentence, status, word in (
        ("engine-warm ttft cut >= 10%", 0, "met"),
        ("engine-warm ttft cut >= 99%", 1, "not met"),
        ("engine-warm tpot within 1%", 2, "undecided"),
        ("store-warm ttft cut >= 10%", 3, ""),
        ("nonsense", 3, ""),
    ):
        assert main(["targets", folder, sentence]) == status, sentence
        assert word in capsys.readouterr().out
    assert main(["targets", folder]) == 3
    own = replace(
        run, parameters=dict(run.parameters) | {"targets": ["1p1d engine-warm e2e <= 95%"]}
    )
    assert len(targets_of(own)) == 1
