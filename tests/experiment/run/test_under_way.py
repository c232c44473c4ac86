"""A run under way is found by its lock, says what it does, and leaves no entry if it is killed."""

import json
import signal
import subprocess
import sys
import time
from math import isnan
from types import SimpleNamespace

import pytest

from workbench.cli import main
from workbench.experiment.result.run_folder import SO_FAR, RunFolder
from workbench.experiment.run import under_way
from workbench.experiment.run.progress import Progress
from workbench.experiment.run.run_log import Log
from workbench.experiment.run.under_way import Now, NowFile, RunUnderWay, read_now, runs_under_way

HOLDS = (
    "import sys, time\n"
    "from workbench.experiment.result.run_folder import RunFolder\n"
    "print(RunFolder.open(sys.argv[1], 'pd_sweep', 'a-run').attempt, flush=True)\n"
    "time.sleep(60)"
)


def of(folder):
    """The runs under way below a folder; others may run on this machine."""
    return [run for run in runs_under_way() if run.attempt.is_relative_to(folder)]


def test_a_run_is_listed_while_its_process_lives(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        attempt = child.stdout.readline().strip()
        (run,) = of(tmp_path)
        assert (str(run.attempt), run.pid, run.name) == (attempt, child.pid, "pd_sweep a-run")
        assert run.now is None and run.page is None and isnan(run.left_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert of(tmp_path) == []


def test_locks_of_other_files_and_what_cannot_be_read_are_passed_over(tmp_path, monkeypatch):
    folder = RunFolder.open(str(tmp_path), "pd_sweep", "a-run")
    assert len(of(tmp_path)) == 1
    folder.let_go()
    assert of(tmp_path) == []  # the folder is there, and nothing holds it
    monkeypatch.setattr(under_way, "LOCKS", tmp_path / "none")  # no Linux
    assert runs_under_way() == []


def test_what_it_does_is_written_and_read_back(sweep, tmp_path):
    plan = sweep(topology="1a,2a", connector="none", engine="simulated", rounds=3)
    folder = RunFolder.open(str(tmp_path), "pd_sweep", "a-run")
    far = Progress([(0, "1a", "cold")], planned_s=90.0)
    log = Log(ended=[(0, "2a")])
    NowFile(folder, plan, log, far).say("measures", "1a", 1, "cold", responses=4, requests=24)
    now = read_now(folder.attempt)
    assert (now.doing, now.arm, now.round, now.rounds, now.pass_name) == (
        "measures", "1a", 2, 3, "cold"
    )  # fmt: skip
    assert (now.launches_done, now.launches, now.responses, now.requests) == (1, 6, 4, 24)
    assert 80 < now.left_s <= 90
    NowFile(folder, plan, log).say("stops servers", "1a", 1)
    assert isnan(read_now(folder.attempt).left_s)
    (folder.attempt / "now.json").write_text("{")
    assert read_now(folder.attempt) is None
    folder.let_go()


@pytest.mark.parametrize(
    ("left_s", "age_s", "done", "shown"),
    [(100.0, 40.0, 2, 60.0), (100.0, 140.0, 2, 0.0), (100.0, 140.0, 0, None), (None, 1.0, 2, None)],
)
def test_time_left_counts_down(tmp_path, left_s, age_s, done, shown):
    expected_s = float("nan") if left_s is None else left_s
    now = Now(doing="measures", left_s=expected_s, launches_done=done, at_s=time.time() - age_s)
    found = RunUnderWay(attempt=tmp_path, pid=1, now=now).left_s
    assert isnan(found) if shown is None else found == pytest.approx(shown, abs=1)


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    one, other = (tmp_path / "outputs" / "pd_sweep" / name / "attempt-1" for name in ("a", "bb"))
    (one / SO_FAR).mkdir(parents=True)
    (one / SO_FAR / "report.html").write_text("x")
    now = Now(
        doing="measures", arm="1p4d lmcache", round=2, rounds=3, pass_name="store-warm",
        responses=7, requests=24, launches_done=4, launches=9, left_s=3723.4, at_s=1000.0,
    )  # fmt: skip
    runs = [RunUnderWay(attempt=one, pid=7, now=now), RunUnderWay(attempt=other, pid=8, now=None)]
    monkeypatch.setattr(under_way, "runs_under_way", lambda: runs)
    monkeypatch.setattr(under_way, "time", SimpleNamespace(time=lambda: 1000.0))
    monkeypatch.chdir(tmp_path)
    return runs


def test_the_command_shows_a_table(two_runs, capsys):
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run          launches  left     now",
        "pd_sweep a   4 of 9    1:02:03  measures 1p4d lmcache, round 2 of 3, store-warm:"
        " 7 of 24 requests",
        "  page so far, 0 minutes old: outputs/pd_sweep/a/attempt-1/so-far/report.html",
        "pd_sweep bb            unknown  starts",
        "  no page yet: workbench report outputs/pd_sweep/bb --partial",
    ]


def test_as_json_it_has_all_of_it(two_runs, capsys):
    assert main(["status", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["runs"]
    assert (first["notebook"], first["run_id"], first["process"]) == ("pd_sweep", "a", 7)
    assert first["now"]["pass"] == "store-warm" and first["now"]["responses"] == 7
    assert first["page"].endswith("so-far/report.html") and first["left_s"] > 3700
    assert (second["now"], second["left_s"], second["page"]) == (None, None, "")


def test_without_runs_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(under_way, "runs_under_way", list)
    main(["status"])
    assert capsys.readouterr().out == "No run is under way.\n"
