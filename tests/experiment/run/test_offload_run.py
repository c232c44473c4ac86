"""Runs over host memory on simulated servers: who served what, and a working-set sweep."""

from pathlib import Path

import pytest

from tests.runs import causes, outcomes
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import load_result
from workbench.experiment.run.run import run
from workbench.params.pd_sweep import PdSweep

SMALL = {"engine": "simulated", "connector": "offload", "output_tokens": 4, "rounds": 1}
BUSY = {"client kept up", "instances alike", "steady state", "answers were streamed"}
"""Gates on time, which a busy machine may fail."""


async def test_host_memory_serves_what_the_engines_were_made_to_forget(tmp_path: Path) -> None:
    params = PdSweep(
        **SMALL, topology="2a", prompt_tokens=1536, requests=4, output_dir=str(tmp_path)
    )
    result = await run(plan(params), echo=lambda _: None)
    held = {name for name, outcome in outcomes(result.facts).items() if outcome == "PASS"}
    assert {"offload-warm was offload-warm", "engine-warm was engine-warm", "cold was cold"} <= held
    assert {"the ledger closes", "same text"} <= held
    rows = {(r["arm"], r["pass"]): r for r in result.facts["token_sources"]}
    assert rows["2a offload", "offload-warm"]["external_hit"] == 4 * 1536
    assert rows["2a offload", "engine-warm"]["external_hit"] == 4 * 128  # with the last token
    assert rows["2a", "engine-warm"]["external_hit"] == 0


async def test_a_sweep_finds_hits_up_to_what_host_memory_holds(tmp_path: Path) -> None:
    # A KV space of 21,845 tokens, and host memory of 2.5 times as many.
    sizes = {"prompt_tokens": 4096, "context_tokens": 5000, "kv_cache_mib": 16, "store_gb": 0.04}
    params = PdSweep(
        **SMALL, **sizes, topology="1a", working_sets=[0.5, 1.5, 4], output_dir=str(tmp_path)
    )
    made = plan(params)
    result = await run(made, echo=lambda _: None)
    assert not {n for n, o in outcomes(result.facts).items() if o != "PASS"} - BUSY
    sent_again = result.sizes[result.sizes["asked"] == "again"].set_index("times")
    assert sent_again["hit_share"].round(2).tolist() == [1.0, 1.0, 0.0]
    assert sent_again["baseline_hit_share"].round(2).tolist() == [0.97, 0.0, 0.0]
    assert sent_again["prompts"].tolist() == [3, 8, 21]
    assert sent_again["host_times"].iloc[0] == pytest.approx(2.56, abs=0.02)
    assert {"host memory eviction", "engine eviction"} <= causes(result.facts)
    assert load_result(result.folder).run.sizes == result.run.sizes
