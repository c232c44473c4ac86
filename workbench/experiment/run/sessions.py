"""A run in several sessions: finished launches of an earlier session are kept.

After each launch (an arm in a round) `launches.json` is written next to the frames; together they
are all that a later session needs. A launch that was interrupted is measured again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from workbench.errors import ResultError
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import SessionFacts
from workbench.experiment.result.result import FRAMES
from workbench.experiment.result.result_file import read_facts
from workbench.experiment.result.run_folder import KEPT, RunFolder, read_frame
from workbench.experiment.run.run_log import Collected, Log

if TYPE_CHECKING:
    import pandas as pd

_MAY_CHANGE = ("memory_free_gb", "shm_free_gb")
"""Facts of a machine that change all the time."""
DRIFT = 1.15
"""A median outside the range of all earlier launches by more than this factor is drift."""


def begin_session(
    plan: ExperimentPlan, machine: Mapping[str, Any], resume: bool = True
) -> tuple[RunFolder, Log]:
    """The folder and the log of this session: those of the newest run to resume, or new ones.

    A run can be resumed if it has finished launches of the same plan, from the same machine with
    the same versions.
    """
    where = plan.params.output_dir, plan.notebook, plan.run_id
    for folder in RunFolder.unfinished(*where) if resume else ():
        with suppress(ResultError, OSError, ValueError):
            if _same(plan, machine, folder):
                log = _read(folder)
                if log.ended:
                    return folder, _next_session(log)
        folder.let_go()
    folder = RunFolder.open(*where)
    return folder, _next_session(Log(doubts=list(plan.doubts)))


def _next_session(log: Log) -> Log:
    log.sessions.append(SessionFacts(number=len(log.sessions) + 1, started_at=_now()))
    return log


def kept_so_far(plan: ExperimentPlan, log: Log) -> str:
    """The line for the terminal that says which launches are kept."""
    launches = len(plan.arms) * plan.rounds
    return (
        f"resuming: {len(log.ended)} of {launches} launches are kept (begun"
        f" {log.sessions[0].started_at}; --force measures all again)"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def launch_name(number: int, arm: str) -> str:
    """The name of a launch for readers; rounds count from 1."""
    return f"{arm}, round {number + 1}"


def _same(plan: ExperimentPlan, machine: Mapping[str, Any], folder: RunFolder) -> bool:
    """Whether the attempt in a folder is of this plan, on this machine."""
    earlier = read_facts(folder.attempt / "result.json")
    of_machine = [
        {name: value for name, value in one.items() if name not in _MAY_CHANGE}
        for one in (earlier.machine, machine)
    ]
    sent = plan.workload.sample.hash
    return (
        earlier.status != "success"
        and of_machine[0] == of_machine[1]
        and earlier.workload is not None
        and earlier.workload.hash == sent
    )


def keep(log: Log, folder: RunFolder, number: int, arm: str) -> None:
    """Record that a launch has ended, so that a later session keeps it."""
    log.ended.append((number, arm))
    session = log.sessions[-1]
    log.sessions[-1] = replace(
        session, ended_at=_now(), launches=(*session.launches, launch_name(number, arm))
    )
    collected = {f.name: getattr(log, f.name) for f in fields(Collected)}
    partial = folder.attempt / f".{KEPT}.partial"
    partial.write_text(json.dumps(collected, default=_plain))
    os.replace(partial, folder.attempt / KEPT)


def _plain(value: Any) -> Any:
    """Plain values for JSON. NaN is kept, which `jsonable` would drop."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return list(value) if isinstance(value, frozenset) else value.item()


def _read(folder: RunFolder) -> Log:
    """The log of an attempt as it was after its last finished launch."""
    from pydantic import TypeAdapter

    kept = json.loads((folder.attempt / KEPT).read_text())
    collected = TypeAdapter(Collected).validate_python(kept)
    log = Log(**{f.name: getattr(collected, f.name) for f in fields(Collected)})
    for name in FRAMES:
        path = folder.attempt / f"{name}.parquet"
        if path.exists():
            setattr(log, name, list(_of_whole_launches(log, read_frame(path, whole=True))))
    return log


def _of_whole_launches(log: Log, frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """One frame for each pass of a launch that ended, in the order of measurement."""
    if len(frame):
        passes = frame.groupby(["round", "arm", "pass"], sort=False)
        for (number, arm, _), rows in passes:
            if (number, arm) in log.ended:
                yield rows.reset_index(drop=True)


def compare(log: Log, again: Log, name: str) -> None:
    """Record how a launch that was repeated after a resume differs from the arm's earlier ones.

    A median TTFT further than DRIFT from those of all earlier launches becomes a doubt.
    """
    now, before = _ttft_s(again), _ttft_s(log)
    ratios = {}
    apart = []
    for (arm, state), found in now.items():
        earlier = before.get((arm, state), [])
        if not earlier:
            continue
        ratios[state] = found[0] / median(earlier)
        if not min(earlier) / DRIFT <= found[0] <= max(earlier) * DRIFT:
            apart.append(f"{state} {1000 * median(earlier):,.0f} ms, now {1000 * found[0]:,.0f} ms")
    log.sessions[-1] = replace(log.sessions[-1], repeated=name, drift=ratios)
    if apart:
        log.doubt(
            "The machine may have changed between sessions: when repeated, median TTFT of"
            f" {name}, differed ({'; '.join(apart[:2])})."
        )


def _ttft_s(log: Log) -> dict[tuple[str, str], list[float]]:
    """The median TTFT of each launch, by arm and pass."""
    found: dict[tuple[str, str], list[float]] = {}
    rows = log.frame("requests")
    if not len(rows):
        return found
    launches = rows.groupby(["arm", "pass", "round"])["ttft_s"].median().dropna().reset_index()
    for arm, state, ttft_s in zip(
        launches["arm"], launches["pass"], launches["ttft_s"].tolist(), strict=True
    ):
        found.setdefault((arm, state), []).append(ttft_s)
    return found
