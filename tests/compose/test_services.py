"""Services are the processes of the plan, with nothing that listens beyond this machine."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import workbench
from workbench.compose.profiles import compose_params, profiles_of
from workbench.compose.services import PROXY_FILE

KINDS = [
    {"topology": topology, "connector": connector, "platform": platform}
    for platform in ("cpu", "cuda", "rocm")
    for topology, connectors in {
        "1a": ("none", "lmcache", "mooncake-store", "offload"),
        "2p4d": ("lmcache", "nixl", "mooncake", "mooncake-store"),
    }.items()
    for connector in connectors
] + [{"topology": "1a", "connector": "lmcache-inprocess", "platform": "cuda"}]
TIERS = [
    {"topology": "1p1d", "connector": "lmcache", "platform": platform, "store_tiers": tiers}
    for platform, tiers in (("cpu", "memory,disk,redis"), ("cuda", "memory,mooncake"))
]


@pytest.mark.parametrize("given", KINDS + TIERS, ids=lambda given: "-".join(given.values()))
def test_services_have_the_command_lines_of_the_plan_in_its_order(given, read):
    services = read(**given)
    for profile in profiles_of(compose_params({"image": "my/vllm:1", **given})):
        for process in profile.plan.processes:
            service = services[profile.service(process.name)]
            assert service["command"] == [*process.args]
            assert service["profiles"] == [profile.name]
            if not process.here:
                assert service["entrypoint"] == [*process.program]
                assert service["image"] == "my/vllm:1"
            for variable in process.env.keys() - {"CUDA_VISIBLE_DEVICES"}:
                assert service["environment"][variable] == process.env[variable]
            if process.ready_url.startswith("http"):
                assert process.ready_url in service["healthcheck"]["test"][-1]
            waits = service.get("depends_on", {})  # Redis waits for nothing
            earlier = {"tier": (), "store": ("tier",), "proxy": ("prefill", "decode", "aggregated")}
            before = earlier.get(process.role, ("store",))
            named = {profile.service(p.name) for p in profile.plan.processes if p.role in before}
            healthy = {n for n, wait in waits.items() if wait["condition"] == "service_healthy"}
            assert healthy == named


@pytest.mark.parametrize("given", KINDS + TIERS, ids=lambda given: "-".join(given.values()))
def test_nothing_listens_beyond_loopback_and_no_socket_is_mounted(given, written, read):
    text = written(**given)
    assert (
        "0.0.0.0" not in text
        and "ports:" not in text
        and ".sock" not in text
        and "privileged" not in text
    )
    for service in read(**given).values():
        assert service["network_mode"] in ("host", "none")
        assert "ports" not in service
        said = " ".join(service["command"])
        if "--port" in service["command"] and "--mode" not in service["command"]:
            assert "127.0.0.1" in said
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", text)) == {"127.0.0.1"}


def test_a_cuda_instance_has_its_own_gpus_and_the_store_those_of_all(read):
    def ids(service):
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"] and device["driver"] == "nvidia"
        return device["device_ids"]

    services = read(topology="1p1d", platform="cuda", prefill_tp=2, opponents=False)
    assert ids(services["prefill-0"]) == ["0", "1"]
    assert ids(services["decode-0"]) == ["2"]
    assert ids(services["store"]) == ["0", "1", "2"]
    assert "CUDA_VISIBLE_DEVICES" not in services["prefill-0"]["environment"]
    assert "deploy" not in services["proxy"]


def test_one_instance_on_rocm_has_what_its_guides_ask_for(read):
    """The single-instance file that people write by hand."""
    services = read(
        topology="1a", connector="none", platform="rocm", engine_args="--max-num-seqs 64",
        engine_env="NCCL_DEBUG=INFO",
    )  # fmt: skip
    assert {*services} == {"shared-memory", "aggregated-0"}
    one = services["aggregated-0"]
    assert one["devices"] == ["/dev/kfd", "/dev/dri"]
    assert one["group_add"][0] == "video"
    assert one["cap_add"] == ["SYS_PTRACE"]
    assert "seccomp=unconfined" in one["security_opt"]
    assert one["environment"]["HIP_VISIBLE_DEVICES"] == "0"
    assert one["environment"]["NCCL_DEBUG"] == "INFO"
    assert one["command"][-2:] == ["--max-num-seqs", "64"]
    assert one["ipc"] == "service:shared-memory"


def test_shared_memory_is_one_for_each_profile(read):
    services = read(topology="1p1d", connector="lmcache")
    memories = {
        service["profiles"][0]: service["ipc"].partition(":")[2]
        for service in services.values()
        if service.get("ipc", "").startswith("service:")
    }
    assert len({*memories.values()}) == len(memories) == 3
    for memory in memories.values():
        assert services[memory]["ipc"] == "shareable"


def test_a_tier_on_a_disk_is_a_volume_of_the_file(written):
    text = written(topology="1p1d", connector="lmcache", store_tiers="memory,disk", opponents=False)
    content = yaml.safe_load(text)
    disk = {"type": "volume", "source": "disaggregated-disk", "target": "/kv-disk"}
    assert disk in content["services"]["store"]["volumes"]
    assert content["volumes"] == {"disaggregated-disk": {}, "prometheus": {}}


def test_a_model_may_be_in_a_folder_whose_name_has_a_colon(written, compose, model, tmp_path):
    folder = tmp_path / "models:2 $x"
    model.rename(folder)
    text = written(topology="1a", connector="none", model=str(folder))
    shown = compose(text, "--profile", "aggregated", "config")
    assert shown.returncode == 0, shown.stderr
    mounts = yaml.safe_load(shown.stdout)["services"]["aggregated-0"]["volumes"]
    (mount,) = [one for one in mounts if "models:2" in one["source"]]
    assert mount["source"] == mount["target"] == str(folder).replace("$", "$$")
    assert mount["read_only"]
    # With it, Compose hands `source:target` to Docker.
    assert not mount["bind"].get("create_host_path")


def test_a_token_of_the_hub_is_passed_on_and_never_written(written, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    given = {"topology": "1a", "connector": "none", "platform": "cuda"}
    text = written(**given, model="Qwen/Qwen2.5-7B-Instruct")
    assert "HF_TOKEN: ${HF_TOKEN:-}" in text and "hf_secret" not in text
    assert "HF_TOKEN" not in written(**given)  # a folder needs none


def test_a_dollar_stays_a_dollar(written, compose):
    text = written(topology="1a", connector="none", engine_env="A=$HOME/x")
    assert "A: $$HOME/x" in text
    shown = compose(text, "--profile", "aggregated", "config", HOME="/root")
    assert "A: $$HOME/x" in shown.stdout  # as config writes one


def test_the_proxys_image_has_what_it_imports_and_no_more(tmp_path: Path):
    package = Path(workbench.__file__).parent
    installed = (package / PROXY_FILE).read_text()
    (line,) = re.findall(r"pip install .*--target \S+ (.*)", installed)
    code = f"""
import sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name in {OTHERS!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Only())
import workbench.serve.proxy.proxy
print(sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
    )  # fmt: skip
    loaded = set(ast.literal_eval(done.stdout))
    assert set(line.split()) <= loaded


OTHERS = (
    "numpy", "pandas", "psutil", "yaml", "httpx", "redis", "torch", "vllm", "pydantic", "scipy",
    "pyarrow", "matplotlib", "nbformat", "papermill", "jinja2",
)  # fmt: skip
"""Packages that the image lacks."""
