import json

import pytest

from tests.environments import environment
from workbench.errors import ParameterError, PlanError
from workbench.hardware import machine
from workbench.serve.deployment import TRANSFER_TIMEOUT_S
from workbench.serve.vllm import Drafting
from workbench.topology import Topology

ATTACH = {"engine": "attach", "base_url": "http://127.0.0.1:1"}


def arms(plan):
    return {arm.label: (arm.role, [p.name for p in arm.passes]) for arm in plan.arms}


PASSES = ["cold", "engine-warm", "cross-instance", "store-warm"]
ONE_DECODE = ["cold", "engine-warm", "store-warm"]  # no other instance can fetch


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            {"topology": "1p4d"},
            {
                "1p4d lmcache": ("subject", PASSES),
                "5a": ("opponent", PASSES[:2]),
                "5a lmcache": ("opponent", PASSES),
            },
        ),
        ({"topology": "1p4d", "opponents": False}, {"1p4d lmcache": ("subject", PASSES)}),
        (
            {"topology": "1p1d,2a"},  # an opponent that was asked for is a subject, and there once
            {
                "1p1d lmcache": ("subject", ONE_DECODE),
                "2a lmcache": ("subject", PASSES),
                "2a": ("opponent", PASSES[:2]),
            },
        ),
        (
            {"topology": "1p4d", "connector": "nixl", "opponents": False},  # nothing is stored
            {"1p4d nixl": ("subject", PASSES[:3])},
        ),
    ],
)
def test_a_sweep_has_fair_opponents_and_the_states_that_can_be(params, expected, sweep):
    assert arms(sweep(**params)) == expected


def test_only_the_cross_instance_pass_goes_to_another_instance(sweep):
    passes = sweep(topology="1p4d").arms[0].passes
    assert [p.decode_shift for p in passes] == [0, 0, 1, 0]


def test_topologies_of_one_size_share_their_opponents(sweep):
    labels = list(arms(sweep(topology="1p2d,2p1d,1p1d")))
    assert labels[:3] == ["1p2d lmcache", "2p1d lmcache", "1p1d lmcache"]
    assert sorted(labels[3:]) == ["2a", "2a lmcache", "3a", "3a lmcache"]


def test_an_opponent_has_as_many_gpus_not_as_many_instances(sweep, machine_has):
    machine_has("cuda", gpus=8)
    plan = sweep(topology="1p2d", prefill_tp=4, decode_tp=2, aggregated_tp=4)
    sizes = [(arm.topology_text, arm.gpus) for arm in plan.arms]
    assert sizes == [("1p2d", 8), ("2a", 8), ("2a", 8)]
    assert plan.arms[0].label == "1p2d lmcache, 4+4 GPU"


def test_the_visible_gpus_are_handed_out(sweep, machine_has):
    machine_has("cuda", gpus=8, visible="4, 5,6")
    arm = sweep(topology="1p2d", opponents=False).arms[0]
    made = arm.deployment(range(20_000, 20_100))
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in made.instances] == ["4", "5", "6"]


def test_instances_that_share_a_gpu_are_a_doubt(sweep, machine_has):
    machine_has("cuda", gpus=2)
    (doubt,) = sweep(topology="1p3d", instances_per_gpu=2, opponents=False).doubts
    assert doubt.startswith("Up to 2 instances share a GPU")
    assert sweep(topology="1p1d").doubts == ()


def test_a_workload_that_outgrows_the_kv_space_is_a_doubt(sweep):
    # 1 KiB a token: 64 MiB hold 65,536 tokens, and 3 x 22,692 are sent.
    (doubt,) = sweep(kv_cache_mib=64, requests=3).doubts
    assert "68,076 tokens" in doubt and "holds 65,536" in doubt
    assert sweep(kv_cache_mib=128).doubts == ()
    # What is shared takes its space once.
    many = {"prompt_tokens": 22_000, "requests": 20}
    assert "evicted blocks" in " ".join(sweep(**many).doubts)
    assert sweep(workload="shared_prefix", shared_share=0.99, **many).doubts == ()


