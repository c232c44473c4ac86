"""What a deployment in containers reads, writes and sees of the GPUs."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.fake_docker import FakeDocker
from workbench.hardware.images import image
from workbench.serve.checks.capacity import Capacity
from workbench.serve.connectors import connector
from workbench.serve.deployed import DeploymentPlan
from workbench.serve.deployment import launcher_for, plan_deployment
from workbench.serve.processes.containers import ContainerLauncher
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

NAME = "vllm/vllm-openai:v0.32.0"
CONFIG = json.dumps(
    {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 64, "vocab_size": 1024,
     "max_position_embeddings": 4096}
)  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSettings:
    docker = FakeDocker(tmp_path / "docker")
    docker.has(NAME)
    monkeypatch.setenv("PATH", docker.path, prepend=":")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    image.cache_clear()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(CONFIG)
    return EngineSettings(model=model, platform="cuda", image=image(NAME))


def planned(settings: EngineSettings, name: str = "lmcache", tp: int = 1) -> DeploymentPlan:
    return plan_deployment(
        Topology.parse("1p2d"), connector(name), settings, ports=count(20_000),
        tp=TensorParallel(prefill=tp), capacity=Capacity(devices=("0", "1", "2", "3")),
    )  # fmt: skip


def test_each_instance_sees_its_own_gpus_and_the_store_those_of_all(settings):
    seen = {p.name: p.devices for p in planned(settings, tp=2).processes}
    assert seen == {
        "store": ("0", "1", "2", "3"), "prefill-0": ("0", "1"), "decode-0": ("2",),
        "decode-1": ("3",), "proxy": (),
    }  # fmt: skip


def test_programs_are_those_of_the_image_but_for_the_proxy(settings):
    plan = planned(settings)
    for process in plan.processes:
        assert process.here is (process.role == "proxy")
        assert (process.program[0] == "python3") is not process.here
    assert f"in containers of {NAME} (docker 28.2.2)" in str(plan)
    # Packages of this environment are not for the image.
    assert all("PATH" not in p.env for p in plan.processes)


def test_the_model_is_read_with_the_files_that_its_links_lead_to(settings, tmp_path):
    # The cache of a hub keeps files apart and a folder of links for each version.
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "1f").write_text(CONFIG)
    (settings.model / "config.json").unlink()
    (settings.model / "config.json").symlink_to("../blobs/1f")
    (instance, *_) = planned(settings).instances
    assert set(instance.reads) >= {str(settings.model), str(blobs)}
    assert instance.writes == (instance.env["VLLM_CACHE_ROOT"],)
    assert instance.env["HF_HUB_OFFLINE"] == "1"


def test_a_model_of_a_hub_uses_the_cache_of_this_machine(settings, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/caches/hub")
    (instance, *_) = planned(replace(settings, model=Path("Qwen/Qwen2.5-7B"))).instances
    assert "/caches/hub" in instance.writes and instance.env["HF_HOME"] == "/caches/hub"
    assert "HF_HUB_OFFLINE" not in instance.env


def test_on_a_cpu_nothing_is_compiled_and_nothing_kept(settings):
    (instance, *_) = planned(replace(settings, platform="cpu")).instances
    assert instance.writes == () and instance.devices == ()
    assert isinstance(
        launcher_for(replace(settings, platform="cpu"), Path("logs")), ContainerLauncher
    )
