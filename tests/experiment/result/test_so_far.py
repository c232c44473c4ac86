"""The partial result of a run has the launches that its findings are of, and no others."""

import json

import pandas as pd
import pytest

from workbench.errors import ResultError
from workbench.experiment.result.result import load_result
from workbench.experiment.result.run_folder import RunFolder, output_root
from workbench.experiment.result.so_far import result_so_far
from workbench.experiment.run import run as running
from workbench.experiment.run.run import run


@pytest.fixture
async def killed(attached, vllm, monkeypatch):
    """The folder of a run that was killed in the second of its three rounds.

    Its findings are of the first round, its rows of more.
    """
    monkeypatch.setattr(running, "CONCLUDES_EVERY", 0)
    real, write = running.measure_arm, RunFolder.write_facts

    async def measure(plan, arm, number, *rest):
        await real(plan, arm, number, *rest)
        if number == 1:
            monkeypatch.setattr(RunFolder, "write_facts", lambda *_: None)
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(running, "measure_arm", measure)
    with pytest.raises(KeyboardInterrupt):
        await run(attached(rounds=3), echo=lambda _: None)
    monkeypatch.setattr(running, "measure_arm", real)
    monkeypatch.setattr(RunFolder, "write_facts", write)
    plan = attached(rounds=3)
    return output_root(plan.params.output_dir) / plan.notebook / plan.run_id


async def test_rows_findings_and_gates_are_of_the_launches_that_ended(killed):
    (attempt,) = killed.glob("attempt-*")
    assert set(pd.read_parquet(attempt / "requests.parquet")["round"]) == {0, 1}
    folder = result_so_far(killed)
    assert folder == attempt / "so-far" == result_so_far(attempt)
    result = load_result(folder)
    assert set(result.requests["round"]) == {0}
    launches = result.run.launches
    assert (launches.measured, launches.planned, launches.rounds) == (1, 3, 1)
    assert result.run.status == "started"
    gates = {gate.name: gate for gate in result.run.gates}
    assert gates["every pass ran"].outcome == "INCONCLUSIVE"
    assert "further passes will follow" in gates["every pass ran"].sentence
    assert {row.n_rounds for row in result.run.summary} == {1}


async def test_a_resumed_run_replaces_it_by_the_whole_result(killed, attached):
    result_so_far(killed)
    result = await run(attached(rounds=3), echo=lambda _: None)
    assert result.run.status == "success" and result.run.launches.measured == 3
    assert not list(killed.glob("**/so-far")) and not list(killed.glob("**/now.json"))
    with pytest.raises(ResultError, match="is a finished run, not a partial one"):
        result_so_far(killed)


def test_before_the_first_launch_there_is_nothing_to_show(tmp_path):
    attempt = tmp_path / "attempt-1"
    attempt.mkdir()
    facts = {"schema": 2, "notebook": "pd_sweep", "run_id": "a", "status": "started"}
    facts["launches"] = {"planned": 9, "measured": 0, "planned_rounds": 3, "rounds": 3}
    (attempt / "result.json").write_text(json.dumps(facts))
    with pytest.raises(ResultError, match="no findings from its 9 launches yet"):
        result_so_far(tmp_path)
