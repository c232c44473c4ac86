"""A run that was interrupted goes on with the launches that are missing."""

import errno
import json
import os
import random
import select
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

import pandas as pd
import pytest

import workbench as wb
from tests.wording import plain
from workbench.errors import DeploymentError, LaunchError, WorkbenchError
from workbench.experiment.result.facts import SessionFacts
from workbench.experiment.result.result import load_result
from workbench.experiment.result.run_folder import RunFolder, output_root
from workbench.experiment.run import run as running
from workbench.experiment.run.run import run
from workbench.experiment.run.run_facts import facts_of
from workbench.experiment.run.run_log import Log
from workbench.experiment.run.sessions import DRIFT, begin_session, compare
from workbench.params.notebooks import changed
from workbench.serve.attach import attach


@pytest.fixture
def planned(tmp_path):
    """The plan of a sweep: three arms of simulated instances in two rounds."""

    def make(**given):
        shared = {"engine": "simulated", "topology": "1a,2a,3a", "connector": "none", "rounds": 2}
        shared |= {"requests": 2, "prompt_tokens": 300, "output_tokens": 4}
        shared |= {"output_dir": str(tmp_path)}
        return wb.plan(wb.check_params("pd_sweep", shared | given))

    return make


@pytest.fixture
def one_server(vllm, monkeypatch):
    """Every launch is of one server in this process, which runs already."""

    @asynccontextmanager
    async def no_launcher(*_):
        yield None

    @asynccontextmanager
    async def found(*_):
        yield await attach(vllm.url, decode_urls=[vllm.url])

    monkeypatch.setattr(running, "_launcher", no_launcher)
    monkeypatch.setattr(running, "_deployment", found)


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
    planned, one_server, breaks_in, tmp_path
):
    whole = await run(planned(output_dir=str(tmp_path / "whole")), echo=lambda _: None)
    began = breaks_in(4, times=1)
    with pytest.raises(KeyboardInterrupt):
        await run(planned(), echo=lambda _: None)
    assert len(began) == 4

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


async def test_a_run_that_was_not_interrupted_has_no_sessions(planned, one_server):
    result = await run(planned(rounds=1), echo=lambda _: None)
    assert result.run.sessions == ()


async def test_another_machine_or_workload_or_a_lost_file_begins_anew(
    planned, one_server, breaks_in
):
    plan = planned(rounds=1)
    breaks_in(2)
    with pytest.raises(KeyboardInterrupt):
        await run(plan, echo=lambda _: None)
    home = output_root(plan.params.output_dir) / plan.notebook / plan.run_id
    (attempt,) = home.glob("attempt-*")
    known = known_of(plan)

    said = []

    def goes_on(plan=plan, **changed):
        session = begin_session(plan, replace(known, **changed), echo=said.append)
        session.folder.let_go()
        return session.folder.attempt == attempt and len(session.log.ended) == 1

    assert goes_on()
    freer = {name: 0.1 for name in known.machine if name.endswith("free_gb")}
    assert goes_on(machine={**known.machine, **freer})
    assert not goes_on(machine={**known.machine, "versions": {"vllm": "0.1"}})
    assert said.pop() == f"not resumed, since its machine (versions) differs: {attempt}"
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
    return facts_of(plan, log, "started", 0.0)


async def test_what_another_process_measures_now_is_left_to_it(planned, one_server, breaks_in):
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
    planned, one_server, monkeypatch
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
        return ""

    monkeypatch.setattr(running, "measure_arm", measure)
    with pytest.raises(KeyboardInterrupt):
        await run(planned(rounds=1), echo=lambda _: None)
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


@pytest.mark.parametrize("number", [1, 3])
async def test_a_launch_that_does_not_start_is_tried_once_more(
    planned, one_server, breaks_in, number
):
    """Also the very first one, when nothing was measured before."""
    began = breaks_in(number, LaunchError("decode-0 did not start; log: x"), times=1)
    result = await run(planned(rounds=1), echo=lambda _: None)
    assert len(began) == 4 and len(set(began)) == 3
    assert not any("skipped" in doubt for doubt in result.doubts)
    assert (result.run.launches.measured, result.run.launches.planned) == (3, 3)


