"""How many prompts each size of a working-set sweep has, and what is refused."""

import pytest

from workbench.errors import PlanError
from workbench.serve.vllm import Drafting

# The model of these tests has 1 KiB of KV per token: a KV space of 16,384 tokens.
SMALL = {"topology": "1a", "connector": "offload", "prompt_tokens": 1024, "kv_cache_mib": 16}


def test_each_size_is_sent_cold_and_then_again(sweep):
    plan = sweep(**SMALL, working_sets=[4, 0.5])
    with_memory, without = plan.arms
    assert [arm.label for arm in plan.arms] == ["1a offload", "1a"]
    assert [(p.name, p.state, p.requests, p.after) for p in with_memory.passes] == [
        ("cold at 0.5x KV space", "cold", 8, "cold"),
        ("again at 0.5x KV space", "engine-warm", 8, "cold at 0.5x KV space"),
        ("cold at 4x KV space", "cold", 64, "cold"),
        ("again at 4x KV space", "engine-warm", 64, "cold at 4x KV space"),
    ]
    assert without.passes == with_memory.passes
    assert len(plan.workload.sample.requests) == 64
    assert not any("warm passes will miss" in doubt for doubt in plan.doubts)


def test_two_instances_get_twice_the_prompts(sweep):
    plan = sweep(**SMALL | {"topology": "2a"}, working_sets=[2])
    assert [p.requests for p in plan.arms[0].passes] == [64, 64]


def test_a_working_set_without_a_whole_prompt_is_refused(sweep):
    with pytest.raises(PlanError, match=r"at least 0\.062: one prompt has 1,024 tokens.* 16,384"):
        sweep(**SMALL, working_sets=[0.01, 1])


def test_on_a_gpu_the_kv_space_must_be_given(sweep, machine_has, monkeypatch):
    monkeypatch.setattr(
        "workbench.experiment.plan.engine_setup.check_arguments", lambda *_, **__: Drafting()
    )
    monkeypatch.setattr("workbench.experiment.plan.plan_checks.check_gpu_memory", lambda *_: None)
    machine_has("cuda", gpus=1)
    with pytest.raises(PlanError, match=r"working_sets needs a known KV space .*--kv-cache-memory"):
        sweep(**SMALL, working_sets=[2])


def test_one_with_offloading_is_compared_with_the_same_instances_without(sweep):
    plan = sweep(topology="2a", connector="offload")
    assert [(arm.label, arm.role) for arm in plan.arms] == [
        ("2a offload", "subject"), ("2a", "opponent"),
    ]  # fmt: skip
    assert [p.name for p in plan.arms[0].passes] == ["cold", "engine-warm", "offload-warm"]
    assert "On a CPU, engine steps wait until offloaded KV is copied." in " ".join(plan.doubts)


def test_host_memory_counts_as_memory_and_holds_a_prompt(sweep, machine_has):
    machine_has(free_gb=3.0)
    with pytest.raises(PlanError, match="lower kv_cache_mib or store_gb or use fewer instances"):
        sweep(topology="1a", connector="offload", store_gb=4)
    with pytest.raises(PlanError, match=r"store_gb must hold at least one prompt: 22,660 tokens"):
        sweep(topology="1a", connector="offload", store_gb=0.01)
