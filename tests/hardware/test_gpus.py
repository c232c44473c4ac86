from __future__ import annotations

import json
from math import isnan

import pytest

from workbench.hardware import gpus

NVIDIA = """0, NVIDIA H200, 143771, 143000, 580.65.06
1, NVIDIA H200, 143771, [N/A], 580.65.06
"""
MEMORY = {"VRAM Total Memory (B)": str(256 * 2**30), "VRAM Total Used Memory (B)": str(2**30)}
ROCM = {
    "card0": {"Card Series": "AMD Instinct MI325X"} | MEMORY,
    "card1": {"Card Series": "AMD Instinct MI325X"},
    "system": {"Driver version": "6.10.5"},
}
AMD_GPU = {
    "gpu": 0,
    "asic": {"market_name": "AMD Instinct MI300X"},
    "driver": {"version": "6.14.1"},
    "vram": {"size": {"value": 196608, "unit": "MB"}},
}


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Put a tool of that name, which prints that text, alone on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str, text: str, status: int = 0) -> None:
        (tmp_path / f"{name}.txt").write_text(text)
        script = tmp_path / name
        script.write_text(
            f"#!/bin/sh\nwhile IFS= read -r line; do echo \"$line\"; done < '{tmp_path}/{name}.txt'"
            f"\nexit {status}\n"
        )
        script.chmod(0o755)

    return put


def test_no_tool_is_a_cpu(tool):
    assert gpus.find() == ((), "cpu")


def test_nvidia_smi_makes_it_cuda(tool):
    tool("nvidia-smi", NVIDIA)
    found, platform = gpus.find()
    assert platform == "cuda"
    assert [gpu.index for gpu in found] == [0, 1]
    assert {(gpu.name, gpu.driver) for gpu in found} == {("NVIDIA H200", "580.65.06")}
    assert found[0].memory_gb == pytest.approx(140.4, abs=0.01)
    assert found[0].memory_free_gb == pytest.approx(139.6, abs=0.1)
    assert isnan(found[1].memory_free_gb)


def test_rocm_smi_makes_it_rocm(tool):
    tool("rocm-smi", json.dumps(ROCM) + "\n")
    found, platform = gpus.find()
    assert platform == "rocm"
    assert found[0] == gpus.Gpu(
        index=0, name="AMD Instinct MI325X", memory_gb=256, memory_free_gb=255, driver="6.10.5"
    )
    assert isnan(found[1].memory_gb)


@pytest.mark.parametrize("printed", [[AMD_GPU], {"gpu_data": [AMD_GPU]}])
def test_amd_smi_is_read_in_both_of_its_shapes(tool, printed):
    tool("amd-smi", json.dumps(printed) + "\n")
    (gpu,), platform = gpus.find()
    assert platform == "rocm"
    assert (gpu.name, gpu.memory_gb, gpu.driver) == ("AMD Instinct MI300X", 192, "6.14.1")
    assert isnan(gpu.memory_free_gb)


@pytest.mark.parametrize(
    ("name", "text", "status"),
    [
        ("nvidia-smi", "No devices were found\n", 6),
        ("nvidia-smi", "something new\n", 0),
        ("rocm-smi", "WARNING: No JSON data to report\n", 0),
        ("rocm-smi", '["a list"]\n', 0),
        ("amd-smi", '{"error": "no driver"}\n', 0),
        ("amd-smi", '["a word"]\n', 0),
    ],
)
def test_a_tool_that_finds_nothing_or_speaks_otherwise_is_a_cpu(tool, name, text, status):
    tool(name, text, status)
    assert gpus.find() == ((), "cpu")


def test_a_tool_that_hangs_is_given_up(tool, tmp_path):
    tool("nvidia-smi", NVIDIA)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nread forever < /dev/zero\n")
    assert gpus.find(timeout_s=0.05) == ((), "cpu")
