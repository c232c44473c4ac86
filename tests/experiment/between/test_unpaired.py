import numpy as np
import pytest

from tests.experiment.between.recorded import quiet, recorded
from workbench.experiment.between.unpaired import compared, launches_of, pairs_of
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


def test_a_selection_of_arm_and_pass():
    result = load_result(recorded("base"))
    assert launches_of(result, cache_state="cold").kinds == (("1p1d nixl", "cold"),)
    assert launches_of(result, arm="2a").kinds == ()
    none, all_ = launches_of(result, arm="2a"), launches_of(result)
    assert pairs_of(none, all_) == ([], [[], list(all_.kinds)])
