import json
from dataclasses import replace
from math import nan

import pandas as pd
import pytest

from workbench.errors import ResultError
from workbench.experiment.hits.hit_analysis import HitResult
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.finding_rows import Comparison, LinkRow, SizeRow, SummaryRow
from workbench.experiment.result.result import MIME, Result, load_result
from workbench.experiment.result.run_folder import RunFolder
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_table import GATES
from workbench.metrics.statistics import Estimate, Ratio
from workbench.report.figures import speedups
from workbench.report.tables import table


def facts(**fields):
    return RunFacts(notebook="pd_sweep", run_id="1p4d-3f9a2c", status="success", **fields)


def median(metric, value, low=nan, high=nan, *, arm="1p4d lmcache", name="cold"):
    return SummaryRow(
        arm=arm, topology="1p4d", connector="lmcache", pass_name=name, metric=metric, n_requests=30,
        n_failed=0, n_rounds=5, estimate=Estimate(value=value, low=low, high=high),
    )  # fmt: skip


def ratio(metric, value):
    return Comparison(
        kind="cache-state", metric=metric, arm="1a", pass_name="engine-warm", baseline_arm="1a",
        baseline_pass="cold", sentence=f"{value:g}x",
        ratio=Ratio(value=value, low=nan, high=nan, rounds=1, pairs=6),
    )  # fmt: skip


def gate(name, outcome="FAIL"):
    return Gate(name=name, outcome=outcome, sentence="so it is")


@pytest.fixture
def result(tmp_path):
    run = facts(
        finding="A warm store cuts TTFT 18 times",
        summary=(
            median("ttft_s", 1.2345, 1.2, 1.3),
            median("ttft_s", 0.0504, name="store-warm"),
            median("system_tps", 1234.5, 1000.0, 1500.0),
            median("system_tps", nan, name="store-warm"),
        ),
        comparisons=(ratio("ttft_s", 18.0), ratio("system_tps", 2.0)),
        gates=(gate("cold was cold", "PASS"),),
        doubts=("few rounds",),
        machine={"cpu": "a CPU", "versions": {"vllm": "0.32.0"}},
        platforms=({"platform": "cpu", "can run": "much"},),
    )
    return Result(run=run, folder=tmp_path)


def test_medians_are_a_wide_table_in_milliseconds_and_tokens_per_second(result):
    table = result.medians("ttft", "system_tps")
    assert list(table.columns) == ["arm", "pass", "n_requests", "ttft", "system_tps"]
    assert table.set_index("pass")["ttft"].to_dict() == {
        "cold": "1,234 ms [1,200, 1,300]",
        "store-warm": "50.4 ms",
    }
    assert table.set_index("pass")["system_tps"].to_dict() == {
        "cold": "1,234 tok/s [1,000, 1,500]",
        "store-warm": "not known",
    }


def test_an_unknown_metric_is_refused_with_those_there_are(result):
    with pytest.raises(ResultError, match="no metric 'tftt'"):
        result.medians("tftt")
    with pytest.raises(ResultError, match="no comparison of 'tpot': "):
        result.speedup("tpot")


@pytest.mark.parametrize("name", ["ttft", "ttft_s"])
def test_a_speedup_is_the_comparisons_of_one_metric(name, result):
    table = result.speedup(name)
    assert table["ratio"].tolist() == [18.0]
    assert table["low"].dtype == float  # numbers, also where all are null


def against(metric="ttft_s"):
    """`cache on` against `cache off`, as single_instance_prefix_cache compares them."""
    return Comparison(
        kind="cache-off", metric=metric, arm="cache on", pass_name="engine-warm",
        baseline_arm="cache off", baseline_pass="cold", sentence="2x",
        ratio=Ratio(value=2.0, low=1.9, high=2.1, rounds=5, pairs=30),
    )  # fmt: skip


