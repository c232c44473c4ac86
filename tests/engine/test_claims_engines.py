"""One real run of the engine level: vLLM and transformers, each in a process of its own."""

import psutil

from workbench.claims.engines.recipes import RECIPES
from workbench.claims.recipe import Setting
from workbench.serve.tiny_model import tiny_model


async def test_both_engines_give_the_same_tokens_at_equal_batch(tmp_path):
    before = set(psutil.Process().children(recursive=True))
    setting = Setting(
        platform="cpu", hardware="a test", model=tiny_model(), output_dir=tmp_path,
        budget_s=1, runs=1,
    )  # fmt: skip
    generation = next(recipe for recipe in RECIPES if recipe.name == "generation")
    outcome = await generation.run(setting)
    assert set(outcome.table["arm"]) == {"transformers", "vllm", "vllm, prefix cache on"}
    assert set(outcome.table["cell"]) == {"batch 1"}  # the budget has room for no more
    assert outcome.checks["same_token_lengths_ignore_eos"] == "pass"
    first = outcome.table[outcome.table["quantity"] == "first token"]
    calls = first.assign(call=first.groupby("arm").cumcount())
    calls = calls.pivot_table(index="call", columns="arm", values="value")
    # bf16 may round one of two close tokens apart between engines, never within one.
    assert (calls["vllm"] == calls["vllm, prefix cache on"]).all()
    assert (calls["vllm"] == calls["transformers"]).any()
    assert outcome.checks["cache_state_controlled"] == "pass"  # new prompts: nothing to hit
    hits = outcome.table[outcome.table["quantity"] == "cached tokens when repeated"]
    assert hits["value"].tolist() == [128]  # of 160 tokens, a block of 128
    assert outcome.checks["replicated_runs_with_ci"] == "fail"  # one launch is no evidence
    memory = outcome.table[outcome.table["quantity"] == "peak memory"]["value"]
    assert memory.between(0.1, 4).all()
    assert set(psutil.Process().children(recursive=True)) == before
