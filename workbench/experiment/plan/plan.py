"""What will be measured: arms x rounds x passes of a workload, in which order, for how long.

Printing a plan shows every process that a run would start; planning starts none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from workbench.experiment.load_unit import USERS
from workbench.experiment.plan.arm import Arm, Pass, load_pass
from workbench.experiment.plan.duration import Duration, launch_by_rule_s, measured_before
from workbench.experiment.plan.offered_load.loads import Loads
from workbench.experiment.plan.offered_load.traffic import WorkloadSpec, arrivals_of
from workbench.experiment.plan.speed import Speed
from workbench.hardware import machine
from workbench.load.http.request import USUAL_FORM, RequestForm
from workbench.load.workload.arrivals import Arrivals, closed
from workbench.params.engine_args import value_of
from workbench.params.notebooks import EngineParams, LoadParams
from workbench.params.run_id import run_id
from workbench.serve.tiny_model import LAYERS, model_facts
from workbench.serve.vllm import EngineSettings, Platform

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class OfModel:
    """What one model of a sweep over several has of its own, besides its arms."""

    params: EngineParams
    workload: WorkloadSpec
    """The same workload for all, in this model's tokens."""
    speed: Speed | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPlan:
    """Arms x rounds x passes of one workload.

    Of several models there is a part for each, a plan of that model's arms alone: arms are compared
    within their part only.
    """

    notebook: str
    params: EngineParams
    arms: tuple[Arm, ...]
    rounds: int
    workload: WorkloadSpec
    arrivals: Arrivals
    """In a sweep over loads, those of its highest load."""
    loads: Loads | None = None
    """A sweep over rates or users, or a search; each load is a cold pass with prompts of its own.
    """
    doubts: tuple[str, ...] = ()
    speed: Speed | None = None
    """Of this machine with the tiny model; None for another model, engine or platform."""
    notes: tuple[str, ...] = ()
    """What was chosen for this machine."""
    form: RequestForm = USUAL_FORM
    """The form of requests; for attached servers it is found out when the run begins."""
    by_model: Mapping[str, OfModel] = field(default_factory=dict)
    """Of a run over several models, by short name; empty for one model. `params`, `workload` and
    `speed` are then those of all, of the first and of the first."""
    model: str = ""
    """The short name of the model, in a part of a run over several."""
    command: str = ""
    """The command that repeats it; empty for papermill with the notebook."""

    @property
    def parts(self) -> tuple[ExperimentPlan, ...]:
        """The plan of each model alone; this one where there is one model."""
        if not self.by_model:
            return (self,)
        return tuple(
            replace(
                self,
                params=own.params,
                arms=tuple(arm for arm in self.arms if arm.model == name),
                workload=own.workload,
                speed=own.speed,
                notes=own.notes,
                by_model={},
                model=name,
            )
            for name, own in self.by_model.items()
        )

    def part_of(self, arm: Arm) -> ExperimentPlan:
        """The part that has this arm."""
        return next(part for part in self.parts if part.model in ("", arm.model))

    @property
    def settings(self) -> EngineSettings | None:
        """Of the engine; None where servers run already."""
        return self.arms[0].settings

    @property
    def platform(self) -> Platform:
        return self.settings.platform if self.settings else "cpu"

    @property
    def kv_bytes_per_token(self) -> float:
        """KV of one token in all layers; NaN for a model that is not a folder here."""
        return self.settings.kv_bytes_per_token if self.settings else nan

    @property
    def kv_space_tokens(self) -> float:
        """Tokens that fit an instance's KV cache; NaN on a GPU where only vLLM knows it."""
        settings = self.settings
        if settings is None:
            return nan
        given = value_of(settings.extra_args, "--kv-cache-memory-bytes")
        if settings.on_gpu:
            return int(given) / self.kv_bytes_per_token if given.isdecimal() else nan
        return settings.kv_cache_mib * 2**20 / self.kv_bytes_per_token

    @property
    def sized(self) -> bool:
        """Whether it sweeps working sets, so that its passes have several sizes."""
        return any(p.requests for arm in self.arms for p in arm.passes)

    @property
    def profiles(self) -> bool:
        """Whether it measures a profile: each pass has its own load, so none are compared."""
        return self.notebook == "profile"

    @property
    def host_tokens(self) -> float:
        """Tokens that fit the host memory of an instance that offloads; NaN without one."""
        for arm in self.arms:
            if arm.store and arm.store.private:
                return arm.store_gb * 2**30 / self.kv_bytes_per_token
        return nan

    @property
    def parameters(self) -> dict[str, Any]:
        return asdict(self.params)

    @property
    def run_id(self) -> str:
        """A readable slug and a hash of all parameters but where the output goes."""
        return run_id(self.params)

    @property
    def text_reference(self) -> str:
        """The arm whose cold responses all others must equal: an aggregated one if there is one,
        and rather one that does not offload."""
        aggregated = [arm for arm in self.arms if arm.topology and not arm.disaggregated]
        kept = [arm for arm in aggregated if not (arm.store and arm.store.private)]
        return (kept or aggregated or list(self.arms))[0].label

    def order(self, round_number: int) -> tuple[Arm, ...]:
        """The arms of a round: each second round mirrors the one before, each pair rotates by one.

        While the machine drifts, no arm is always first or always behind the same neighbour.
        (Rotating every round would undo the mirror: of two arms the same would be first.)
        """
        turn = round_number // 2 % len(self.arms)
        rotated = (*self.arms[turn:], *self.arms[:turn])
        return rotated[::-1] if round_number % 2 else rotated

    def passes(self, arm: Arm, number: int, rows: Callable[[], pd.DataFrame]) -> Iterator[Pass]:
        """The passes of an arm in a round; `rows` has the requests measured so far."""
        yield from arm.passes
        if self.loads is not None:
            for load in self.loads.of_round(number, arm.label, rows):
                yield load_pass(self.loads.unit, load)

    def arrivals_in(self, measured: Pass) -> Arrivals:
        """When the requests of a pass are sent."""
        if measured.concurrency:
            return closed(measured.concurrency)
        if not measured.rate_per_s:
            return self.arrivals
        assert isinstance(self.params, LoadParams)
        requests = len(self.workload.sample.requests)
        return arrivals_of(self.params, requests, rate_per_s=measured.rate_per_s)

    @property
    def once_s(self) -> float:
        """Seconds before the first launch: loading the fork server."""
        return self.speed.fork_server_s if self.speed and self.forked else 0.0

    @property
    def forked(self) -> bool:
        """Whether CPU instances are forked; otherwise each process imports vLLM anew."""
        return self.params.fork and not (self.settings and self.settings.image)

    @property
    def longest_wait_s(self) -> float:
        """Of the last prompt if all are prefilled one after the other; NaN if unknown."""
        if self.speed is None:
            return nan
        layers = model_facts(self.settings.model).layers if self.settings else LAYERS
        return sum(
            self.speed.prefill_s(r.prompt_tokens, layers=layers)
            for r in self.workload.sample.requests
        )

    @property
    def estimate_s(self) -> float:
        """About how long the run takes on an idle machine; NaN if unknown."""
        return self.duration.total_s

    @property
    def duration(self) -> Duration:
        """How long the run takes, and on what that estimate is based."""
        found = {arm.label: measured_before(self.launch_key(arm)) for arm in self.arms}
        launch_s = {label: seconds for label, (seconds, _) in found.items()}
        days = [day for _, day in found.values() if day]
        if self.platform == "simulated":
            basis = "(simulated)"
        elif len(days) == len(self.arms):
            basis = f"(each arm was measured on this machine before, last on {max(days)})"
        elif self.speed is not None:
            part = f"{len(days)} of {len(self.arms)} arms measured before; " if days else ""
            speeds = [(f"{p.model}: " * bool(p.model), p.speed) for p in self.parts if p.speed]
            basis = f"on an idle machine ({part}{'; '.join(f'{of}{how}' for of, how in speeds)})"
        else:
            first = "a run with rounds 1 measures it"
            basis = f"({first if self.settings else 'the servers are attached'})"
        for arm in self.arms:
            if isnan(launch_s[arm.label]):
                launch_s[arm.label] = self._rule_s(arm)
        return Duration(
            rounds=self.rounds,
            once_s=self.once_s,
            launch_s=launch_s,
            gpus={arm.label: arm.gpus for arm in self.arms if arm.settings and arm.settings.on_gpu},
            basis=basis,
        )

    @property
    def rule_s(self) -> float:
        """The duration by the rule alone, whatever was measured before; NaN if there is none."""
        return self.once_s + self.rounds * sum(map(self._rule_s, self.arms))

    def launch_key(self, arm: Arm) -> str:
        """Equal for launches that take equally long: servers, workload and machine are the same.

        Empty for servers that are simulated or run already.
        """
        if arm.settings is None or self.platform == "simulated":
            return ""
        if self.by_model:
            return self.part_of(arm).launch_key(arm)
        here = machine.facts().with_engine(arm.settings.interpreter)
        text = json.dumps(
            [
                [p.command_line for p in arm.deployment(count(20_000)).processes],
                [here.cpu, here.cores, [gpu.name for gpu in here.gpus]],
                {name: here.versions.get(name) for name in ("vllm", "lmcache", "workbench")},
                [self.workload.sample.hash, self.workload.options, self.describe_arrivals()],
                [[*map(asdict, arm.passes)], str(self.loads or ""), self.params.fork],
            ],
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _rule_s(self, arm: Arm) -> float:
        """Seconds of a launch of this arm by the rule; NaN if there is none."""
        if self.by_model:
            return self.part_of(arm)._rule_s(arm)
        return launch_by_rule_s(
            arm, self.workload.sample.requests, self.arrivals, self.loads,
            platform=self.platform, speed=self.speed, forked=self.forked,
        )  # fmt: skip

    def describe_arrivals(self) -> str:
        """One line for a report: when requests were sent."""
        if self.profiles:
            own = [each.concurrency for arm in self.arms for each in arm.passes]
            return f"closed loop, {min(own)} to {max(own)} at a time"
        if self.loads is None:
            return self.arrivals.describe()
        if self.loads.unit == USERS:
            given = ", ".join(f"{users:g}" for users in self.loads.given)
            return f"closed loop, {given or 'as many as meet the limits'} at a time"
        kind = self.arrivals.kind.capitalize()
        return f"open loop, {kind} arrivals at each rate (seed {self.arrivals.seed})"

    def __str__(self) -> str:
        arms, rounds = len(self.arms), self.rounds
        size = f"{arms} arm{'s' * (arms > 1)} x {rounds} round{'s' * (rounds > 1)}"
        lines = [f"{self.notebook} {self.run_id}: {size}"]
        if self.by_model:
            lines.append(f"models {', '.join(self.by_model)}")
        lines.append(f"workload {self.workload}; {self.describe_arrivals()}")
        if self.settings is not None and self.settings.cluster is not None:
            lines += ["", *self.settings.cluster.table()]
        swept = [str(self.loads)] if self.loads else []
        for arm in self.arms:
            passes = ", ".join([*(p.name for p in arm.passes), *swept])
            role = "baseline" if arm.role == "opponent" else arm.role
            lines.append(f"\narm {arm.label} ({role}): {passes}")
            if arm.settings is not None:
                lines.append(str(arm.deployment(count(20_000))))
        duration, budget_s = self.duration, self.params.time_budget_s
        lines += ["", *self.notes, *self.doubts, f"\nduration: {duration}"]
        if budget_s and not isnan(duration.total_s):
            fit = duration.rounds_within(budget_s)
            lines.append(f"time_budget_s {budget_s:g}: about {fit} of {rounds} rounds will be run")
        return "\n".join(lines)
