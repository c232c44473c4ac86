import json
from dataclasses import replace

import pandas as pd
import pytest

from workbench.errors import ResultError
from workbench.experiment.result.result import MIME, SCHEMA, Result, load_result
from workbench.experiment.result.run_folder import RunFolder


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "result.json does not exist: no run has succeeded in this folder"),
        ("", "is not JSON"),
        ('{"schema": 1,', "the file was cut or edited"),
        ("{}", "names no schema: it was not written by the workbench"),
        ('{"schema": "1"}', "names no schema"),
        ("[1]", "names no schema"),
        ('{"schema": 99}', "has schema 99 and this workbench reads up to 1: update it"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(ResultError) as error:
        load_result(tmp_path)
    assert sentence in str(error.value)
    assert str(tmp_path / "result.json") in str(error.value)


def test_a_result_without_rows_is_still_read(tmp_path):
    (tmp_path / "result.json").write_text('{"schema": 1, "finding": "x"}')
    assert load_result(tmp_path).frames == {}


def median(metric, value, low=None, high=None, *, arm="1p4d lmcache", name="cold"):
    return {
        "arm": arm, "topology": "1p4d", "connector": "lmcache", "pass": name, "metric": metric,
        "median": value, "low": low, "high": high, "n_requests": 30, "n_failed": 0,
    }  # fmt: skip


def ratio(metric, value):
    return {"kind": "cache-state", "metric": metric, "ratio": value, "low": None, "high": None,
            "sentence": f"{value:g}x"}  # fmt: skip


@pytest.fixture
def result(tmp_path):
    """As read from a file: what was NaN is null."""
    facts = {
        "schema": SCHEMA,
        "finding": "A warm store cuts TTFT 18 times",
        "summary": [
            median("ttft_s", 1.2345, 1.2, 1.3),
            median("ttft_s", 0.0504, name="store-warm"),
            median("system_tps", 1234.5, 1000.0, 1500.0),
            median("system_tps", None, name="store-warm"),
        ],
        "comparisons": [ratio("ttft_s", 18.0), ratio("system_tps", 2.0)],
        "gates": [{"name": "cold was cold", "outcome": "PASS", "sentence": "", "next_step": ""}],
        "doubts": ["few rounds"],
        "machine": {"cpu": "a CPU", "versions": {"vllm": "0.32.0"}},
        "platforms": [{"platform": "cpu", "can run": "much"}],
    }
    return Result(facts=facts, folder=tmp_path)


def test_medians_are_a_wide_table_in_milliseconds_and_tokens_per_second(result):
    table = result.medians("ttft", "system_tps")
    assert list(table.columns) == ["arm", "pass", "n_requests", "ttft", "system_tps"]
    assert table.set_index("pass")["ttft"].to_dict() == {
        "cold": "1,234 ms [1,200, 1,300]",
        "store-warm": "50.4 ms",
    }
    assert table.set_index("pass")["system_tps"].to_dict() == {
        "cold": "1,234 /s [1,000, 1,500]",
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


def test_tables_of_what_was_found(result):
    assert result.gates["outcome"].tolist() == ["PASS"]
    assert result.doubts == ["few rounds"]
    assert result.table("platforms")["can run"].tolist() == ["much"]
    machine = result.table("machine").set_index("what")["found"]
    assert machine["versions.vllm"] == "0.32.0"


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
    result = Result(facts={}, folder=tmp_path, frames={"requests": requests})
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
        facts=result.facts, folder=result.folder, frames={"requests": requests, "legs": legs}
    )
    waterfall = found.waterfall()
    assert waterfall["prefill_compute_s"].tolist() == pytest.approx([0.1] * 6)
    assert waterfall["residual_s"].tolist() == pytest.approx([0.001] * 6)
    assert "simulated" in waterfall.attrs
    medians = found.waterfall_medians().set_index("median, ms")
    assert medians.loc["prefill compute", "1p1d nixl"] == "100"
    assert found.why() == [
        "2a beside 1p1d nixl, cold: no difference of TTFT detectable at this n (0 ms [0, 0]), and"
        " no part stands out."
    ]
    gate = {"name": "cold was cold", "outcome": "FAIL", "sentence": "It was warm."}
    spoiled = replace(found, facts=found.facts | {"gates": [gate]})
    assert spoiled.why() == [
        "Not proven: gate “cold was cold” failed: what follows may have other causes.",
        *found.why(),
    ]
    busy = replace(found, facts=found.facts | {"gates": [gate | {"name": "client kept up"}]})
    assert busy.why()[1:] == found.why()
    assert busy.why()[0].endswith("Intervals of ratios contain this noise.")


def test_a_result_of_many_requests_is_loaded_without_their_stamps(tmp_path, monkeypatch):
    folder = RunFolder.open(str(tmp_path), "pd_sweep", "1a-3f9a2c")
    stamps = [[0.0, 0.5, 1.5]] * 9
    columns = {"arm": "1a", "pass": "cold", "error": "", "text": "a", "chunk_s": stamps}
    latencies = dict.fromkeys(("ttft_s", "tpot_s", "e2e_s"), 0.25)
    folder.write("requests", pd.DataFrame(columns | latencies))
    folder.write_facts({"schema": SCHEMA, "finding": "many"})
    folder.promote()
    assert "chunk_s" in load_result(folder.home).requests
    monkeypatch.setattr("workbench.experiment.result.frame_file.GROUP_ROWS", 8)
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
    gate = {"name": "client kept up", "outcome": "PASS", "sentence": "it was late"}
    facts = {"gates": [gate], "finding": ""}
    kept_up = Result(facts=facts, folder=tmp_path, frames={"requests": rows})
    assert "[" in kept_up.percentile_table().set_index("metric").loc["TTFT, ms", "p99"]
    for outcome in ("FAIL", "INCONCLUSIVE"):
        late = replace(kept_up, facts={"gates": [gate | {"outcome": outcome}], "finding": ""})
        row = late.percentile_table().set_index("metric").loc["TTFT, ms"]
        assert row["p99"] == "withheld (client kept up)"
        assert "[" in row["p50"]
        gap = late.percentile_table().set_index("metric").loc["ICL, ms", "p50"]
        assert ("withheld" in gap) == (outcome == "FAIL")


def test_a_gate_on_one_pass_takes_no_p99_of_another(tmp_path):
    rows = pd.DataFrame({"arm": "1a", "pass": ["cold", "store-warm"] * 400, "error": "",
                         "ttft_s": [0.01 * n for n in range(800)], "tpot_s": 0.25,
                         "e2e_s": 0.25})  # fmt: skip
    rows["chunk_s"] = [[0.0, 0.5]] * 800
    gate = {"name": "store-warm was store-warm", "outcome": "FAIL", "sentence": "it was cold"}
    result = Result(
        facts={"gates": [gate], "finding": ""}, folder=tmp_path, frames={"requests": rows}
    )
    table = result.percentile_table().set_index(["pass", "metric"])
    assert "[" in table.loc[("cold", "TTFT, ms"), "p99"]
    assert "withheld" in table.loc[("store-warm", "TTFT, ms"), "p99"]
