"""A sweep over connectors on simulated servers: what its figure is drawn from."""

from pathlib import Path

import pytest

from workbench.experiment.plan.arms import plan
from workbench.experiment.run.run import run
from workbench.params.pd_sweep import PdSweep

pytestmark = pytest.mark.servers


async def test_the_bytes_of_each_connector_are_those_that_its_instances_loaded(tmp_path: Path):
    params = PdSweep(
        engine="simulated",
        connector="all",
        topology="1p1d",
        rounds=2,
        requests=3,
        prompt_tokens=1536,  # whole chunks and blocks
        output_tokens=4,
        output_dir=str(tmp_path),
    )
    result = await run(plan(params), echo=lambda _: None)
    found = result.connectors.query("metric == 'kv_bytes_per_token'")
    loaded = {(arm, state): round(value, 1) for arm, state, value in
              zip(found["arm"], found["pass"], found["value"], strict=True)}  # fmt: skip
    each = 768  # bytes of KV in the simulated model
    assert loaded["1p1d nixl", "cold"] == each
    assert loaded["1p1d lmcache", "cold"] == round(each * 1535 / 1536, 1)  # all but the last token
    assert loaded["1p1d mooncake-store", "cold"] == each * 11 / 12  # all but the last block
    # From a store, prefill and decode load the prompt.
    assert loaded["1p1d lmcache", "store-warm"] == round(2 * each * 1535 / 1536, 1)
    assert loaded["1p1d mooncake-store", "store-warm"] == 2 * each * 11 / 12
    assert loaded["2a", "cold"] == loaded["2a", "engine-warm"] == 0
    tps = result.connectors.query("metric == 'system_tps'")
    assert tps["low"].lt(tps["value"]).all() and tps["high"].gt(tps["value"]).all()
    assert set(result.connectors["role"]) == {"subject", "opponent"}
    stores = result.store_table().set_index(["arm", "pass"])
    assert stores.loc[("1p1d mooncake-store", "cold"), "held"] == "36"  # 3 prompts of 12 blocks
    assert stores.loc[("1p1d mooncake-store", "cold"), "put"].startswith("36 (")
    read = [account for account in result.run.ledger if account.name == "read"]
    assert {account.arm for account in read} == {"1p1d mooncake-store", "2a mooncake-store"}
    assert all(account.closes and not account.unexplained for account in read)
