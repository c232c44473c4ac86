"""benchmarks/gpu.sh keeps what each step ended with, whatever the others do. Nothing real runs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest

from workbench.params.notebooks import NOTEBOOKS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
NVIDIA_SMI = """#!/bin/sh
echo "0, NVIDIA H200, 143771, 143000, 575.57.08"
"""

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def gpu(tmp_path):
    """Runs the script with these variables; a stub of nvidia-smi says that there is an H200."""
    program(tmp_path / "bin" / "nvidia-smi", NVIDIA_SMI)

    def run(**variables: str) -> tuple[int, dict[str, list[str]], str]:
        given = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, **variables}
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(SCRIPT)], env=os.environ | given | {"PATH": path},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        steps = tmp_path / "out" / "steps.txt"
        rows = steps.read_text().splitlines()[1:] if steps.is_file() else []
        return done.returncode, {(row := line.split())[0]: row[1:] for line in rows}, done.stderr

    return run


@pytest.fixture
def stub(tmp_path):
    """A Python that writes down what it was asked to run, fails for nixl and is slow for hits."""
    return program(
        tmp_path / "python",
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/asked
case "$*" in
    *nixl*) echo "no NIXL here"; exit 3;;
    *lmcache_hit_analysis*) exec sleep 60;;
esac
echo measured
""",
    )


def test_each_step_runs_whatever_the_one_before_ended_with(gpu, stub, tmp_path):
    status, steps, _ = gpu(PYTHON=str(stub), MODEL="/models/7b", TOTAL_S="40", HITS_S="2")
    assert status == 1
    ended = {name: row[0] for name, row in steps.items()}
    assert ended == {
        "plans": "0", "environment": "0", "prefix": "0", "lmcache": "0", "nixl": "3",
        "hits": "124", "inprocess": "0", "kernels": "0",
    }  # fmt: skip
    assert (tmp_path / "out" / "logs" / "nixl.log").read_text() == "no NIXL here\n"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "-m workbench.cli index --output-dir" in asked[-1]
    (lmcache,) = (line for line in asked if "connector lmcache " in f"{line} ")
    assert "-p model /models/7b" in lmcache and "-p instances_per_gpu 2" in lmcache
    assert "dummy" not in lmcache  # weights of your own are loaded


def test_each_step_names_parameters_that_its_notebook_has(gpu, stub, tmp_path):
    gpu(PYTHON=str(stub), MODEL="/models/7b", TOTAL_S="40", HITS_S="2")
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    runs = [words[words.index("run") :] for words in asked if "run" in words]
    assert len(runs) == 7
    for _, notebook, *words in runs:
        given = {name for option, name in pairwise(words) if option == "-p"}
        known = {field.name for field in fields(NOTEBOOKS[notebook])}
        assert given and given <= known, notebook


def test_steps_without_time_are_named(gpu, stub):
    status, steps, _ = gpu(PYTHON=str(stub), MODEL="/models/7b", TOTAL_S="5")
    assert status == 1
    assert {row[0] for row in steps.values()} == {"-"}
    assert {" ".join(row[2:]) for row in steps.values()} == {"no time left"}


def test_a_wrong_rehearsal_is_refused_with_what_is_allowed(gpu):
    status, steps, error = gpu(REHEARSE="gpu")
    assert (status, steps) == (2, {})
    assert error == "REHEARSE must be cpu or simulated, got 'gpu' (example: REHEARSE=cpu)\n"


@pytest.mark.servers
def test_the_steps_on_simulated_servers_end_in_one_page(gpu, tmp_path):
    status, steps, _ = gpu(REHEARSE="simulated", STEPS="plans lmcache hits")
    assert {name: row[0] for name, row in steps.items()} == {
        "plans": "0", "lmcache": "0", "hits": "2"
    }  # fmt: skip
    assert status == 1  # the simulated engine has no tiers for the hit analysis
    plans = (tmp_path / "out" / "logs" / "plans.log").read_text()
    assert "--gpu-memory-utilization 0.45" in plans and "NixlConnector" in plans
    page = (tmp_path / "out" / "index.html").read_text()
    assert "1p1d" in page