@pytest.mark.parametrize("arm", ["cache on", "cache off"])
def test_a_gate_that_failed_for_either_arm_strikes_what_compares_them(arm, tmp_path):
    failed = replace(gate("no failures"), arms=(arm,))
    other = replace(against(), arm="1p1d", baseline_arm="2a")
    run = facts(comparisons=(against(), other), gates=(failed,))
    result = Result(run=run, folder=tmp_path)
    assert result.comparisons.attrs["failed_gates"] == {"no failures": (arm,)}
    shown = table(result.speedup("ttft"))
    assert shown is not None and "Not valid: requests failed" in shown.to_html()
    struck = {at for at, style in shown._compute().ctx.items() if style}
    assert {row for row, _ in struck} == {0}  # of two
    split = replace(against(), kind="opponent", pass_name="cold")
    figure = speedups(replace(result, run=replace(run, comparisons=(split,))).comparisons, "ttft_s")
    assert figure is not None and f"do not use {arm}" in figure.svg


def test_frames_of_two_arms_have_the_gates_of_both(tmp_path):
    failed = replace(gate("no failures"), arms=("cache off",))
    pair = {"arm": "cache on", "baseline_arm": "cache off"}
    none = dict.fromkeys(("times", "host_times", "hit_share", "baseline_hit_share", "ttft_s",
                          "baseline_ttft_s"), 1.0)  # fmt: skip
    size = SizeRow(**pair, asked="cold", prompts=9, ratio=against().ratio, **none)
    link = LinkRow(
        **pair, run_id="a", metric="ttft_s", gbit_s=1.0, gbit_low=1.0, gbit_high=1.0, kv_bytes=1.0,
        ratio=against().ratio,
        **dict.fromkeys(("transfer", "value", "baseline"), Estimate(value=1.0, low=1.0, high=1.0)),
    )  # fmt: skip
    run = facts(sizes=(size,), links=(link,), ratios=(pair,), gates=(failed,))
    result = HitResult(run=run, folder=tmp_path)
    for frame in (result.sizes, result.links, result.ratios):
        assert frame.attrs["failed_gates"] == {"no failures": ("cache off",)}


def test_tables_of_what_was_found(result):
    assert result.gates["outcome"].tolist() == ["PASS"]
    assert result.doubts == ["few rounds"]
    assert result.table("platforms")["can run"].tolist() == ["much"]
    machine = result.table("machine").set_index("what")["found"]
    assert machine["versions.vllm"] == "0.32.0"


def test_numbers_that_are_not_known_are_numbers_all_the_same(result):
    tiers = ({"arm": "log", "ideal": nan}, {"arm": "log", "ideal": nan})
    table = replace(result, run=facts(tiers=tiers)).table("tiers")
    assert table["ideal"].dtype == float and table["arm"].tolist() == ["log", "log"]


def test_a_notebook_shows_a_result_as_one_line_and_carries_its_facts(result):
    shown = result._repr_mimebundle_()
    assert shown["text/plain"] == f"A warm store cuts TTFT 18 times\n{result.folder}"
    assert shown[MIME]["folder"] == str(result.folder)
    json.dumps(shown, allow_nan=False)


def test_hits_are_those_whose_server_counts_them(tmp_path):
    requests = pd.DataFrame(
        {
            "arm": ["cache on", "cache on", "cache off"],
            "pass": ["cold", "engine-warm", "cold"],
            "prompt_tokens": 1000,
            "cached_tokens": [-1, 992, 0],
            "ideal_reuse_tokens": [0, 999, 0],
        }
    )
    result = Result(run=facts(), folder=tmp_path, frames={"requests": requests})
    assert result.hits.to_dict("records") == [
        {"pass": "engine-warm", "prompt_tokens": 1000, "cached_tokens": 992, "ideal_tokens": 999}
    ]
    assert len(result.whole_passes) == 3


