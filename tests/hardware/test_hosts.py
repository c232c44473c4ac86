"""What is asked of hosts before anything starts, without Ray."""

import sys

import pytest

from tests.clusters import cluster, host
from workbench.errors import PlanError
from workbench.hardware import hosts
from workbench.hardware.hosts import connected, differences, digest

PACKAGES = {"vllm": "0.32.0", "torch": "2.13.0"}


def alike(*given, model="/"):
    hosts._check_alike(cluster(*given), "/opt/bin/python", model)


def test_hosts_that_are_alike_have_no_doubts():
    made = cluster(host(1), host(2))
    alike(*made.hosts)
    assert differences(made) == []


def test_another_processor_is_a_doubt_and_another_vllm_an_error():
    one, other = host(1, versions=PACKAGES), host(2, versions=PACKAGES, cores=16)
    alike(one, other)
    assert differences(cluster(one, other)) == ["Hosts differ in cores: host-1 8, host-2 16."]
    torch = host(2, versions=PACKAGES | {"torch": "2.12.0"})
    assert differences(cluster(one, torch)) == [
        "Hosts differ in torch: host-1 2.13.0, host-2 2.12.0."
    ]
    old = host(2, versions=PACKAGES | {"vllm": "0.31.0"})
    with pytest.raises(PlanError, match=r"same vllm on all hosts, got 0.32.0 on host-1 and 0.31.0"):
        alike(one, old)
    store = PACKAGES | {"mooncake": "0.3.11"}
    with pytest.raises(PlanError, match=r"Install mooncake 0.3.11 on host-1"):
        alike(one, host(2, versions=store))


def test_the_model_must_be_on_each_host():
    with pytest.raises(PlanError, match=r"no model at / on host-2 \(10.0.0.2\).* rsync"):
        alike(host(1), host(2, model=""))
    with pytest.raises(PlanError, match="another model at / on host-2"):
        alike(host(1), host(2, model="2e"))
    alike(host(1), host(2, model=""), model="Qwen/Qwen2.5-7B")  # a hub's, which each host fetches


def test_another_python_is_an_error():
    with pytest.raises(PlanError, match=r"the same Python version .* host-2 3.12"):
        alike(host(1, python="3.11.7"), host(2, python="3.12.1"))


def test_a_model_is_known_by_its_files(tmp_path):
    assert digest(tmp_path / "none") == ""
    (tmp_path / "config.json").write_text("{}")
    first = digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert len({first, digest(tmp_path), ""}) == 3


def test_without_ray_the_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PlanError, match=r"make setup RAY=1, or pip install -e .*\[ray\]"):
        with connected("auto"):
            pass
