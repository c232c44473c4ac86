"""A sweep with place ray, started on the first host of a cluster."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hosts.hosts import Cluster

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def sweep_line(cluster: Cluster, folder: Path, **changed: Any) -> list[str]:
    """The command of a small run on this cluster, as typed on its first host."""
    given = {
        "topology": "1p1d", "connector": "nixl", "opponents": False, "rounds": 1,
        "prompt_tokens": 2000, "requests": 2, "output_tokens": 8, "output_dir": folder,
        "place": "ray", "ray_address": cluster.ray_address, "spread": "spread",
    } | changed  # fmt: skip
    typed = [word for name, value in given.items() for word in ("-p", name, str(value))]
    return [sys.executable, "-m", "workbench.cli", "run", "pd_sweep", *typed]


def measured(cluster: Cluster, folder: Path, **changed: Any) -> Path:
    """The result file of such a run, which must have ended well."""
    line = [*cluster.head.inside, *sweep_line(cluster, folder, **changed)]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = folder.glob("pd_sweep/*/result.json")
    return file