def test_a_result_splits_its_ttft_and_says_why_it_differs(result):
    rows = [
        {"arm": arm, "round": n, "pass": "cold", "index": 0, "request_id": f"{arm}-{n}"}
        for arm in ("1p1d nixl", "2a")
        for n in range(3)
    ]
    times = {"sent_s": 0.0, "scheduled_s": 0.0, "chunk_s": (0.2,), "chunk_tokens": (1,)}
    timing = json.dumps({"queue_time_ms": 20.0, "time_to_first_token_ms": 100.0})
    requests = pd.DataFrame(
        [{**r, **times, "output_tokens": 1, "error": "", "engine_metrics": timing} for r in rows]
    )
    leg = {"received_s": 0.001, "decode_sent_s": 0.01, "decode_first_byte_s": 0.199}
    legs = pd.DataFrame([{**r, **leg} for r in rows])
    found = Result(
        run=result.run, folder=result.folder, frames={"requests": requests, "legs": legs}
    )
    waterfall = found.waterfall()
    assert waterfall["prefill_compute_s"].tolist() == pytest.approx([0.1] * 6)
    assert waterfall["residual_s"].tolist() == pytest.approx([0.001] * 6)
    assert "simulated" in waterfall.attrs
    medians = found.waterfall_medians().set_index("part of TTFT (median, ms)")
    assert medians.loc["prefill compute", "1p1d nixl"] == "100"
    assert found.why() == [
        "2a vs 1p1d nixl, cold: no significant difference in mean TTFT (0 ms [0, 0]). No part"
        " differs significantly."
    ]
    spoiled = replace(found, run=facts(gates=(gate("cold was cold"),)))
    assert spoiled.why() == [
        "Not valid: cold passes were not cold. Do not use these differences.",
        *found.why(),
    ]
    busy = replace(found, run=facts(gates=(gate("client kept up"),)))
    assert busy.why()[1:] == found.why()
    assert busy.why()[0] == GATES["client kept up"].doubt


def test_a_result_of_many_requests_is_loaded_without_their_stamps(tmp_path, monkeypatch):
    folder = RunFolder.open(str(tmp_path), "pd_sweep", "1a-3f9a2c")
    stamps = [[0.0, 0.5, 1.5]] * 9
    columns = {"arm": "1a", "pass": "cold", "error": "", "text": "a", "chunk_s": stamps}
    latencies = dict.fromkeys(("ttft_s", "tpot_s", "e2e_s"), 0.25)
    folder.write("requests", pd.DataFrame(columns | latencies))
    folder.write_facts(facts(finding="many"))
    folder.promote()
    assert "chunk_s" in load_result(folder.home).requests
    monkeypatch.setattr("workbench.experiment.result.run_folder.GROUP_ROWS", 8)
    result = load_result(folder.home)
    assert list(result.requests) == ["arm", "pass", "error", "ttft_s", "tpot_s", "e2e_s"]
    # and yet its gaps are known
    table = result.percentile_table().set_index("metric")
    assert table.loc["ICL, ms", "p50"] == "750 [500, 1,000]"
    assert table.loc["ICL, ms", "n"] == 18


def test_no_p99_is_printed_where_the_client_did_not_keep_up(tmp_path):
    rows = pd.DataFrame({"arm": "1a", "pass": "cold", "error": "", "ttft_s": [0.01 * n for n in
                         range(400)], "tpot_s": 0.25, "e2e_s": 0.25})  # fmt: skip
    rows["chunk_s"] = [[0.0, 0.5]] * 400
    run = facts(gates=(gate("client kept up", "PASS"),))
    kept_up = Result(run=run, folder=tmp_path, frames={"requests": rows})
    assert "[" in kept_up.percentile_table().set_index("metric").loc["TTFT, ms", "p99"]
    for outcome in ("FAIL", "INCONCLUSIVE"):
        late = replace(kept_up, run=facts(gates=(gate("client kept up", outcome),)))
        row = late.percentile_table().set_index("metric").loc["TTFT, ms"]
        why = "did not keep up" if outcome == "FAIL" else "may not have kept up"
        assert row["p99"] == f"withheld: client {why}"
        assert "[" in row["p50"]
        gap = late.percentile_table().set_index("metric").loc["ICL, ms", "p50"]
        assert ("withheld" in gap) == (outcome == "FAIL")


def test_a_gate_on_one_pass_takes_no_p99_of_another(tmp_path):
    rows = pd.DataFrame({"arm": "1a", "pass": ["cold", "store-warm"] * 400, "error": "",
                         "ttft_s": [0.01 * n for n in range(800)], "tpot_s": 0.25,
                         "e2e_s": 0.25})  # fmt: skip
    rows["chunk_s"] = [[0.0, 0.5]] * 800
    run = facts(gates=(gate("store-warm was store-warm"),))
    result = Result(run=run, folder=tmp_path, frames={"requests": rows})
    table = result.percentile_table().set_index(["pass", "metric"])
    assert "[" in table.loc[("cold", "TTFT, ms"), "p99"]
    assert "withheld" in table.loc[("store-warm", "TTFT, ms"), "p99"]
