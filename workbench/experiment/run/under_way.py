"""The runs that are under way on this machine, and the small file in which each says what it does.

Runs are found by the locks that they hold: a run keeps its attempt folder locked while its process
lives, so no entry can be stale, not even after SIGKILL or a reboot. Only root sees the runs of
other users.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sized
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path

from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.result_file import jsonable
from workbench.experiment.result.run_folder import NOW, SO_FAR, RunFolder
from workbench.experiment.run.progress import Progress
from workbench.experiment.run.run_log import Log

LOCKS, PROCESSES = Path("/proc/locks"), Path("/proc")
PERIOD_S = 2.0
"""How often the number of responses is written during a pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """The state of a run at one moment; rounds count from 1."""

    doing: str
    """`starts servers`, `measures`, `stops servers`, ..."""
    arm: str = ""
    round: int = 0
    rounds: int = 0
    pass_name: str = ""
    responses: int = 0
    requests: int = 0
    """Of the pass."""
    launches_done: int = 0
    launches: int = 0
    left_s: float = nan
    """Expected time until the run ends; NaN if unknown."""
    at_s: float = field(default_factory=time.time)
    """Unix time."""


@dataclass(slots=True)
class NowFile:
    """Writes what one run does now; a full or slow disk does not disturb the run."""

    folder: RunFolder
    plan: ExperimentPlan
    log: Log
    far: Progress | None = None

    def say(
        self,
        doing: str,
        arm: str = "",
        number: int = -1,
        pass_name: str = "",
        *,
        responses: int = 0,
        requests: int = 0,
    ) -> None:
        """Write what is done for an arm in a round, which counts from 0."""
        now = Now(
            doing=doing,
            arm=arm,
            round=number + 1,
            rounds=self.plan.rounds,
            pass_name=pass_name,
            responses=responses,
            requests=requests,
            launches_done=len(self.log.ended),
            launches=len(self.plan.arms) * self.plan.rounds,
            left_s=self.far.standing.left_s if self.far else nan,
        )
        with suppress(OSError):
            self.folder.write_text(NOW, json.dumps(jsonable(now)))

    @asynccontextmanager
    async def counting(
        self, arm: str, number: int, pass_name: str, ended: Sized, requests: int
    ) -> AsyncIterator[None]:
        """Write the growing number of responses while a pass is measured."""

        async def count() -> None:
            while True:
                self.say(
                    "measures", arm, number, pass_name, responses=len(ended), requests=requests
                )
                await asyncio.sleep(PERIOD_S)

        counting = asyncio.create_task(count())
        try:
            yield
        finally:
            counting.cancel()


def read_now(attempt: Path) -> Now | None:
    """What the run of an attempt did last; None if it has not said so."""
    try:
        said = json.loads((attempt / NOW).read_text())
        left_s = said.pop("left_s")
        said["pass_name"] = said.pop("pass")
        return Now(**said, left_s=nan if left_s is None else left_s)
    except (OSError, ValueError, TypeError, LookupError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUnderWay:
    """A run of a living process."""

    attempt: Path
    pid: int
    now: Now | None
    """What it does now; None until it has written that."""

    @property
    def home(self) -> Path:
        """The run's folder."""
        return self.attempt.parent

    @property
    def name(self) -> str:
        """Notebook and run id."""
        return f"{self.home.parent.name} {self.home.name}"

    @property
    def page(self) -> Path | None:
        """Its page so far; None if it was not rendered yet."""
        page = self.attempt / SO_FAR / "report.html"
        return page if page.is_file() else None

    @property
    def left_s(self) -> float:
        """Expected time until it ends, from now; NaN if unknown."""
        if self.now is None or isnan(self.now.left_s):
            return nan
        left_s = self.now.left_s - (time.time() - self.now.at_s)
        # An exceeded estimate of the plan is useless; one from measured launches is off by little.
        return nan if left_s < 0 and not self.now.launches_done else max(0.0, left_s)


def runs_under_way() -> list[RunUnderWay]:
    """Every run of a living process of this user, the oldest attempt first."""
    found = {}
    for pid, inode in _locks():
        for attempt in _attempts_of(pid, inode):
            found[attempt] = RunUnderWay(attempt=attempt, pid=pid, now=read_now(attempt))
    return [found[attempt] for attempt in sorted(found, key=lambda path: path.name)]


def _locks() -> Iterator[tuple[int, int]]:
    """Process and inode of each lock by flock."""
    with suppress(OSError):
        for line in LOCKS.read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 6121 fe:00:2507460 0 EOF
            words = line.split()
            if words[1:2] == ["FLOCK"]:
                yield int(words[4]), int(words[5].rpartition(":")[2])


def _attempts_of(pid: int, inode: int) -> Iterator[Path]:
    """The attempt folder with this inode that the process has open."""
    with suppress(OSError):
        for entry in os.scandir(PROCESSES / str(pid) / "fd"):
            with suppress(OSError):
                path = Path(os.readlink(entry.path))
                if path.name.startswith("attempt-") and path.stat().st_ino == inode:
                    yield path
