"""The workbench in an environment of its own, made here by pip, and vLLM in another: this one."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.runs import outcomes
from workbench.hardware.interpreter import ENGINE_PACKAGES, interpreter
from workbench.hardware.machine import repository_root

pytestmark = [pytest.mark.apart, pytest.mark.engine, pytest.mark.timeout(1200)]

SMALL = {
    "topology": "1p1d", "opponents": False, "rounds": 1, "requests": 2, "prompt_tokens": 2000,
    "output_tokens": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment after `pip install -e .`, and nothing else."""
    home = tmp_path_factory.mktemp("own")
    venv.create(home, symlinks=True, with_pip=True)
    python = home / "bin" / "python"
    done = typed(python, "-m", "pip", "install", "--quiet", "-e", ".")
    assert done.returncode == 0, done.stderr[-3000:]
    return python


def typed(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root, without what finds our own packages."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in words], cwd=repository_root(), env=env, text=True,
        capture_output=True, timeout=900, check=False,
    )  # fmt: skip


def run(own: Path, notebook: str, folder: Path, **params: Any) -> dict[str, Any]:
    """What the result.json of `workbench run` says."""
    given = [word for name, value in params.items() for word in ("-p", name, str(value))]
    program = own.with_name("workbench")
    done = typed(program, "run", notebook, *given, "-p", "output_dir", folder)
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    (file,) = (folder / notebook).glob("*/result.json")
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def test_a_sweep_measures_a_vllm_that_its_own_environment_does_not_have(own, tmp_path):
    there = interpreter(str(own))
    assert there.versions == {} and not any(map(there.find, ENGINE_PACKAGES))
    facts = run(own, "pd_sweep", tmp_path, **SMALL, engine_python=sys.executable)
    assert facts["status"] == "success"
    versions = facts["machine"]["versions"]
    assert interpreter().versions.items() <= versions.items()
    assert facts["machine"]["engine_python"] == interpreter().python
    found = outcomes(facts)
    assert found["the ledger closes"] == "PASS"
    assert {name for name, outcome in found.items() if outcome == "FAIL"} <= {"client kept up"}


def test_without_a_vllm_claims_are_read_and_the_rest_says_why_not(own, tmp_path):
    facts = run(own, "paper_claim_validation", tmp_path, claims="OWN-PAGED,VLLM-WASTE,VLLM-APC")
    reasons = json.dumps(facts["claims"])
    assert facts["status"] == "success"
    assert "needs torch" in reasons and "needs vllm" in reasons and "engine_python" in reasons


def test_without_a_vllm_a_sweep_is_refused_with_the_way_out(own):
    done = typed(own.with_name("workbench"), "run", "pd_sweep")
    assert done.returncode == 2
    assert "(example: -p engine_python /opt/vllm/bin/python)" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and "starting the notebook" not in done.stdout
