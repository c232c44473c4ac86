"""A run that was interrupted goes on with the launches that are missing."""

import json
import random
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest

import workbench as wb
from tests.wording import plain
from workbench.errors import LaunchError, WorkbenchError
from workbench.experiment.result.facts import SessionFacts
from workbench.experiment.result.result import load_result
from workbench.experiment.result.run_folder import RunFolder, output_root
from workbench.experiment.run import run as running
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Log
from workbench.experiment.run.sessions import DRIFT, begin_session, compare
from workbench.params.notebooks import changed


@pytest.fixture
def planned(tmp_path):
    """The plan of a sweep on simulated servers: 1p1d and its two opponents in two rounds."""

    def make(**given):
        shared = {"engine": "simulated", "topology": "1p1d", "rounds": 2, "requests": 2}
        shared |= {"prompt_tokens": 300, "output_tokens": 4, "output_dir": str(tmp_path)}
        return wb.plan(wb.check_params("pd_sweep", shared | given))

    return make


@pytest.fixture
def breaks_in(monkeypatch):
    """Launches raise an error from a given number on; returns those that began."""
    began = []

    def make(number, error=KeyboardInterrupt, times=99):
        real, left = running.measure_arm, [times]

        async def measure(plan, arm, round_number, deployment, folder, log, *rest):
            began.append((round_number, arm.label))
            breaks = len(began) >= number and left[0] > 0
            left[0] -= breaks
            if breaks and isinstance(error, LaunchError):  # before anything is measured
                raise error
            await real(plan, arm, round_number, deployment, folder, log, *rest)
            if breaks:
                raise error

        monkeypatch.setattr(running, "measure_arm", measure)
        return began

    return make


def counted(result):
    """What was sent and counted, without times and texts, in the order of launches."""
    rows = result.requests
    names = ["arm", "round", "pass", "index", "prompt_tokens", "cached_tokens", "output_tokens"]
    return rows[names].sort_values(names[:4]).reset_index(drop=True)


async def test_the_same_command_goes_on_with_the_launches_that_are_missing(
    planned, breaks_in, monkeypatch, tmp_path
):
    whole = await run(planned(output_dir=str(tmp_path / "whole")), echo=lambda _: None)
    began = breaks_in(4)
    with pytest.raises(KeyboardInterrupt):
        await run(planned(), echo=lambda _: None)
    assert len(began) == 4
    monkeypatch.undo()

    said = []
    result = await run(planned(), echo=said.append)
    assert said[1].startswith("resuming: 3 of 6 launches are kept (begun ")
    assert "first repeating " in said[2] and "round 1, to detect drift" in said[2]
    assert counted(result).equals(counted(whole))
    first, second = result.run.sessions
    assert [len(first.launches), len(second.launches)] == [3, 3]
    assert not set(first.launches) & set(second.launches)
    assert second.repeated == first.launches[0] and second.drift
    assert any("interrupted" in sentence for sentence in result.run.limits)
    outcomes = {gate.name: gate.outcome for gate in result.run.gates}
    assert outcomes["the ledger closes"] == outcomes["every pass ran"] == "PASS"
    assert load_result(result.folder).run.sessions == result.run.sessions


async def test_what_the_launcher_noted_is_kept_by_a_run_that_fails(planned, breaks_in, monkeypatch):
    real = running.launcher_for

    def noting(*args, **given):
        made = real(*args, **given)
        made.notes.append("Something was slow.")
        return made

    monkeypatch.setattr(running, "launcher_for", noting)
    breaks_in(1)
    plan = planned(rounds=1, opponents=False)
    with pytest.raises(KeyboardInterrupt):
        await run(plan, echo=lambda _: None)
    home = output_root(plan.params.output_dir) / plan.notebook / plan.run_id
    (attempt,) = home.glob("attempt-*")
    assert "Something was slow." in load_result(attempt).run.doubts


