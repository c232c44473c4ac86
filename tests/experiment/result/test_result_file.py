"""All of result.json: what is written is read back the same, earlier files too, broken ones not."""

import json
import math
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import ResultError
from workbench.experiment.result.facts import SCHEMA, RunFacts
from workbench.experiment.result.finding_rows import Card, Comparison
from workbench.experiment.result.result_file import (
    from_plain,
    json_schema,
    jsonable,
    read_facts,
    to_plain,
)
from workbench.hardware.machine import repository_root
from workbench.metrics.statistics import Ratio

HERE = Path(__file__).parent
PAGE = repository_root() / "docs" / "result.schema.json"
REGENERATE = "python -m workbench.experiment.result.result_file > docs/result.schema.json"


def facts(**fields):
    return RunFacts(notebook="pd_sweep", run_id="1p4d-3f9a2c", status="success", **fields)


def test_what_is_written_is_read_back_and_what_is_not_known_is_null():
    ratio = Ratio(value=2.0, low=nan, high=nan, rounds=1, pairs=6, note="few rounds")
    row = Comparison(
        kind="opponent", metric="ttft_s", arm="1p1d", pass_name="cold", baseline_arm="2a",
        baseline_pass="cold", ratio=ratio, sentence="2x",
    )  # fmt: skip
    run = facts(numbers=(Card(label="cores", value=2),), comparisons=(row,), client={"lag_s": nan})
    plain = to_plain(run)
    assert plain["comparisons"][0]["pass"] == "cold"
    assert plain["comparisons"][0]["ratio"]["low"] is plain["client"]["lag_s"] is None
    read = from_plain(json.loads(json.dumps(plain, allow_nan=False)), "a file")
    assert to_plain(read) == plain
    assert read.comparisons[0].passes == ("cold",) and isnan(read.comparisons[0].ratio.low)
    assert type(read.numbers[0].value) is int  # a count is shown exactly


def test_a_file_of_the_first_schema_says_the_same():
    old = json.loads((HERE / "schema_1.json").read_text())
    run = read_facts(HERE / "schema_1.json")
    assert (old["schema"], run.schema) == (1, SCHEMA)
    for name in ("finding", "scope", "doubts", "sentences", "parameters", "client", "launches_s"):
        assert to_plain(run)[name] == old[name]
    assert list(run.failed_gates) == [g["name"] for g in old["gates"] if g["outcome"] == "FAIL"]
    row, new = old["summary"][0], run.summary[0]
    assert (new.pass_name, new.estimate.value, new.estimate.low) == (
        row["pass"], row["median"], row["low"],
    )  # fmt: skip
    row, new = old["comparisons"][0], run.comparisons[0]
    assert (new.ratio.value, new.ratio.rounds, new.ratio.pairs, new.ratio.note) == (
        row["ratio"], row["n_rounds"], row["n_pairs"], row["note"],
    )  # fmt: skip
    assert new.sentence == row["sentence"] and new.ratio.verdict == "faster"
    row, new = old["ledger"][0], run.ledger[0]
    assert (new.pass_name, new.unexplained, new.entries[0].cause) == (
        row["pass_name"], row["unexplained"], row["entries"][0]["cause"],
    )  # fmt: skip


def test_key_numbers_of_the_oldest_files_get_what_failed_gates_do_to_them():
    card = {"label": "TTFT", "value": 2.0, "unit": "x", "low": None, "high": None, "note": "so"}
    old = {
        "schema": 1, "notebook": "pd_sweep", "run_id": "r", "status": "success", "finding": "found",
        "numbers": [card], "gates": [{"name": "KV moved", "outcome": "FAIL", "sentence": "no"}],
    }  # fmt: skip
    run = from_plain(old, "a file")
    assert run.numbers[0].spoilt == "struck" and run.numbers[0].note.endswith("; so")
    assert run.unproven == "found"
    assert isnan(run.measuring_s)  # not told: it is no 0 s


GATE = {"name": "KV moved", "outcome": "PASS", "sentence": "it did", "next_step": ""}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gates": [GATE | {"outcome": "GOOD"}]}, "gates.0.outcome is 'GOOD', but it must be"),
        ({"gates": [{"name": "x"}]}, "gates.0.outcome is missing (and 1 more mistake)"),
        ({"duration_s": "long"}, "duration_s is 'long', but it must be a valid number"),
        ({"doubts": "few rounds"}, "doubts is 'few rounds', but it must be"),
        ({"status": "fine"}, "but it must be 'started', 'success', 'failed' or 'cancelled'"),
        ({"schema": 99}, f"has schema 99, but this workbench reads at most {SCHEMA}; update"),
        ({"schema": "1"}, "schema must be an integer of at least 1, got '1'"),
        ({"schema": True}, "schema must be an integer of at least 1, got True"),
        ({"schema": 1, "summary": [{"arm": "1a"}]}, "summary.0.topology is missing"),
        ({"schema": 1, "numbers": [1.5]}, "numbers.0 is 1.5, but it must be"),
        ({"schema": 1, "numbers": [{"note": 2}]}, "numbers.0.label is missing"),
        ({"schema": 1, "gates": "none"}, "gates is 'none', but it must be"),
        ({"schema": 1, "gates": [GATE | {"a": 1, "outcome": 3}]}, "gates.0.outcome is 3, but"),
        ({"schema": 1, "ledger": [{"arm": "1a"}]}, "ledger.0.round is missing"),
        ({"schema": 1, "comparisons": {"a": 1}}, "comparisons is {'a': 1}, but it must be"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_name_of_the_field(
    change, sentence, tmp_path
):
    (tmp_path / "result.json").write_text(json.dumps(to_plain(facts()) | change))
    with pytest.raises(ResultError) as error:
        read_facts(tmp_path / "result.json")
    assert sentence in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "result.json"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist, so no run has succeeded in this folder"),
        ("", "is not valid JSON"),
        ('{"schema": 1,', "the file may be cut off or edited"),
        ("{}", "has no field schema"),
        ("[1]", "has no field schema"),
        ("[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe{}", "cannot be read"),
    ],
)
def test_what_is_no_result_is_said_in_a_sentence(content, sentence, tmp_path):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "result.json").write_bytes(data)
    with pytest.raises(ResultError, match=sentence):
        read_facts(tmp_path / "result.json")


def test_the_published_schema_is_that_of_the_records():
    assert json.loads(PAGE.read_text()) == json_schema(), f"to renew it: {REGENERATE}"


def test_json_has_no_nan_no_numpy_and_no_paths():
    odd = {
        "nan": math.nan,
        "inf": [math.inf, 1.5],
        "numpy": (np.float64("nan"), np.int64(3), np.bool_(True)),
        1: Path("/x"),
        "none": None,
        "true": True,
    }
    assert jsonable(odd) == {
        "nan": None,
        "inf": [None, 1.5],
        "numpy": [None, 3, True],
        "1": "/x",
        "none": None,
        "true": True,
    }
