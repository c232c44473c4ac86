from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.metrics.peers.peer_files import benchmark_report, guidellm_report
from workbench.cli import main
from workbench.errors import ResultError
from workbench.metrics.latency import latencies
from workbench.records import RequestRecord, to_frame

PEERS = Path(__file__).parents[2] / "metrics" / "peers"
COMPLETIONS = PEERS / "vllm_bench_0.32_completions.json"
LMCACHE = PEERS / "lmcache_bench_0.5.6.csv"


def a_run(folder, *, first_s, n=40, simulated=False, labels=("1a",), **facts):
    """A run folder, cold and warm: TTFT around `first_s`, warm a tenth of it, in every arm.

    Requests take turns in four rounds.
    """
    folder.mkdir(parents=True)
    draw = np.random.default_rng(1)
    frames = []
    for name, mean_s in (("cold", first_s), ("engine-warm", first_s / 10)):
        shape = mean_s * draw.uniform(0.9, 1.1, n)
        rows = [
            RequestRecord(
                index=index, request_id=f"{index}", prompt_tokens=550, ideal_reuse_tokens=0,
                max_tokens=8, scheduled_s=100.0 + index, sent_s=100.0 + index, output_tokens=8,
                chunk_s=tuple(100.0 + index + shape[index] + 0.01 * np.arange(8)),
            )
            for index in range(n)
        ]  # fmt: skip
        frames += [to_frame(rows, arm=arm, round=0, **{"pass": name}) for arm in labels]
    requests = latencies(pd.concat(frames))
    requests["round"] = requests["index"] % 4
    requests.to_parquet(folder / "requests.parquet")
    run = {"schema": 1, "notebook": "pd_sweep", "run_id": folder.name, "status": "success"}
    facts = {**run, "simulated": simulated, **facts}
    (folder / "result.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def bench(tmp_path):
    """A file of vLLM bench with 40 requests, its four real ones ten times."""
    told = json.loads(COMPLETIONS.read_text())
    for name, value in told.items():
        if isinstance(value, list) and len(value) == 4:
            told[name] = value * 10
    (tmp_path / "bench.json").write_text(json.dumps(told))
    return tmp_path / "bench.json"


def test_a_run_beside_vllm_bench(tmp_path, bench):
    found = wb.compare_results([a_run(tmp_path / "run", first_s=30.0), bench], cache_state="cold")
    table = found.table
    kinds = table[["arm", "pass"]].drop_duplicates().to_numpy().tolist()
    assert kinds == [["1a", "cold"], ["vLLM bench", "measured"]]
    assert set(table["metric"]) == {"TTFT, ms", "TPOT, ms", "E2E, ms", "ICL, ms"}
    assert re.fullmatch(r"[\d.,]+ \[[\d.,]+, [\d.,]+\]", table["p50"].iloc[0])
    assert set(table["p99"]) == {"needs 368, has 40", "needs 368, has 280"}
    told = " ".join(found.sentences)
    assert "The second is" in told and "x faster." in told
    assert "TTFT in vLLM bench (0.32.0 and 0.33.0): from before the POST to the first" in told
    assert "chat since 0.33: to the first chunk with a token" in told
    assert "In the workbench: from the first byte of the request" in told
    assert found.figure.svg.count("vLLM bench") >= 1
    assert "40 requests in each of 2 combinations of arm and pass." in found.figure.caption


def test_all_kinds_of_a_run_stand_beside_the_peer(tmp_path, bench):
    found = wb.compare_results([a_run(tmp_path / "run", first_s=0.1), bench])
    assert len(found.table) == 3 * 4


def test_like_runs_show_no_difference_and_unlike_ones_do(tmp_path):
    one, two = (a_run(tmp_path / name, first_s=0.2) for name in "ab")
    slow = a_run(tmp_path / "c", first_s=0.4)
    settings, same, *_ = wb.compare_results([one, two], cache_state="cold").sentences
    assert settings == "No setting differs: a repetition."
    assert same == "TTFT of 1 arm and pass: 1 not significant."
    other = wb.compare_results([one, slow], cache_state="cold")
    assert other.sentences[1] == "TTFT of 1 arm and pass: 1 slower."
    row = other.runs[0].ratios.iloc[0]
    assert (row["metric"], row["verdict"]) == ("ttft_s", "slower")
    # The prompts are the same, so a launch of one takes exactly twice as long as one of the other.
    assert row["ratio"] == pytest.approx(0.5)
    assert 0.45 < row["low"] < 0.5 < row["high"] < 0.55
    text = other.ratio_tables[0].iloc[0]
    assert re.fullmatch(r"0\.500x \[0\.4\d\d, 0\.5\d\d\]", text["ratio"])


def test_the_first_line_counts_the_settings_that_differ(tmp_path):
    one = {"connector": "none", "rounds": 3, "seed": 0, "output_dir": "a"}
    two = one | {"connector": "lmcache", "output_dir": "b"}
    runs = [a_run(tmp_path / f"{n}", first_s=0.2, parameters=c) for n, c in enumerate((one, two))]
    found = wb.compare_results(runs)
    assert found.sentences[0] == "1 setting differs: connector (none and lmcache)."
    (setting,) = found.runs[0].differences
    assert (setting.name, setting.one, setting.other) == ("connector", "none", "lmcache")


def test_like_is_compared_with_like_only(tmp_path):
    """By arm and pass; an arm without its like by topology, if one alone is left."""
    runs = []
    for name, labels in (
        ("one", ("1p1d none", "1p1d lmcache", "2a none")),
        ("two", ("1p1d nixl", "1p1d none")),
    ):
        arms = [{"label": label, "topology": label.split()[0]} for label in labels]
        runs.append(a_run(tmp_path / name, first_s=0.2, labels=labels, schema=2, arms=arms))
    found = wb.compare_results(runs, cache_state="cold")
    assert found.sentences[1] == "In one run only, so not compared: one: 2a none, cold."
    ratios = found.runs[0].ratios
    kinds = ratios.loc[ratios["metric"] == "ttft_s", ["arm", "baseline_arm"]]
    assert kinds.to_numpy().tolist() == [["1p1d none", "1p1d none"], ["1p1d nixl", "1p1d lmcache"]]
    assert list(found.ratio_tables[0]["arm"])[:2] == ["1p1d none", "1p1d nixl vs 1p1d lmcache"]


def failed(run, name):
    """The run, with a gate that failed."""
    facts = json.loads((run / "result.json").read_text())
    facts["gates"] = [{"name": name, "outcome": "FAIL", "sentence": "so it is"}]
    (run / "result.json").write_text(json.dumps(facts))
    return run


def test_a_comparison_obeys_the_gates_of_its_runs(tmp_path):
    one, two, warm = (a_run(tmp_path / name, first_s=0.2) for name in ("one", "two", "warm"))
    busy = wb.compare_results([one, failed(two, "client kept up")], cache_state="cold")
    assert busy.sentences[1] == (
        "two: client did not keep up; do not use p99 or ITL; absolute times are rough; use"
        " ratios with caution."
    )
    assert busy.ratio_tables[0]["verdict"][0] == "not significant (rough: client did not keep up)"
    assert "grayscale" not in busy.figure.svg
    wrong = wb.compare_results([one, failed(two, "KV moved")], cache_state="cold")
    assert wrong.sentences[2] == "TTFT of 1 arm and pass: 1 not valid or unknown."
    ratios = wrong.ratio_tables[0]
    assert set(ratios["ratio"]) == {"withheld"}
    assert set(ratios["verdict"]) == {"not valid: KV was not transferred"}
    assert "no arm and pass has a valid number" in wrong.ratio_figures[0].svg
    assert "grayscale" in wrong.figure.svg
    # The table is plain text, in which nothing can be struck out.
    shown = wrong.table.set_index("arm")["p50"]
    assert set(shown["2: 1a"]) == {"withheld: KV was not transferred"}
    assert not any("withheld" in cell for cell in shown["1: 1a"])
    other = wb.compare_results(
        [one, failed(warm, "engine-warm was engine-warm")], cache_state="cold"
    )
    assert not any("gate" in sentence for sentence in other.sentences)
    assert "grayscale" not in other.figure.svg


def test_unlike_work_and_too_few_requests_are_told(tmp_path):
    told = " ".join(wb.compare_results([a_run(tmp_path / "r", first_s=1.0), LMCACHE]).sentences)
    assert "Different workload: the median prompt has 550 tokens in r and" in told
    assert "Too few requests for a confidence" in told
    assert "TPOT of LMCache bench is" in told


def guidellm_part(folder):
    """A GuideLLM report that keeps 10 of 22 requests, TTFT 0.5 s; over all 22 its p50 is 0.8 s."""
    report = guidellm_report()
    (benchmark,) = report["benchmarks"]
    benchmark["requests"] = {"successful": benchmark["requests"]["successful"] * 10}
    benchmark["metrics"] = {
        "request_totals": {"total": 22},
        "time_to_first_token_ms": {"successful": {"percentiles": {"p50": 800.0}}},
    }
    folder.mkdir()
    (folder / "benchmarks.json").write_text(json.dumps(report))
    return folder


def test_a_part_of_the_requests_never_passes_for_all(tmp_path, bench):
    found = wb.compare_results([bench, guidellm_part(tmp_path / "part")])
    part = "GuideLLM: the file holds 10 of 22 requests."
    assert found.sentences[1] == part
    assert part in found.figure.svg
    assert part in found.figure.caption
    held = found.table.set_index("arm")["in the file"].to_dict()
    assert held == {"vLLM bench": "all", "GuideLLM": "10 of 22"}
    told = " ".join(found.sentences)
    assert "GuideLLM, measured (10 of 22 requests) 500 ms" in told
    assert "GuideLLM, the tool's own summary of all requests: TTFT p50 800 ms." in told


def test_where_all_requests_are_there_nothing_is_said_of_a_part(tmp_path, bench):
    found = wb.compare_results([a_run(tmp_path / "r", first_s=1.0), bench])
    assert "in the file" not in found.table
    assert "the file holds" not in " ".join(found.sentences) + found.figure.svg


def test_what_a_file_lacks_and_the_servers_own_times_are_told(tmp_path, bench):
    told = json.loads(bench.read_text())
    del told["start_times"], told["queue_times"]
    (tmp_path / "old.json").write_text(json.dumps(told))
    told["ttfts"] = [0.5] * 40
    told |= {"server_queue_times": [0.3] * 40, "server_ttfts": [0.15] * 40}
    (tmp_path / "new.json").write_text(json.dumps(told))
    sentences = wb.compare_results([tmp_path / "old.json", tmp_path / "new.json"]).sentences
    assert any(
        one.startswith("1: vLLM bench (0.14 or older, without start_times): The file has no send")
        for one in sentences
    )
    assert (
        "2: vLLM bench, medians of the server's own times of 40 requests: queue 300 ms, scheduling"
        " to first token 150 ms, TTFT outside the engine 50.0 ms." in sentences
    )


def test_a_metric_that_one_file_lacks_is_not_compared(tmp_path, bench):
    told = json.loads(bench.read_text())
    for name in ("ttfts", "itls", "output_lens", "input_lens", "errors", "start_times"):
        del told[name]
    (tmp_path / "e2e.json").write_text(json.dumps(told))
    settings, first, *_ = wb.compare_results([bench, tmp_path / "e2e.json"]).sentences
    assert settings.startswith("Settings cannot be compared")
    assert first.startswith("TTFT, vLLM bench, measured: ")
    assert first.endswith("], unknown. Not compared, because a median is unknown.")


def test_what_is_simulated_stays_marked(tmp_path, bench):
    run = a_run(tmp_path / "run", first_s=1.0, simulated=True)
    found = wb.compare_results([run, bench])
    assert "simulated" in found.figure.svg
    assert "run is simulated. Its times are not measurements." in found.sentences


def test_what_cannot_be_compared_gets_a_sentence(tmp_path, bench):
    run = a_run(tmp_path / "run", first_s=1.0)
    (tmp_path / "other.json").write_text('{"tool": "unknown"}')
    for paths, sentence in [
        ([run], "needs at least two results, got 1"),
        ([run, tmp_path / "other.json"], "not a result of a known tool"),
        ([run, tmp_path / "nothing.json"], "cannot be read"),
        ([tmp_path, bench], "no run has succeeded"),
    ]:
        with pytest.raises(ResultError, match=sentence):
            wb.compare_results(paths)
    with pytest.raises(ResultError, match=r"arm must be one of 1a in .*, got '5a'"):
        wb.compare_results([run, bench], arm="5a")


def test_the_command_prints_the_table_and_writes_the_figure(tmp_path, bench, capsys):
    run, svg = a_run(tmp_path / "run", first_s=1.0), tmp_path / "beside.svg"
    assert main(["compare", str(run), str(bench), "--pass", "cold", "--figure", str(svg)]) == 0
    printed = capsys.readouterr().out
    assert "TTFT, ms" in printed
    assert "The second is" in printed
    assert svg.read_text().startswith("<svg")
    assert main(["compare", str(run), str(tmp_path / "no.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_runs_in_two_number_formats_are_not_compared(tmp_path):
    half = a_run(tmp_path / "half", first_s=1.0, engine={"dtype": "bfloat16", "layers": 3})
    full = a_run(tmp_path / "full", first_s=1.0, engine={"dtype": "float32", "layers": 3})
    small = a_run(tmp_path / "small", first_s=1.0, engine={"dtype": "float32", "layers": 1})
    old = a_run(tmp_path / "old", first_s=1.0)
    with pytest.raises(
        ResultError, match="dtype must be the same in both runs, got bfloat16 in half and float32"
    ):
        wb.compare_results([half, full])
    with pytest.raises(ResultError, match="layers of the model"):
        wb.compare_results([old, full, small])
    assert len(wb.compare_results([half, old]).table)


def test_a_benchmark_report_is_compared_without_an_interval(tmp_path):
    report, other = tmp_path / "a.json", tmp_path / "b.json"
    report.write_text(json.dumps(benchmark_report()))
    other.write_text(json.dumps(benchmark_report(p50=0.125)))
    run = a_run(tmp_path / "run", first_s=0.5)
    beside = wb.compare_results([run, report], cache_state="cold")
    told = " ".join(beside.sentences)
    assert "Benchmark Report, measured 250 ms. Without single requests there is no" in told
    assert "TPOT of Benchmark Report" not in told
    (row,) = beside.table.query("arm == 'Benchmark Report' and metric == 'TTFT, ms'").to_dict(
        "records"
    )
    assert [row[name] for name in ("n", "p50", "p90", "p99")] == [
        200, "250", "500", "not in the file"
    ]  # fmt: skip
    both = " ".join(wb.compare_results([report, other]).sentences)
    assert "TTFT, Benchmark Report, measured: 250 ms, 125 ms." in both
