from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path

import openpyxl
import pandas as pd
import pytest

from tests.experiment.result.test_point_tables import RUN
from tests.golden.replay import RECORDINGS
from workbench.experiment.result import result_file
from workbench.experiment.result.finding_rows import LoadRow
from workbench.experiment.result.result import Result
from workbench.exports.sheets import save_tables, tables_of
from workbench.metrics.latency import latencies

ROW = {
    "arm": "1p4d", "topology": "1p4d", "connector": "lmcache", "pass": "cold", "n_requests": 30,
    "n_failed": 0, "n_rounds": 5,
}  # fmt: skip
PASSED = {"name": "steady state", "outcome": "PASS", "sentence": "Steady."}


def result_with(result, **facts):
    facts = result | {"schema": 2, "gates": [PASSED]} | facts
    return Result.from_bundle(facts, "a test")


def estimate(value):
    return {"value": value, "low": None, "high": 2 * value, "n": 30}


@pytest.fixture
def sweep(result):
    """Two metrics of one arm and pass, and a speed-up."""
    rows = [
        ROW | {"metric": "ttft_s", "estimate": estimate(0.123456789)},
        ROW | {"metric": "system_tps", "estimate": estimate(250.0)},
    ]
    ratio = {"value": 3.14159265, "low": 3.0, "high": 3.3, "rounds": 5, "pairs": 30}
    found = {
        "kind": "cache-state", "metric": "ttft_s", "arm": "1p4d", "pass": "store-warm",
        "baseline_arm": "1p4d", "baseline_pass": "cold", "ratio": ratio, "sentence": "=1+1",
    }  # fmt: skip
    return {"summary": rows, "comparisons": [found]}


def test_a_metric_has_columns_with_its_unit_and_all_digits(result, sweep):
    summary = tables_of(result_with(result, **sweep))["summary"]
    (row,) = summary.to_dict("records")
    assert row["ttft median (s)"] == 0.123456789
    assert pd.isna(row["ttft low (s)"])
    assert row["system median (tokens/s)"] == 250.0
    assert row["n requests"] == 30


def test_every_list_and_mapping_of_the_result_is_a_table(result, sweep):
    shown = result_with(result, **sweep)
    filled = {
        name for name, value in shown.facts.items() if isinstance(value, list | dict) and value
    }
    assert filled | {"about"} == tables_of(shown).keys()


def test_rows_that_a_failed_gate_takes_away_say_so(result, sweep):
    failed = {"name": "cold passes were cold", "outcome": "FAIL", "sentence": "Warm."}
    tables = tables_of(result_with(result, **sweep, gates=[failed]))
    assert tables["comparisons"]["use"][0].startswith("do not use: ")
    assert "use" not in tables["machine"]
    assert "use" not in tables_of(result_with(result, **sweep))["comparisons"]


LATE = {"name": "client kept up", "outcome": "FAIL", "sentence": "Late."}
"""It takes away tails; times are rough, ratios doubtful, counts as they are."""


def test_use_says_what_the_page_says_by_table_and_row(result, sweep):
    def card(kind):
        return {"label": "n", "value": 1.0, "low": 0.9, "high": 1.1, "rests_on": kind}

    rates = dict.fromkeys(LoadRow.__dataclass_fields__, 1.0) | {"n_requests": 9, "n_rounds": 1}
    search = {"met_per_s": 1.0, "missed_per_s": 2.0, "resolved": True, "reason": ""}
    facts = {
        "rates": [rates | {"arm": "1p4d"}], "searches": [search | {"arm": "1p4d"}],
        "numbers": [card("tails"), card("times"), card("ratios"), card("counts"), card("")],
        "sentences": ["1p4d keeps up."], "files": {"requests": "requests.parquet"},
        "launches_s": [3.0],
    }  # fmt: skip
    tables = tables_of(result_with(result, **sweep, **facts, gates=[LATE]))
    why = "client did not keep up"
    assert list(tables["numbers"]["use"]) == [
        f"do not use: {why}", f"rough: {why}", f"use with caution: {why}", "", "",
    ]  # fmt: skip
    assert tables["rates"]["use"][0] == tables["searches"]["use"][0] == f"rough: {why}"
    assert tables["comparisons"]["use"][0] == f"use with caution: {why}"
    text = "sentences files launches_s workload engine".split()
    assert not [name for name in text if name in tables and "use" in tables[name]]


def test_points_and_decisions_are_times(result):
    facts = result_file.jsonable(replace(RUN, gates=()))
    own = {name: facts[name] for name in ("points", "decisions", "energy", "parameters")}
    tables = tables_of(result_with(result, **own, gates=[LATE]))
    for name in ("points", "decisions", "energy"):
        assert tables[name]["use"][0] == "rough: client did not keep up"
    heads = set(tables["points"]) | set(tables["energy"])
    assert heads >= {
        "user value (tokens/s)", "gpu low (tokens/s)", "energy value (J/output token)",
        "output cost value (USD per million output tokens)", "power (W)",
        "total cost high (USD per million tokens)", "joules (J)", "seconds (s)", "idle (W)",
    }  # fmt: skip
    assert "user tps n" in heads  # a count has no unit


@pytest.fixture(scope="module")
def recorded():
    rows = pd.read_parquet(RECORDINGS / "pd_sweep" / "requests.parquet")
    return rows if "ttft_s" in rows else rows.assign(**latencies(rows))


def test_percentiles_are_tails_from_p99_on_or_between_tokens(result, recorded):
    shown = replace(result_with(result, gates=[LATE]), frames={"requests": recorded})
    found = tables_of(shown)["percentiles"]
    tails = found["quantile"].ge(0.99) | found["metric"].eq("icl_s")
    assert tails.any() and not tails.all()
    assert found["use"].str.startswith("do not use").eq(tails).all()


def test_a_run_folder_without_legs_has_every_table_but_the_waterfall(result, recorded, tmp_path):
    shown = replace(result_with(result), frames={"requests": recorded}, folder=tmp_path)
    tables = tables_of(shown)
    assert "percentiles" in tables and "waterfall" not in tables


def test_files_hold_the_same_numbers_as_numbers(result, sweep, tmp_path):
    shown = result_with(result, **sweep, doubts=["a|b", "bell \x07"], machine={"memory_gb": 24.5})
    files = save_tables(shown, tmp_path, near=tmp_path / "out.ipynb")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == set(files)
    book = openpyxl.load_workbook(tmp_path / "report.xlsx")
    assert book.sheetnames == [Path(file).stem for file in files if file.endswith(".csv")]
    sheet = book["comparisons"]
    heads = [cell.value for cell in sheet[1]]
    row = dict(zip(heads, sheet[2], strict=True))
    assert row["ratio value"].value == 3.14159265
    assert row["sentence"].data_type == "s"  # a text, no formula
    assert row["sentence"].value == "=1+1"
    assert book["summary"]["H2"].value == pd.read_csv(tmp_path / "tables/summary.csv").iloc[0, 7]
    assert [cell.value for cell in book["machine"][2]] == ["memory_gb", 24.5]
    assert [cell.value for cell in book["doubts"]["A"]] == ["doubts", "a|b", "bell "]


def test_a_value_that_is_not_known_is_empty_and_not_0(result, tmp_path):
    shown = result_with(result, measuring_s=None, client={"loop_lag_s": nan})
    save_tables(shown, tmp_path, near=tmp_path)
    about = openpyxl.load_workbook(tmp_path / "report.xlsx")["about"]
    assert {row[0].value: row[1].value for row in about}["measuring_s"] is None
    assert "0" not in (tmp_path / "tables/client.csv").read_text().splitlines()[1]
