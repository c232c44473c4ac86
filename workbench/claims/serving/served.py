"""What recipes of the serving level share: plans with identical arms, and reading a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.claims.recipes.recipe import Curve, Outcome, Recipe, Setting
from workbench.claims.serving.proofs import faults, proofs
from workbench.claims.verdict.decision import Interval, difference
from workbench.claims.verdict.verdict import Measurement
from workbench.experiment.plan.arm import Arm
from workbench.experiment.plan.arms import plan
from workbench.experiment.plan.offered_load.traffic import WorkloadSpec
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.plan.speed import TYPICAL
from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run
from workbench.metrics.latency import system_tps
from workbench.metrics.statistics import Ratio, noise_floor, pair, paired_ratio, ratio_of_rounds
from workbench.params.notebooks import EngineParams
from workbench.params.pd_sweep import PdSweep

if TYPE_CHECKING:
    import pandas as pd

AGAIN = " again"
"""Ends the label of an A/A arm: the same configuration again, for the noise floor."""
OUTPUT_TOKENS = 16
WARM = "engine-warm"
SHORT_BUDGET_S = 300.0
_KEPT_LONGEST = (1024, 700, 2049, 1900, 512, 1500, 2048)
"""Lengths in the order in which a short run keeps them: whole blocks, others, one token more."""
_FEWER = (0.5, 0.34)
EQUIVALENCE = 0.90
"""Two one-sided tests at 5 % use one interval of 90 % (Schuirmann 1987)."""

Side = tuple[str, str]
"""An arm and one of its passes."""
_SIMULATED = "The servers were simulated, so nothing was measured."


def served_recipe(
    params: EngineParams,
    name: str,
    claims: tuple[str, ...],
    what: str,
    *,
    make: Callable[[EngineParams, Setting], ExperimentPlan],
    read: Callable[[Result], Outcome],
) -> Recipe:
    """A recipe that runs a plan on the servers of `params` and reads the result."""
    known: dict[Any, tuple[float, float]] = {}

    def estimate_s(setting: Setting) -> float:
        key = (setting.platform, setting.model, setting.budget_s, setting.requests_share)
        if key not in known:
            # Making a plan is slow and schedules ask often: extrapolate from one and two rounds.
            made = make(params, replace(setting, runs=1))
            one, two = (_estimate_s(replace(made, rounds=rounds)) for rounds in (1, 2))
            known[key] = 2 * one - two, two - one
        once_s, round_s = known[key]
        return once_s + setting.runs * round_s

    async def measure(setting: Setting) -> Outcome:
        made = make(params, setting)
        result = await run(made, echo=setting.echo, limit=setting.limit, progress=False)
        outcome = read(result)
        if params.engine != "simulated":
            return outcome
        void = {
            claim: replace(measured, faults=(_SIMULATED, *measured.faults))
            for claim, measured in outcome.measurements.items()
        }
        return replace(outcome, measurements=void)

    return Recipe(
        name=name, level="serving", claims=claims, what=what, estimate_s=estimate_s, run=measure,
        fewer=_FEWER, needs="" if params.engine == "simulated" else "vllm",
    )  # fmt: skip


def _estimate_s(made: ExperimentPlan) -> float:
    """The plan's estimate; at the tiny model's speed if the model's is unknown."""
    if isfinite(made.rule_s):
        return made.rule_s
    arms = tuple(replace(arm, settings=None) for arm in made.arms)
    return replace(made, speed=TYPICAL, arms=arms).rule_s


def shared(params: EngineParams, setting: Setting) -> dict[str, Any]:
    """The parameters that a plan shares with the validation."""
    given = {spec.name: getattr(params, spec.name) for spec in fields(EngineParams)}
    return given | {
        "rounds": setting.runs, "seed": setting.seed, "output_dir": str(setting.output_dir),
        "time_budget_s": 0.0,  # that of the validation is for all recipes together
    }  # fmt: skip


def swept(params: EngineParams, setting: Setting, **options: Any) -> ExperimentPlan:
    """A plan of `pd_sweep`, by default without opponents."""
    defaults = {"opponents": False, "store_gb": 0.5, "output_tokens": OUTPUT_TOKENS}
    return plan(PdSweep(**{**defaults, **shared(params, setting), **options}))


def of_lengths(
    made: ExperimentPlan, name: str, arms: tuple[Arm, ...], lengths: tuple[int, ...]
) -> ExperimentPlan:
    """The plan with these arms, and prompts of these lengths in turn."""
    spec = WorkloadSpec(name="lengths", lengths=lengths, options=dict(made.workload.options))
    return replace(made, notebook=name, arms=arms, workload=spec)


def kept_lengths(wanted: tuple[int, ...], setting: Setting) -> tuple[int, ...]:
    """The lengths for the setting's fraction of requests, at least two, sorted."""
    number = max(2, round(len(wanted) * setting.requests_share))
    return tuple(sorted(sorted(wanted, key=_KEPT_LONGEST.index)[:number]))


def requests_of(lengths: tuple[int, ...], setting: Setting) -> int:
    """Requests of a pass; more launches are worth more than more requests."""
    short = setting.budget_s < SHORT_BUDGET_S or setting.requests_share < 1
    return len(lengths) * (1 if short else 2)


