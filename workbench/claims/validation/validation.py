"""The run of `paper_claim_validation`: read claims, measure, judge, write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.claims.all_recipes import recipes
from workbench.claims.recipes.recipe import Outcome, Setting
from workbench.claims.registry.claim import Claim
from workbench.claims.registry.registry import Registry, read_registry
from workbench.claims.validation.account import account
from workbench.claims.validation.budget import Schedule, schedule
from workbench.claims.validation.conclusion import concluded
from workbench.claims.validation.measuring import Measuring
from workbench.claims.verdict.verdict import Conditions, Measurement, Verdict, judge
from workbench.errors import ParameterError
from workbench.experiment.plan.engine_setup import engine_interpreter, own_model
from workbench.experiment.result.facts import RunFacts, Status
from workbench.experiment.result.result import Result
from workbench.experiment.result.run_folder import RunFolder
from workbench.experiment.run.progress_bar import bar_in_lab
from workbench.experiment.run.run_log import Echo, echo_line
from workbench.hardware import machine
from workbench.hardware.machine import repository_root
from workbench.hardware.physics import accelerator
from workbench.params.notebooks import PaperClaimValidation
from workbench.params.run_id import run_id
from workbench.serve.tiny_model import model_facts
from workbench.serve.vllm import number_format

if TYPE_CHECKING:
    import pandas as pd

_NOTEBOOK = "paper_claim_validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimResult(Result):
    """A result with one account per claim in `facts["claims"]`, see docs/claims.md."""

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

    @property
    def machine(self) -> machine.Machine:
        """This machine, with the packages of the engine's interpreter."""
        return machine.facts().with_engine(self.setting.engine)

    def __str__(self) -> str:
        head = f"{len(self.claims)} claims on {self.setting.hardware} ({self.setting.platform})"
        return "\n".join([head, *self.registry.mistakes, str(self.schedule)])

    async def run(
        self, *, echo: Echo = echo_line, clock: Callable[[], float] = time.monotonic
    ) -> ClaimResult:
        """Measure, judge and write the run folder. Cancelling keeps what was measured."""
        with bar_in_lab(echo) as shown:
            return await self._run(shown, clock)

    async def _run(self, echo: Echo, clock: Callable[[], float]) -> ClaimResult:
        name = run_id(self.params)
        folder = RunFolder.open(self.params.output_dir, _NOTEBOOK, name)
        began = datetime.now(UTC)
        echo(f"{_NOTEBOOK} {name}")
        measuring = Measuring(
            claims=self.claims, setting=self.setting, tiers=self.params.tiers, plan=self.schedule,
            home=folder.attempt, echo=echo, clock=clock,
        )  # fmt: skip
        status: Status = "failed"

        def facts(now: Status) -> RunFacts:
            return RunFacts(
                notebook=_NOTEBOOK,
                run_id=name,
                status=now,
                simulated=self.params.engine == "simulated",
                started_at=began.isoformat(timespec="seconds"),
                finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
                duration_s=round(measuring.gone_s, 1),
                measuring_s=round(sum(spent.took_s for spent in measuring.spent), 1),
                time_spent=tuple(asdict(spent) for spent in measuring.spent),
                parameters=asdict(self.params),
                machine=self.machine.as_dict() | {"platform": self.setting.platform},
                **self._judged(measuring),
            )

        # Also written before, so that a killed run leaves a result that says so.
        folder.write_facts(facts("started"))
        try:
            await measuring.run()
            status = "success"
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            found = facts(status)
            for recipe, outcome in measuring.outcomes.items():
                folder.write(f"measured_{recipe}", outcome.table)
            folder.write_facts(found)
            if status == "success":
                folder.promote()
            where = folder.home if status == "success" else folder.attempt
            echo(f"{status} after {found.duration_s:.0f} s: {where}")
        return ClaimResult(run=found, folder=folder.home)

    def _judged(self, measuring: Measuring) -> dict[str, Any]:
        """Every claim with its verdict, and the conclusion from all of them."""
        accounts, odd = [], []
        known = self.machine.versions
        versions = {name: known[name] for name in ("vllm", "torch", "lmcache") if known.get(name)}
        unfit = {**self.schedule.skipped, **measuring.plan.skipped}
        skipped = {**unfit, **measuring.stopped, **measuring.failed}
        for claim in self.claims:
            # A claim that its source decides may have a number of ours as well.
            recipe = measuring.recipe_of(claim.id)
            outcome = measuring.outcomes.get(recipe.name) if recipe else None
            failed = measuring.failed.get(claim.id, "")
            measurement = outcome.measurements.get(claim.id) if outcome and not failed else None
            verdict = self._verdict(claim, outcome, measurement, failed, versions)
            if claim.expected_verdict and verdict.verdict != claim.expected_verdict:
                odd.append(claim.id)
            accounts.append(
                account(
                    claim, verdict, self.registry.claims,
                    recipe=recipe, outcome=outcome, measurement=measurement,
                    setting=self.setting, skipped=skipped.get(claim.id, ""),
                )
            )  # fmt: skip
        found = concluded(
            self.params, self.setting, self.registry, accounts, odd_fixtures=odd,
            outcomes=measuring.outcomes, failed=measuring.failed, steps=len(measuring.spent),
        )  # fmt: skip
        return found | {"doubts": (*measuring.doubts, *found["doubts"])}

    def _verdict(
        self,
        claim: Claim,
        outcome: Outcome | None,
        measurement: Measurement | None,
        failed: str,
        versions: Mapping[str, str],
    ) -> Verdict:
        """The verdict; an error with one claim does not stop the others."""
        checks = outcome.checks if outcome else {}
        if failed:
            checks, measurement = {}, Measurement(effects={}, faults=(failed,))
        conditions = Conditions(
            platform=self.setting.platform, hardware=self.setting.hardware,
            model=self.setting.model.name if self.params.model else "a tiny local model",
            checks=checks, versions=versions,
        )  # fmt: skip
        try:
            return judge(claim, conditions, measurement) if measurement else judge(claim)
        except Exception as error:
            reason = f"It could not be judged: {type(error).__name__}: {error}."
            return Verdict(verdict="not_tested", code="not_judged", reason=reason, gate="G3")


