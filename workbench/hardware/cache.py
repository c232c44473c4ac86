"""The folder for what is made, measured or asked once on a machine."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.errors import PlanError


def cache_folder() -> Path:
    """Of the tiny model, this machine's measured speed, and what interpreters answered."""
    if own := os.environ.get("WORKBENCH_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "workbench"


def not_writable(folder: Path, error: OSError) -> PlanError:
    """The error for a cache folder that cannot be written."""
    return PlanError(
        f"WORKBENCH_CACHE in the environment must be a writable folder with 30 MB free, got"
        f" {folder}: {error} (example: export WORKBENCH_CACHE=/tmp/workbench)"
    )
