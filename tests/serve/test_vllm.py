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

PLATFORMS = ("cpu", "cuda", "rocm")


def argv(platform: str, *, tp: int = 1, share_of_gpu: float = 1.0, **settings) -> str:
    engine = EngineSettings(model=Path("/models/tiny"), platform=platform, **settings)
    return " ".join(instance_argv(engine, port=8100, tp=tp, share_of_gpu=share_of_gpu))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_instance_offers_the_model_on_loopback(platform):
    line = argv(platform, context_tokens=4096)
    assert "/models/tiny --served-model-name workbench" in line
    assert "--host 127.0.0.1 --port 8100" in line
    assert "--max-model-len 4096" in line
    assert "--enable-prefix-caching" in line
    assert "--enable-per-request-metrics" in line  # the waterfall needs it


def test_the_model_is_the_first_word_of_vllm_serve_and_an_option_of_its_module():
    assert argv("cuda").startswith("/models/tiny ")
    assert argv("cpu").startswith("--model /models/tiny ")


def test_a_cpu_instance_is_eager_in_one_process_with_a_given_kv_space():
    line = argv("cpu", kv_cache_mib=64)
    assert "--enforce-eager" in line
    assert "--distributed-executor-backend uni" in line
    assert f"--kv-cache-memory-bytes {64 * 2**20}" in line
    assert "gpu-memory" not in line and "tensor-parallel" not in line


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
def test_a_gpu_instance_spans_its_gpus_and_takes_its_share(platform):
    line = argv(platform, tp=4, gpu_memory_share=0.8)
    assert "--tensor-parallel-size 4 --gpu-memory-utilization 0.8" in line
    assert "--enforce-eager" not in line and "--kv-cache-memory-bytes" not in line


def test_instances_that_share_a_gpu_divide_its_memory():
    assert "--gpu-memory-utilization 0.45" in argv("cuda", share_of_gpu=0.5)


def test_the_prefix_cache_is_on_or_off_by_name():
    line = argv("cpu", prefix_caching=False)
    assert "--no-enable-prefix-caching" in line
    assert "--enable-prefix-caching" not in line


def test_further_arguments_come_last_so_that_they_win():
    assert argv("cpu", extra_args=("--dtype", "float32")).endswith("--dtype float32")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_server_reports_home_and_every_one_takes_resets(platform):
    env = instance_env(platform)
    assert env["VLLM_SERVER_DEV_MODE"] == "1"
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == env["HF_HUB_OFFLINE"] == "1"
    assert all(isinstance(value, str) for value in env.values())


@pytest.mark.parametrize(
    ("platform", "visible"),
    [
        ("cuda", {"CUDA_VISIBLE_DEVICES": "2,3"}),
        # vLLM on ROCm reads both and refuses to start when they differ.
        ("rocm", {"CUDA_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "2,3"}),
    ],
)
def test_an_instance_sees_its_own_gpus_only(platform, visible):
    env = instance_env(platform, devices=("2", "3"))
    assert {k: v for k, v in env.items() if k.endswith("VISIBLE_DEVICES")} == visible


def test_a_cpu_instance_has_one_thread():
    env = instance_env("cpu")
    assert env["OMP_NUM_THREADS"] == "1"
    assert not [name for name in env if name.endswith("VISIBLE_DEVICES")]


def test_rocm_gets_what_its_guide_asks_for():
    assert instance_env("rocm")["VLLM_ROCM_USE_AITER"] == "1"
    assert "VLLM_ROCM_USE_AITER" not in instance_env("cuda")


def test_the_program_is_the_one_of_this_environment():
    for platform in PLATFORMS:
        assert program(platform)[:2] == (sys.executable, "-m")
    assert program("cuda") == program("rocm")
    assert program("cuda")[-1] == "serve"


def test_the_number_format_follows_the_processor_unless_asked():
    assert number_format("auto", "cpu", fast_bf16=False) == "float32"
    assert number_format("auto", "cpu", fast_bf16=True) == ""
    assert number_format("auto", "cuda", fast_bf16=False) == ""
    assert number_format("bfloat16", "cpu", fast_bf16=False) == "bfloat16"
    assert " --dtype float32 " in argv("cpu", dtype="float32")
    assert "--dtype" not in argv("cpu")


def test_weights_in_float32_take_twice_their_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    half = EngineSettings(model=tmp_path, platform="cpu")
    assert half.weights_gb == 2**-10
    assert EngineSettings(model=tmp_path, platform="cpu", dtype="float32").weights_gb == 2**-9
