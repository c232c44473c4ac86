"""Run notebooks by papermill's own command line, as a user types it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.hardware.machine import repository_root

BIN = Path(sys.executable).parent
TOKEN = "WORKBENCH_TEST_TOKEN"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "notebooks" in Path(item.path).parts:
            item.add_marker(pytest.mark.engine)


@pytest.fixture
def clean_env(token: str) -> dict[str, str]:
    """The environment of a shell in which the virtual environment is active, with the mark."""
    assert os.environ[TOKEN] == token
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def papermill(
    tmp_path: Path, clean_env: dict[str, str], nothing_left: str
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`papermill notebooks/NAME.ipynb out.ipynb ARGS` from the repository's root."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["papermill", f"notebooks/{name}.ipynb", str(tmp_path / "out.ipynb"),
             "-p", "output_dir", str(tmp_path), *arguments],
            cwd=repository_root(), env=clean_env, text=True, capture_output=True, timeout=280,
            check=False,
        )  # fmt: skip

    return run


def only_result(folder: Path, notebook: str) -> dict[str, Any]:
    (path,) = (folder / notebook).glob("*/result.json")
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


@pytest.fixture
def result_of(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """The result.json of the only run of a notebook in this test's folder."""
    return lambda notebook: only_result(tmp_path, notebook)
