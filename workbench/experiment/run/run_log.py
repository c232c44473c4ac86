"""What a run collects while it measures, and how it prints lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from workbench.experiment.result.facts import ArmFacts, PassTime, SessionFacts
from workbench.experiment.result.finding_rows import ClockRow, EnergyRow, LinkRow
from workbench.metrics.passes import PassCounters
from workbench.records import LinkRate, RequestRecord, to_frame

Echo = Callable[[str], None]
OnRecord = Callable[[RequestRecord, Mapping[str, Any]], None]
"""Takes a request that has ended, and the columns of its pass: arm, round, pass."""


def echo_line(line: str) -> None:
    """Print at once, so that progress shows in a terminal and in a notebook."""
    print(line, flush=True)


@dataclass(slots=True)
class Collected:
    """What a run has collected in addition to its frames; `sessions` writes and reads it."""

    passes: list[PassCounters] = field(default_factory=list)
    pass_times: list[PassTime] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why passes could not be measured."""
    clocks: list[ClockRow] = field(default_factory=list)
    links: list[tuple[str, int, LinkRate, bool]] = field(default_factory=list)
    """Arm, round, rate, and whether it is from a prefill host to a decode host."""
    earlier: tuple[LinkRow, ...] = ()
    """Results of runs over other links."""
    energy: list[EnergyRow] = field(default_factory=list)
    unmetered: dict[str, str] = field(default_factory=dict)
    """Why the power of an arm, or of a part of its devices, was not measured."""
    refusals: list[str] = field(default_factory=list)
    """Resets that an instance refused."""
    arms: dict[str, ArmFacts] = field(default_factory=dict)
    workers: int = 1
    """Client processes, if the plan leaves their number open."""
    client: dict[str, float] = field(default_factory=dict)
    """The worst of each reading of the client's health."""
    launches_s: list[float] = field(default_factory=list)
    """How long the servers of each launch took to start."""
    launch_rounds: list[int] = field(default_factory=list)
    """The rounds of these launches."""
    took_s: dict[str, list[float]] = field(default_factory=dict)
    """Of each arm, the duration of its launches that ended, stopping included."""
    measuring_s: float = 0.0
    ended: list[tuple[int, str]] = field(default_factory=list)
    """Round and arm of each launch that ended, in the order of their end."""
    sessions: list[SessionFacts] = field(default_factory=list)

    def doubt(self, sentence: str) -> None:
        if sentence not in self.doubts:
            self.doubts.append(sentence)


@dataclass(slots=True)
class Log(Collected):
    """All that a run has collected so far."""

    requests: list[pd.DataFrame] = field(default_factory=list)
    legs: list[pd.DataFrame] = field(default_factory=list)
    counters: list[pd.DataFrame] = field(default_factory=list)
    gauges: list[pd.DataFrame] = field(default_factory=list)
    on_record: OnRecord | None = None
    """Called by the thread that drives the load."""
    broken_off: list[pd.DataFrame] = field(default_factory=list)
    """Requests that do not count: of a launch that was measured again, or of an unfinished round.
    """

    def frame(self, name: str) -> pd.DataFrame:
        parts = [part for part in getattr(self, name) if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else to_frame(())