def again(arm: Arm) -> Arm:
    """The same arm again, cold."""
    return replace(arm, label=arm.label + AGAIN, passes=arm.passes[:1])


def timed(result: Result, floor: float) -> Callable[..., Measurement]:
    """Makes measurements of times, which failed gates may invalidate."""
    return partial(Measurement, faults=faults(result.facts, timed=True), noise_floor=floor)


def exact(result: Result, effects: Mapping[str, Interval]) -> Measurement:
    """A measurement of counts."""
    return Measurement(
        effects={name: (interval,) for name, interval in effects.items()},
        faults=faults(result.facts, timed=False),
        counted=frozenset(effects),
    )


def outcome_of(
    result: Result,
    measurements: Mapping[str, Measurement],
    *,
    value: str,
    baseline: str,
    says: str,
    floor: float,
    curves: tuple[Curve, ...] = (),
) -> Outcome:
    """The outcome of a run that compares arm `value` with arm `baseline`."""
    requests = result.requests
    rounds = int(requests["round"].nunique())
    noise = "pass" if rounds >= 2 and isfinite(floor) else "unknown"
    checks = proofs(result.facts, requests, value=value, baseline=baseline)
    return Outcome(
        measurements=measurements,
        table=_table(requests),
        says=f"{says} {rounds} round{'s' if rounds != 1 else ''}, each with a launch of every arm."
        f" Identical arms differ by {difference(floor)} in a round.",
        checks={**checks, "aa_noise_floor": noise},
        curves=curves,
        doubts=tuple(result.doubts),
    )


def lengths_in_words(requests: pd.DataFrame) -> str:
    """`512, 700 and 1,024`."""
    *most, last = [f"{n:,}" for n in sorted({int(n) for n in requests["prompt_tokens"]})] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def block_tokens(result: Result) -> int:
    """The KV block size that the engines report; 0 if they do not."""
    series = counters(result).query("series == 'vllm:cache_config_info'")["labels"]
    for labels in series:
        said = dict(part.partition("=")[::2] for part in labels.split(","))
        if said.get("block_size", "").isdecimal():
            return int(said["block_size"])
    return 0


def counters(result: Result) -> pd.DataFrame:
    """The counters of a run's engines, before and after each pass."""
    import pandas as pd

    return pd.read_parquet(result.folder / "counters.parquet")


def _table(requests: pd.DataFrame) -> pd.DataFrame:
    """The raw rows in the form of all recipes."""
    units = {"ttft_s": "s", "tpot_s": "s", "cached_tokens": "tokens"}
    rows = requests.melt(
        id_vars=["arm", "pass", "round", "prompt_tokens", "sent_s"], value_vars=list(units),
        var_name="quantity",
    )  # fmt: skip
    cell = rows["pass"] + ", " + rows["prompt_tokens"].astype(str) + " tokens"
    order = rows["sent_s"].rank(method="dense").fillna(0).astype(int)
    columns = ["quantity", "arm", "cell", "run", "order", "value", "unit"]
    unit = rows["quantity"].map(units)
    return rows.assign(cell=cell, unit=unit, run=rows["round"], order=order)[columns]


def latency_ratio(
    requests: pd.DataFrame, value: Side, baseline: Side, metric: str, *, confidence: float = 0.95
) -> Interval:
    """`metric` of `value` over `baseline`, paired by request and round; below 1 is faster."""
    sides = pair(rows_of(requests, value), rows_of(requests, baseline), metric)
    return _interval(paired_ratio(sides, confidence=confidence))


def throughput_ratio(
    requests: pd.DataFrame, value: Side, baseline: Side, *, confidence: float = 0.95
) -> Interval:
    """Output tokens per second of a whole pass, `value` over `baseline`, by rounds."""
    sides = (_tps(requests, side) for side in (value, baseline))
    return _interval(ratio_of_rounds(*sides, confidence=confidence))


def noise_of_rounds(requests: pd.DataFrame, one: str, other: str, metric: str = "ttft_s") -> float:
    """The noise floor of two identical arms by rounds, for a latency or `system_tps`."""
    sides = (one, "cold"), (other, "cold")
    if metric == "system_tps":
        a, b = (_tps(requests, side) for side in sides)
        return noise_floor([a[n] / b[n] for n in a if n in b and a[n] > 0 and b[n] > 0])
    both = pair(rows_of(requests, sides[0]), rows_of(requests, sides[1]), metric)
    logs = np.log(both["value_s"].astype(float)) - np.log(both["baseline_s"].astype(float))
    return noise_floor(np.exp(logs.groupby(both["round"]).mean()))


def rows_of(requests: pd.DataFrame, side: Side) -> pd.DataFrame:
    """The rows of one arm and pass."""
    return requests[(requests["arm"] == side[0]) & (requests["pass"] == side[1])]


def _tps(requests: pd.DataFrame, side: Side) -> dict[int, float]:
    rows = rows_of(requests, side)
    return {int(n): system_tps(rows[rows["round"] == n]) for n in rows["round"].unique()}


def _interval(ratio: Ratio) -> Interval:
    return Interval(estimate=ratio.value, low=ratio.low, high=ratio.high, runs=ratio.rounds)