@pytest.mark.parametrize("number", [1, 3])
async def test_one_that_fails_twice_is_left_out_with_its_reason(
    planned, one_server, breaks_in, number
):
    began = breaks_in(number, LaunchError("decode-0 did not start\nlog"), times=2)
    result = await run(planned(rounds=1), echo=lambda _: None)
    skipped, label = began[number - 1]
    assert f"{label}, round {skipped + 1}, was skipped: decode-0 did not start." in result.doubts
    assert len(began) == 4
    assert result.run.launches.measured == 2


async def test_an_arm_that_never_starts_is_left_out_and_the_others_have_a_result(
    planned, one_server, monkeypatch
):
    real, began = running.measure_arm, []

    async def measure(plan, arm, *rest):
        began.append(arm.label)
        if arm.label == "1a":  # the first of the first round
            raise LaunchError("aggregated-0 did not start: no GPU")
        return await real(plan, arm, *rest)

    monkeypatch.setattr(running, "measure_arm", measure)
    result = await run(planned(rounds=4), echo=lambda _: None)
    assert began.count("1a") == 4  # two launches, each twice; then it is no longer tried
    skipped = [doubt for doubt in result.doubts if doubt.startswith("1a, ")]
    assert skipped == [
        "1a, round 1, was skipped: aggregated-0 did not start: no GPU.",
        "1a, round 2, and later rounds were skipped: aggregated-0 did not start: no GPU.",
    ]
    assert set(result.requests["arm"]) == {"2a", "3a"}
    (gate,) = [gate for gate in result.run.gates if gate.name == "every pass ran"]
    assert (gate.outcome, gate.arms) == ("FAIL", ("1a",))


async def test_if_no_arm_starts_the_run_ends_after_its_first_round(
    planned, one_server, monkeypatch
):
    began = []

    async def measure(plan, arm, *_):
        began.append(arm.label)
        raise LaunchError(f"{arm.label} did not start")

    monkeypatch.setattr(running, "measure_arm", measure)
    with pytest.raises(LaunchError, match="1a did not start"):
        await run(planned(), echo=lambda _: None)
    assert began == ["1a", "1a", "2a", "2a", "3a", "3a"]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_launch_whose_server_dies_is_measured_once_more(
    planned, one_server, monkeypatch, times
):
    real, left = running.measure_arm, [times]

    async def measure(plan, arm, number, deployment, folder, log, *rest):
        await real(plan, arm, number, deployment, folder, log, *rest)
        if arm.label != "2a" or not left[0]:
            return ""
        left[0] -= 1
        log.reasons.append("2a, round 1: aggregated-0 ended by itself: it fell off")
        log.doubt(log.reasons[-1])
        return "aggregated-0 ended by itself: it fell off"

    monkeypatch.setattr(running, "measure_arm", measure)
    result = await run(planned(rounds=1), echo=lambda _: None)
    again = "2a, round 1, was measured again: aggregated-0 ended by itself: it fell off."
    assert again in result.doubts
    plain(again, most_words=25)
    assert ("2a, round 1: aggregated-0 ended by itself: it fell off" in result.doubts) == (
        times == 2
    )
    rows = result.requests
    assert not rows.duplicated(["arm", "round", "pass", "index"]).any()
    assert len(rows) == 3 * 2 * 2
    broken = pd.read_parquet(result.folder / "requests_broken_off.parquet")
    assert set(broken["arm"]) == {"2a"} and len(broken) == 4
    assert not set(broken["request_id"]) & set(rows["request_id"])


async def test_a_full_disk_ends_the_run_and_the_launches_before_are_kept(
    planned, one_server, monkeypatch
):
    real, full = RunFolder.write, []

    def write(folder, name, frame):
        if name == "requests" and len(frame) > 4 and not full:
            full.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, name, frame)

    monkeypatch.setattr(RunFolder, "write", write)
    with pytest.raises(DeploymentError, match=r"disk of .* is full .*: 1 finished launches"):
        await run(planned(), echo=lambda _: None)
    said = []
    result = await run(planned(), echo=said.append)
    assert said[1].startswith("resuming: 1 of 6 launches are kept")
    assert result.run.launches.measured == 6


