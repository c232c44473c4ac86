"""How claims are measured: a recipe, its setting and its outcome.

A recipe measures the claims that it names. It decides nothing: `judge` does, from its outcome.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from workbench.claims.registry.claim import Bound
from workbench.claims.verdict.decision import MIN_RUNS, Interval
from workbench.claims.verdict.verdict import Measurement
from workbench.experiment.run.time_limit import TimeLimit
from workbench.hardware.interpreter import Interpreter, interpreter

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["kernel", "engine", "serving"]
Lines = Mapping[str, Mapping[str, Interval]]
"""Series -> cell -> interval."""
Point = tuple[str, float | str, float, float, float]
"""Series, x (a number or a word), value, low, high; NaN without an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a recipe runs, and how long it may take."""

    platform: Literal["cpu", "cuda", "rocm"]
    hardware: str
    """The GPU's name in workbench.hardware.physics, or `2 CPU cores`."""
    model: Path
    """A model folder in Hugging Face format."""
    output_dir: Path
    """For logs and raw files; created if missing."""
    budget_s: float
    """For all recipes."""
    allotted_s: float = 0.0
    """For this recipe; one that can take longer fills it with larger cells."""
    engine: Interpreter = field(default_factory=interpreter)
    """What runs vLLM, transformers and torch."""
    dtype: str = "bfloat16"
    """Number format of weights and KV of timed engines, the same on all sides."""
    requests_share: float = 1.0
    """Fraction of the requests of a pass that is sent."""
    limit: TimeLimit = field(default_factory=TimeLimit)
    """The time limit of this recipe, asked before each round."""
    seed: int = 0
    runs: int = MIN_RUNS
    """Launches or rounds of each arm; fewer give no verdict."""
    echo: Callable[[str], None] = lambda _: None
    """Gets progress, one sentence at a time."""

    @property
    def device(self) -> str:
        """torch's name for it, which is cuda for ROCm too."""
        return "cpu" if self.platform == "cpu" else "cuda"

    def bounds(self, **reached: float) -> tuple[Bound, ...]:
        """Our own numbers as rates that the GPU's limits bound; none on a CPU, which has caches."""
        if self.platform == "cpu":
            return ()
        return tuple(
            Bound.model_validate({"limit": limit, "gpu": self.hardware, "value": value})
            for limit, value in reached.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A figure: lines with intervals over the same x."""

    title: str
    x: str
    """Name of the x axis, with its unit."""
    y: str
    """Name of the y axis, with its unit."""
    points: Sequence[Point]
    claims: tuple[str, ...] = ()
    """The claims whose panels show it; empty for the first claim that was measured."""

    @classmethod
    def of(
        cls, title: str, x: str, y: str, lines: Lines, *, at: Callable[[str], float | str]
    ) -> Self:
        """A curve of lines of cells; `at` gives the x of each cell."""
        points = [
            (name, at(cell), interval.estimate, interval.low, interval.high)
            for name, line in lines.items()
            for cell, interval in line.items()
        ]
        return cls(title=title, x=x, y=y, points=points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a recipe measured; `doubts` say why if nothing."""

    measurements: Mapping[str, Measurement]
    """Claim id -> its effects, by name."""
    table: pd.DataFrame
    """Raw rows: quantity, arm, cell, run, order (when in the run), value, unit."""
    says: str
    """What was measured under which conditions, in one or two sentences."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """CHECKS that this run answers: pass, fail, unknown or BUILT_IN."""
    curves: tuple[Curve, ...] = ()
    doubts: tuple[str, ...] = ()
    """Sentences on what weakens it, such as cells that the time left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One measurement that serves some claims."""

    name: str
    """A word, used in file names: `attention`."""
    level: Level
    claims: tuple[str, ...]
    what: str
    """One sentence: what is compared with what."""
    estimate_s: Callable[[Setting], float]
    """Its expected duration; with `allotted_s` 0, the shortest."""
    run: Callable[[Setting], Awaitable[Outcome]]
    """Raises a WorkbenchError if nothing could be measured."""
    needs: str = ""
    """The package that the engine's interpreter must have."""
    most_s: Callable[[Setting], float] | None = None
    """Its longest duration, if it can take longer."""
    fewer: tuple[float, ...] = ()
    """Fractions of its requests that still work, the largest first."""
    platforms: tuple[str, ...] = ("cpu", "cuda", "rocm")


def left_out(what: str, values: Iterable[int]) -> tuple[str, ...]:
    """The doubt for cells that the time left out."""
    missing = ", ".join(f"{value:,}" for value in sorted(values))
    return (f"No time for {what} {missing}.",) if missing else ()
