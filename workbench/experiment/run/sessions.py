"""A run in several sessions: finished launches of an earlier session are kept.

After each launch (an arm in a round) `launches.json` is written next to the frames; together they
are all that a later session needs. A launch that was interrupted is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from workbench.errors import ResultError
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import RunFacts, SessionFacts
from workbench.experiment.result.result import FRAMES
from workbench.experiment.result.result_file import read_facts, to_plain
from workbench.experiment.result.run_folder import KEPT, RunFolder, read_frame
from workbench.experiment.run.run_log import Collected, Echo, Log, echo_line
from workbench.experiment.run.under_way import read_now
from workbench.metrics.latency import succeeded

if TYPE_CHECKING:
    import pandas as pd

_MAY_CHANGE = ("memory_free_gb", "shm_free_gb", "machine_speed", "ideal_reuse_sent")
"""What differs from one look to the next, or follows from what was measured."""
DRIFT = 1.15
"""A median outside the range of all earlier launches by more than this factor is drift."""


@dataclass(slots=True)
class Session:
    """One session of a run: its folder, all that it collects, and what a later one would have.

    `log` has every launch; `kept` only those that were measured whole, without what a launch that
    failed left.
    """

    folder: RunFolder
    log: Log
    kept: Collected
    _before: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: RunFolder, log: Log) -> Self:
        """Begin a session in this folder with what earlier ones kept."""
        log.sessions.append(SessionFacts(number=len(log.sessions) + 1, started_at=_now()))
        session = cls(folder, log, Collected(**deepcopy(_collected(log))))
        if log.ended:  # its number is known even if it is killed before its first launch ended
            session._write()
        return session

    def launch_begins(self) -> None:
        """Remember what was there before a launch."""
        self._before = {name: len(value) for name, value in _lists(self.log)}
        self._before |= {name: len(getattr(self.log, name)) for name in FRAMES}

    def forget_launch(self) -> None:
        """Take back all of the launch that has just ended, so that it can be measured again.

        Its requests stay on disk, in `requests_broken_off`.
        """
        self.log.broken_off += self.log.requests[self._before["requests"] :]
        for name, length in self._before.items():
            del getattr(self.log, name)[length:]
        self.folder.write("requests_broken_off", self.log.frame("broken_off"))

    def launch_ended(self, number: int, arm: str, *, took_s: float) -> bool:
        """Keep a launch for later sessions, if each of its passes was measured.

        One in which a pass could not be run, or all of its requests failed, is measured again.
        Returns whether it is kept.
        """
        log, before = self.log, self._before
        passes = log.requests[before["requests"] :]
        if len(log.reasons) > before["reasons"] or not all(succeeded(p).any() for p in passes):
            return False
        log.took_s.setdefault(arm, []).append(round(took_s, 2))
        log.ended.append((number, arm))
        log.sessions[-1] = replace(
            log.sessions[-1],
            ended_at=_now(),
            launches=(*log.sessions[-1].launches, launch_name(number, arm)),
        )
        for name, value in _collected(log).items():
            if name in before and name != "sessions":
                getattr(self.kept, name).extend(value[before[name] :])
            else:
                setattr(self.kept, name, value)
        self._write()
        return True

    def repeat_ended(self) -> None:
        """Note that the session has launched servers, though it kept nothing of them yet."""
        self.log.sessions[-1] = replace(self.log.sessions[-1], ended_at=_now())

    def _write(self) -> None:
        self.kept.sessions = self.log.sessions
        self.folder.write_text(KEPT, json.dumps(_collected(self.kept), default=_plain))


def _collected(log: Collected) -> dict[str, Any]:
    return {f.name: getattr(log, f.name) for f in fields(Collected)}


def _lists(log: Collected) -> Iterator[tuple[str, list[Any]]]:
    """What grows with each launch."""
    yield from ((name, value) for name, value in _collected(log).items() if type(value) is list)


def begin_session(
    plan: ExperimentPlan, known: RunFacts, *, resume: bool = True, echo: Echo = echo_line
) -> Session:
    """Begin a session of the newest run that can be resumed, or of a new one.

    `known` is what result.json will say of this machine and its engines. A run can be resumed if it
    has whole launches of the same plan, machine, hosts, engine and versions.
    """
    where = plan.params.output_dir, plan.notebook, plan.run_id
    for folder in RunFolder.unfinished(*where) if resume else ():
        with suppress(ResultError, OSError, ValueError):
            earlier = read_facts(folder.attempt / "result.json")
            if earlier.status == "success":  # it was killed while it moved its files
                folder.promote()
            elif (log := _read(folder)).ended:
                if not (differ := _differ(earlier, known)):
                    return Session.of(folder, log)
                echo(f"not resumed, since {differ} differs: {folder.attempt}")
        folder.let_go()
    return Session.of(RunFolder.open(*where), Log(doubts=list(plan.doubts)))


def _differ(earlier: RunFacts, now: RunFacts) -> str:
    """Which of its facts keeps a run from being resumed (`its machine (versions)`), or empty."""
    for what in ("machine", "hosts", "engine", "workload"):
        before, after = (_lasting(to_plain(facts)[what]) for facts in (earlier, now))
        if before != after:
            plain = isinstance(before, dict) and isinstance(after, dict)
            names = [name for name in after if before.get(name) != after[name]] if plain else []
            return f"its {what} ({', '.join(names)})" if names else f"its {what}"
    return ""


def _lasting(value: Any) -> Any:
    """Without what differs from one look to the next."""
    if isinstance(value, dict):
        return {name: _lasting(each) for name, each in value.items() if name not in _MAY_CHANGE}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


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
    log = Log(**_collected(collected))
    for name in FRAMES:
        path = folder.attempt / f"{name}.parquet"
        if path.exists():
            setattr(log, name, list(_of_whole_launches(log, read_frame(path, whole=True))))
    if log.sessions and (last := read_now(folder.attempt)) is not None:
        # Also the time of the launch that was interrupted counts.
        ended_at = datetime.fromtimestamp(last.at_s, UTC).isoformat(timespec="seconds")
        session = log.sessions[-1]
        log.sessions[-1] = replace(session, ended_at=max(session.ended_at, ended_at))
    return log


def _of_whole_launches(log: Log, frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """One frame for each pass of a launch that ended, in the order of measurement."""
    if len(frame):
        passes = frame.groupby(["round", "arm", "pass"], sort=False)
        for (number, arm, _), rows in passes:
            if (number, arm) in log.ended:
                yield rows.reset_index(drop=True)


def compare(log: Log, again: Log, name: str) -> bool:
    """Record how a launch that was repeated after a resume differs from the arm's earlier ones.

    A median TTFT further than DRIFT from those of all earlier launches becomes a doubt. Returns
    whether any pass could be compared.
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
    if not ratios:
        return False
    log.sessions[-1] = replace(log.sessions[-1], repeated=name, drift=ratios)
    if apart:
        log.doubt(
            "The machine may have changed between sessions: when repeated, median TTFT of"
            f" {name}, differed ({'; '.join(apart[:2])})."
        )
    return True


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