@pytest.mark.parametrize(
    ("params", "error", "sentence"),
    [
        ({"topology": "1p4d", "connector": "none"}, PlanError, "both roles would prefill"),
        ({"topology": "5a", "connector": "nixl"}, PlanError, "5a needs connector=none or lmcache"),
        ({"topology": "1p1d,100p100d"}, PlanError, "at most 16 instances on a CPU"),
        ({"platform": "cuda"}, PlanError, "visible GPUs .0., got 1"),
        ({"store_gb": 9.0}, PlanError, "store_gb must be .*8.0 GB.* got 9"),
        ({"model": "/no/such/model"}, ParameterError, "/no/such/model"),
        (
            {"workload": "shared_prefix", "shared_share": 0.0},
            ParameterError,
            "shared_tokens must be .* got 0",
        ),
        ({"workload": "batch_processing", "requests": 3}, ParameterError, "-p requests 23"),
        ({"requests": 20_000}, ParameterError, "requests must be at most 12,272"),
        ({**ATTACH, "workload": "text"}, ParameterError, "servers do not give their tokenizer"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(params, error, sentence, sweep):
    with pytest.raises(error, match=sentence):
        sweep(**params)


def test_too_little_memory_is_refused_with_the_numbers(sweep, machine_has):
    machine_has(free_gb=2.0)
    with pytest.raises(PlanError, match=r"about 4\.0 GB .* got 2\.0 GB free"):
        sweep(topology="1p4d")
    assert sweep(topology="1p1d").arms


def test_a_model_on_a_hub_is_taken_by_its_name(sweep, machine_has):
    machine_has("cuda", gpus=8)
    plan = sweep(model="Qwen/Qwen2.5-7B-Instruct")
    assert str(plan.arms[0].settings.model) == "Qwen/Qwen2.5-7B-Instruct"
    assert plan.workload.options["vocab_tokens"] == 5_000


def test_an_attached_deployment_is_one_arm(sweep):
    plan = sweep(**ATTACH)
    assert arms(plan) == {"attached": ("attached", ["cold", "engine-warm"])}
    assert "only unique prompts keep cold passes cold" in " ".join(plan.doubts)


@pytest.mark.parametrize(
    ("label", "topology"),
    [("", None), ("the old", None), ("1p4d", Topology(prefill=1, decode=4))],
)
def test_an_attached_deployment_has_the_layout_that_its_label_says(sweep, label, topology):
    (arm,) = sweep(**ATTACH, topology=label).arms
    assert arm.label == arm.topology_text == (label or "attached")
    assert arm.topology == topology
    assert arm.disaggregated is (topology is not None)


def test_server_lists_and_a_store_allow_more_passes(sweep):
    lists = {"decode_urls": ["http://127.0.0.1:2"], "lmcache_url": "http://127.0.0.1:3"}
    plan = sweep(**ATTACH, **lists)
    assert arms(plan)["attached"][1] == ["cold", "engine-warm", "store-warm"]
    (doubt,) = plan.doubts
    assert doubt.startswith("This run did not start the servers: rounds reuse one launch")


def test_open_files_are_checked_for_the_highest_rate_of_a_sweep(sweep, monkeypatch):
    monkeypatch.setattr("workbench.load.drive.open_files._hard_limit", lambda: 1024)
    many = {"topology": "1a", "requests": 2000, "prompt_tokens": 64}
    sweep(**many, rates_per_s=[1.0])
    with pytest.raises(ParameterError, match="2,000 requests in flight need"):
        sweep(**many, rates_per_s=[1.0, 200.0])
    with pytest.raises(ParameterError, match="2,000 requests in flight need"):
        sweep(**many, search=True, rate_per_s=1.0, ttft_limit_ms=500.0)


def test_a_sweep_over_rates_is_planned_at_its_highest(sweep):
    few = {"requests": 40, "prompt_tokens": 64}
    given = sweep(**few, rates_per_s=[2.0, 8.0, 4.0]).arrivals
    assert given.offsets_s == sweep(**few, rate_per_s=8.0).arrivals.offsets_s
    searched = sweep(**few, search=True, ttft_limit_ms=500.0).arrivals
    assert searched.offsets_s == sweep(**few, rate_per_s=80.0).arrivals.offsets_s


@pytest.mark.parametrize(
    ("params", "reuse"),
    [
        ({"workload": "shared_prefix", "shared_share": 0.5}, 0.5 * 29 / 30),
        ({"workload": "batch_processing"}, 0.95),  # its own
        ({"workload": "batch_processing", "target_reuse": 0.5}, 0.5),
    ],
)
def test_a_workload_reuses_what_is_asked_or_its_own_share(params, reuse, sweep):
    plan = sweep(**params, prompt_tokens=1000, requests=30)
    assert plan.workload.build("salt").ideal_reuse == pytest.approx(reuse, rel=0.01)


def test_a_trace_is_sent_at_its_times(sweep, tmp_path):
    rows = (
        {"timestamp": 1000 * n, "input_length": 1000, "output_length": 9, "hash_ids": [0, n + 1]}
        for n in range(3)
    )
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = {"workload": "trace", "trace_file": str(tmp_path / "t.jsonl"), "requests": 2}
    plan = sweep(**asked, trace_speed=4.0)
    assert plan.arrivals.offsets_s == (0.0, 0.25)
    built = plan.workload.build("salt")
    assert [r.ideal_reuse_tokens for r in built.requests] == [0, 512]
    assert sweep(**asked).arrivals.kind == "closed"


def test_a_short_trace_is_sent_whole_and_the_plan_tells_what_was_not_used(sweep, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"input_length": 90, "output_length": 9, "priority": 1}\n' * 3 + "\n")
    asked = {"workload": "trace", "trace_file": str(path)}
    plan = sweep(**asked)
    assert [r.prompt_tokens for r in plan.workload.sample.requests] == [90, 90, 90]
    assert "Unused fields in trace_file: priority." in plan.doubts
    with pytest.raises(
        ParameterError, match=r"3 of 3 lines of trace_file .* have no timestamp; set"
    ):
        sweep(**asked, trace_speed=1.0)
    with pytest.raises(
        ParameterError, match=r"requests must be at most 3 .the lines of trace_file"
    ):
        sweep(**asked, requests=4)


def test_a_scenario_has_lengths_of_its_own_and_smaller_ones_on_a_cpu(sweep, machine_has):
    assert sweep(workload="code_generation").workload.longest_prompt_tokens == 8_192
    plan = sweep(workload="long_context_high_reuse")
    assert plan.workload.longest_prompt_tokens == 16_384
    (doubt,) = [doubt for doubt in plan.doubts if doubt.startswith("On a CPU long_context")]
    assert "8,192 to 16,384 tokens" in doubt and "16,384 to 32,768" in doubt
    machine_has("cuda", gpus=8)
    plan = sweep(workload="long_context_high_reuse", context_tokens=40_000)
    assert plan.workload.longest_prompt_tokens == 32_768
    with pytest.raises(ParameterError, match=r"context_tokens must be at least .*32,800.* 36864"):
        sweep(workload="long_context_high_reuse")


@pytest.mark.parametrize(
    ("params", "kind", "timed"),
    [
        ({"concurrency": 2}, "closed", 0),
        ({"rate_per_s": 2.0}, "poisson", 4),
        ({"arrivals": "constant", "rate_per_s": 2.0}, "constant", 4),
        ({"arrivals": "gamma", "rate_per_s": 2.0, "burstiness": 0.5}, "gamma", 4),
        ({"arrivals": "ramp", "rate_per_s": 2.0, "end_rate_per_s": 4.0}, "ramp", 4),
    ],
)
def test_both_notebooks_have_every_kind_of_arrival(sweep, prefix_cache, params, kind, timed):
    for plan in (sweep(**params, requests=4), prefix_cache(**params, requests=4)):
        assert (plan.arrivals.kind, len(plan.arrivals.offsets_s)) == (kind, timed)


def test_other_workloads_leave_the_partly_warm_passes_out(prefix_cache):
    for params in ({"workload": "code_generation"}, {"workload": "cold_start"}):
        plan = prefix_cache(**params)
        assert arms(plan)["cache on"][1] == ["cold", "engine-warm"]
    assert len(arms(prefix_cache(workload="short"))["cache on"][1]) == 5


def test_a_simulated_engine_counts_text_itself(sweep):
    plan = sweep(engine="simulated", workload="text", api="chat", prompt_tokens=500, requests=2)
    assert [r.prompt_tokens for r in plan.workload.sample.requests] == [500, 500]


def test_the_prefix_cache_is_measured_off_cold_partly_and_fully_warm(prefix_cache):
    plan = prefix_cache(shares=[0.5, 0.25])
    assert arms(plan) == {
        "cache off": ("subject", ["cold"]),
        "cache on": ("subject", ["cold", "25% cached", "50% cached", "engine-warm"]),
    }
    off, on = plan.arms
    assert (off.settings.prefix_caching, on.settings.prefix_caching) == (False, True)
    assert [p.share for p in on.passes] == [1.0, 0.25, 0.5, 1.0]
    assert {p.state for p in on.passes[1:]} == {"engine-warm"}


def test_engine_simulated_refuses_a_connector_that_it_does_not_have(sweep):
    with pytest.raises(PlanError, match="nixl, mooncake, mooncake-store, offload or all"):
        sweep(engine="simulated", connector="lmcache-inprocess", topology="2a")


def test_an_interpreter_without_vllm_is_refused_with_its_version(sweep, tmp_path):
    python = environment(tmp_path / "env", lmcache="0.5.6")
    with pytest.raises(ParameterError, match=r"an interpreter with vLLM \(its Python 3.* has none"):
        sweep(engine_python=str(python))


def test_a_store_that_cannot_hold_one_prompt_is_refused_with_a_size_that_can(sweep):
    with pytest.raises(PlanError, match=r"22,660 tokens have .* GB of KV, got 0.01 \(example: "):
        sweep(connector="lmcache", store_gb=0.01)


@pytest.mark.parametrize(
    ("tiers", "below"),
    [
        ("disk", ["disk-warm"]),
        ("redis", ["remote-warm"]),
        ("redis://cache:6379", ["remote-warm"]),
        ("disk,mooncake", ["disk-warm", "remote-warm"]),
        ("mooncake,disk", ["disk-warm", "remote-warm"]),  # the disk is emptied in between
    ],
)
def test_each_tier_below_the_stores_memory_adds_its_state(sweep, tiers, below):
    plan = sweep(topology="1p1d", connector="lmcache", store_tiers=["memory", *tiers.split(",")])
    passes = {arm.label: [p.name for p in arm.passes] for arm in plan.arms}
    assert passes["1p1d lmcache"] == [*ONE_DECODE, *below]
    assert passes["2a lmcache"] == [*PASSES, *below]
    assert passes["2a"] == ["cold", "engine-warm"]


def test_a_mooncake_tier_opens_the_ports_that_the_connector_opens(sweep):
    tiers = {"connector": "lmcache", "topology": "1a", "store_tiers": ["memory", "mooncake"]}
    assert any("accept connections on all addresses" in doubt for doubt in sweep(**tiers).doubts)


def test_a_tier_that_is_too_small_is_refused_or_a_doubt(sweep):
    tiers = {"connector": "lmcache", "store_tiers": ["memory", "redis"]}
    assert not [doubt for doubt in sweep(**tiers).doubts if "tier" in doubt]
    (doubt,) = [doubt for doubt in sweep(**tiers, tier_gb=0.03).doubts if "tier" in doubt]
    assert "a tier of the store holds 0.03 GB, so it will evict" in doubt
    with pytest.raises(PlanError, match=r"tier_gb must hold at least one prompt: .* got 0.01 "):
        sweep(**tiers, tier_gb=0.01)


def test_the_opponent_of_a_store_has_the_same_store(sweep):
    arms = [arm.label for arm in sweep(topology="1p1d", connector="mooncake-store").arms]
    assert arms == ["1p1d mooncake-store", "2a", "2a mooncake-store"]


def accepts(settings, role, *, tp):
    """What vLLM reads, without asking it: drafts for decode instances."""
    return Drafting(tokens=3, kv_elements=64) if role == "decode" else Drafting()


def test_the_opponents_of_a_connector_without_a_store_are_those_of_nixl(sweep):
    arms = [arm.label for arm in sweep(topology="1p2d", connector="mooncake").arms]
    assert arms == ["1p2d mooncake", "3a", "3a lmcache"]


def test_decode_waits_for_kv_longer_than_the_slowest_prompt_of_the_plan(sweep):
    short = sweep(connector="mooncake", prompt_tokens=100, requests=1)
    long = sweep(connector="mooncake", requests=6)
    assert short.arms[0].transfer_timeout_s == 30
    assert long.longest_wait_s < long.arms[0].transfer_timeout_s <= TRANSFER_TIMEOUT_S
    variable = "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT"
    (prefill, *_) = short.arms[0].deployment(range(20_000, 20_100)).instances
    assert prefill.env[variable] == "30"
    unknown = sweep(connector="mooncake", model="Qwen/Qwen2.5-7B-Instruct", platform="cpu")
    assert unknown.arms[0].transfer_timeout_s == TRANSFER_TIMEOUT_S


def test_rdma_takes_a_device_and_a_connector_for_it(sweep, monkeypatch, tmp_path):
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(machine, "RDMA_DEVICES", tmp_path)
    (prefill, *_) = sweep(connector="mooncake", mooncake_protocol="rdma").arms[0].deployment(
        range(20_000, 20_100)
    ).instances  # fmt: skip
    assert '"mooncake_protocol": "rdma"' in prefill.command_line
    (tmp_path / "mlx5_0").rmdir()
    with pytest.raises(PlanError, match="mooncake_protocol must be tcp on a machine without RDMA"):
        sweep(connector="mooncake", mooncake_protocol="rdma")


def test_arguments_and_variables_reach_the_processes_of_their_role(sweep, monkeypatch):
    monkeypatch.setattr("workbench.experiment.plan.engine_setup.check_arguments", accepts)
    plan = sweep(
        topology="1p1d",
        engine_args="--seed 7",
        decode_args="--max-num-seqs 9",
        engine_env="NCCL_MIN_NCHANNELS=112",
        store_args="--max-workers 2",
    )
    arm = plan.arms[0]
    store, prefill, decode, _ = arm.deployment(range(20_000, 20_100)).processes
    assert store.args[-2:] == ("--max-workers", "2")
    lines = [" ".join(process.args) for process in (prefill, decode)]
    assert ["--seed 7" in line for line in lines] == [True, True]
    assert ["--max-num-seqs 9" in line for line in lines] == [False, True]
    assert prefill.env["NCCL_MIN_NCHANNELS"] == "112"


def test_an_fp8_kv_cache_halves_the_bytes_of_a_token(sweep, monkeypatch):
    monkeypatch.setattr("workbench.experiment.plan.engine_setup.check_arguments", accepts)
    usual, fp8 = (
        sweep(dtype="bfloat16", engine_args=args) for args in ("", "--kv-cache-dtype fp8_e5m2")
    )
    # A draft model's layers hold KV too; without arguments vLLM is not asked for drafts.
    assert fp8.kv_bytes_per_token == (usual.kv_bytes_per_token - 2 * 64) / 2 + 64
    assert fp8.run_id != usual.run_id


def test_an_instance_on_a_cpu_is_one_process(sweep, monkeypatch):
    monkeypatch.setattr("workbench.experiment.plan.engine_setup.check_arguments", accepts)
    with pytest.raises(PlanError, match="engine_args must leave pipeline and data parallel size"):
        sweep(engine_args="-pp 2")