@pytest.mark.parametrize(("factor", "doubted"), [(DRIFT * 1.01, True), (DRIFT * 0.99, False)])
async def test_a_machine_that_became_slower_is_a_doubt(planned, one_server, factor, doubted):
    result = await run(planned(rounds=1, topology="1a"), echo=lambda _: None)
    rows = result.requests
    log = Log(requests=[rows], sessions=[SessionFacts(number=2, started_at="")])
    again = Log(requests=[rows.assign(ttft_s=rows["ttft_s"] * factor)])
    compare(log, again, "1a, round 1")
    assert bool(log.doubts) == doubted
    for doubt in log.doubts:
        plain(doubt, most_words=25)
    assert log.sessions[0].drift["cold"] == pytest.approx(factor)


async def test_a_repeat_that_measured_nothing_is_a_doubt(
    planned, one_server, breaks_in, monkeypatch
):
    breaks_in(3, times=1)
    with pytest.raises(KeyboardInterrupt):
        await run(planned(rounds=1), echo=lambda _: None)
    real = running.measure_arm

    async def dies_in_the_repeat(plan, arm, number, deployment, folder, *rest):
        if folder.attempt.name.startswith("repeated-"):
            return "aggregated-0 ended by itself: it fell off"
        return await real(plan, arm, number, deployment, folder, *rest)

    monkeypatch.setattr(running, "measure_arm", dies_in_the_repeat)
    result = await run(planned(rounds=1), echo=lambda _: None)
    (doubt,) = [one for one in result.doubts if "to detect drift" in one]
    assert doubt.endswith("repeated to detect drift: aggregated-0 ended by itself: it fell off.")
    plain(doubt, most_words=25)
    assert not result.run.sessions[-1].repeated


class Forked:
    """Runs in processes that are forked from one that has loaded everything, and can be killed."""

    def __init__(self):
        self.parent = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, plan, kill_after_s):
        """Run a plan; True if it was killed, that many seconds after its first line."""
        print(json.dumps(changed(plan.params)), file=self.parent.stdin, flush=True)
        pid = int(self.parent.stdout.readline())
        ended, _, _ = select.select([self.parent.stdout], [], [], kill_after_s)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        status = int(self.parent.stdout.readline())
        assert status in (0, -signal.SIGKILL)
        return status != 0

    def close(self):
        self.parent.stdin.close()
        assert self.parent.wait(60) == 0


FORKS = """
import asyncio, json, os, sys, workbench as wb
import workbench.experiment.findings.findings, workbench.experiment.run.run
wb.plan(wb.check_params("pd_sweep", {"engine": "simulated"}))
for line in sys.stdin:
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        sys.stdin.close()
        plan = wb.plan(wb.check_params("pd_sweep", json.loads(line)))
        os.write(theirs, b"x")
        asyncio.run(wb.run(plan, echo=lambda _: None))
        os._exit(0)
    os.read(ours, 1)
    os.close(ours), os.close(theirs)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.servers
@pytest.mark.parametrize("most", [7, pytest.param(20, marks=pytest.mark.long)])
async def test_kills_at_random_moments_lose_and_repeat_no_launch(most, planned, tmp_path):
    """Real processes: a store, two instances and a proxy in one arm, one instance in the other."""
    split = {"topology": "1p1d,1a", "connector": "lmcache", "opponents": False}
    whole = await run(planned(**split, output_dir=str(tmp_path / "whole")), echo=lambda _: None)
    rng, kills, number, forked = random.Random(20), 0, 0, Forked()
    while kills < most:
        number += 1
        folder = tmp_path / f"killed-{number}"
        plan = planned(**split, output_dir=str(folder))
        while forked.run(plan, rng.uniform(0.1, 3) if kills < most else 300):
            kills += 1
        result = load_result(folder / plan.notebook / plan.run_id)
        launches = [name for one in result.run.sessions for name in one.launches]
        assert len(launches) == len(set(launches)) and len(launches) in (0, 4)
        assert counted(result).equals(counted(whole))
    forked.close()
