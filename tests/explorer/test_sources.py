from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.errors import ParameterError, ResultError
from workbench.experiment.result.result import Result
from workbench.explorer.sources import LogFiles, source_of, what_is
from workbench.metrics.gates.gate import Gate


def test_the_rows_of_a_run_are_its_successful_requests(recorded):
    source = source_of(*what_is(recorded.folder, None))
    rows = recorded.requests
    assert source.what == "requests" and "(simulated)" in source.title
    assert len(source.rows) == len(rows) and source.notes[0].startswith(
        "In a PD split, the cached share"
    )
    assert np.allclose(source.metrics["TTFT, ms"], 1000 * rows["ttft_s"])
    assert source.rows["share"].between(0, 100).all()
    assert (source.rows.groupby(["arm", "pass"])["x"].min() == 0).all()


def test_failed_requests_are_counted_and_not_drawn(recorded, tmp_path):
    rows = recorded.requests.copy()
    rows.loc[3, "error"] = "timeout"
    failing = Result(run=recorded.run, folder=tmp_path, frames={"requests": rows})
    source = source_of(failing)
    assert len(source.rows) == len(rows) - 1
    assert source.notes[0].startswith("Failed requests are not drawn (1).")


def test_a_run_with_failed_gates_says_so_with_what_they_take_away(recorded):
    failed = Gate(name="no failures", outcome="FAIL", sentence="2 requests failed.")
    said = source_of(replace(recorded, run=replace(recorded.run, gates=(failed,)))).notes[0]
    assert said.startswith("Gates failed: requests failed: do not use")
    assert "2 requests failed." in said
    void = replace(recorded.run, gates=(failed,), unproven="1p1d is faster")
    assert source_of(replace(recorded, run=void)).notes[0].startswith("Not valid: ")
    assert (
        source_of(replace(recorded, run=replace(void, status="failed")))
        .notes[0]
        .startswith("Run failed: The run ended with an error. 2 requests failed.")
    )


def test_a_log_needs_no_suffix(log, recorded, tmp_path):
    bare = tmp_path / "lmcache"
    bare.write_bytes(log.read_bytes())
    (found,) = what_is(str(bare), None)
    assert isinstance(found, LogFiles) and found.paths == (bare,)
    folder = tmp_path / "run.1"
    folder.symlink_to(recorded.folder)
    (found,) = what_is(folder, None)
    assert isinstance(found, Result)


def test_the_rows_of_a_log_are_its_lookups(log):
    source = source_of(*what_is(str(log), None))
    assert source.what == "lookups" and source.title == "lmcache.log"
    assert list(source.metrics["need to load, tokens"]) == [640] * 12
    assert source.rows["share"].round(1).eq(76.8).all()
    page = source.page(1)
    assert "Lines of the log" in page and page.count("r-1,") == 1 and "r-11" not in page


def test_an_analysis_of_a_log_is_explored_as_the_log(log, recorded):
    facts = pd.Series(recorded.run.parameters).to_dict() | {"log_file": str(log)}
    read = replace(recorded, run=replace(recorded.run, parameters=facts))
    (found,) = what_is(read, None)
    assert isinstance(found, LogFiles) and found.paths == (log,)


def test_an_unfinished_run_is_explored_by_its_newest_attempt_with_a_result(recorded, tmp_path):
    (tmp_path / "attempt-20260101-000000-1-a").symlink_to(recorded.folder)
    (tmp_path / "attempt-20260102-000000-1-b").mkdir()
    (found,) = what_is(tmp_path, None)
    assert isinstance(found, Result) and found.run.run_id == recorded.run.run_id


def test_what_cannot_be_explored_is_refused(recorded, log, tmp_path):
    with pytest.raises(ResultError, match="one or two results or run folders"):
        what_is([recorded, recorded, recorded], None)
    with pytest.raises(ResultError, match="one or two results or run folders"):
        what_is(recorded, log)
    with pytest.raises(ResultError, match=r"result\.json"):
        what_is(tmp_path, None)
    with pytest.raises(ParameterError, match="cannot be read"):
        what_is(tmp_path / "no.log", None)


def test_without_a_front_end_there_is_a_figure_and_a_line(recorded, log, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    assert wb.explore(recorded, recorded) is None
    assert wb.explore(log) is None
    assert [figure.svg.startswith("<svg") for figure in shown] == [True] * 3
    assert wb.form("pd_sweep").data.endswith("Elsewhere use `workbench run pd_sweep`.")


def test_unknown_names_are_refused_before_a_form_is_shown():
    with pytest.raises(ParameterError, match="did you mean 'pd_sweep'"):
        wb.form("pd_swep")
    with pytest.raises(ParameterError, match="did you mean 'rounds'"):
        wb.form("pd_sweep", round=3)


def test_a_result_without_requests_names_the_runs_that_it_made(recorded, tmp_path):
    run = tmp_path / "runs" / "one" / "pd_sweep" / "1a"
    bare = Result(run=recorded.run, folder=tmp_path, frames={})
    assert "Nothing was measured" in wb.explore(bare, interactive=True).data
    run.mkdir(parents=True)
    (run / "result.json").touch()
    assert f"wb.explore({str(run)!r})" in wb.explore(bare, interactive=True).data
    assert wb.explore(bare, interactive=False) is None
