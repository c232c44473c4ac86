import json
import subprocess
import sys

import pytest

import workbench

HEAVY = ("pandas", "numpy", "torch", "vllm", "aiohttp", "matplotlib", "papermill")
IMPORT = """
import json, sys, time
began_s = time.perf_counter()
import workbench
print(json.dumps([time.perf_counter() - began_s, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("name", workbench.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(workbench, name) is not None


def test_the_names_that_notebooks_complete_are_the_exported_ones():
    assert dir(workbench) == workbench.__all__ == sorted(workbench.__all__)


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'workbench' has no attribute 'run_all'"):
        _ = workbench.run_all


def test_importing_takes_under_a_third_of_a_second_and_loads_nothing_heavy():
    seconds = []
    for _ in range(3):  # the best of three: the first may read from a cold disk
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True)
        took_s, modules = json.loads(done.stdout)
        seconds.append(took_s)
    assert min(seconds) < 0.3
    assert [name for name in HEAVY if name in modules] == []
