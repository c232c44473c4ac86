"""The runs that are under way on this machine, found by the locks that they hold.

A run keeps its attempt folder locked while its process lives, so no entry can be stale, not even
after SIGKILL or a reboot. Only root sees the runs of other users.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path

from workbench.experiment.result.run_folder import SO_FAR
from workbench.experiment.run.now import Now, read_now

LOCKS, PROCESSES = Path("/proc/locks"), Path("/proc")


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
