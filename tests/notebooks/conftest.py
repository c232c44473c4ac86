"""Run notebooks by papermill's own command line, as a user types it."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.hardware.machine import repository_root

BIN = Path(sys.executable).parent

Done = subprocess.CompletedProcess[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "notebooks" in Path(item.path).parts:
            item.add_marker(pytest.mark.engine)


@pytest.fixture
def clean_env(token: str) -> dict[str, str]:
    """The environment of a shell in which the virtual environment is active, with the mark."""
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def typed(clean_env: dict[str, str], nothing_left: str) -> Callable[..., Done]:
    """Runs a command line in the repository's root, as a user types it."""

    def run(line: str, *, timeout_s: float = 280) -> Done:
        return subprocess.run(
            shlex.split(line), cwd=repository_root(), env=clean_env, text=True,
            capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def papermill(tmp_path: Path, typed: Callable[..., Done]) -> Callable[..., Done]:
    """`papermill notebooks/NAME.ipynb out.ipynb ARGUMENTS`."""
    folder = f"{tmp_path}/out.ipynb -p output_dir {tmp_path}"
    return lambda name, arguments="": typed(
        f"papermill notebooks/{name}.ipynb {folder} {arguments}"
    )


@pytest.fixture
def found(tmp_path: Path, papermill: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """What the result.json of a notebook says, which must succeed with these arguments."""

    def run(name: str, arguments: str = "") -> dict[str, Any]:
        done = papermill(name, arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        results = (tmp_path / name).glob("*/result.json")
        facts: dict[str, Any] = json.loads(max(results, key=os.path.getmtime).read_text())
        return facts

    return run
