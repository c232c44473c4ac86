"""Progress of a run: passes done, time elapsed, time left.

It is part of the line that a run prints after each pass, so that a log without a terminal has it
too; `progress_bar` draws a bar from those lines.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf, isnan, nan
from statistics import mean

FAR_OFF = 1.3
"""A run that takes more than this many times its planned duration says so."""

ANY_LOAD = "any load"
"""The name of a pass whose rate a search has not chosen yet."""


def spell_s(seconds: float) -> str:
    """`4:05` or `1:02:03`; empty if the time is unknown."""
    if isnan(seconds):
        return ""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The progress of a run at one moment."""

    done: int
    total: int
    elapsed_s: float
    left_s: float
    """NaN if unknown yet."""
    unit: str = "passes"

    def __str__(self) -> str:
        left = f"about {spell_s(self.left_s)} left" if not isnan(self.left_s) else "no estimate yet"
        return f"[{self.done}/{self.total} {self.unit}, {spell_s(self.elapsed_s)} elapsed, {left}]"


_STANDING = re.compile(
    r" *\[(?P<done>\d+)/(?P<total>\d+) (?P<unit>\w+), (?P<elapsed>[\d:]+) elapsed,"
    r" (?:about (?P<left>[\d:]+) left|no estimate yet)\]$"
)


def read_standing(line: str) -> tuple[str, Standing | None]:
    """A printed line without its standing, and the standing; None where it has none."""
    found = _STANDING.search(line)
    if found is None:
        return line, None
    standing = Standing(
        done=int(found["done"]),
        total=int(found["total"]),
        elapsed_s=_seconds(found["elapsed"]),
        left_s=_seconds(found["left"]) if found["left"] else nan,
        unit=found["unit"],
    )
    return line[: found.start()], standing


def _seconds(text: str) -> float:
    return float(sum(60**n * int(part) for n, part in enumerate(reversed(text.split(":")))))


@dataclass(slots=True)
class Progress:
    """Counts the passes of a run and estimates the time left from the passes measured so far.

    Until the first launch has ended it uses the plan's estimate, `planned_s`.
    """

    waiting: list[tuple[int, str, str]]
    """Round, arm and pass of each that has not ended."""
    planned_s: float = nan
    once_s: float = 0.0
    """Part of the first pass only: loading the fork server."""
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    _took_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Seconds of each pass by (arm, pass); the start of the servers is in the first of a launch."""
    _launches: int = 0
    _began_s: float = nan
    _last_s: float = nan

    def __post_init__(self) -> None:
        self._began_s = self._last_s = self.clock()

    def pass_ended(self, number: int, arm: str, name: str) -> Standing:
        """One pass has ended, measured or not; one that was not planned adds to the total."""
        if (number, arm, name) not in self.waiting:
            name = ANY_LOAD  # a search chooses its loads as it goes: this is one of those expected
        with suppress(ValueError):
            self.waiting.remove((number, arm, name))
        now_s = self.clock()
        took_s = now_s - self._last_s - (0.0 if self.done else self.once_s)
        self._took_s.setdefault((arm, name), []).append(max(0.0, took_s))
        self._last_s = now_s
        self.done += 1
        return self.standing

    def launch_ended(self, number: int, arm: str, *, left_out: bool = False) -> None:
        """A launch is over and its remaining passes are dropped; `left_out`: in every round."""
        self._launches += not left_out
        self.waiting = [
            step for step in self.waiting if step[1] != arm or not (left_out or step[0] == number)
        ]

    @property
    def replanned(self) -> str:
        """A sentence if the first launch shows that the run takes much longer than planned."""
        now = self.standing
        whole_s = now.elapsed_s + now.left_s
        if self._launches != 1 or not whole_s > FAR_OFF * self.planned_s:
            return ""
        return (
            f"The first launch took longer than planned: the run will take about"
            f" {spell_s(whole_s)} instead of {spell_s(self.planned_s)}."
        )

    @property
    def standing(self) -> Standing:
        """The progress now."""
        elapsed_s = self.clock() - self._began_s
        return Standing(
            done=self.done,
            total=self.done + len(self.waiting),
            elapsed_s=elapsed_s,
            left_s=self._left_s(elapsed_s),
        )

    def _left_s(self, elapsed_s: float) -> float:
        if not self.waiting:
            return 0.0
        if not self._launches:
            left_s = self.planned_s - elapsed_s
            return left_s if 0 < left_s < inf else nan
        return sum(self._pass_s(arm, name) for _, arm, name in self.waiting)

    def _pass_s(self, arm: str, name: str) -> float:
        """The expected time of a pass: the mean of the same pass, of other arms', or of all."""
        every = self._took_s.items()
        same = [s for (_, known), seconds in every if known == name for s in seconds]
        took_s = self._took_s.get((arm, name)) or same or [s for _, each in every for s in each]
        return mean(took_s) if took_s else nan
