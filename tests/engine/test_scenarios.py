"""The five reuse scenarios one after another on one real server, each of them cold at its start.

The seed is the same for all, so what one leaves behind would serve the next if it could.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.runs import start
from workbench.experiment.plan.arms import plan
from workbench.experiment.run.run import run
from workbench.params.pd_sweep import PdSweep
from workbench.params.shared import SCENARIOS
from workbench.serve.deployed import Deployment
from workbench.serve.processes.launcher import Launcher
from workbench.serve.vllm import EngineSettings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("scenarios")]

TARGETS = {
    "cold_start": 0.0,
    "batch_processing": 0.95,
    "code_generation": 0.8,
    "long_context_high_reuse": 0.9,
    "multi_turn_conversation": 0.85,
}


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def server(
    launcher: Launcher, settings: EngineSettings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Deployment]:
    """One plain vLLM with its prefix cache on, for all scenarios."""
    logs = tmp_path_factory.mktemp("server")
    async with start(launcher, "1a", "none", settings=settings, logs=logs) as deployment:
        yield deployment


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_scenario_starts_cold_on_a_used_server_and_meets_its_reuse(
    scenario: str, server: Deployment, tmp_path: Path
) -> None:
    params = PdSweep(
        engine="attach",
        base_url=server.url,
        decode_urls=[instance.url for instance in server.instances],
        workload=scenario,
        prompt_tokens=1_500,
        output_tokens=8,
        rounds=1,
        output_dir=str(tmp_path),
    )
    planned = plan(params)
    assert planned.workload.sample.ideal_reuse == pytest.approx(TARGETS[scenario], rel=0.01)

    result = await run(planned, echo=lambda _: None)
    gates = {gate["name"]: gate for gate in result.facts["gates"]}
    for name in ("cold was cold", "engine-warm was engine-warm", "the ledger closes", "same text"):
        assert gates[name]["outcome"] == "PASS", gates[name]["sentence"]

    # A prompt that repeats nothing found nothing, whatever the scenarios before have left; each
    # other one found what this pass itself had sent, to the token.
    cold = result.requests[result.requests["pass"] == "cold"]
    first = cold[cold["ideal_reuse_tokens"] == 0]
    assert len(first) and first["cached_tokens"].eq(0).all()
    each = result.request_ledger
    assert len(each) == len(result.requests) and each["difference"].eq(0).all()
    if scenario == "cold_start":
        counted = result.token_sources.set_index("pass").loc["cold"]
        assert counted["engine_hit"] == counted["external_hit"] == 0
