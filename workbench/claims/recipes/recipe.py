"""How a claim is measured: a recipe, where it runs, and what comes out.

A recipe serves the claims whose ids it names, as many as one measurement can answer. It decides
nothing: `judge` takes what it returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from workbench.claims.registry.claim import Bound
from workbench.claims.verdict.decision import MIN_RUNS, Interval
from workbench.claims.verdict.verdict import Measurement
from workbench.experiment.run.time_limit import TimeLimit

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["kernel", "engine", "serving"]
Lines = Mapping[str, Mapping[str, Interval]]
"""Series -> cell -> interval."""
Point = tuple[str, float | str, float, float, float]
"""Series, x (a number or a word), value, low, high; NaN where there is no interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a recipe runs, and what it may spend."""

    platform: Literal["cpu", "cuda", "rocm"]
    hardware: str
    """As workbench.hardware.physics names the GPU; on a CPU such as `2 cores`."""
    model: Path
    """A model folder in Hugging Face format."""
    output_dir: Path
    """Logs and raw files of the recipe go here; it is made where it is missing."""
    budget_s: float
    """For all recipes."""
    allotted_s: float = 0.0
    """For this recipe; one that can be longer than its least fills it with larger cells."""
    dtype: str = "bfloat16"
    """Number format of weights and KV where engines are timed, the same on all sides."""
    requests_share: float = 1.0
    """Of the requests of a pass; a recipe that has to be short sends fewer."""
    limit: TimeLimit = field(default_factory=TimeLimit)
    """How long this recipe may take; it is asked before each round."""
    seed: int = 0
    runs: int = MIN_RUNS
    """Launches or rounds for each arm; a smaller number gives no verdict."""
    echo: Callable[[str], None] = lambda _: None
    """Told what is going on, a sentence at a time."""

    @property
    def device(self) -> str:
        """As torch names it; a ROCm build calls its GPUs cuda too."""
        return "cpu" if self.platform == "cpu" else "cuda"

    def bounds(self, **reached: float) -> tuple[Bound, ...]:
        """What our own numbers mean as a rate of the GPU, which no run can exceed, by limit.

        Of a CPU no ceiling is known: what its caches give is above that of its memory.
        """
        if self.platform == "cpu":
            return ()
        return tuple(
            Bound.model_validate({"limit": limit, "gpu": self.hardware, "value": value})
            for limit, value in reached.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What a figure shows: one or more lines with intervals over the same x."""

    title: str
    x: str
    """Name of the x axis, with its unit."""
    y: str
    """Name of the y axis, with its unit."""
    points: pd.DataFrame
    """Columns series, x, value, low and high, see Point."""
    claims: tuple[str, ...] = ()
    """In whose panels it stands; empty for the first claim that its recipe measured."""

    @classmethod
    def of(
        cls, title: str, x: str, y: str, lines: Lines, *, at: Callable[[str], float | str]
    ) -> Self:
        """A curve of lines of cells; `at` says where each cell stands on the x axis."""
        points = [
            (name, at(cell), interval.estimate, interval.low, interval.high)
            for name, line in lines.items()
            for cell, interval in line.items()
        ]
        return cls(title=title, x=x, y=y, points=points_frame(points))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a recipe measured; an empty `measurements` says in `doubts` why."""

    measurements: Mapping[str, Measurement]
    """Claim id -> its effects, by the names that the claim has."""
    table: pd.DataFrame
    """Raw rows: quantity, arm, cell, run, order (when in the run), value, unit."""
    says: str
    """What was measured and under which conditions, in a sentence or two."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """CHECKS, proved by this run or by construction: pass, fail, unknown or BUILT_IN."""
    curves: tuple[Curve, ...] = ()
    doubts: tuple[str, ...] = ()
    """Sentences on what weakens it, the cells that the budget left out among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A way to measure some claims."""

    name: str
    """A word, used in file names: `attention`."""
    level: Level
    claims: tuple[str, ...]
    what: str
    """One sentence: what is run beside what."""
    estimate_s: Callable[[Setting], float]
    """How long it will take there, before anything starts; with `allotted_s` 0 its least."""
    run: Callable[[Setting], Awaitable[Outcome]]
    """Raises a workbench.errors error where nothing could be measured at all."""
    most_s: Callable[[Setting], float] | None = None
    """How long it may take at most, for one that can be longer."""
    fewer: tuple[float, ...] = ()
    """Shares of its requests that it can do with, the largest first."""
    platforms: tuple[str, ...] = ("cpu", "cuda", "rocm")


def points_frame(points: Iterable[Point]) -> pd.DataFrame:
    """The points of a Curve."""
    import pandas as pd

    return pd.DataFrame(list(points), columns=["series", "x", "value", "low", "high"])


def left_out(what: str, values: Iterable[int]) -> tuple[str, ...]:
    """The doubt for cells that the budget had no room for."""
    missing = ", ".join(f"{value:,}" for value in sorted(values))
    return (f"The budget had no room for {what} {missing}.",) if missing else ()
