"""The ledger of real engines: every prompt token of every pass has a source and a cause."""

from pathlib import Path
from typing import Any

import pytest

from tests.runs import BUSY, not_passed
from workbench.experiment.plan.arms import plan
from workbench.experiment.run.run import run
from workbench.params.pd_sweep import PdSweep

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    "given",
    [
        {"topology": "1p2d", "connector": "lmcache", "opponents": True},
        # Whole blocks and chunks: what is left over is the last token alone.
        {"topology": "1p1d", "connector": "lmcache", "opponents": False, "prompt_tokens": 3072},
        {"topology": "1p2d", "connector": "nixl", "opponents": False},
        {"topology": "2a", "connector": "lmcache", "workload": "shared_prefix", "concurrency": 4},
        # Real answers are part of later prompts; instance and store that have their KV serve it.
        {
            "topology": "1p1d",
            "connector": "lmcache",
            "opponents": False,
            "output_tokens": 40,
            "workload": "multi_turn_conversation",
            "requests": 8,
            "target_reuse": 0.8,
        },
        # The server's template and tokenizer make the tokens that were counted beforehand.
        {"topology": "1a", "connector": "lmcache", "workload": "text", "api": "chat"},
    ],
    ids=lambda given: " ".join(str(v) for v in given.values() if not isinstance(v, bool)),
)
async def test_the_ledger_closes_on_real_servers(
    given: dict[str, Any], tmp_path: Path, one_launcher: None
) -> None:
    sizes = {"prompt_tokens": 3000, "output_tokens": 8, "requests": 4, "rounds": 1}
    params = PdSweep(**(sizes | {"output_dir": str(tmp_path)} | given))
    result = await run(plan(params), echo=lambda _: None)
    gates = {gate["name"]: gate for gate in result.facts["gates"]}
    for name in ("the ledger closes", "nothing impossible"):
        assert gates[name]["outcome"] == "PASS", gates[name]["sentence"]
    if params.connector == "nixl":
        assert set(not_passed(result.facts)) <= BUSY
        passes = {row["pass"] for row in result.facts["summary"]}
        assert passes == {"cold", "engine-warm", "cross-instance"}  # nothing stores: no store-warm
    assert result.requests["usage_prompt_tokens"].eq(result.requests["prompt_tokens"]).all()
    ledger = result.facts["ledger"]
    assert all(not account["unknown"] for account in ledger)
    if params.concurrency == 1:
        # Exact rules leave nothing open, not even the block that the gate allows.
        assert [account for account in ledger if account["unexplained"]] == []
        each = result.request_ledger
        assert each["difference"].eq(0).all()
        assert len(each) == (0 if params.connector == "nixl" else len(result.requests))
    names = {account["name"] for account in ledger}
    assert names >= {"counted", "reused", "moved" if params.connector == "nixl" else "store"}
