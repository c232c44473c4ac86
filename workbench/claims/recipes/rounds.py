"""Recipes that launch fresh processes in rounds and gather their rows in one table."""

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
    """Seconds that launches take."""

    start_s: float
    """Imports, once on a CPU."""
    launch_s: float
    """A launch in a forked process."""
    gpu_launch_s: float
    """A launch on a GPU, with imports."""

    def of(self, setting: Setting, launches: int, each_s: float) -> float:
        """Seconds of launches that each measure for `each_s`."""
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
    """A recipe that launches `target` for each arm in each round; `outcome` reads the rows.

    A launch takes `each_s`, or up to `most_each_s` if there is time. `rounds` replaces the
    setting's for what needs no repetition.
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
        needs="torch" if level == "kernel" else "vllm",
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
    """Launch `job` for each arm in every round, in mirrored order every other round.

    `setting.limit` decides how many rounds start; an unfinished round counts only if no round
    finished. The first launch has `budget_s`, and `after_first` turns its result into fields of all
    later jobs, so that they measure the same cells. A failed launch is a doubt. Raises
    DeploymentError if no launch finished.
    """
    import pandas as pd

    # A launch counts as stuck after ten times its part of the budget: a busy machine is slow, but
    # a hung one must not take it all.
    share_s = max(1.0, (setting.budget_s - start_s) / setting.runs / len(arms))
    fields: dict[str, Any] = {"device": setting.device, "budget_s": share_s, **job}
    frames: list[pd.DataFrame] = []
    results: list[dict[str, Any]] = []
    doubts: list[str] = []
    limit = setting.limit
    async with limit.enforced(), Launches(
        target=target, output_dir=setting.output_dir, name=name, warm=warm,
        fork=setting.platform == "cpu", python=setting.engine.path, env=_env(setting),
    ) as launches:  # fmt: skip
        for run in limit.rounds_of(setting.runs):
            setting.echo(f"{name}: round {run + 1} of {setting.runs}")
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
                doubts += [f"Round {run + 1}: {note}" for note in result.get("notes", ())]
    if limit.broken_off and limit.rounds:
        frames = [frame for frame in frames if frame["run"].iloc[0] < limit.rounds]
    if not frames and limit.broken_off:
        raise DeploymentError(
            f"{name} was stopped after {limit.elapsed_s:.0f} s, before its first launch finished"
        )
    if not frames:
        others = f" {len(doubts) - 1} more launches failed." if len(doubts) > 1 else ""
        raise DeploymentError(f"{doubts[0]}{others}")
    table = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    return Rows(table=table, results=tuple(results), doubts=(*doubts, *_unsteady(table)))


def _env(setting: Setting) -> dict[str, str]:
    """One thread on a CPU, as instances have: two threads waited milliseconds for each other."""
    gpu = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    return (instance_env("cpu") if setting.platform == "cpu" else gpu) | setting.engine.env()


def _unsteady(table: pd.DataFrame) -> list[str]:
    timed = table.drop_duplicates(["quantity", "arm", "cell", "run"])
    share = 1 - timed["steady"].astype(bool).mean()
    if share == 0:
        return []
    return [
        f"Warm-up was not steady within 2 % in {100 * share:.0f} % of the cells, because of other"
        " programs or a changing CPU clock."
    ]
