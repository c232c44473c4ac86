"""What a form plans and runs: the same calls as the cells of each notebook."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.claims.validation.validation import validate
from workbench.experiment.environment import check_environment
from workbench.experiment.hits.hit_analysis import hit_analysis
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import output_root
from workbench.experiment.run.progress import Standing, read_standing
from workbench.experiment.run.run_log import Echo, OnRecord
from workbench.metrics.latency import latencies
from workbench.params.notebooks import (
    EngineParams,
    EnvironmentCheck,
    LMCacheHitAnalysis,
    PaperClaimValidation,
)
from workbench.params.run_id import run_id
from workbench.records import RequestRecord, to_frame
from workbench.whatif.profiled_run import profile_plan, run_and_predict

if TYPE_CHECKING:
    import pandas as pd

_TAIL_BYTES = 4096
_MOST_LOGS = 8


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan as text, and how to run it."""

    text: str
    start: Callable[[Echo, OnRecord], Awaitable[Result]]


def planned(params: EngineParams | EnvironmentCheck) -> Planned:
    """The plan of checked parameters; starts nothing. Raises PlanError as the notebook does."""
    if isinstance(params, EnvironmentCheck):
        smoke = " and runs a short real 1p1d deployment" if params.smoke else ""
        return Planned(
            f"Checks versions, memory, ports and other programs{smoke}.",
            lambda echo, _: check_environment(params, echo=echo),
        )
    if isinstance(params, PaperClaimValidation):
        validation = validate(params)
        return Planned(str(validation), lambda echo, _: validation.run(echo=echo))
    if isinstance(params, LMCacheHitAnalysis):
        analysis = hit_analysis(params)
        return Planned(str(analysis), lambda echo, on: analysis.run(echo=echo, on_record=on))
    made = plan(params)
    profiling = profile_plan(made)
    return Planned(
        "\n\n".join(str(one) for one in (made, profiling) if one),
        lambda echo, on: run_and_predict(made, echo=echo, on_record=on),
    )


@dataclass(slots=True)
class Seen:
    """What a run has reported so far; `record` is called by the thread that drives the load."""

    lines: list[str] = field(default_factory=list)
    standing: Standing | None = None
    _new: list[tuple[RequestRecord, Mapping[str, Any]]] = field(default_factory=list)

    def echo(self, line: str) -> None:
        """Take a line that the run prints."""
        text, standing = read_standing(line)
        self.lines.append(text)
        self.standing = standing or self.standing

    def record(self, record: RequestRecord, columns: Mapping[str, Any]) -> None:
        """Take a request that has ended."""
        self._new.append((record, columns))

    def taken(self) -> pd.DataFrame:
        """The requests that ended since the last call, with their latencies."""
        import pandas as pd

        new, self._new = self._new, []
        parts: dict[int, tuple[Mapping[str, Any], list[RequestRecord]]] = {}
        for record, columns in new:
            parts.setdefault(id(columns), (columns, []))[1].append(record)
        frames = [latencies(to_frame(each, **columns)) for columns, each in parts.values()]
        return pd.concat(frames, ignore_index=True) if frames else to_frame(())


def logs_folder(notebook: str, params: EngineParams | EnvironmentCheck) -> Path:
    """Where the logs of a run of these parameters will be."""
    root = output_root(params.output_dir)
    if isinstance(params, EngineParams):
        return root / notebook / run_id(params)
    return root / ".smoke"


def last_log_lines(folder: Path, *, since_s: float) -> list[tuple[str, str]]:
    """Each server (`arm/name`) and the last line of its newest log, if written since (epoch)."""
    found = []
    for path in folder.rglob("*.log"):
        try:
            written_s = path.stat().st_mtime
        except OSError:  # moved to its place at the end of the run
            continue
        if written_s >= since_s:
            found.append((written_s, path))
    newest: dict[str, Path] = {}
    for _, path in sorted(found, reverse=True):
        newest.setdefault(f"{path.parent.name}/{path.stem}", path)
    lines = ((name, _last_line(path)) for name, path in newest.items())
    return sorted(islice(((name, line) for name, line in lines if line), _MOST_LOGS))


def _last_line(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
