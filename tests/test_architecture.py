"""docs/architecture.md is true: its functions exist, its ways are short, its examples work."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text()
WAYS = dict(re.findall(r"\*\*(.+?)\.\*\* .*\n\n((?:\|.*\n)+)", PAGE))
NAMED = [
    (file, name)
    for file, names in re.findall(r"`([\w/]+\.py)` ((?:`[\w.]+`(?:, )?)+)", PAGE)
    for name in re.findall(r"`([\w.]+)`", names)
]

USES = {
    "connector": """
from workbench.experiment.plan.arms import plan
from workbench.params.notebooks import check_params
values = {"connector": "p2p-nccl", "topology": "1p1d", "engine": "simulated"}
arm = plan(check_params("pd_sweep", values)).arms[0]
assert arm.label == "1p1d p2p-nccl"
assert "P2pNcclConnector" in str(arm.deployment(range(20000, 20100)))
""",
    "workload": """
from workbench.experiment.plan.arms import plan
from workbench.params.notebooks import check_params
values = {"workload": "twins", "topology": "1a", "connector": "none", "engine": "simulated"}
requests = plan(check_params("pd_sweep", values | {"requests": 2})).workload.sample.requests
assert [r.ideal_reuse_tokens for r in requests] == [0, requests[0].prompt_tokens - 1]
""",
    "gate": """
import pandas as pd
from workbench.metrics.gates.response_gates import nothing_empty
from workbench.metrics.gates.gate_effects import taken_away
gate = nothing_empty(pd.DataFrame({"error": ["", "", "reset"], "text": ["a", "", ""]}))
assert (gate.outcome, gate.sentence) == ("FAIL", "1 of 2 responses have no text")
assert taken_away(gate.name) == "do not use the text comparison"
""",
    "notebook": """
import nbformat
from workbench.experiment.plan.arms import plan
from workbench.params.notebooks import check_params
nbformat.validate(nbformat.read("notebooks/store_gain.ipynb", as_version=4))
made = plan(check_params("store_gain", {"engine": "simulated"}))
assert [p.name for p in made.arms[0].passes] == ["cold", "engine-warm", "store-warm"]
""",
}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: part)
def test_what_the_page_names_is_there(file, name):
    body = ast.parse((ROOT / "workbench" / file).read_text()).body
    for part in name.split("."):
        found = {
            target.id if isinstance(target, ast.Name) else getattr(node, "name", ""): node
            for node in body
            for target in (node.targets if isinstance(node, ast.Assign) else [node])
        }
        assert part in found, f"{file} has no {name}; docs/architecture.md names it"
        body = getattr(found[part], "body", [])


@pytest.mark.parametrize("way", WAYS)
def test_a_way_goes_through_at_most_eight_files(way):
    files = re.findall(r"`([\w/]+\.py)`", WAYS[way])
    assert 1 < len(files) == len(set(files)) <= 8


def test_all_four_ways_are_there():
    assert len(WAYS) == 4
    assert len(NAMED) > 30


@pytest.mark.parametrize("example", USES)
def test_an_example_applies_and_works(example, tmp_path):
    for part in ("workbench", "notebooks"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    diff = ROOT / "docs/examples" / f"{example}.diff"
    applied = subprocess.run(
        ["git", "apply", diff], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert applied.returncode == 0, f"{diff.name} does not fit the code any more: {applied.stderr}"
    done = subprocess.run(
        [sys.executable, "-c", USES[example]],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
