"""vLLM's own offloading under a real engine: ledger, eviction from host memory, resets."""

from pathlib import Path
from typing import Any

import pytest

from tests.runs import BUSY, causes, not_passed
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run
from workbench.params.pd_sweep import PdSweep

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZES = {"output_tokens": 8, "requests": 4, "rounds": 1, "opponents": False, "store_gb": 0.2}


async def measured(given: dict[str, Any], folder: Path) -> Result:
    params = PdSweep(**(SIZES | {"connector": "offload", "output_dir": str(folder)} | given))
    return await run(plan(params), echo=lambda _: None)


@pytest.mark.parametrize(
    "given",
    [
        # Whole blocks: the last token is loaded too.
        {"topology": "1a", "prompt_tokens": 3072},
        {"topology": "2a", "prompt_tokens": 3000, "workload": "shared_prefix", "concurrency": 2},
    ],
    ids=lambda given: given["topology"],
)
async def test_the_ledger_closes(given: dict[str, Any], tmp_path: Path, one_launcher: None) -> None:
    result = await measured(given, tmp_path)
    assert set(not_passed(result.facts)) <= BUSY
    assert {row["pass"] for row in result.facts["summary"]} == {
        "cold", "engine-warm", "offload-warm",
    }  # fmt: skip
    assert all(not account["unknown"] for account in result.facts["ledger"])
    if "concurrency" not in given:
        assert [a for a in result.facts["ledger"] if a["unexplained"]] == []
        assert result.request_ledger["difference"].eq(0).all()
        rows = {row["pass"]: row for row in result.facts["token_sources"]}
        assert rows["offload-warm"]["external_hit"] == 4 * 3072
        # The engine's own cache never serves the block with the last token; host memory does.
        assert rows["engine-warm"]["external_hit"] == 4 * 128


async def test_host_memory_that_is_too_small_evicts_with_a_named_cause(
    tmp_path: Path, one_launcher: None
) -> None:
    sizes = {"topology": "1a", "prompt_tokens": 3072}
    # Half of the 4 prompts; the bytes of a token depend on the machine.
    bytes_per_token = plan(PdSweep(**(SIZES | sizes))).kv_bytes_per_token
    half_gb = 2 * 3072 * bytes_per_token / 2**30
    result = await measured(sizes | {"store_gb": half_gb}, tmp_path)
    assert "host memory eviction" in causes(result.facts)
    assert not_passed(result.facts).get("the ledger closes") is None
    assert not_passed(result.facts)["offload-warm was offload-warm"] == "FAIL"
