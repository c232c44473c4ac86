import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import click
import nbformat
import papermill
import pytest
from nbclient.exceptions import DeadKernelError

from tests.whatif.known import known_profile
from workbench import cli
from workbench.hardware.interpreter import Interpreter
from workbench.params.pd_sweep import PdSweep
from workbench.params.run_id import run_id
from workbench.serve.vllm import EngineSettings
from workbench.terminal import say

RESULT = {
    "schema": 2,
    "notebook": "pd_sweep",
    "run_id": "x",
    "status": "success",
    "scope": "Tiny model on a CPU",
    "finding": "A warm KV store cuts TTFT",
    "numbers": [{"label": "TTFT cold / store-warm, 1p1d", "value": 18.0, "unit": "x", "low": 16.0,
                 "high": 20.3}],
    "gates": [
        {"name": "same text", "outcome": "PASS", "sentence": "all are equal", "next_step": ""},
        {"name": "client kept up", "outcome": "FAIL", "sentence": "others took 60 % of the CPU",
         "next_step": "end other programs"},
    ],
}  # fmt: skip


@pytest.fixture
def executed(monkeypatch):
    """Calls of papermill as (source, parameters); nothing is started.

    `outcome` is what it raises, if anything; `facts` are what the run's result says beside RESULT.
    """

    class Executed(list):
        outcome: BaseException | None = None
        facts = MappingProxyType({})

    calls = Executed()

    def execute(source, target, parameters, **_):
        calls.append((Path(source), parameters))
        shutil.copy(source, target)  # papermill writes the copy as it goes
        if calls.outcome is not None:
            raise calls.outcome
        result = RESULT | dict(calls.facts)
        (Path(target).parent / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    return calls


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run pd_sweep -p topology p4d", "topology must be like 1p4d (1 prefill, 4 decode"),
        ("run pd_sweep -p topology 0p0d", "got '0p0d'"),
        ("run pd_sweep -p topology 1p-4d", "got '1p-4d'"),
        ("run pd_sweep -p connector lmcash", "connector must be one of none, lmcache, nixl, moonc"),
        ("run pd_sweep -p promt_tokens 5", "has no parameter 'promt_tokens'; did you mean"),
        (
            "run pd_sweep -p rounds none",
            "rounds must be an integer, got 'none' (example: -p rounds 3)",
        ),
        ("run pd_swep", "unknown notebook 'pd_swep'; did you mean 'pd_sweep'?"),
        ("run environment_check -p rounds 3", "environment_check has no parameter 'rounds'"),
        ("run pd_sweep -f {tmp}/none.yaml", "none.yaml cannot be read as YAML"),
        ("run pd_sweep -f {tmp}", "cannot be read as YAML"),
        (
            "run pd_sweep -f {tmp}/list.yaml",
            "list.yaml must have one parameter a line",
        ),
        ("run pd_sweep -f {tmp}/broken.yaml", "broken.yaml cannot be read as YAML"),
        ("run pd_sweep -f {tmp}/binary.yaml", "binary.yaml cannot be read as YAML"),
        ("run pd_sweep -f {tmp}/numbers.yaml", "pd_sweep has no parameter '1'"),
        ("run pd_sweep -f {tmp}/wrong.yaml", "rounds must be an integer, got [3]"),
        ("report {tmp}/none.ipynb", "none.ipynb does not exist. Give an executed notebook"),
        ("report {tmp}/list.yaml", "cannot be read as a notebook"),
        ("report {tmp}", "holds none of run.ipynb, run.failed.ipynb, result.json. Give an"),
        ("report a.ipynb --image-base https://a", "--image-base=https://a does not apply to"),
        ("index --output-dir {tmp}/nowhere", "nowhere is not a folder: run a notebook first"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_starts(
    arguments, sentence, executed, tmp_path, capsys
):
    (tmp_path / "list.yaml").write_text("- rounds\n- 3\n")
    (tmp_path / "broken.yaml").write_text("rounds: [3\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "numbers.yaml").write_text("1: 2\n")
    (tmp_path / "wrong.yaml").write_text("rounds: [3]\n")
    assert cli.main(arguments.format(tmp=tmp_path).split()) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert executed == []


def target(outcome, text="pd tpot within 20%"):
    return {
        "target": text, "outcome": outcome, "value": 3.0, "low": 1.0, "high": 5.0,
        "arm": "1p1d nixl", "pass": "cold", "baseline_arm": "2a", "baseline_pass": "cold",
        "comparisons": 1, "why": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [(["met", "met"], 0), (["met", "undecided"], 4), (["undecided", "not met"], 3)],
)
def test_targets_are_an_exit_status_on_demand(outcomes, status, executed, tmp_path, capsys):
    executed.facts = {"targets": [target(outcome) for outcome in outcomes]}
    words = ["run", "pd_sweep", "-q", "-p", "engine", "simulated", "-p", "output_dir"]
    words += [str(tmp_path), "-p", "targets", "pd tpot within 20%"]
    assert cli.main(words) == 0
    assert cli.main([*words, "--check-targets"]) == status  # of the result that is reused
    shown = capsys.readouterr().out
    for outcome in outcomes:
        line = f"{outcome}  pd tpot within 20%: 3.00 % [1.00, 5.00] (1p1d nixl, cold vs 2a)"
        assert line in shown


def test_an_exit_status_of_targets_needs_targets(executed, capsys):
    assert cli.main(["run", "pd_sweep", "--check-targets"]) == 2
    assert "--check-targets needs targets" in capsys.readouterr().err
    assert executed == []


def test_an_argument_that_vllm_does_not_know_is_refused_before_the_notebook_starts(
    executed, monkeypatch, capsys
):
    def ask(*_):
        return {"error": "unrecognized arguments: --sede", "wrong": "--sede", "options": ["--seed"]}

    monkeypatch.setattr(Interpreter, "ask", ask)
    monkeypatch.setattr(
        EngineSettings,
        "interpreter",
        Interpreter(path="p", python="3.12", versions={"vllm": "0.32.0"}),
    )
    assert cli.main(["run", "pd_sweep", "-p", "engine_args", "--sede 3"]) == 2
    assert "did you mean '--seed'?" in capsys.readouterr().err
    assert executed == []


@pytest.mark.parametrize("arguments", ["", "sweep", "run", "run pd_sweep -p topology", "report"])
def test_half_a_command_is_told_how_to_write_it(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments.split())
    assert left.value.code == 2
    assert "usage: workbench" in capsys.readouterr().err


def test_as_typed_in_a_shell_bad_input_exits_2_within_seconds():
    words = [sys.executable, "-m", "workbench.cli", "run", "pd_sweep", "-p", "topology", "p4d"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("topology must be like 1p4d (1 prefill, 4 decode instances)")


def run(tmp_path, *arguments):
    return cli.main(["run", "pd_sweep", "-p", "output_dir", str(tmp_path), *arguments])


def test_a_reader_that_stops_reading_gets_no_traceback():
    line = f"{sys.executable} -m workbench.cli claims show VLLM-APC | head -c 1 > /dev/null"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_run_is_papermill_into_the_runs_folder_and_then_the_page(executed, tmp_path, capsys):
    assert run(tmp_path, "-p", "topology", "1p1d", "-p", "rounds", "5") == 0
    ((source, parameters),) = executed
    assert source.name == "pd_sweep.ipynb"
    # Only what differs, typed: the notebook's own defaults hold for the rest.
    assert parameters == {"topology": "1p1d", "rounds": 5, "output_dir": str(tmp_path)}
    home = tmp_path / "pd_sweep" / run_id(PdSweep(topology="1p1d", rounds=5))
    written = sorted(path.name for path in home.iterdir())
    assert written == ["report.html", "result.json", "run.ipynb"]
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"pd_sweep {home.name}: starting the notebook"
    assert rest == [
        "A warm KV store cuts TTFT",
        "  18.0x [16.0, 20.3]  TTFT cold / store-warm, 1p1d",
        "Tiny model on a CPU",
        "1 of 2 gates passed, 1 failed",
        "  FAIL Client did not keep up: others took 60 % of the CPU",
        "next: end other programs",
        f"page: {home / 'report.html'}",
    ]
    assert "PD sweep" in (home / "report.html").read_text()


def test_for_scripts_standard_output_is_one_line_of_json(executed, tmp_path, capsys):
    assert run(tmp_path, "-p", "topology", "1p1d", "--json") == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)  # and nothing else
    home = tmp_path / "pd_sweep" / run_id(PdSweep(topology="1p1d"))
    assert summary["headline"] == "A warm KV store cuts TTFT"
    assert (summary["exit_status"], summary["problem"], summary["reused"]) == (0, "", False)
    assert summary["numbers"][0]["low"] == 16.0
    assert summary["numbers"][0]["spoilt"] == ""
    assert summary["gates_passed"] == 1
    assert [gate["name"] for gate in summary["gates_not_passed"]] == ["client kept up"]
    assert json.loads(Path(summary["result"]).read_text())["status"] == "success"
    assert summary["page"] == str(home / "report.html")
    assert "starting the notebook" in shown.err
    executed.outcome = FAILED
    assert run(tmp_path, "-p", "topology", "1p1d", "--json", "--force") == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["problem"].startswith("LaunchError: store did not start")
    assert (summary["exit_status"], summary["gates_passed"]) == (1, 0)


def test_quiet_prints_the_result_and_no_progress(executed, tmp_path, capsys):
    assert run(tmp_path, "--quiet") == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "A warm KV store cuts TTFT"
    assert last.startswith("page: ")


@pytest.mark.parametrize("no_color", [False, True])
def test_colours_are_for_terminals_that_want_them(no_color, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    say(click.style("FAIL", fg="red"))
    assert terminal.getvalue() == ("FAIL\n" if no_color else "\x1b[31mFAIL\x1b[0m\n")
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    say(click.style("FAIL", fg="red"))
    assert file.getvalue() == "FAIL\n"


def test_the_help_says_what_it_is_for_how_to_use_it_and_the_exit_status(capsys):
    for arguments in (["--help"], ["run", "--help"], ["run-all", "--help"], ["up", "--help"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        assert "exit status" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "parameters"),
    [
        ("topology: 1p1d\nrounds: 5\nfork: false\n", {"topology": "1p1d", "fork": False}),
        ("# nothing yet\n", {}),
    ],
)
def test_what_is_typed_wins_over_the_file(written, parameters, executed, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(written)
    assert run(tmp_path, "-f", str(file), "-p", "rounds", "7") == 0
    assert executed[0][1] == parameters | {"rounds": 7, "output_dir": str(tmp_path)}


def test_a_run_that_succeeded_is_not_run_again_unless_forced(executed, tmp_path, capsys):
    run(tmp_path)
    home = tmp_path / "pd_sweep" / run_id(PdSweep())
    capsys.readouterr()
    assert run(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "reusing the result of an earlier run; --force measures again" in shown
    assert "FAIL Client did not keep up" in shown
    assert str(home / "report.html") in shown
    assert len(executed) == 1
    assert run(tmp_path, "--force") == 0
    assert len(executed) == 2


def test_a_machine_is_looked_at_anew_each_time(executed, tmp_path):
    for _ in range(2):
        assert cli.main(["run", "environment_check", "-p", "output_dir", str(tmp_path)]) == 0
    assert len(executed) == 2


def test_a_machine_that_is_not_ready_is_told_by_the_exit_status_and_a_sentence(
    executed, tmp_path, capsys
):
    executed.facts = {"ready": False, "finding": "Not ready: vllm not installed"}
    assert cli.main(["run", "environment_check", "-p", "output_dir", str(tmp_path)]) == 1
    assert "Not ready: vllm not installed" in capsys.readouterr().out
    assert (tmp_path / "environment_check" / "here" / "report.html").exists()


NO_ROOM = "store did not start: no room\n  log: /x/store.log"
FAILED = papermill.PapermillExecutionError(6, 3, "await wb.run(plan)", "LaunchError", NO_ROOM, [])


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (FAILED, f"LaunchError: {NO_ROOM}"),
        (DeadKernelError("Kernel died"), "the notebook's kernel was killed"),
        (
            KeyboardInterrupt(),
            "stopped\nnext: run it again, launches that ended are kept",
        ),
    ],
)
def test_a_run_that_failed_keeps_its_own_page_beside_the_good_one(
    outcome, sentence, executed, tmp_path, capsys
):
    run(tmp_path)
    home = tmp_path / "pd_sweep" / run_id(PdSweep())
    good = (home / "report.html").read_bytes(), (home / "run.ipynb").read_bytes()
    capsys.readouterr()
    executed.outcome = outcome
    assert run(tmp_path, "--force") == 1
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "pd_sweep failed: " in shown.err
    assert f": workbench run pd_sweep -p output_dir {tmp_path}" in shown.err
    assert shown.err.endswith(f"page: {home / 'report.failed.html'}\n")
    assert good == ((home / "report.html").read_bytes(), (home / "run.ipynb").read_bytes())
    assert (home / "run.failed.ipynb").exists()
    executed.outcome = None
    assert run(tmp_path, "--force") == 0
    assert not [path for path in home.iterdir() if ".failed." in path.name]


@pytest.mark.parametrize(("began", "status"), [(False, 2), (True, 1)])
def test_a_plan_that_is_refused_before_the_measurement_is_bad_input(
    began, status, executed, monkeypatch, tmp_path
):
    executed.outcome = papermill.PapermillExecutionError(0, 5, "", "PlanError", "too small", [])
    copy = shutil.copy

    def copied(source, target):
        copy(source, target)
        notebook = json.loads(Path(target).read_text())
        (cell,) = [cell for cell in notebook["cells"] if cell["id"] == "run"]
        cell["execution_count"] = 4 if began else None
        Path(target).write_text(json.dumps(notebook))

    monkeypatch.setattr(shutil, "copy", copied)
    assert run(tmp_path) == status


def test_what_a_killed_process_left_is_removed_by_the_next_run(executed, tmp_path):
    home = tmp_path / "pd_sweep" / run_id(PdSweep())
    home.mkdir(parents=True)
    left, of_a_living = home / ".run-999999999.ipynb", home / ".run-1.ipynb"
    left.touch(), of_a_living.touch()
    assert run(tmp_path) == 0
    assert not left.exists() and of_a_living.exists()


def test_a_run_that_is_stopped_before_its_first_cell_leaves_no_page(monkeypatch, tmp_path, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", stop)
    assert run(tmp_path) == 1
    assert "pd_sweep failed: KeyboardInterrupt: stopped" in capsys.readouterr().err
    assert list((tmp_path / "pd_sweep" / run_id(PdSweep())).iterdir()) == []


def test_a_report_lies_beside_its_notebook(tmp_path, capsys):
    notebook = tmp_path / "out.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# My sweep")]), notebook
    )
    assert cli.main(["report", str(notebook)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.html")
    assert "My sweep" in (tmp_path / "out.html").read_text()


def test_an_index_lists_a_folder_of_runs(tmp_path, capsys):
    assert cli.main(["index", "--output-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")
    assert (tmp_path / "index.html").is_file()


def test_a_value_may_begin_with_a_dash(executed, tmp_path):
    """One word after `-p NAME`, which argparse would take for an option."""
    assert run(tmp_path, "-p", "engine_args", "--enable-chunked-prefill", "-p", "rounds", "5") == 0
    (_, parameters), *_ = executed
    assert parameters["engine_args"] == "--enable-chunked-prefill"
    assert parameters["rounds"] == 5


def test_the_dashboard_and_the_rules_are_printed_as_files(capsys):
    assert cli.main(["monitoring", "dashboard", "--connector", "nixl"]) == 0
    titles = {panel["title"] for panel in json.loads(capsys.readouterr().out)["panels"]}
    assert "nixl: KV moved" in titles and "lmcache: lookups" not in titles
    assert cli.main(["monitoring", "rules"]) == 0
    assert capsys.readouterr().out.startswith("groups:\n- name: workbench\n")
    assert cli.main(["monitoring", "prometheus", "--output-dir", "/data"]) == 0
    assert "/data/prometheus/*.json" in capsys.readouterr().out


def test_a_prediction_from_a_profile(tmp_path, capsys):
    file = str(known_profile().write(tmp_path))
    load = ("-p", "topology", "2p6d", "-p", "rate_per_s", "3", "-p", "prompt_tokens", "4000")
    assert cli.main(["predict", file, *load, "-p", "ttft_limit_ms", "500"]) == 0
    out = capsys.readouterr().out
    assert "2p6d: at most" in out and "within limits" in out and "not checked here" in out
    assert cli.main(["predict", file, "-p", "kv_cache_mib", "64"]) == 2
    assert "kv_cache_mib must be the profile's 256" in capsys.readouterr().err


COMPARE, GATE = ("compare", "a", "b"), ("gate", "a", "--against", "b", "--allow", "5%")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*COMPARE, "--page", "x.txt"), "--page must be a file that ends in .html, got 'x.txt'"),
        ((*COMPARE, "--figure", "x.png"), "--figure must be a file that ends in .svg, got 'x.png'"),
        ((*COMPARE, "--page", "none/x.html"), "--page must be a file in an existing folder"),
        ((*COMPARE, "--page", "made.html"), "--page must be a file, got 'made.html'"),
        ((*GATE, "--junit", "x.html"), "--junit must be a file that ends in .xml, got 'x.html'"),
        ((*GATE, "--summary", "none/x"), "--summary must be a file in an existing folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_first(words, says, tmp_path, monkeypatch, capsys):
    """No result is read before: neither `a` nor `b` exists."""
    monkeypatch.chdir(tmp_path)
    Path("made.html").mkdir()
    assert cli.main(words) == (3 if words[0] == "gate" else 2)
    told = capsys.readouterr()
    assert says in told.err and "(example: --" in told.err and not told.out
    assert [file.name for file in tmp_path.iterdir()] == ["made.html"]
