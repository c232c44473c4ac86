"""Recipes whose runs are launches: rounds of fresh processes, gathered into one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.claims.recipes.launches import Launches
from workbench.claims.recipes.recipe import Level, Outcome, Recipe, Setting
from workbench.claims.recipes.rows import COLUMNS, Rows
from workbench.errors import DeploymentError
from workbench.serve.vllm import instance_env

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What launches take, in seconds."""

    start_s: float
    """Imports, once on a CPU."""
    launch_s: float
    """A launch in a forked process."""
    gpu_launch_s: float
    """A launch on a GPU, imports included."""

    def of(self, setting: Setting, launches: int, each_s: float) -> float:
        """Seconds of so many launches that measure for `each_s`."""
        if setting.platform == "cpu":
            return self.start_s + launches * (self.launch_s + each_s)
        return launches * (self.gpu_launch_s + each_s)


def launched_recipe(
    name: str,
    level: Level,
    claims: tuple[str, ...],
    what: str,
    *,
    target: str,
    job: Callable[[Setting], Mapping[str, Any]],
    outcome: Callable[[Rows, Setting], Outcome],
    cost: Cost,
    each_s: float,
    most_each_s: float | None = None,
    arms: Sequence[Mapping[str, Any]] = ({},),
    rounds: int | None = None,
    warm: Sequence[str] = ("torch",),
    after_first: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {},
) -> Recipe:
    """A recipe that launches `target` for each arm of each round, and reads what it returns.

    A launch takes `each_s`, and may take `most_each_s` where there is the time. `rounds` are as
    many as the setting says, or a number of its own for what needs no repetition.
    """

    def seconds(setting: Setting, launch_s: float) -> float:
        return cost.of(setting, len(arms) * (rounds or setting.runs), launch_s)

    def estimate_s(setting: Setting) -> float:
        least_s = seconds(setting, each_s)
        return least_s if most_each_s is None else max(least_s, setting.allotted_s)

    def most_s(setting: Setting) -> float:
        return seconds(setting, most_each_s or each_s)

    async def run(setting: Setting) -> Outcome:
        its_own = replace(setting, budget_s=estimate_s(setting), runs=rounds or setting.runs)
        rows = await gather(
            its_own, name, target, job(setting), arms=arms, warm=warm, start_s=cost.start_s,
            after_first=after_first,
        )  # fmt: skip
        return outcome(rows, setting)

    return Recipe(
        name=name, level=level, claims=claims, what=what, estimate_s=estimate_s, run=run,
        most_s=None if most_each_s is None else most_s,
    )  # fmt: skip


async def gather(
    setting: Setting,
    name: str,
    target: str,
    job: Mapping[str, Any],
    *,
    arms: Sequence[Mapping[str, Any]],
    warm: Sequence[str],
    start_s: float,
    after_first: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {},
) -> Rows:
    """Launch `job` with the fields of each arm in every run, in mirrored order every other run.

    `setting.limit` says how many rounds are begun; of a round that broke off, launches that ended
    count only where no whole round did. The first launch has `budget_s` of its own in the job; what
    it came to, `after_first` turns into fields of all later jobs, so that they hold the same cells.
    A launch that fails is a doubt. Raises DeploymentError where none could be finished.
    """
    import pandas as pd

    # A launch gets its part of what is left after the imports, and ten times that before it counts
    # as stuck: a busy machine is slow, and a hung one must not take the whole budget.
    share_s = max(1.0, (setting.budget_s - start_s) / setting.runs / len(arms))
    fields: dict[str, Any] = {"device": setting.device, "budget_s": share_s, **job}
    frames: list[pd.DataFrame] = []
    results: list[dict[str, Any]] = []
    doubts: list[str] = []
    limit = setting.limit
    async with limit.enforced(), Launches(
        target=target, output_dir=setting.output_dir, name=name, warm=warm,
        fork=setting.platform == "cpu", env=_env(setting),
    ) as launches:  # fmt: skip
        for run in limit.rounds_of(setting.runs):
            setting.echo(f"{name}: run {run + 1} of {setting.runs}")
            for arm in arms if run % 2 == 0 else arms[::-1]:
                try:
                    result = await launches.run(
                        {**fields, **arm, "seed": setting.seed + run}, timeout_s=60 + 10 * share_s
                    )
                except DeploymentError as error:
                    doubts.append(f"{error}.")
                    continue
                frames.append(pd.DataFrame(result.pop("rows")).assign(run=run))
                if not results:
                    fields |= after_first(result)
                results.append(result)
                doubts += [f"Run {run + 1}: {note}" for note in result.get("notes", ())]
    if limit.broken_off and limit.rounds:
        frames = [frame for frame in frames if frame["run"].iloc[0] < limit.rounds]
    if not frames and limit.broken_off:
        raise DeploymentError(
            f"{name} was stopped after {limit.elapsed_s:.0f} s, before its first launch had ended"
        )
    if not frames:
        others = f" So did {len(doubts) - 1} further launches." if len(doubts) > 1 else ""
        raise DeploymentError(f"{doubts[0]}{others}")
    table = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    return Rows(table=table, results=tuple(results), doubts=(*doubts, *_unsteady(table)))


def _env(setting: Setting) -> dict[str, str]:
    """One thread on a CPU, as instances have there: two waited for one another for milliseconds."""
    if setting.platform == "cpu":
        return instance_env("cpu")
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}


def _unsteady(table: pd.DataFrame) -> list[str]:
    timed = table.drop_duplicates(["quantity", "arm", "cell", "run"])
    share = 1 - timed["steady"].astype(bool).mean()
    if share == 0:
        return []
    return [
        f"In {share:.0%} of the timed cells the last windows of the warm-up did not agree within"
        " 2 %: something else used the machine, or the clock of the processor moved."
    ]
