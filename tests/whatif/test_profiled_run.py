"""A run with predictions, whose launches are those of a simulation with known costs."""

from dataclasses import replace

import pytest

from tests.whatif.known import known_profile, known_run
from workbench.errors import PlanError
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import load_result
from workbench.exports.sheets import tables_of
from workbench.params.notebooks import check_params
from workbench.whatif.profiled_run import forget_profile, profile_plan, run_and_predict

GIVEN = {
    "engine": "simulated", "connector": "nixl", "workload": "short", "prompt_tokens": 4_000,
    "requests": 24, "arrivals": "poisson", "rate_per_s": 9,
    "topology": "2p2d,1p1d,2p4d", "predict": True, "measure": "2p2d",
}  # fmt: skip


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The names of the notebooks that were run."""
    ran = []

    async def run(made, **_):
        ran.append(made.notebook)
        folder = tmp_path / made.notebook / made.run_id
        folder.mkdir(parents=True, exist_ok=True)
        result = known_run("1p1d" if made.notebook == "profile" else "2p2d", folder=folder)
        facts = replace(
            result.run, notebook=made.notebook, run_id=made.run_id, parameters=made.parameters
        )
        return replace(result, run=facts)

    monkeypatch.setattr("workbench.experiment.run.run.run", run)
    monkeypatch.setattr("workbench.whatif.prediction.RESAMPLES", 2)
    monkeypatch.setattr("workbench.whatif.profiled_run.profile_of", lambda _: known_profile())
    return ran


async def predicted(tmp_path, **given):
    made = plan(check_params("pd_sweep", GIVEN | {"output_dir": str(tmp_path)} | given))
    return await run_and_predict(made)


async def test_errors_of_held_out_topologies_come_first(measured, tmp_path):
    result = await predicted(tmp_path)
    assert measured == ["profile", "pd_sweep"]
    lines = "\n".join(result.prediction_lines())
    assert lines.startswith("## Predictions\nSome topologies were held out: measured, but not")
    for table in (result.held_out_table(), result.prediction_table()):
        assert "Brackets: 91 % prediction interval" in table.attrs["caption"]
    assert result.run.profile.startswith("Profile of 1p1d and 1a: run ")
    (held,) = result.held_out_table().to_dict("records")
    assert held["arm"] == "2p2d" and held["TTFT, ms"].startswith(("+", "-"))
    assert "predicted" in held["TPOT, ms"]
    checks = dict(result.prediction_table()[["topology", "check"]].itertuples(index=False))
    # The measured times are those of a closed loop, so they contradict the predicted open loop.
    assert checks["2p2d"] == "refuted here" and checks["2p4d"] == "not checked here"
    shown = result.prediction_table().set_index("topology")
    assert ", refuted here: -" in shown.loc["2p2d", "TTFT, ms"]
    assert "here" not in shown.loc["2p4d", "TTFT, ms"]
    assert checks["1p1d"].startswith("near saturation: not predicted (prefill queue at ")
    assert load_result(result.folder).run == result.run
    assert (result.folder / "profile.json").exists()


async def test_fits_and_predictions_are_tables_and_a_figure(measured, tmp_path):
    result = await predicted(tmp_path)
    tables = tables_of(load_result(result.folder))
    assert {"fits", "held_out", "predictions"} <= tables.keys()
    assert len(tables["fits"]) == 30  # a row for each measured time of the three parts
    assert set(tables["predictions"]["topology"]) == {"2p2d", "1p1d", "2p4d"}
    shown = result.fit_table().set_index("part")
    assert shown.loc["prefill", "valid for"] == "1,000 to 8,000 tokens"
    assert shown.loc["transfer", "valid for"] == "1.00 to 10.0 MB, 0 other transfers"
    assert shown.loc["prefill", "fit"] == (
        "10.0 ms per step + 20.0 ms per 1,000 tokens + 1.00 ms per million pairs of tokens"
    )


async def test_a_finished_profile_is_used_until_it_is_forgotten(measured, tmp_path):
    one = {"topology": "2p2d"}
    await predicted(tmp_path, **one)
    result = await predicted(tmp_path, seed=1, rounds=5, **one)  # the seed is the profile's, too
    assert measured == ["profile", "pd_sweep"] * 2
    await predicted(tmp_path, seed=1, ttft_limit_ms=900, **one)
    assert measured[4:] == ["pd_sweep"]
    forget_profile(check_params("pd_sweep", result.run.parameters))
    await predicted(tmp_path, seed=1, **one)
    assert measured[5:] == ["profile", "pd_sweep"]


async def test_without_a_profile_the_measurement_stays(measured, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("workbench.whatif.profiles.measured_profile.LARGEST_RESIDUAL", -1.0)
    ran = {"profile": known_run(), "pd_sweep": known_run("2p2d", folder=tmp_path)}

    async def run(made, **_):
        return ran[made.notebook]

    monkeypatch.setattr("workbench.experiment.run.run.run", run)
    result = await predicted(tmp_path)
    assert result.run.profile.startswith("No predictions: known-run gives no profile: its prefill")
    assert result.prediction_table().empty and len(result.requests) == 72
    assert result.prediction_lines() == ["## Predictions", result.run.profile]


async def test_without_predict_nothing_changes(measured, tmp_path):
    result = await predicted(tmp_path, predict=False, measure="")
    assert measured == ["pd_sweep"]
    assert result.run.profile == "" and result.prediction_lines() == []
    assert result.held_out_table().empty and result.fit_table().empty


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"connector": "mooncake"}, "connector must be one that moves KV after prefill has ended"),
        ({"workload": "multi_turn_conversation"}, "workload must be one whose requests do not"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_the_start(tmp_path, given, says):
    own = {"requests": 0, "rate_per_s": 0, "arrivals": "auto", "output_dir": str(tmp_path)}
    made = plan(check_params("pd_sweep", GIVEN | own | given))
    with pytest.raises(PlanError, match=says):
        profile_plan(made)
