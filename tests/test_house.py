"""The package as a house: what import-linter cannot say of its rooms."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import workbench

HOUSE = Path(workbench.__file__).parent
ROOMS = sorted(init.parent for init in HOUSE.rglob("__init__.py"))

TWICE = {
    "cache_size": "report/figures draws it",
    "claims": "report/figures draws them",
    "loads": "report/figures draws them",
    "panels": "report/figures draws them",
    "rules": "monitoring has those of Prometheus, params those of parameters",
    "waterfall": "report/figures draws it",
    "working_sets": "report/figures draws their sweep",
}
"""Why the name of a module stands in more than one room."""

FULL = {
    "report/figures": "one module for each figure",
    "": "the ground floor and the roof",
}
"""Why a room has more than about a dozen entries."""


def test_no_two_modules_have_one_name_without_a_reason():
    found = defaultdict(list)
    for file in HOUSE.rglob("*.py"):
        found[file.stem].append(str(file.relative_to(HOUSE)))
    shared = {name: files for name, files in found.items() if len(files) > 1}
    assert {n: files for n, files in shared.items() if n not in TWICE | {"__init__": ""}} == {}
    assert TWICE.keys() - shared.keys() == set()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(HOUSE)))
def test_a_room_says_in_three_sentences_what_lives_there_and_can_be_surveyed(room):
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert 1 <= len(re.findall(r"[.?!](?:\s|$)", said)) <= 3
    inside = [path for path in room.iterdir() if path.suffix == ".py" or path in ROOMS]
    if room.relative_to(HOUSE).as_posix().removeprefix(".") not in FULL:
        assert len(inside) - 1 <= 13
