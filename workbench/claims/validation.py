"""The run behind `paper_claim_validation`: read, spend the time budget, judge, write it down.

What goes wrong with one claim or one measurement is a sentence on it; the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.claims.account import account
from workbench.claims.budget import INTERVAL_RUNS, Schedule, Step, schedule, worth
from workbench.claims.claim import Claim
from workbench.claims.conclusion import concluded
from workbench.claims.decision import MIN_RUNS
from workbench.claims.pace import Measured, Spent, planned_rounds, slowness_of, why_stopped
from workbench.claims.recipe import Outcome, Recipe, Setting
from workbench.claims.recipes import recipes
from workbench.claims.registry import Registry, read_registry
from workbench.claims.selection import select
from workbench.claims.verdict import Conditions, Measurement, Verdict, judge
from workbench.errors import ParameterError, WorkbenchError
from workbench.experiment.plan.engine_setup import own_model
from workbench.experiment.plan.plan import run_id
from workbench.experiment.result.result import SCHEMA, Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.progress import Standing
from workbench.experiment.run.progress_bar import bar_in_lab
from workbench.experiment.run.run_log import Echo, echo_line
from workbench.experiment.run.time_limit import TimeLimit
from workbench.hardware import machine
from workbench.hardware.machine import repository_root
from workbench.hardware.physics import accelerator
from workbench.params.notebooks import PaperClaimValidation
from workbench.serve.tiny_model import model_facts, tiny_model
from workbench.serve.vllm import number_format

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ClaimResult", "Validation", "validate"]

_STOPS = 1.15
"""All measuring is broken off after so many times the budget, so that 1.2 times hold with the
ending of servers and the writing."""
_ENDS = 1.1
"""Rounds of a measurement that has begun may end so many times the budget after the start."""
_SAME_WORTH = 0.5
"""Claims that others have to decide beyond, before a recipe that has begun makes room for them."""
_MOST, _LEFT_MOST = 3.0, 0.75
"""A recipe is broken off after so many times its estimate, or after such a part of the time that is
left, where that is more: what it has begun is worth something."""
_SLOW = 1.3
"""From here on the page says that the machine is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimResult(Result):
    """A result whose `facts["claims"]` holds one account per claim, see docs/claims.md."""

    @property
    def claims(self) -> pd.DataFrame:
        """One row per claim: id, source, number, verdict, reason."""
        import pandas as pd

        names = ["id", "source", "conditions", "number", "verdict", "reason"]
        return pd.DataFrame(self.facts["claims"], columns=names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What will be judged and measured; printing it starts nothing."""

    params: PaperClaimValidation
    registry: Registry
    claims: tuple[Claim, ...]
    setting: Setting
    schedule: Schedule

    def __str__(self) -> str:
        head = f"claims on {self.setting.hardware} ({self.setting.platform}): {len(self.claims)}"
        return "\n".join([head, *self.registry.mistakes, str(self.schedule)])

    async def run(
        self, *, echo: Echo = echo_line, clock: Callable[[], float] = time.monotonic
    ) -> ClaimResult:
        """Measure, judge, and write the run folder. Cancelling keeps what was measured."""
        with bar_in_lab(echo) as shown:
            return await self._run(shown, clock)

    async def _run(self, echo: Echo, clock: Callable[[], float]) -> ClaimResult:
        name = run_id(self.params)
        folder = RunFolder.open(self.params.output_dir, "paper_claim_validation", name)
        began, began_s = datetime.now(UTC), clock()
        echo(f"paper_claim_validation {name}")
        measured = Measured(plan=self.schedule)
        status = "failed"

        def facts(now: str) -> dict[str, Any]:
            return {
                "schema": SCHEMA,
                "notebook": "paper_claim_validation",
                "run_id": name,
                "status": now,
                "simulated": self.params.engine == "simulated",
                "started_at": began.isoformat(timespec="seconds"),
                "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "duration_s": round(clock() - began_s, 1),
                "measuring_s": round(sum(spent.took_s for spent in measured.spent), 1),
                "time_spent": [asdict(spent) for spent in measured.spent],
                "parameters": asdict(self.params),
                "machine": machine.facts().as_dict() | {"platform": self.setting.platform},
            } | self._judged(measured)

        folder.write_facts(facts("started"))
        try:
            while steps := measured.plan.steps:
                gone_s = clock() - began_s
                await self._measure(steps[0], folder.attempt, gone_s, measured, echo, clock)
                self._plan_anew(clock() - began_s, measured, echo)
            echo(f"all is judged{self._standing(clock() - began_s, measured)}")
            status = "success"
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            found = facts(status)
            for recipe, outcome in measured.outcomes.items():
                folder.write(f"measured_{recipe}", outcome.table)
            folder.write_facts(found)
            if status == "success":
                folder.promote()
            where = folder.home if status == "success" else folder.attempt
            echo(f"{status} after {found['duration_s']:.0f} s: {where}")
        return ClaimResult(facts=found, folder=folder.home)

    async def _measure(
        self,
        step: Step,
        home: Path,
        gone_s: float,
        measured: Measured,
        echo: Echo,
        clock: Callable[[], float],
    ) -> None:
        """One recipe within its share of the time; what it raises is a sentence on its claims."""
        recipe = step.recipe
        setting = replace(
            self.setting, runs=step.runs, requests_share=step.requests_share,
            output_dir=home / "runs" / recipe.name, echo=echo,
        )  # fmt: skip
        limit = self._limit(step, setting, gone_s, measured, clock)
        setting = replace(setting, allotted_s=step.estimate_s, limit=limit)
        standing = self._standing(gone_s, measured)
        echo(f"{recipe.level} level, {recipe.name}: {recipe.what}{standing}")
        if step.cut:
            echo(step.cut)
        began_s = clock()
        said = [step.cut] if step.cut else []
        try:
            outcome = await recipe.run(setting)
            if limit.cut:
                said.append(why_stopped(step, limit))
                echo(said[-1])
            measured.outcomes[recipe.name] = replace(outcome, doubts=(*said, *outcome.doubts))
        except Exception as error:
            kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
            reason = f"{recipe.name} failed: {kind}{' '.join(str(error).split())[:400]}"
            kept = measured.failed
            if limit.cut:
                reason, kept = why_stopped(step, limit), measured.skipped
            kept |= dict.fromkeys(step.claims, reason)
            echo(reason)
        measured.spent.append(
            Spent(recipe=recipe.name, level=recipe.level, planned_s=round(step.estimate_s, 1),
                  took_s=round(clock() - began_s, 1), rounds=limit.rounds,
                  planned_rounds=planned_rounds(step, limit), requests_share=step.requests_share,
                  slowness=slowness_of(step, setting, limit))
        )  # fmt: skip

    def _limit(
        self,
        step: Step,
        setting: Setting,
        gone_s: float,
        measured: Measured,
        clock: Callable[[], float],
    ) -> TimeLimit:
        """How long a step may take: by its estimate, and by what is left for it and the others."""
        budget_s, recipe = self.params.time_budget_s, step.recipe
        once_s = recipe.estimate_s(replace(setting, runs=1))
        round_s = recipe.estimate_s(replace(setting, runs=2)) - once_s
        others = self._recipes_left(measured, beside=recipe.name)
        most_s = stops_s = max(0.0, _STOPS * budget_s - gone_s)
        if others:
            left_s = max(0.0, budget_s - gone_s)
            most_s = min(stops_s, max(_MOST * step.estimate_s, _LEFT_MOST * left_s))

        def goes_on(limit: TimeLimit, planned: int) -> bool:
            left_s = _ENDS * budget_s - gone_s - limit.elapsed_s
            if limit.each_s > left_s or not others:
                return limit.each_s <= left_s
            measured.under_way = recipe.level, limit.slowness, limit.elapsed_s
            ours = [self.registry.claims[name] for name in step.claims]
            now = worth(ours, setting, limit.rounds)
            now_s = gone_s + limit.elapsed_s
            elsewhere = self._worth(self._planned(others, now_s, measured))
            for rounds in dict.fromkeys((min(planned, MIN_RUNS), INTERVAL_RUNS, limit.rounds + 1)):
                cost_s = (rounds - limit.rounds) * limit.each_s
                if not limit.rounds < rounds <= planned or cost_s > left_s:
                    continue
                then = self._planned(others, now_s + cost_s, measured)
                gained = worth(ours, setting, rounds) - now + self._worth(then)
                if gained >= elsewhere - _SAME_WORTH:
                    return True
            return False

        return TimeLimit(
            most_s=most_s, goes_on=goes_on, fixed_s=once_s - round_s, round_s=round_s, clock=clock
        )

    def _standing(self, gone_s: float, measured: Measured) -> str:
        """How far the measuring is, for the end of a line; the budget bounds what is left."""
        done, steps = len(measured.spent), measured.plan.steps
        left_s = min(
            sum(step.estimate_s for step in steps), max(0.0, self.params.time_budget_s - gone_s)
        )
        standing = Standing(
            done=done, total=done + len(steps), elapsed_s=gone_s, left_s=left_s, unit="recipes"
        )
        return f"  {standing}" if standing.total else ""

    def _recipes_left(self, measured: Measured, *, beside: str = "") -> list[Recipe]:
        done = {spent.recipe for spent in measured.spent} | {beside}
        offered = (*self.schedule.steps, *self.schedule.waiting)
        return [step.recipe for step in offered if step.recipe.name not in done]

    def _planned(self, left: Sequence[Recipe], gone_s: float, measured: Measured) -> Schedule:
        """The plan of these recipes in the time that is left, by what the machine has shown."""
        served = {name for recipe in left for name in recipe.claims}
        return schedule(
            [claim for claim in self.claims if claim.id in served], left, self.setting,
            tiers=self.params.tiers, budget_s=self.params.time_budget_s, spent_s=gone_s,
            slowness=measured.slowness,
        )  # fmt: skip

    def _worth(self, plan: Schedule) -> float:
        claims = self.registry.claims
        return sum(
            worth([claims[name] for name in step.claims], self.setting, step.runs)
            for step in plan.steps
        )

    def _plan_anew(self, gone_s: float, measured: Measured, echo: Echo) -> None:
        """After each recipe, since it may have taken more or less than was thought."""
        before = [step.recipe.name for step in measured.plan.steps[1:]]
        left = self._recipes_left(measured)
        measured.under_way = "", nan, 0.0
        measured.plan = self._planned(left, gone_s, measured)
        now = [step.recipe.name for step in measured.plan.steps]
        if now != before and left:
            echo(
                f"{gone_s:.0f} of {self.params.time_budget_s:.0f} s are gone; the plan was made"
                f" anew: {', '.join(now) or 'nothing more fits'}"
            )

    def _judged(self, measured: Measured) -> dict[str, Any]:
        """Every claim with its verdict, and what follows from all of them."""
        accounts, verdicts = [], {}
        versions = machine.facts().versions
        kept = {name: versions[name] for name in ("vllm", "torch", "lmcache") if versions.get(name)}
        # A claim that reading has decided may get our number beside its verdict all the same.
        offered = {
            step.recipe.name: step.recipe for step in (*self.schedule.steps, *self.schedule.waiting)
        }
        begun = [offered[spent.recipe] for spent in measured.spent]
        of = {claim: recipe for recipe in begun for claim in recipe.claims}
        unfit = {**self.schedule.skipped, **measured.plan.skipped}
        skipped = {**unfit, **measured.skipped, **measured.failed}
        for claim in self.claims:
            recipe = of.get(claim.id)
            outcome = measured.outcomes.get(recipe.name) if recipe else None
            verdict, measurement = self._verdict(claim, outcome, measured, kept)
            verdicts[claim.id] = verdict
            accounts.append(
                account(
                    claim, verdict, self.registry.claims,
                    recipe=recipe, outcome=outcome, measurement=measurement,
                    setting=self.setting, skipped=skipped.get(claim.id, ""),
                )
            )  # fmt: skip
        found = concluded(
            self.params, self.setting, self.registry, self.claims, verdicts, accounts,
            outcomes=measured.outcomes, failed=measured.failed, steps=len(begun),
        )  # fmt: skip
        return found | {"doubts": [*self._slow(measured), *found["doubts"]]}

    def _slow(self, measured: Measured) -> list[str]:
        """A sentence where the machine was slower than planned, and what that left out."""
        slowness = measured.slowness("")
        doubts = list(dict.fromkeys(measured.skipped.values()))
        if slowness >= _SLOW:
            left_out = ", ".join(step.recipe.name for step in measured.plan.waiting)
            doubts.insert(
                0,
                f"This machine took {slowness:.1f} times as long as planned"
                + (f": no time for {left_out}." if left_out else "."),
            )
        return doubts

    def _verdict(
        self,
        claim: Claim,
        outcome: Outcome | None,
        measured: Measured,
        versions: Mapping[str, str],
    ) -> tuple[Verdict, Measurement | None]:
        measurement = outcome.measurements.get(claim.id) if outcome else None
        try:
            if claim.id in measured.failed:
                fault = Measurement(effects={}, faults=(measured.failed[claim.id],))
                return judge(claim, self._conditions({}, versions), fault), None
            if outcome is None or measurement is None:
                return judge(claim), None
            conditions = self._conditions(outcome.checks, versions)
            return judge(claim, conditions, measurement), measurement
        except Exception as error:
            reason = f"It could not be judged: {type(error).__name__}: {error}."
            return Verdict(claim=claim.id, verdict="not_tested", code="not_judged",
                           reason=reason, gate="G3"), measurement  # fmt: skip

    def _conditions(self, checks: Mapping[str, str], versions: Mapping[str, str]) -> Conditions:
        return Conditions(
            platform=self.setting.platform, hardware=self.setting.hardware,
            model=_model_name(self.params, self.setting), checks=checks, versions=versions,
        )  # fmt: skip


def validate(params: PaperClaimValidation) -> Validation:
    """The validation of checked parameters; starts nothing.

    Raises ParameterError for a claim or group that is not known, for a registry without one
    readable claim, and for a model folder that is none.
    """
    registry = read_registry(repository_root() / params.registry)
    if not registry.claims:
        raise ParameterError(
            f"registry is {params.registry!r}, and no claim in it can be read:"
            f" {' '.join(registry.mistakes[:3])}"
        )
    claims = select(registry, params.claims)
    setting = _setting(params)
    return Validation(
        params=params, registry=registry, claims=claims, setting=setting,
        schedule=schedule(
            claims, recipes(params), setting, tiers=params.tiers, budget_s=params.time_budget_s
        ),
    )  # fmt: skip


def _setting(params: PaperClaimValidation) -> Setting:
    found = machine.facts()
    platform = found.platform if params.platform == "auto" else params.platform
    hardware = f"{found.cores} CPU cores"
    if params.engine == "vllm" and params.model.startswith(("/", ".", "~")):
        model_facts(params.model)  # a path that is no model is refused before anything starts
    if platform != "cpu" and found.gpus:
        known = accelerator(found.gpus[0].name)
        hardware = known.name if known else found.gpus[0].name
    dtype = number_format(params.dtype, platform, fast_bf16=found.fast_bf16)  # type: ignore[arg-type]
    if params.model:
        model = Path(params.model)
    elif params.engine == "vllm" and set(params.tiers) != {"source"}:
        model = own_model(platform, dtype)  # type: ignore[arg-type]
    else:  # no engine is timed, so how fast the machine is need not be measured
        model = tiny_model()
    return Setting(
        platform=platform,  # type: ignore[arg-type]
        hardware=hardware,
        model=model,
        output_dir=repository_root() / params.output_dir,
        budget_s=params.time_budget_s,
        dtype=dtype or "bfloat16",
        seed=params.seed,
        runs=params.rounds,
    )


def _model_name(params: PaperClaimValidation, setting: Setting) -> str:
    return setting.model.name if params.model else "a tiny local model"
