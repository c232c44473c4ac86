"""The page of a run that is under way, from its first launches; the rows are of a recorded run."""

from bs4 import BeautifulSoup

from tests.golden.replay import FRAMES, RECORDINGS, load, recorded_plan
from workbench.cli import main
from workbench.experiment.result.facts import PassTime, SessionFacts
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.run_facts import facts_so_far


def test_a_run_of_which_one_launch_has_ended_has_a_page_that_says_so(tmp_path, capsys):
    plan = recorded_plan("pd_sweep", str(tmp_path))
    log = load(RECORDINGS / "pd_sweep")
    folder = RunFolder.open(str(tmp_path), plan.notebook, plan.run_id)
    for name in FRAMES:  # the run writes on: its rows are further than its findings
        folder.write(name, log.frame(name))
    first = plan.order(0)[0].label
    log.passes = [one for one in log.passes if (one.round, one.arm) == (0, first)]
    log.pass_times = [
        PassTime(arm=one.arm, round=one.round, pass_name=one.pass_name, from_s=0.0, to_s=1.0)
        for one in log.passes
    ]
    for name in FRAMES:
        rows = log.frame(name)
        setattr(log, name, [rows[(rows["round"] == 0) & (rows["arm"] == first)]])
    log.ended = [(0, first)]
    log.sessions = [SessionFacts(number=1, started_at="2026-01-01T12:00:00+00:00")]
    folder.write_facts(facts_so_far(plan, log, 20.0))

    assert main(["report", str(folder.home), "--partial"]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown == str(folder.attempt / "so-far" / "report.html")
    page = BeautifulSoup((folder.attempt / "so-far" / "report.html").read_text(), "html.parser")
    assert page.title.get_text().startswith("Partial: ")
    launches = len(plan.arms) * plan.rounds
    assert f"1 of {launches} launches" in page.select_one(".band.partial").get_text()
    assert page.select_one(".main-figure svg")
    assert "Traceback" not in page.get_text()
    assert "further passes will follow" in page.get_text()
    folder.let_go()
