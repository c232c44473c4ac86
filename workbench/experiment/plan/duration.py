"""How long a run will take: from launches that were measured on this machine before, or by a rule.

Each launch of a real engine leaves its duration in the cache folder. A plan with the same servers,
workload and machine uses it, so one round predicts a sweep of many. A rule exists only for the
tiny model on a CPU (`plan.ExperimentPlan.rule_s`) and for the simulated engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isnan, nan
from pathlib import Path
from statistics import median
from typing import Any

from workbench.hardware.cache import cache_folder

_REMEMBERED = 9
"""The last launches of the same kind whose median is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """The expected duration of a run, by the launches of its arms."""

    rounds: int
    once_s: float
    """Before the first launch."""
    launch_s: Mapping[str, float]
    """Seconds of a launch of each arm; NaN if unknown."""
    gpus: Mapping[str, int]
    """GPUs of each arm; empty on a CPU."""
    basis: str

    @property
    def round_s(self) -> float:
        """A round of all arms; NaN if one is unknown."""
        return sum(self.launch_s.values())

    @property
    def total_s(self) -> float:
        return self.once_s + self.rounds * self.round_s

    @property
    def gpu_hours(self) -> float:
        """Of each arm's own GPUs while its launches run; 0 on a CPU, NaN if unknown."""
        each_s = (self.launch_s[arm] * gpus for arm, gpus in self.gpus.items())
        return self.rounds * sum(each_s) / 3600

    def rounds_within(self, budget_s: float) -> int:
        """Whole rounds that end within a time, at least 0 and at most those planned."""
        if isnan(self.total_s):
            return self.rounds
        return max(0, min(self.rounds, int((budget_s - self.once_s) / self.round_s)))

    def __str__(self) -> str:
        launches = self.rounds * len(self.launch_s)
        if isnan(self.total_s):
            return f"{_count(launches, 'launch', 'es')}, duration unknown {self.basis}"
        found = f"{_count(launches, 'launch', 'es')} in about {spelled(self.total_s)}"
        if self.gpus:
            found += f", {self.gpu_hours:.2g} GPU-hours"
        return f"{found} {self.basis}"


def spelled(seconds: float) -> str:
    """`5.2 hours`, or `16.4 minutes` below 90 minutes."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes"


def _count(number: int, word: str, ending: str) -> str:
    return f"{number:,} {word}{ending if number != 1 else ''}"


def remember_launch(key: str, took_s: float) -> None:
    """Keep how long a launch took; nothing if the cache folder cannot be written."""
    with suppress(OSError):
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        known = [*_remembered(file), {"took_s": round(took_s, 2), "at": _now()}]
        partial = file.with_name(f".{file.name}-{os.getpid()}")
        partial.write_text(json.dumps(known[-_REMEMBERED:]))
        os.replace(partial, file)


def measured_before(key: str) -> tuple[float, str]:
    """The median duration of such launches here, and the day of the last; NaN without any."""
    known = _remembered(_file(key))
    if not known:
        return nan, ""
    return median(float(one["took_s"]) for one in known), str(known[-1]["at"])[:10]


def _remembered(file: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return []


def _file(key: str) -> Path:
    return cache_folder() / "launches" / f"{key}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
