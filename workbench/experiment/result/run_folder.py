"""The folder of a run: written as an attempt, and moved up only when the run has succeeded.

    outputs/<notebook>/<run_id>/            the newest good result: result.json, *.parquet, logs/
    outputs/<notebook>/<run_id>/attempt-*   a run under way, or one that did not end well

A failed rerun never touches the result of an earlier one, and two at a time do not collide.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from workbench.experiment.result.frame_file import write_frame
from workbench.hardware.machine import repository_root
from workbench.load.files.trace_file import write_trace
from workbench.load.files.traces import Trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunFolder", "jsonable", "output_root"]


def output_root(output_dir: str) -> Path:
    """`output_dir` as a path: relative ones start at the repository's root, not where one stands.

    Papermill works in the shell's folder and JupyterLab in the notebook's.
    """
    return repository_root() / output_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """`home` is the run's folder, `attempt` the part of it that this process writes."""

    home: Path
    attempt: Path

    @classmethod
    def open(cls, output_dir: str, notebook: str, run_id: str) -> Self:
        home = output_root(output_dir) / notebook / run_id
        # Prompts are salted with this name: no two runs of a shared server may ever agree on it.
        own = f"{os.getpid()}-{secrets.token_hex(2)}"
        attempt = home / f"attempt-{time.strftime('%Y%m%d-%H%M%S')}-{own}"
        (attempt / "logs").mkdir(parents=True)
        return cls(home=home, attempt=attempt)

    @property
    def logs(self) -> Path:
        return self.attempt / "logs"

    def promote(self) -> None:
        """Make this attempt the run's result; result.json goes last, since it says success."""
        names = sorted(self.attempt.iterdir(), key=lambda path: path.name == "result.json")
        with open(self.home / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of one id may end at the same moment
            for path in names:
                target = self.home / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)
            self.attempt.rmdir()
            for stale in ("report.html", "run.ipynb"):  # they show the result that was replaced
                (self.home / stale).unlink(missing_ok=True)

    def write(self, name: str, frame: pd.DataFrame) -> None:
        """Save a frame as parquet, whole or not at all."""
        partial = self.attempt / f".{name}.partial"
        write_frame(partial, frame)
        os.replace(partial, self.attempt / f"{name}.parquet")

    def write_trace(self, arm: str, trace: Trace) -> None:
        """Save a pass as a file in the Mooncake format, `traces/ARM.jsonl`."""
        folder = self.attempt / "traces"
        folder.mkdir(exist_ok=True)
        write_trace(trace, folder / f"{re.sub(r'[^a-zA-Z0-9]+', '-', arm).strip('-')}.jsonl")

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        partial = self.attempt / ".result.partial"
        partial.write_text(json.dumps(jsonable(facts), indent=1, allow_nan=False) + "\n")
        os.replace(partial, self.attempt / "result.json")


def jsonable(value: Any) -> Any:
    """`value` with NaN and infinity as null, and paths and tuples as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, bool | int | str | type(None)):
        return value
    if hasattr(value, "item"):
        return jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
