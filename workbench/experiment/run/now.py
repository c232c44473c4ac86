"""What a run does now, as a small file in its attempt folder that `workbench status` reads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sized
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.result_file import jsonable
from workbench.experiment.result.run_folder import NOW, RunFolder
from workbench.experiment.run.progress import Progress
from workbench.experiment.run.run_log import Log

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
