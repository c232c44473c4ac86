import sys
from pathlib import Path

import pytest

from workbench.serve.vllm import (
    EngineSettings,
    instance_argv,
    instance_env,
    number_format,
    program,
)
from workbench.topology import TensorParallel

PLATFORMS = ("cpu", "cuda", "rocm")


def argv(platform: str, *, tp: int = 1, share_of_gpu: float = 1.0, **settings) -> str:
    engine = EngineSettings(model=Path("/models/tiny"), platform=platform, **settings)
    line = instance_argv(engine, role="decode", port=8100, tp=tp, share_of_gpu=share_of_gpu)
    return " ".join(line)


COMMON = [
    "/models/tiny --served-model-name workbench", "--host 127.0.0.1 --port 8100",
    "--max-model-len 24576", "--enable-prefix-caching", "--enable-per-request-metrics",
]  # fmt: skip
KV_BYTES = "--kv-cache-memory-bytes"


@pytest.mark.parametrize(
    ("platform", "given", "has", "lacks"),
    [
        ("cpu", {}, COMMON, ["gpu-memory", "tensor-parallel", "--dtype"]),
        ("cuda", {}, COMMON, ["--enforce-eager", KV_BYTES]),
        ("rocm", {"context_tokens": 4096}, [*COMMON[:2], "--max-model-len 4096"], [KV_BYTES]),
        ("cpu", {"kv_cache_mib": 64}, ["--enforce-eager", f"{KV_BYTES} {64 * 2**20}",
                                       "--distributed-executor-backend uni"], []),
        ("cuda", {"tp": 4, "gpu_memory_share": 0.8},
         ["--tensor-parallel-size 4 --gpu-memory-utilization 0.8"], []),
        ("cuda", {"share_of_gpu": 0.5}, ["--gpu-memory-utilization 0.45"], []),
        ("cpu", {"prefix_caching": False}, ["--no-enable-prefix-caching"], [" --enable-prefix"]),
        ("cpu", {"dtype": "float32"}, [" --dtype float32 "], []),
    ],
)  # fmt: skip
def test_the_command_line_of_an_instance(platform, given, has, lacks):
    line = argv(platform, **given)
    assert [part for part in has if part not in line] == []
    assert [part for part in lacks if part in line] == []


def test_the_model_comes_first_and_further_arguments_last_so_that_they_win():
    assert argv("cuda").startswith("/models/tiny ")
    assert argv("cpu").startswith("--model /models/tiny ")
    given = {"decode": ("--max-num-seqs", "9"), "prefill": ("--max-num-seqs", "1")}
    assert argv("cpu", extra_args=("--seed", "3"), role_args=given).endswith(
        "--seed 3 --max-num-seqs 9"
    )


def test_pipeline_and_data_parallelism_take_gpus_too():
    engine = EngineSettings(
        model=Path("/models/tiny"), platform="cuda", extra_args=("--pipeline_parallel_size=2",),
        role_args={"decode": ("-dp", "4")},
    )  # fmt: skip
    gpus = engine.gpus(TensorParallel(prefill=2))
    assert (gpus.prefill, gpus.decode, gpus.aggregated) == (4, 8, 2)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_server_reports_home_and_every_one_takes_resets(platform):
    env = instance_env(platform)
    assert env["VLLM_SERVER_DEV_MODE"] == "1"
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == env["HF_HUB_OFFLINE"] == "1"
    assert all(isinstance(value, str) for value in env.values())


@pytest.mark.parametrize(
    ("platform", "env"),
    [
        ("cpu", {"OMP_NUM_THREADS": "1"}),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "2,3"}),
        # vLLM on ROCm reads both and refuses to start if they differ.
        ("rocm", {"CUDA_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "2,3",
                  "VLLM_ROCM_USE_AITER": "1"}),
    ],
)  # fmt: skip
def test_each_platform_has_its_variables_and_no_others(platform, env):
    own = ("VISIBLE_DEVICES", "USE_AITER", "NUM_THREADS")
    made = instance_env(platform, devices=("2", "3"))
    assert {name: value for name, value in made.items() if name.endswith(own)} == env


def test_the_program_is_the_one_of_this_environment():
    def words(platform):
        return program(EngineSettings(model=Path("/m"), platform=platform))

    for platform in PLATFORMS:
        assert words(platform)[:2] == (sys.executable, "-m")
    assert words("cuda") == words("rocm")
    assert words("cuda")[-1] == "serve"


def test_the_number_format_follows_the_processor_unless_asked():
    assert number_format("auto", "cpu", fast_bf16=False) == "float32"
    assert number_format("auto", "cpu", fast_bf16=True) == ""
    assert number_format("auto", "cuda", fast_bf16=False) == ""
    assert number_format("bfloat16", "cpu", fast_bf16=False) == "bfloat16"


def test_weights_in_float32_take_twice_their_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    half = EngineSettings(model=tmp_path, platform="cpu")
    assert half.weights_gb == 2**-10
    assert EngineSettings(model=tmp_path, platform="cpu", dtype="float32").weights_gb == 2**-9
