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
from workbench.errors import LaunchError
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
    machine = running._machine(plan).as_dict() | running._platform(plan)

    def goes_on(plan=plan, machine=machine):
        folder, log = begin_session(plan, machine)
        folder.let_go()
        return folder.attempt == attempt and len(log.ended) == 1

    assert goes_on()
    assert goes_on(machine=machine | {"memory_free_gb": 0.1})
    assert not goes_on(machine=machine | {"versions": {"vllm": "0.1"}})
    other = planned(rounds=1, seed=1)
    assert not goes_on(plan=replace(plan, workload=other.workload))
    for name in ("requests.parquet", "launches.json"):
        whole = (attempt / name).read_bytes()
        (attempt / name).write_bytes(whole[: len(whole) // 2])
        assert not goes_on()
        (attempt / name).write_bytes(whole)
    assert goes_on()
    RunFolder.forget(plan.params.output_dir, plan.notebook, plan.run_id)
    assert not goes_on()


async def test_what_another_process_measures_now_is_left_to_it(planned, breaks_in):
    plan = planned(rounds=1)
    breaks_in(2)
    with pytest.raises(KeyboardInterrupt):
        await run(plan, echo=lambda _: None)
    machine = running._machine(plan).as_dict() | running._platform(plan)
    (first, kept), (second, new) = begin_session(plan, machine), begin_session(plan, machine)
    assert first.attempt != second.attempt
    assert (len(kept.ended), len(new.ended)) == (1, 0)
    first.let_go()
    second.let_go()


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


@pytest.mark.servers
async def test_twenty_kills_at_random_moments_lose_and_repeat_no_launch(planned, tmp_path):
    rng = random.Random(20)
    whole = await run(planned(output_dir=str(tmp_path / "whole")), echo=lambda _: None)
    plan = planned()
    code = (
        "import asyncio, sys, json, workbench as wb\n"
        "plan = wb.plan(wb.check_params('pd_sweep', json.loads(sys.argv[1])))\n"
        "asyncio.run(wb.run(plan))"
    )
    command = [sys.executable, "-c", code, json.dumps(changed(plan.params))]
    kills = 0
    for _ in range(200):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        # Moments of the run, not of its imports: it prints a line first.
        child.stdout.readline()
        with suppress(subprocess.TimeoutExpired):
            child.wait(rng.uniform(0.5, 6) if kills < 20 else 300)
        if child.returncode is None:
            child.kill()
            kills += 1
        child.communicate()
        if child.returncode == 0:
            break
    assert child.returncode == 0
    (home,) = (tmp_path / "pd_sweep").glob("*")
    result = load_result(home)
    launches = [name for one in result.run.sessions for name in one.launches]
    assert len(launches) == len(set(launches)) == 6
    assert counted(result).equals(counted(whole))
    assert kills >= 1
