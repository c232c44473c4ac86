"""The partial result of a run that is under way or was interrupted, as a folder of its own.

The run continues while this folder is read, so the folder has copies of the rows that the findings
so far are based on.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from workbench.errors import ResultError
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result import FRAMES
from workbench.experiment.result.result_file import read_facts
from workbench.experiment.result.run_folder import SO_FAR, read_frame, write_frame


def attempts_of(run_folder: Path) -> list[tuple[Path, RunFacts]]:
    """The attempts in a run's folder (or the one given) with their facts, newest first."""
    own = run_folder.name.startswith("attempt-")
    found = []
    for attempt in [run_folder] if own else sorted(run_folder.glob("attempt-*"), reverse=True):
        with suppress(ResultError):
            found.append((attempt, read_facts(attempt / "result.json")))
    return found


def result_so_far(run_folder: Path) -> Path:
    """Copy the newest partial result of a run into the folder `so-far` of its attempt.

    Raises ResultError if nothing has been found yet.
    """
    import pandas as pd

    attempts = attempts_of(run_folder)
    attempt, facts = next(((a, f) for a, f in attempts if f.pass_times), (None, None))
    if attempt is None or facts is None:
        raise ResultError(_nothing(run_folder, attempts))
    target = attempt / SO_FAR
    fresh = attempt / f".{SO_FAR}-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    shutil.copy(attempt / "result.json", fresh)
    measured = [(one.arm, one.round, one.pass_name) for one in facts.pass_times]
    for name in FRAMES:
        path = attempt / f"{name}.parquet"
        if path.exists():
            rows = read_frame(path, whole=True)
            if len(rows):  # without a proxy there are no legs, and no columns
                keys = pd.MultiIndex.from_frame(rows[["arm", "round", "pass"]])
                rows = rows[keys.isin(measured)]
            write_frame(fresh / path.name, rows)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)
    return target


def _nothing(run_folder: Path, attempts: list[tuple[Path, RunFacts]]) -> str:
    if attempts:
        launches = attempts[0][1].launches
        of = f" from its {launches.planned} launches" if launches else ""
        return (
            f"{run_folder} has no findings{of} yet; see what the run does now (example: workbench"
            " status)"
        )
    if (run_folder / "result.json").is_file():
        return (
            f"{run_folder} is a finished run, not a partial one; render its notebook"
            f" (example: workbench report {run_folder / 'run.ipynb'})"
        )
    return (
        f"{run_folder} must be the folder of an unfinished run (example: workbench report"
        " outputs/pd_sweep/RUN_ID --partial)"
    )
