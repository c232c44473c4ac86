"""All notebooks run whatever one of them finds, and the terminal says in the end how each came out.

What `workbench run` does with one notebook is in test_cli.
"""

from pathlib import Path

import click
import pytest

from workbench import cli, notebook_run
from workbench.errors import ParameterError
from workbench.experiment.result.result_file import from_plain
from workbench.notebook_run import NotebookRun
from workbench.params.notebooks import NOTEBOOKS
from workbench.terminal import table_of

NAMES = list(NOTEBOOKS)


def found(notebook, finding="Cold TTFT is 3.1x slower", **facts):
    page = Path.cwd() / "outputs" / notebook / "x" / "report.html"
    gates = [{"name": "same text", "outcome": "PASS", "sentence": "", "next_step": ""}]
    plain = {"schema": 2, "notebook": notebook, "run_id": "x", "status": "success"}
    plain |= {"finding": finding, "gates": gates} | facts
    run = from_plain(plain, "a test")
    return NotebookRun(notebook=notebook, page=page, facts=run, took_s=90.0)


class Notebooks(dict):
    """What each notebook does when it runs, by name: a run, or an exception."""

    def __init__(self, does):
        super().__init__(does)
        self.ran, self.indexed = [], []


@pytest.fixture
def notebooks(monkeypatch):

    does = Notebooks({name: found(name) for name in NAMES})

    def run(notebook, given, *, force=False, progress=None):
        does.ran.append((notebook, given, force))
        if isinstance(does[notebook], BaseException):
            raise does[notebook]
        return does[notebook]

    monkeypatch.setattr(notebook_run, "run_notebook", run)

    def write_index(folder):
        does.indexed.append(folder)
        return Path(folder) / "index.html"

    monkeypatch.setattr("workbench.report.index.write_index", write_index)
    return does


def test_the_environment_and_the_main_job_come_first(notebooks):
    assert cli.main(["run-all"]) == 0
    assert [name for name, _, _ in notebooks.ran] == NAMES
    assert NAMES[:2] == ["environment_check", "pd_sweep"]
    assert len(notebooks.indexed) == 5  # after each, so that a page can be found while others run


def test_each_notebook_gets_its_own_file_of_parameters(notebooks, tmp_path):
    (tmp_path / "pd_sweep.yaml").write_text("topology: 1p1d\n")
    out = tmp_path / "out"
    arguments = ["run-all", "--params", str(tmp_path), "--output-dir", str(out), "--force"]
    assert cli.main(arguments) == 0
    given = {name: (params, force) for name, params, force in notebooks.ran}
    assert given["pd_sweep"] == ({"topology": "1p1d", "output_dir": str(out)}, True)
    assert given["lmcache_hit_analysis"] == ({"output_dir": str(out)}, True)


def test_failed_checks_and_a_machine_that_is_not_ready_are_findings_and_no_exit_status(
    notebooks, capsys
):
    notebooks["environment_check"] = found(
        "environment_check", "Not ready: 0.5 GB free in /dev/shm",
        outcome={"word": "not ready", "severity": "bad"},
    )  # fmt: skip
    notebooks["pd_sweep"] = found(
        "pd_sweep", "Not valid: the caches changed what the model answers", unproven="x",
        gates=[{"name": "same text", "outcome": "FAIL", "sentence": "3 differ", "next_step": "-"}],
    )  # fmt: skip
    assert cli.main(["run-all"]) == 0
    assert len(notebooks.ran) == 5
    shown = capsys.readouterr().out
    assert "FAIL Responses differ: 3 differ" in shown
    rows = {line.split()[0]: line for line in table_lines(shown)}
    assert "not ready" in rows["environment_check"]
    assert "not valid" in rows["pd_sweep"]


def table_lines(shown):
    table = shown[shown.index("\nnotebook ") :]
    return [line for line in table.splitlines() if line and not line.startswith(" ")]


@pytest.mark.parametrize(
    ("ended", "sentence"),
    [
        (NotebookRun(notebook="pd_sweep", problem="LaunchError: no room\n  log: /x", advice="mend",
                     took_s=3.0), "pd_sweep: LaunchError: no room\n  next: mend"),
        (ParameterError("rounds is 'none'"), "pd_sweep: rounds is 'none'\n  next: correct what"),
        (ZeroDivisionError("a mistake of ours"), "pd_sweep: ZeroDivisionError: a mistake of ours"),
    ],
)  # fmt: skip
def test_what_failed_is_said_last_and_the_others_ran(ended, sentence, notebooks, capsys):
    notebooks["pd_sweep"] = ended
    assert cli.main(["run-all"]) == 1
    assert [name for name, _, _ in notebooks.ran] == NAMES
    shown = capsys.readouterr().out
    last = shown[shown.index("1 of 5 notebooks failed:") :]
    assert sentence in last
    assert "next: " in last.splitlines()[-1]


@pytest.mark.parametrize(
    "ended",
    [
        KeyboardInterrupt(),
        NotebookRun(notebook="pd_sweep", problem="KeyboardInterrupt: ", advice="start it again"),
    ],
)
def test_an_interrupt_ends_all_of_it_with_the_table_so_far(ended, notebooks, capsys):
    notebooks["pd_sweep"] = ended
    assert cli.main(["run-all"]) == 1
    assert [name for name, _, _ in notebooks.ran] == ["environment_check", "pd_sweep"]
    rows = table_lines(capsys.readouterr().out)
    assert [row.split()[0] for row in rows[2:4]] == ["environment_check", "pd_sweep"]
    assert rows[5].startswith("1 of 5 notebooks failed")


def test_a_folder_of_parameters_that_is_none_is_one_sentence(notebooks, tmp_path, capsys):
    assert cli.main(["run-all", "--params", str(tmp_path / "cpu")]) == 2
    assert "cpu must be a folder with files such as pd_sweep.yaml" in capsys.readouterr().err
    assert notebooks.ran == []


def test_the_table_fits_its_terminal_and_has_all_columns():
    kept = NotebookRun(notebook="pd_sweep", facts=found("pd_sweep", "Long " * 30).facts, kept=True)
    index = Path.cwd() / "outputs" / "index.html"
    runs = [found("environment_check", "Ready, quiet"), kept]
    lines = click.unstyle(table_of(runs, index=index, width=90)).splitlines()
    assert max(map(len, lines)) <= 90
    assert lines[0].split() == ["notebook", "outcome", "minutes", "headline", "and", "page"]
    assert lines[2].split() == ["environment_check", "gates", "passed", "1.5", "Ready,", "quiet"]
    assert lines[3].split() == ["outputs/environment_check/x/report.html"]
    assert lines[4].split()[:4] == ["pd_sweep", "gates", "passed", "reused"]
    assert lines[5].endswith(" ...")  # two lines of a headline; the page has the rest
    assert lines[-1] == "1.5 minutes in all; all runs: outputs/index.html"
