"""The runs of a recipe: each a fresh process with another seed, gathered into one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.claims.launches import Launches
from workbench.errors import DeploymentError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.claims.recipe import Setting

__all__ = ["COLUMNS", "Rows", "gather"]

COLUMNS = ("quantity", "arm", "cell", "run", "order", "value", "unit", "steady")
START_S = 5.0
"""A process that imports torch; on a slow disk more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What the runs of one recipe returned."""

    table: pd.DataFrame
    """Columns COLUMNS, one row for each value of each run."""
    results: tuple[dict[str, Any], ...]
    """What each run returned, without its rows."""
    doubts: tuple[str, ...]

    @property
    def runs(self) -> int:
        return len(self.results)


async def gather(
    setting: Setting,
    name: str,
    target: str,
    job: Mapping[str, Any],
    *,
    warm: Sequence[str] = ("torch",),
    after_first: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {},
) -> Rows:
    """Run `job` once for each run of the setting; DeploymentError where none could be finished.

    The first run has `budget_s` of its own in the job; what it came to, `after_first` turns into
    fields of the later jobs, so that all runs hold the same cells.
    """
    import pandas as pd

    share_s = max(1.0, (setting.budget_s - START_S) / setting.runs)
    fields: dict[str, Any] = {"device": setting.device, "budget_s": share_s, **job}
    frames: list[pd.DataFrame] = []
    results: list[dict[str, Any]] = []
    doubts: list[str] = []
    async with Launches(
        target=target, output_dir=setting.output_dir, name=name, warm=warm,
        fork=setting.platform == "cpu", env=_env(setting),
    ) as launches:  # fmt: skip
        for run in range(setting.runs):
            setting.echo(f"{name}: run {run + 1} of {setting.runs}")
            try:
                result = await launches.run(
                    fields | {"seed": setting.seed + run}, timeout_s=60 + 10 * share_s
                )
            except DeploymentError as error:
                doubts.append(f"{error}.")
                continue
            frames.append(pd.DataFrame(result.pop("rows")).assign(run=run))
            if not results:
                fields |= after_first(result)
            results.append(result)
            doubts += [f"Run {run + 1}: {note}" for note in result.get("notes", ())]
    if not frames:
        raise DeploymentError(f"{name} measured nothing: {' '.join(doubts)}")
    table = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    return Rows(table=table, results=tuple(results), doubts=(*doubts, *_unsteady(table)))


def _env(setting: Setting) -> dict[str, str]:
    """One thread on a CPU, as instances have there: two waited for one another for milliseconds."""
    if setting.platform != "cpu":
        return {}
    return {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def _unsteady(table: pd.DataFrame) -> list[str]:
    timed = table.drop_duplicates(["quantity", "arm", "cell", "run"])
    share = 1 - timed["steady"].astype(bool).mean()
    if share == 0:
        return []
    return [
        f"In {share:.0%} of the timed cells the last windows of the warm-up did not agree within"
        " 2 %: something else used the machine, or the clock of the processor moved."
    ]