async def test_a_run_that_was_not_interrupted_has_no_sessions(planned):
    result = await run(planned(rounds=1, opponents=False), echo=lambda _: None)
    assert result.run.sessions == ()


async def test_another_machine_or_workload_or_a_lost_file_begins_anew(planned, breaks_in):
    plan = planned(rounds=1)
    breaks_in(2)
    with pytest.raises(KeyboardInterrupt):
        await run(plan, echo=lambda _: None)
    home = output_root(plan.params.output_dir) / plan.notebook / plan.run_id
    (attempt,) = home.glob("attempt-*")
    known = known_of(plan)

    def goes_on(plan=plan, **changed):
        session = begin_session(plan, replace(known, **changed), echo=lambda _: None)
        session.folder.let_go()
        return session.folder.attempt == attempt and len(session.log.ended) == 1

    assert goes_on()
    freer = {name: 0.1 for name in known.machine if name.endswith("free_gb")}
    assert goes_on(machine={**known.machine, **freer})
    assert not goes_on(machine={**known.machine, "versions": {"vllm": "0.1"}})
    assert not goes_on(engine=replace(known.engine, model="another"))
    assert not goes_on(workload=replace(known.workload, hash="another"))
    for name in ("requests.parquet", "launches.json"):
        whole = (attempt / name).read_bytes()
        (attempt / name).write_bytes(whole[: len(whole) // 2])
        assert not goes_on()
        (attempt / name).write_bytes(whole)
    assert goes_on()
    RunFolder.forget(plan.params.output_dir, plan.notebook, plan.run_id)
    assert not goes_on()


def known_of(plan):
    log = Log(sessions=[SessionFacts(number=1, started_at="")])
    return running._facts(plan, log, "started", 0.0)


async def test_what_another_process_measures_now_is_left_to_it(planned, breaks_in):
    plan = planned(rounds=1)
    breaks_in(2)
    with pytest.raises(KeyboardInterrupt):
        await run(plan, echo=lambda _: None)
    first, second = begin_session(plan, known_of(plan)), begin_session(plan, known_of(plan))
    assert first.folder.attempt != second.folder.attempt
    assert (len(first.log.ended), len(second.log.ended)) == (1, 0)
    first.folder.let_go()
    second.folder.let_go()


async def test_a_launch_with_a_failed_pass_is_measured_again_and_leaves_nothing(
    planned, breaks_in, monkeypatch
):
    """Of the first session only whole launches are kept: no doubt, no count of the other."""
    real, began = running.measure_arm, []

    async def measure(plan, arm, number, deployment, folder, log, *rest):
        began.append(arm.label)
        await real(plan, arm, number, deployment, folder, log, *rest)
        if len(began) == 2:
            log.reasons.append("it broke")
            log.doubt("a pass broke")
        if len(began) == 3:
            log.requests[-1]["error"] = "http_503"  # all requests of its last pass
        if len(began) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(running, "measure_arm", measure)
    with pytest.raises(KeyboardInterrupt):
        await run(planned(rounds=1), echo=lambda _: None)
    monkeypatch.undo()
    said = []
    result = await run(planned(rounds=1), echo=said.append)
    assert any(line.startswith("resuming: 1 of 3 launches") for line in said)
    assert "a pass broke" not in result.doubts
    rows = [(row.arm, row.round, row.pass_name, row.role) for row in result.run.token_sources]
    assert len(rows) == len(set(rows))


async def test_all_requests_failed_is_no_launch_to_keep(attached, vllm):
    vllm.fails = set(range(100))
    with pytest.raises(WorkbenchError):
        await run(attached(), echo=lambda _: None)
    vllm.fails = set()
    result = await run(attached(), echo=lambda _: None)
    assert result.run.status == "success"


async def test_a_start_that_failed_does_not_speak_for_the_next_one(planned, monkeypatch, tmp_path):
    folder = RunFolder.open(str(tmp_path), "pd_sweep", "x")
    logs = folder.new_logs("round-0", "2a")
    (logs / "disk").mkdir(parents=True)
    (logs / "a.log").write_text("EngineCore failed to start")
    again = folder.new_logs("round-0", "2a")
    assert again == logs and not again.exists()
    (aside,) = logs.parent.iterdir()
    assert [path.name for path in aside.iterdir()] == ["a.log"]
    folder.let_go()


async def test_a_launch_that_does_not_start_is_tried_once_more(planned, breaks_in):
    began = breaks_in(3, LaunchError("decode-0 did not start; log: x"), times=1)
    result = await run(planned(rounds=1), echo=lambda _: None)
    assert len(began) == 4 and len(set(began)) == 3
    assert not any("skipped" in doubt for doubt in result.doubts)


async def test_one_that_fails_twice_is_left_out_with_its_reason(planned, breaks_in):
    began = breaks_in(3, LaunchError("decode-0 did not start\nlog"), times=2)
    result = await run(planned(rounds=1), echo=lambda _: None)
    number, label = began[2]
    assert f"{label}, round {number + 1}, was skipped: decode-0 did not start." in result.doubts
    assert len(began) == 4


async def test_an_error_before_anything_was_measured_ends_the_run(planned, monkeypatch):
    async def measure(*_):
        raise LaunchError("prefill-0 did not start")

    monkeypatch.setattr(running, "measure_arm", measure)
    with pytest.raises(LaunchError):
        await run(planned(), echo=lambda _: None)


@pytest.mark.parametrize(("factor", "doubted"), [(DRIFT * 1.01, True), (DRIFT * 0.99, False)])
async def test_a_machine_that_became_slower_is_a_doubt(planned, factor, doubted):
    result = await run(planned(rounds=1, opponents=False), echo=lambda _: None)
    rows = result.requests
    log = Log(requests=[rows], sessions=[SessionFacts(number=2, started_at="")])
    again = Log(requests=[rows.assign(ttft_s=rows["ttft_s"] * factor)])
    compare(log, again, "1p1d, round 1")
    assert bool(log.doubts) == doubted
    for doubt in log.doubts:
        plain(doubt, most_words=25)
    assert log.sessions[0].drift["cold"] == pytest.approx(factor)


def until_it_ends(plan, rng, kills_left):
    """Run a plan in processes that are killed at random moments; how many kills it took."""
    given = json.dumps(changed(plan.params))
    kills = 0
    while True:
        child = subprocess.Popen([sys.executable, "-c", RUN, given], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # moments of the run, not of its imports: it prints a line first
        with suppress(subprocess.TimeoutExpired):
            child.wait(rng.uniform(0.2, 4) if kills < kills_left else 300)
        if child.returncode is None:
            child.kill()
            kills += 1
        child.communicate()
        if child.returncode >= 0:
            assert child.returncode == 0
            return kills


RUN = (
    "import asyncio, sys, json, workbench as wb\n"
    "plan = wb.plan(wb.check_params('pd_sweep', json.loads(sys.argv[1])))\n"
    "asyncio.run(wb.run(plan))"
)


@pytest.mark.servers
async def test_twenty_kills_at_random_moments_lose_and_repeat_no_launch(planned, tmp_path):
    whole = await run(planned(output_dir=str(tmp_path / "whole")), echo=lambda _: None)
    rng, kills, number = random.Random(20), 0, 0
    while kills < 20:
        number += 1
        folder = tmp_path / f"killed-{number}"
        plan = planned(output_dir=str(folder))
        kills += until_it_ends(plan, rng, 20 - kills)
        result = load_result(folder / plan.notebook / plan.run_id)
        launches = [name for one in result.run.sessions for name in one.launches]
        assert len(launches) == len(set(launches)) and len(launches) in (0, 6)
        assert counted(result).equals(counted(whole))
