from math import inf

import pytest

from workbench.errors import ResultError
from workbench.experiment.run.run import run
from workbench.params.notebooks import check_params
from workbench.serve.simulated.instance import SPEED, STEP_S, TOKEN_S
from workbench.whatif.held_out import held_out
from workbench.whatif.profile import profile_of
from workbench.whatif.profile_plan import profile_plan


@pytest.mark.servers
async def test_a_profile_of_running_servers(tmp_path, monkeypatch):
    """What a busy machine cannot change: sizes, ranges, and times that are never too short."""
    params = check_params("pd_sweep", {
        "engine": "simulated", "connector": "nixl", "workload": "short", "prompt_tokens": 4_000,
        "requests": 6, "output_tokens": 24, "output_dir": str(tmp_path),
    })  # fmt: skip
    monkeypatch.setattr("workbench.whatif.profile.LARGEST_RESIDUAL", inf)
    monkeypatch.setattr("workbench.whatif.profile.LARGEST_TRANSFER_RESIDUAL", inf)
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
