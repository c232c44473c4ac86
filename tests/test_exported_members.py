import json
import subprocess
import sys

import pytest

import workbench

HEAVY = ("pandas", "numpy", "torch", "vllm", "aiohttp", "matplotlib", "papermill")
IMPORT = "import json, sys, workbench; print(json.dumps(sorted(sys.modules)))"


@pytest.mark.parametrize("name", workbench.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(workbench, name) is not None


def test_the_names_that_notebooks_complete_are_the_exported_ones():
    assert dir(workbench) == workbench.__all__ == sorted(workbench.__all__)


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'workbench' has no attribute 'run_all'"):
        _ = workbench.run_all


def test_importing_loads_nothing_heavy():
    """That it takes under 0.3 s is measured by benchmarks/imports.py."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True)
    modules = json.loads(done.stdout)
    assert [name for name in HEAVY if name in modules] == []
    assert [name for name in modules if name.startswith("workbench")] == ["workbench"]
