from dataclasses import replace
from math import inf

import numpy as np
import pandas as pd
import pytest

from tests.whatif.known import COSTS, FRONT_S, known_run
from workbench.errors import ResultError
from workbench.experiment.run.run import run
from workbench.metrics.gates.gate import Gate
from workbench.params.notebooks import check_params
from workbench.report.page import write_page
from workbench.serve.simulated.instance import SPEED, STEP_S, TOKEN_S
from workbench.whatif.held_out import held_out
from workbench.whatif.profile_plan import profile_plan
from workbench.whatif.profiled_run import with_fits
from workbench.whatif.profiles import measured_profile
from workbench.whatif.profiles.measured_profile import profile_of


@pytest.fixture(scope="module")
def measured():
    return known_run()


def test_a_profile_finds_the_costs_of_the_run(measured):
    found = profile_of(measured)
    costs = found.costs()
    for tokens in (1_000, 4_000, 8_000):
        assert costs.prefill_s(tokens) == pytest.approx(COSTS.prefill_s(tokens), rel=0.01)
        assert costs.transfer_of(tokens) == pytest.approx(COSTS.transfer_of(tokens), rel=0.2)
    for batch in (1, 4, 8):
        true_s = COSTS.decode_s(batch, batch * 4_000)
        assert costs.decode_s(batch, batch * 4_000) == pytest.approx(true_s, rel=0.05)
    assert found.overheads_s[0][1] == pytest.approx(FRONT_S, abs=1e-6)
    assert found.kv_tokens["decode"] == 268_435_456 // 768
    assert found.prefill.ranges == {"tokens": (1_000.0, 8_000.0)}
    assert found.transfer.residual < 0.3


def test_the_1a_of_the_run_checks_the_profile(measured):
    """Its steps mix prompts and decoding, as no step of 1p1d does."""
    alone = known_run("1a").requests

    def errors(rows):
        both = pd.concat([measured.requests, rows])
        return profile_of(replace(measured, frames=measured.frames | {"requests": both})).aggregated

    found = errors(alone)
    assert set(found) == {"cold, 1", "cold, 4"}
    assert np.abs(list(found.values())).max() < 0.05
    slower = errors(alone.assign(ttft_s=2 * alone["ttft_s"]))
    assert slower["cold, 4"][0] == pytest.approx(-0.5, abs=0.03)
    assert profile_of(measured).aggregated == {}


def test_the_engines_log_says_the_kv_space(measured, tmp_path):
    logs = tmp_path / "logs" / "round-0" / "1p1d-nixl"
    logs.mkdir(parents=True)
    (logs / "decode-0.log").write_text(
        "INFO Chunked prefill is enabled with max_num_batched_tokens=4096.\n"
        "INFO GPU KV cache size: 123,456 tokens\n"
    )
    found = profile_of(replace(measured, folder=tmp_path))
    assert found.kv_tokens["decode"] == 123_456 and found.step_tokens == 4_096
    assert found.kv_tokens["prefill"] == 268_435_456 // 768


def test_a_run_that_is_too_small_gives_no_profile(measured):
    rows = measured.requests
    one = rows[rows["prompt_tokens"].isin([1_000, 8_000])]
    with pytest.raises(ResultError, match="at least 3 prompt lengths, got 2"):
        profile_of(replace(measured, frames=measured.frames | {"requests": one}))
    alone = rows[rows["pass"] == "cold, 1"]
    with pytest.raises(ResultError, match="at least 3 decode batches, got 1"):
        profile_of(replace(measured, frames=measured.frames | {"requests": alone}))
    untimed = rows.assign(engine_metrics="")
    with pytest.raises(ResultError, match="cannot give a profile: the decode instance sent no"):
        profile_of(replace(measured, frames=measured.frames | {"requests": untimed}))


def test_a_profile_of_a_run_that_is_not_valid_is_refused(measured):
    def gated(name):
        gate = Gate(name=name, outcome="FAIL", sentence="")
        return replace(measured, run=replace(measured.run, gates=(gate,)))

    with pytest.raises(ResultError, match="gives no profile: its times are not valid: KV transf"):
        profile_of(gated("no failed transfers"))
    rough = profile_of(gated("client kept up"))
    assert rough.doubts[0].startswith("The profile's run is rough: ")


def test_a_transfer_far_from_its_fit_gives_no_profile(measured, monkeypatch):
    monkeypatch.setattr(measured_profile, "LARGEST_TRANSFER_RESIDUAL", -1.0)
    with pytest.raises(ResultError, match="its transfer times differ from the fit by"):
        profile_of(measured)


@pytest.mark.servers
async def test_a_profile_of_running_servers(tmp_path, monkeypatch):
    """What a busy machine cannot change: sizes, ranges, and times that are never too short."""
    params = check_params("pd_sweep", {
        "engine": "simulated", "connector": "nixl", "workload": "short", "prompt_tokens": 4_000,
        "requests": 6, "output_tokens": 24, "output_dir": str(tmp_path),
    })  # fmt: skip
    monkeypatch.setattr(measured_profile, "LARGEST_RESIDUAL", inf)
    monkeypatch.setattr(measured_profile, "LARGEST_TRANSFER_RESIDUAL", inf)
    result = await run(profile_plan(params), echo=lambda _: None)
    found = profile_of(result)
    assert found.kv_tokens["prefill"] == found.kv_tokens["aggregated"] == 2**28 // 768
    assert found.prefill.ranges["tokens"] == (1_000.0, 4_000.0)
    assert found.decode.ranges["batch"][1] > 3
    # The seeded times of single steps differ by 3 %.
    assert min(found.prefill.measured_s) > 0.9 * (STEP_S + 1_000 * TOKEN_S) / SPEED
    assert min(found.decode.measured_s) > 0.8 * STEP_S / SPEED
    with pytest.raises(ResultError, match="is not a pd_sweep, so it has no held-out topology"):
        held_out(found, result)
    _the_page_is_of_a_profile(with_fits(result)[0])


def _the_page_is_of_a_profile(result):
    facts = result.run
    assert facts.finding.startswith("Profile of 1p1d (nixl): median fit residuals ")
    gates = {gate.name: gate for gate in facts.gates}
    assert "in 5 passes" in gates["cold was cold"].sentence and "same text" not in gates
    assert facts.workload.arrivals == "closed loop, 1 to 16 at a time" and not facts.comparisons
    assert [row.users for row in facts.points] == [1, 2, 4, 1, 4]
    assert not [doubt for doubt in facts.doubts if "round," in doubt or "p99" in doubt]
    assert {*profile_of(result).doubts} <= {*facts.doubts}
    assert [row.pass_name for row in facts.own_errors] == ["cold, 1 in flight", "cold, 4 in flight"]
    page = write_page(result.folder).read_text()
    assert "workbench profile -p engine simulated" in page and "papermill" not in facts.repeat
    for shown in ("median residual", "1,000 to 4,000 tokens", "TTFT, prediction error"):
        assert shown in page