def validate(params: PaperClaimValidation) -> Validation:
    """The validation of checked parameters; starts nothing.

    Raises ParameterError for an unknown claim or group, a registry without a valid claim, and a
    folder without a model.
    """
    registry = read_registry(repository_root() / params.registry)
    if not registry.claims:
        raise ParameterError(
            f"registry must be a folder with valid claims, got {params.registry!r}"
            f" (example: -p registry params/claims): {' '.join(registry.mistakes[:3])}"
        )
    claims = registry.select(params.claims)
    setting = _setting(params)
    return Validation(
        params=params, registry=registry, claims=claims, setting=setting,
        schedule=schedule(
            claims, recipes(params), setting, tiers=params.tiers, budget_s=params.time_budget_s
        ),
    )  # fmt: skip


def _setting(params: PaperClaimValidation) -> Setting:
    found, engine = machine.facts(), engine_interpreter(params.engine_python)
    platform = found.platform if params.platform == "auto" else params.platform
    hardware = f"{found.cores} CPU cores"
    if params.engine == "vllm" and params.model.startswith(("/", ".", "~")):
        model_facts(params.model)  # refuse a wrong path before anything starts
    if platform != "cpu" and found.gpus:
        known = accelerator(found.gpus[0].name)
        hardware = known.name if known else found.gpus[0].name
    dtype = number_format(params.dtype, platform, fast_bf16=found.fast_bf16)  # type: ignore[arg-type]
    if params.model:
        model = Path(params.model)
    elif params.engine == "vllm" and set(params.tiers) != {"source"} and engine.find("torch"):
        model = own_model(platform, dtype, engine)  # type: ignore[arg-type]
    else:
        model = Path()  # nothing that reads it will run
    return Setting(
        platform=platform,  # type: ignore[arg-type]
        hardware=hardware,
        model=model,
        output_dir=repository_root() / params.output_dir,
        budget_s=params.time_budget_s,
        engine=engine,
        dtype=dtype or "bfloat16",
        seed=params.seed,
        runs=params.rounds,
    )
