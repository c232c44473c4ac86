"""Faults that can be made on real servers: the gates and the ledger see them there too.

docs/faults.md has the whole matrix on simulated servers. A killed store and a killed decode
instance are in test_accidents.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runs import BUSY, causes, not_passed
from workbench.experiment.plan.arm import Arm, Pass
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.result import Result
from workbench.experiment.run.launch import isolation, measure
from workbench.experiment.run.run import run
from workbench.load.workload.workload import Workload
from workbench.params.pd_sweep import PdSweep
from workbench.serve import deployed
from workbench.serve.deployed import Deployment, DeploymentPlan

pytestmark = pytest.mark.asyncio(loop_scope="session")


def small(folder: Path, **given: Any) -> ExperimentPlan:
    return plan(
        PdSweep(
            rounds=1,
            requests=3,
            prompt_tokens=3000,
            output_tokens=8,
            output_dir=str(folder),
            **({"opponents": False} | given),
        )
    )


def failing(result: Result) -> set[str]:
    """Gates that are not PASS, but for the client's: this machine may be busy."""
    return set(not_passed(result.facts)) - BUSY


async def test_a_proxy_that_loses_the_transfer_parameters_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_launcher: None
) -> None:
    planned = Arm.deployment

    def forgetful(arm: Arm, *args: Any, **options: Any) -> DeploymentPlan:
        made = planned(arm, *args, **options)
        *others, proxy = made.processes
        proxy = replace(proxy, args=(*proxy.args, "--fault", "transfer_params_lost"))
        return replace(made, processes=(*others, proxy))

    monkeypatch.setattr(Arm, "deployment", forgetful)
    # Prefill holds the KV that nobody fetches, and refuses every reset until its lease ends.
    monkeypatch.setattr(deployed, "RESET_TIMEOUT_S", 0.5)
    made = small(tmp_path, topology="1p1d", connector="nixl")
    (arm,) = made.arms
    result = await run(replace(made, arms=(replace(arm, passes=arm.passes[:1]),)))
    # One pass alone has no other text to compare.
    missed = {"KV moved", "the ledger closes", "caches were emptied", "same text"}
    assert failing(result) == missed
    (gate,) = (g for g in result.facts["gates"] if g["name"] == "KV moved")
    assert "The decode instances computed 9,000 of 9,000 prompt tokens" in gate["sentence"]


async def test_a_store_that_was_left_warm_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_launcher: None
) -> None:
    async def pretended(_: Deployment) -> bool:
        return True

    monkeypatch.setattr(isolation, "_empty_store", pretended)  # and its gauge is not asked
    made = small(tmp_path, topology="2a", connector="lmcache")
    (arm,) = made.arms
    # The prompts are sent once before the pass that is called cold.
    passes = (Pass(name="asked before", state="engine-warm"), Pass(name="cold", state="cold"))
    result = await run(replace(made, arms=(replace(arm, passes=passes),)))
    assert failing(result) == {"cold was cold"}
    assert "left over from before" in causes(result.facts)


async def test_another_prompt_of_equal_length_shows_in_the_text_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_launcher: None
) -> None:
    drive = measure.drive_in_thread

    async def mistaken(workload: Workload, *args: Any, **options: Any) -> Any:
        """In all but the cold pass the second prompt is sent in the place of the first."""
        mistakes.append(workload)
        if len(mistakes) > 1:
            first, second, *rest = workload.requests
            swapped = replace(first, prompt_ids=second.prompt_ids)
            workload = replace(workload, requests=(swapped, second, *rest))
        return await drive(workload, *args, **options)

    mistakes: list[Workload] = []
    monkeypatch.setattr(measure, "drive_in_thread", mistaken)
    made = small(tmp_path, topology="1a,2a", connector="none")
    result = await run(made)
    assert "same text" in not_passed(result.facts)
    assert "output counts equal" not in not_passed(result.facts)
