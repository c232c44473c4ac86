"""A run that was interrupted goes on with the launches that are missing."""

import json
from dataclasses import replace

import pytest

import workbench as wb
from workbench.errors import LaunchError
from workbench.experiment.result.result import load_result
from workbench.experiment.run import run as running
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Log
from workbench.experiment.run.sessions import DRIFT, compare


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
    assert said[1].startswith("going on: 3 of 6 launches are kept from ")
    assert "round 1, is repeated first" in said[2]
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


@pytest.mark.parametrize("changed", ["versions", "workload"])
async def test_another_machine_or_workload_begins_anew(planned, breaks_in, monkeypatch, changed):
    breaks_in(3)
    with pytest.raises(KeyboardInterrupt):
        await run(planned(), echo=lambda _: None)
    monkeypatch.undo()
    (attempt,) = planned_home(planned).glob("attempt-*")
    facts = json.loads((attempt / "result.json").read_text())
    if changed == "versions":
        facts["machine"]["versions"]["vllm"] = "0.1"
    else:
        facts["workload"]["hash"] = "another"
    (attempt / "result.json").write_text(json.dumps(facts))
    said = []
    await run(planned(), echo=said.append)
    assert not any("going on" in line for line in said)


def planned_home(planned):
    plan = planned()
    from workbench.experiment.result.run_folder import output_root

    return output_root(plan.params.output_dir) / plan.notebook / plan.run_id


async def test_a_launch_that_does_not_start_is_tried_once_more(planned, breaks_in):
    began = breaks_in(3, LaunchError("decode-0 did not start; log: x"), times=1)
    result = await run(planned(), echo=lambda _: None)
    assert len(began) == 7 and len(set(began)) == 6
    assert not any("skipped" in doubt for doubt in result.doubts)


async def test_one_that_fails_twice_is_left_out_with_its_reason(planned, breaks_in):
    began = breaks_in(3, LaunchError("decode-0 did not start\nlog"), times=2)
    result = await run(planned(), echo=lambda _: None)
    number, label = began[2]
    assert f"{label}, round {number + 1}, was skipped: decode-0 did not start." in result.doubts
    assert len(began) == 7


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
    log = Log(requests=[rows], sessions=[replace_session()])
    again = Log(requests=[rows.assign(ttft_s=rows["ttft_s"] * factor)])
    compare(log, again, "1p1d, round 1")
    assert bool(log.doubts) == doubted
    assert log.sessions[0].drift["cold"] == pytest.approx(factor)


def replace_session():
    from workbench.experiment.result.facts import SessionFacts

    return replace(SessionFacts(number=2, started_at=""), repeated="")
