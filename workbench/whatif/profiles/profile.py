"""A profile: what a measured 1p1d takes per step, token and byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workbench.errors import PlanError, must_be
from workbench.experiment.findings.sentences import percent
from workbench.experiment.result.predicted import GOAL
from workbench.experiment.result.result_file import jsonable
from workbench.hardware import machine
from workbench.hardware.interpreter import versions_of
from workbench.params.notebooks import check_params
from workbench.params.pd_sweep import PdSweep
from workbench.serve.connectors import connector
from workbench.whatif.model.costs import Costs
from workbench.whatif.profiles.fits import Fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = 1
FREE = frozenset(
    (
        *("topology", "workload", "prompt_tokens", "output_tokens", "requests", "shared_share"),
        *("target_reuse", "trace_file", "trace_block_tokens", "trace_speed", "arrivals"),
        *("concurrency", "rate_per_s", "burstiness", "end_rate_per_s", "seed", "ttft_limit_ms"),
        *("tpot_limit_ms", "limits_share", "rounds", "opponents", "output_dir", "client_workers"),
        *("gpu_hour_price", "time_budget_s", "targets", "prompts_file", "text"),
    )
)
"""Parameters that a prediction may set; all others are those of the profile."""
LOAD = ("workload", "prompt_tokens", "output_tokens", "requests", "shared_share", "seed")
"""Parameters of the load that are the profile's unless a prediction sets them."""
_FILES = ("trace_file", "prompts_file")
_OF_A_WORKLOAD = (*_FILES, "trace_block_tokens", "text", "target_reuse")
"""The same, unless the prediction is of another workload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The content of profile.json."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"allow_inf_nan": False}

    schema: int = SCHEMA
    run_id: str
    """Of the run that it comes from."""
    simulated: bool
    machine: Mapping[str, Any]
    """CPU, cores, GPUs and platform: a prediction is refused for another machine."""
    versions: Mapping[str, str]
    command_lines: tuple[str, ...]
    parameters: Mapping[str, Any]
    connector: str
    prefill: Fit
    """Over prompt tokens: steps, tokens, pairs of tokens."""
    decode: Fit
    """A step, over the batch and its KV tokens."""
    transfer: Fit
    """Over bytes and the number of other transfers at the time."""
    overheads_s: tuple[tuple[float, float, float, float, float], ...]
    """Prompt tokens and `simulation.OVERHEADS` of each request that was alone."""
    lone_ttft_s: tuple[float, float]
    """Median TTFT of the shortest prompts, alone, and of the longest."""
    kv_tokens: Mapping[str, int]
    """KV space of an instance, by role."""
    kv_bytes_per_token: float
    step_tokens: int
    step_sequences: int
    block_tokens: int

    rough: str = ""
    """What failed gates do to the times of its run."""
    aggregated: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """For each cold pass of the run's own 1a, which was not fitted: predicted / measured - 1 of
    the median TTFT and TPOT. Its steps mix prefill and decode, which no step of 1p1d does."""

    def costs(self, resample: int = 0) -> Costs:
        """What the simulation needs: of all points for 0, else of a bootstrap resample."""
        prefill, decode, transfer = (
            one.of_resample(resample) for one in (self.prefill, self.decode, self.transfer)
        )
        return Costs(
            prefill_step_s=prefill["steps"],
            token_s=prefill["tokens"],
            pair_s=prefill["pairs"],
            decode_step_s=decode["steps"],
            sequence_s=decode["sequences"],
            kv_token_s=decode["kv_tokens"],
            transfer_s=transfer["transfers"],
            byte_s=transfer["bytes"],
            concurrent_s=transfer["others"],
            step_tokens=self.step_tokens,
            step_sequences=self.step_sequences,
            block_tokens=self.block_tokens,
            kv_tokens=dict(self.kv_tokens),
            kv_bytes_per_token=self.kv_bytes_per_token,
            holds=connector(self.connector).store is None,
            profiled_kv_tokens=self.decode.ranges["kv_tokens"][1],
        )

    def overheads_of(self, prompts: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        """A row of `simulation.OVERHEADS` for each prompt, drawn from those that were measured."""
        seen = np.asarray(self.overheads_s, float)
        rows = np.random.default_rng(seed).integers(0, len(seen), len(prompts))
        # JSON of longer prompts takes longer: each part is adjusted by its slope.
        slopes = np.polyfit(seen[:, 0], seen[:, 1:], 1)[0]
        moved: NDArray[np.float64] = seen[rows, 1:] + (prompts - seen[rows, 0])[:, None] * slopes
        return np.maximum(moved, 0.0)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is wrong with every prediction from it."""
        found = [f"The profile's run is {self.rough}."] if self.rough else []
        if others := self.changed_versions:
            found.append(f"Measured with {'; '.join(others)}. Profile again.")
        costs = self.costs()
        if not costs.token_s and not costs.pair_s:
            found.append(
                "Profiled prefill time does not grow with the prompt. Do not rely on TTFT."
            )
        if not costs.sequence_s and not costs.kv_token_s:
            found.append(
                "Profiled decode step time does not grow with the batch. Do not rely on TPOT."
            )
        if not costs.byte_s:
            found.append("Profiled transfer time does not grow with the size. TTFT may be wrong.")
        off = [error for both in self.aggregated.values() for error in both]
        if (worst := max(off, key=abs, default=0.0)) and abs(worst) > GOAL:
            found.append(
                "The profile's predictions for the 1a of its own run are off by up to"
                f" {percent(worst, signed=True)}. Expect no smaller errors elsewhere."
            )
        return tuple(found)

    @property
    def changed_versions(self) -> list[str]:
        """Versions of the engine or connector that differ here: `vllm 0.31, here 0.32`."""
        here = versions_of(self.versions)
        return [
            f"{name} {had}, here {here.get(name, 'none')}"
            for name, had in self.versions.items()
            if (name in ("vllm", "torch") or name in self.connector) and had != here.get(name)
        ]

    def write(self, folder: Path) -> Path:
        """Write profile.json into a folder."""
        path = folder / "profile.json"
        path.write_text(json.dumps(jsonable(self), indent=1) + "\n", encoding="utf-8")
        return path

    def params(self, given: Mapping[str, Any]) -> PdSweep:
        """The parameters of a prediction: the profile's, with `given` over them.

        Raises PlanError on another machine, and for another model or engine arguments;
        ParameterError for what pd_sweep would refuse.
        """
        here = machine_of(machine.facts().as_dict() | {"platform": self.machine["platform"]})
        for name, value in self.machine.items():
            if here[name] != value:
                raise PlanError(
                    f"this profile was measured on another machine ({name} {value!r}, here"
                    f" {here[name]!r}); measure one here (example: workbench profile -p connector"
                    " nixl)"
                )
        profiled = bool(given.get("predict"))
        given = {name: v for name, v in given.items() if name not in ("predict", "measure")}
        kept = {name: v for name, v in self.parameters.items() if name not in FREE}
        kept |= self._load(given)
        if profiled and "concurrency" in given:  # which may be that of the profile only
            own = {name: v for name, v in given.items() if name != "concurrency"}
            given = given if check_params("pd_sweep", kept | own).uses_concurrency else own
        # Values given as text become those of their type.
        asked: PdSweep = check_params("pd_sweep", kept | dict(given))
        usual = PdSweep()  # of parameters that are newer than the profile
        for name in given:
            wanted, had = getattr(asked, name), self.parameters.get(name, getattr(usual, name))
            if name not in FREE and wanted != had:
                raise PlanError(must_be(name, f"the profile's {had!r}", wanted, had))
        load = {name: value for name, value in given.items() if name in FREE}
        made: PdSweep = check_params("pd_sweep", kept | load)
        return made

    def _load(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of the load that a prediction with `given` takes from the profile."""
        own = {name: self.parameters[name] for name in LOAD}
        also = {n: self.parameters[n] for n in _OF_A_WORKLOAD if n in self.parameters}
        names = ("workload", *_FILES)
        if all(given[name] == (own | also).get(name, "") for name in names if name in given):
            return own | also
        if any(given.get(name) for name in _FILES):  # which has lengths and a number of its own
            return {n: v for n, v in own.items() if n not in ("prompt_tokens", "requests")}
        return own | {"prompt_tokens": int(self.prefill.ranges["tokens"][1])}


def machine_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a machine that must be the same as in the profile."""
    gpus = [gpu["name"] for gpu in facts["gpus"]]
    return {"cpu": facts["cpu"], "cores": facts["cores"], "gpus": gpus,
            "platform": facts["platform"]}  # fmt: skip
