"""Runs that attach to servers behind the workbench's own proxy, which it did not start."""

from pathlib import Path
from typing import Any

import pytest

from tests.runs import not_passed
from tests.serve.simulated.pair import Pair, simulated_deployment
from workbench.errors import DeploymentError
from workbench.experiment.environment import TIMING_GATES
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run
from workbench.params.pd_sweep import PdSweep
from workbench.serve.attach import parameters_for

TINY = {"prompt_tokens": 600, "output_tokens": 8, "requests": 3, "rounds": 1}


async def measured(pair: Pair, tmp_path: Path, **changed: Any) -> Result:
    """A run on these servers, given what `workbench up` prints."""
    given = {**TINY, **parameters_for(pair.deployment), **changed}
    return await run(plan(PdSweep(**given, output_dir=str(tmp_path))), echo=lambda _: None)


@pytest.mark.parametrize(
    ("topology", "connector"),
    [("1p2d", "nixl"), ("1p1d", "lmcache"), ("1p1d", "mooncake-store"), ("2a", "offload")],
)
async def test_ledger_and_waterfall_are_those_of_a_deployment_of_our_own(
    topology: str, connector: str, tmp_path: Path
) -> None:
    async with simulated_deployment(topology, connector) as pair:
        result = await measured(pair, tmp_path)
    facts = result.facts
    assert not_passed(facts).keys() <= TIMING_GATES
    assert [arm["connector"] for arm in facts["arms"]] == [connector]
    accounts = {account["name"] for account in facts["ledger"]}
    assert {"counted", "reused"} <= accounts
    assert ("moved" in accounts) == (connector == "nixl")
    assert ("store" in accounts) == (connector not in ("nixl", "none"))
    frame = result.waterfall()
    assert (frame["note"] == "").all() and len(frame) == len(result.requests)


async def test_without_lists_there_is_a_waterfall_and_nothing_is_reset(tmp_path: Path) -> None:
    async with simulated_deployment("1p1d", "nixl") as pair:
        result = await measured(pair, tmp_path, prefill_urls=[], decode_urls=[])
    assert (result.waterfall()["note"] == "").all()
    assert not_passed(result.facts)["the ledger closes"] == "INCONCLUSIVE"


async def test_an_instance_that_is_not_listed_is_named(tmp_path: Path) -> None:
    async with simulated_deployment("1p2d", "nixl") as pair:
        first, other = (i.url for i in pair.deployment.instances if i.role == "decode")
        with pytest.raises(DeploymentError, match=rf"all 3 instances .*missing: {other}\)"):
            await measured(pair, tmp_path, decode_urls=[first])


async def test_instances_by_other_names_and_another_topology_are_doubts(tmp_path: Path) -> None:
    async with simulated_deployment("1p1d", "nixl") as pair:
        (decode,) = (i.url for i in pair.deployment.instances if i.role == "decode")
        named = decode.replace("127.0.0.1", "localhost")
        result = await measured(pair, tmp_path, decode_urls=[named], topology="1p2d")
    doubts = " ".join(result.facts["doubts"])
    assert f"by other URLs ({decode}). List these." in doubts
    assert "The proxy has 1p1d behind it, not topology 1p2d." in doubts
    assert not_passed(result.facts)["the ledger closes"] == "INCONCLUSIVE"
