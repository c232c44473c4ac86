"""Operating points of a sweep: throughput per GPU, tokens/s per user, cost and energy of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import TYPE_CHECKING

from workbench.experiment.load_unit import RATE
from workbench.experiment.plan.arm import Arm
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.finding_rows import EnergyRow, PointRow
from workbench.metrics.latency import succeeded, system_tps
from workbench.metrics.statistics import Estimate, mean_of_rounds, quantile
from workbench.params.pd_sweep import PdSweep
from workbench.params.price import Price

if TYPE_CHECKING:
    import pandas as pd

_SHORT_S = 2.0
"""GPUs report a mean of about a second, so a shorter pass includes power from before it."""


def point_rows(
    plan: ExperimentPlan,
    requests: pd.DataFrame,
    *,
    energy: Sequence[EnergyRow] = (),
    unmetered: Mapping[str, str] | None = None,
) -> tuple[PointRow, ...]:
    """A row for each arm and cold pass, in the order of the plan; empty but for a PD sweep.

    `unmetered` says for which arms, and why, the power of some devices is unknown. Warm passes are
    left out: all their prompts are cached, so they say nothing of a load that users could cause.
    """
    if not isinstance(plan.params, PdSweep) or plan.sized:
        return ()
    price = Price.parse(plan.params.gpu_hour_price)
    cost = price.per_million if price else _unpriced
    rows = []
    for arm in plan.arms:
        mine = requests[requests["arm"] == arm.label]
        why = (unmetered or {}).get(arm.label, "")
        for name, (rate_per_s, users) in _loads(plan, arm, mine).items():
            group = mine[mine["pass"] == name]
            used = [row for row in energy if (row.arm, row.pass_name) == (arm.label, name)]
            rounds = [
                _Round.of(part, [row for row in used if row.round == number], unmetered=why)
                for number, part in group.groupby("round")
            ]
            gpus = gpus_of(arm)
            free = "" if gpus else "the number of GPUs is unknown"
            free = free if price else "no price given"
            dark = why or ("" if used else "not measured")
            rows.append(
                PointRow(
                    arm=arm.label,
                    pass_name=name,
                    gpus=gpus,
                    rate_per_s=rate_per_s,
                    users=users,
                    n_requests=len(group),
                    n_rounds=len(rounds),
                    user_tps=quantile(group["request_tps"], 0.5),
                    system_tps=mean_of_rounds([each.tps for each in rounds]),
                    gpu_tps=mean_of_rounds([each.tps / gpus if gpus else nan for each in rounds]),
                    output_cost=_or(free, [cost(each.tps, gpus) for each in rounds]),
                    total_cost=_or(free, [cost(each.total_tps, gpus) for each in rounds]),
                    energy=_or(dark, [each.joules for each in rounds], geometric=False),
                    energy_above_idle=_or(
                        dark, [each.joules - each.idle_joules for each in rounds], geometric=False
                    ),
                    power_w=mean_of_rounds([each.watts for each in rounds], geometric=False).value,
                )
            )
    return tuple(rows)


def _loads(
    plan: ExperimentPlan, arm: Arm, requests: pd.DataFrame
) -> dict[str, tuple[float, float]]:
    """Rate and number of users of each cold pass that was measured."""
    assert isinstance(plan.params, PdSweep)
    kind, measured = plan.arrivals.kind, set(requests["pass"])
    users = float(plan.arrivals.concurrency) if kind == "closed" else nan
    # a ramp or a trace has no single rate
    rate = plan.params.rate_per_s if kind in ("constant", "poisson", "gamma") else nan
    cold = {p.name: (rate, p.concurrency or users) for p in arm.passes if p.state == "cold"}
    if (loads := plan.loads) is not None:
        for load in sorted(point.load for point in loads.points(requests, arm.label)):
            cold[loads.unit.pass_name(load)] = (load, nan) if loads.unit == RATE else (nan, load)
    return {name: load for name, load in cold.items() if name in measured}


def gpus_of(arm: Arm) -> int:
    """The GPUs that an arm occupies, on a CPU its instances; 0 if unknown.

    Instances that share a GPU occupy one together.
    """
    return min(arm.gpus, len(arm.capacity.devices)) if arm.capacity.devices else arm.gpus


def _unpriced(tokens_per_s: float, gpus: int) -> float:
    return nan


def _or(unknown: str, values: Sequence[float], *, geometric: bool = True) -> Estimate:
    """The mean over rounds, or nothing with the reason."""
    if unknown:
        return Estimate(value=nan, low=nan, high=nan, n=0, note=unknown)
    return mean_of_rounds(values, geometric=geometric)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """One cold pass of one round. NaN for what is unknown; energy is per output token."""

    tps: float
    """Output tokens per second."""
    total_tps: float
    """Prompt and output tokens per second."""
    joules: float
    idle_joules: float
    watts: float

    @classmethod
    def of(cls, requests: pd.DataFrame, used: Sequence[EnergyRow], *, unmetered: str) -> _Round:
        answered = requests[succeeded(requests)]
        output, prompt = float(answered["output_tokens"].sum()), answered["prompt_tokens"].sum()
        tps = system_tps(requests)
        known = bool(used) and not unmetered and not isnan(tps)
        joules = sum(row.joules for row in used) if known else nan
        return cls(
            tps=tps,
            total_tps=tps * (output + prompt) / output if output else nan,
            joules=joules / output if output else nan,
            idle_joules=sum(r.idle_w * r.seconds for r in used) / output if output else nan,
            watts=sum(row.joules / row.seconds for row in used) if known else nan,
        )


def power_sentence(energy: Sequence[EnergyRow], unmetered: Mapping[str, str]) -> str:
    """How power was measured, or why it was not; never silent about a device that is missing."""
    if not energy:
        reasons = dict.fromkeys(unmetered.values())
        return f"Power was not measured{': ' * bool(reasons)}{'; '.join(reasons)}."
    sources: dict[tuple[str, str], dict[str, None]] = {}
    for row in energy:
        how = "energy counter" if row.counted else "power samples"
        sources.setdefault((row.source, how), {})[row.meter] = None
    told = [f"{', '.join(meters)} by {source} ({how})" for (source, how), meters in sources.items()]
    text = f"Power was measured for {'; '.join(told)}."
    if any(row.source == "RAPL" for row in energy):
        text += " RAPL counts every program on the CPU, including the client."
    lost = dict.fromkeys(f"{row.meter}: {row.problem}" for row in energy if row.problem)
    lost |= dict.fromkeys(f"{arm}: {why}" for arm, why in unmetered.items())
    return text + "".join(f" Unknown in some passes: {each}." for each in lost)


def energy_doubts(energy: Sequence[EnergyRow]) -> list[str]:
    """What makes energy rough."""
    short = [row for row in energy if row.seconds < _SHORT_S and not row.counted]
    if not short:
        return []
    return [
        f"Energy of passes shorter than {_SHORT_S:g} s is rough, because GPUs report a mean of"
        " about a second. Use more requests."
    ]
