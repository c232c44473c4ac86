"""The run behind `paper_claim_validation`: read, spend the time budget, judge, write it down.

What goes wrong with one claim or one measurement is a sentence on it; the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import machine
from workbench.claims.account import account
from workbench.claims.budget import Schedule, Step, schedule
from workbench.claims.claim import Claim
from workbench.claims.conclusion import concluded
from workbench.claims.recipe import Outcome, Setting
from workbench.claims.recipes import recipes
from workbench.claims.registry import Registry, read_registry
from workbench.claims.selection import select
from workbench.claims.verdict import Conditions, Measurement, Verdict, judge
from workbench.errors import ParameterError, WorkbenchError
from workbench.experiment.plan import run_id
from workbench.experiment.result import SCHEMA, Result
from workbench.experiment.run_folder import RunFolder
from workbench.experiment.run_log import Echo, echo_line
from workbench.machine import repository_root
from workbench.params import PaperClaimValidation
from workbench.physics import accelerator
from workbench.serve.tiny_model import model_facts, tiny_model

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ClaimResult", "Validation", "validate"]

_OVERRUN = 1.25
"""A measurement that would end later than this many times the budget is not begun."""


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

    async def run(self, *, echo: Echo = echo_line) -> ClaimResult:
        """Measure, judge, and write the run folder. Cancelling keeps what was measured."""
        name = run_id(self.params)
        folder = RunFolder.open(self.params.output_dir, "paper_claim_validation", name)
        began, began_s = datetime.now(UTC), time.monotonic()
        echo(f"paper_claim_validation {name}")
        measured = _Measured()
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
                "duration_s": round(time.monotonic() - began_s, 1),
                "measuring_s": round(sum(measured.took_s.values()), 1),
                "parameters": asdict(self.params),
                "machine": machine.facts().as_dict() | {"platform": self.setting.platform},
            } | self._judged(measured)

        folder.write_facts(facts("started"))
        try:
            for step in self.schedule.steps:
                await self._measure(step, folder.attempt, began_s, measured, echo)
            for step in self.schedule.waiting:
                gone_s = time.monotonic() - began_s
                if gone_s + step.estimate_s <= self.params.time_budget_s:
                    await self._measure(step, folder.attempt, began_s, measured, echo)
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
        self, step: Step, home: Path, began_s: float, measured: _Measured, echo: Echo
    ) -> None:
        """One recipe; whatever it raises is a sentence on its claims."""
        recipe, gone_s = step.recipe, time.monotonic() - began_s
        if measured.took_s and gone_s + step.estimate_s > _OVERRUN * self.params.time_budget_s:
            reason = (
                f"{recipe.name} takes about {step.estimate_s:.0f} s, and what came before it took"
                f" {gone_s:.0f} of {self.params.time_budget_s:.0f} s; raise time_budget_s."
            )
            measured.skipped |= dict.fromkeys(step.claims, reason)
            echo(f"{recipe.name} is skipped: {reason}")
            return
        echo(f"{recipe.level} level, {recipe.name}: {recipe.what}")
        setting = replace(
            self.setting, runs=step.runs, output_dir=home / "runs" / recipe.name, echo=echo,
            allotted_s=step.estimate_s,
        )  # fmt: skip
        began = time.monotonic()
        try:
            measured.outcomes[recipe.name] = await recipe.run(setting)
        except Exception as error:
            kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
            reason = f"{recipe.name} failed: {kind}{' '.join(str(error).split())[:400]}"
            measured.failed |= dict.fromkeys(step.claims, reason)
            echo(reason)
        measured.took_s[recipe.name] = time.monotonic() - began

    def _judged(self, measured: _Measured) -> dict[str, Any]:
        """Every claim with its verdict, and what follows from all of them."""
        accounts, verdicts = [], {}
        versions = machine.facts().versions
        kept = {name: versions[name] for name in ("vllm", "torch", "lmcache") if versions.get(name)}
        # A claim that reading has decided may get our number beside its verdict all the same.
        begun = [step for step in self.schedule.waiting if step.recipe.name in measured.took_s]
        steps = (*self.schedule.steps, *begun)
        of = {claim: step.recipe for step in steps for claim in step.recipe.claims}
        for claim in self.claims:
            recipe = of.get(claim.id)
            outcome = measured.outcomes.get(recipe.name) if recipe else None
            verdict, measurement = self._verdict(claim, outcome, measured, kept)
            verdicts[claim.id] = verdict
            skipped = {**self.schedule.skipped, **measured.skipped, **measured.failed}
            accounts.append(
                account(
                    claim, verdict, self.registry.claims,
                    recipe=recipe, outcome=outcome, measurement=measurement,
                    setting=self.setting, skipped=skipped.get(claim.id, ""),
                )
            )  # fmt: skip
        return concluded(
            self.params, self.setting, self.registry, self.claims, verdicts, accounts,
            outcomes=measured.outcomes, failed=measured.failed, steps=len(steps),
        )  # fmt: skip

    def _verdict(
        self,
        claim: Claim,
        outcome: Outcome | None,
        measured: _Measured,
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


class _Measured:
    """What has been measured so far."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.took_s: dict[str, float] = {}


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
    return Setting(
        platform=platform,  # type: ignore[arg-type]
        hardware=hardware,
        model=Path(params.model) if params.model else tiny_model(),
        output_dir=repository_root() / params.output_dir,
        budget_s=params.time_budget_s,
        seed=params.seed,
        runs=params.rounds,
    )


def _model_name(params: PaperClaimValidation, setting: Setting) -> str:
    return setting.model.name if params.model else "a tiny local model"
