"""`workbench gate` with all its exit statuses, on recorded runs of simulated servers."""

import re
from dataclasses import replace
from math import nan
from xml.etree import ElementTree

import pandas as pd
import pytest

from tests.experiment.between.recorded import quiet, recorded
from workbench.cli import main
from workbench.experiment.between.regression import judge
from workbench.experiment.result.result import load_result
from workbench.report.comparing.gate_report import (
    headline,
    junit_report,
    markdown_report,
    text_report,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiet")
    return {name: str(quiet(name, folder)) for name in ("base", "again", "slow", "few")}


@pytest.mark.parametrize(
    ("run", "allow", "status", "first", "elements"),
    [
        ("again", "90%", 0, "No regression: every comparison is within 90 %", {}),
        ("slow", "5%", 1, r"Regression: TPOT, 1p1d nixl, cold is \d+ % higher \(and", {"failure"}),
        ("few", "5%", 2, "Undecided: 6 of 6 comparisons", {"skipped"}),
    ],
)
def test_exit_status_first_line_and_junit(
    runs, run, allow, status, first, elements, capsys, tmp_path
):
    xml = tmp_path / "gate.xml"
    words = ["gate", runs[run], "--against", runs["base"], "--allow", allow, "--junit", str(xml)]
    assert main(words) == status
    assert re.match(first, capsys.readouterr().out)
    (suite,) = ElementTree.parse(xml).getroot()
    cases = suite.findall("testcase")
    assert len(cases) == int(suite.get("tests")) == 6
    assert {child.tag for case in cases for child in case} == set(elements)
    for tag, attribute in (("failure", "failures"), ("skipped", "skipped")):
        assert len(suite.findall(f"testcase/{tag}")) == int(suite.get(attribute))
    assert suite.get("errors") == "0"


def test_an_undecided_run_says_what_to_do(runs, capsys):
    assert main(["gate", runs["few"], "--against", runs["base"], "--allow", "5%"]) == 2
    assert re.search(
        r"next: for 4 of 6: measure both runs with -p rounds \d+ \(\d+ decide half of them\),.*;"
        " for 2 of 6: more rounds do not decide it: allow more, or measure",
        capsys.readouterr().out,
    )  # rounds are not said to decide what they do not decide
    busy = ["gate", str(recorded("again")), "--against", str(recorded("base")), "--allow", "5%"]
    assert main(busy) == 2
    assert "next: Repeat the run whose gates failed" in capsys.readouterr().out


def test_a_pass_that_failed_is_repeated_and_not_measured_for_longer(runs):
    again, base = (load_result(runs[name]) for name in ("again", "base"))
    rows = again.requests.assign(error="http", ttft_s=nan, tpot_s=nan, output_tokens=nan)
    found = judge(replace(again, frames={"requests": rows}), [base], allow=0.9)
    text = list(text_report(found))
    assert text[-1] == (
        "next: Find out why requests failed (error_message in requests.parquet), and repeat the run"
    )
    assert "not known; the run has no value: all 16 requests failed" in " ".join(text)


def test_an_unfinished_run_is_undecided_although_every_comparison_passes(runs):
    again, base = (load_result(runs[name]) for name in ("again", "base"))
    part = replace(again, run=replace(again.run, status="cancelled"))
    found = judge(part, [base], allow=0.9)
    first, *_, last = text_report(found)
    assert (first, last) == (
        "Undecided: again did not finish",
        "next: Finish the run that did not finish: again",
    )
    (suite,) = ElementTree.fromstring(junit_report(found, "again"))
    assert (suite.get("tests"), suite.get("skipped")) == ("7", "1")
    assert suite.findall("testcase")[-1].find("skipped") is not None


def test_the_noise_floor_is_in_the_interval_that_is_printed(runs, tmp_path):
    third, again, base = (load_result(quiet(name, tmp_path)) for name in ("third", "again", "base"))
    found = judge(third, [base, again], allow=0.9)
    text = " ".join(text_report(found))
    assert "95 % interval, widened by the noise floor;" in text
    each = found.judged[0]
    assert f"[{100 * each.change[1]:+.3g}, {100 * each.change[2]:+.3g}]" in text
    assert each.change[1] < each.row.change[1]


def test_the_summary_is_appended_and_is_a_table_of_markdown(runs, tmp_path):
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    words = ["gate", runs["slow"], "--against", runs["base"], "--allow", "5%"]
    main([*words, "--summary", str(file)])
    before, *lines = file.read_text().splitlines()
    assert before == "before"
    assert lines[0].startswith("## ▲ Regression: TPOT, 1p1d nixl, cold is")
    rows = [line for line in lines if line.startswith("| ▲")]
    assert len(rows) == 6
    assert all(line.count("|") == 5 for line in rows)


def test_a_summary_of_many_arms_has_at_most_30_lines_and_counts_the_rest(runs):
    """Six arms, two passes, three metrics: 36 comparisons."""
    base, slow = (load_result(runs[name]) for name in ("base", "slow"))
    many = []
    for result in (base, slow):
        parts = [result.requests.assign(arm=f"arm {n}") for n in range(6)]
        many.append(replace(result, frames={"requests": pd.concat(parts, ignore_index=True)}))
    found = judge(many[1], many[:1], allow=0.05)
    text = markdown_report(found)
    assert len(text.splitlines()) <= 30
    assert "- Not listed: " in text
    assert len(found.judged) == 36
    assert "more comparisons)" in headline(found)


def test_bad_input_never_passes_for_an_answer(runs, tmp_path, capsys, monkeypatch):
    """Argparse's own status for bad input means undecided here, and Python's a regression."""
    base = ["gate", runs["again"], "--against", runs["base"], "--allow", "5%"]
    assert main(["gate", str(tmp_path), *base[2:]]) == 3
    assert "no run has succeeded" in capsys.readouterr().err
    assert main([*base[:-1], "5"]) == 3
    assert main([*base, "--junit", str(tmp_path / "none" / "x.xml")]) == 3
    with pytest.raises(SystemExit) as ended:
        main(["gate", runs["again"]])
    assert ended.value.code == 3
    monkeypatch.setattr("workbench.experiment.between.regression.judge", lambda *_, **__: 1 / 0)
    assert main(base) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err
