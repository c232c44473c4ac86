"""Ratios between runs: one number per launch, arm and pass, compared without pairs.

Runs of different folders did not alternate, so a launch of one has no counterpart in the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import ResultError
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result import Result
from workbench.metrics.gates.gate_effects import Spoil, spoil
from workbench.metrics.gates.gate_table import WORST_FIRST
from workbench.metrics.latency import buffered, system_tps
from workbench.metrics.statistics import UnpairedRatio, unpaired_ratio

if TYPE_CHECKING:
    import pandas as pd

NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "system_tps": "throughput"}
"""Metrics that are compared between runs."""
Kind = tuple[str, str]
"""An arm and a pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    """The launches of a run: per metric, arm and pass one number for each round."""

    run: RunFacts
    numbers: Mapping[tuple[str, Kind], tuple[float, ...]]
    """Latencies are geometric means of a launch's requests; throughput is that of the pass."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(kind for _, kind in self.numbers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of an arm and pass, in a run and in its baseline."""

    metric: str
    kind: Kind
    baseline: Kind
    ours: float
    """The geometric mean over launches, in seconds or tokens per second."""
    theirs: float
    ratio: UnpairedRatio
    """Above 1: better than the baseline."""
    spoilt: Spoil
    """What failed gates of either run do to it."""

    @property
    def name(self) -> str:
        """`TTFT, 1p1d lmcache, cold`."""
        return ", ".join((NAMES[self.metric], *self.kind))

    @property
    def change(self) -> tuple[float, float, float]:
        """The metric relative to the baseline, minus 1, with its interval: 0.1 is 10 % more."""
        value, low, high = self.ratio.value, self.ratio.low, self.ratio.high
        if self.metric != "system_tps":
            value, low, high = 1 / value, 1 / high, 1 / low
        return value - 1, low - 1, high - 1


def selected(result: Result, *, arm: str = "", cache_state: str = "") -> pd.DataFrame:
    """The requests of an arm and a pass; empty: of all. Raises ResultError for an unknown one."""
    requests = result.requests
    for column, wanted in (("arm", arm), ("pass", cache_state)):
        if wanted and wanted not in set(requests[column]):
            known = ", ".join(map(str, requests[column].unique()))
            raise ResultError(f"{column} must be one of {known} in {result.folder}, got {wanted!r}")
        if wanted:
            marks = requests.attrs
            requests = requests[requests[column] == wanted]
            requests.attrs = marks
    return requests


def launches_of(result: Result, *, arm: str = "", cache_state: str = "") -> Launches:
    """The launches of a run. Streams that were buffered have no TTFT and TPOT."""
    requests = result.requests
    numbers: dict[tuple[str, Kind], tuple[float, ...]] = {}
    held_back = set(requests.loc[buffered(requests), "arm"]) if "chunk_s" in requests else set()
    for (label, name), rows in requests.groupby(["arm", "pass"], sort=False):
        kind = (str(label), str(name))
        if (arm and arm != kind[0]) or (cache_state and cache_state != kind[1]):
            continue
        rounds = [part for _, part in rows.groupby("round")]
        for metric in ("ttft_s", "tpot_s", "e2e_s"):
            usable = metric == "e2e_s" or label not in held_back
            numbers[metric, kind] = (
                tuple(geometric_mean(r[metric]) for r in rounds) if usable else ()
            )
        timed = "chunk_s" in requests  # a large result is loaded without stamps
        numbers["system_tps", kind] = tuple(map(system_tps, rounds)) if timed else ()
    return Launches(run=result.run, numbers=numbers)


def compared(
    run: Launches,
    base: Launches,
    *,
    metrics: Iterable[str] = NAMES,
    more: Sequence[Launches] = (),
    any_topology: bool = False,
) -> Iterator[Compared]:
    """Each arm and pass of `run` against its match in `base`; `more` are repetitions of `base`.

    `any_topology` as for `pairs_of`.
    """
    pairs, _ = pairs_of(run, base, any_topology=any_topology)
    for metric, (ours, theirs) in product(metrics, pairs):
        if (metric, ours) not in run.numbers or (metric, theirs) not in base.numbers:
            continue
        mine = run.numbers[metric, ours]
        others = [n for each in (base, *more) for n in each.numbers.get((metric, theirs), ())]
        yield Compared(
            metric=metric,
            kind=ours,
            baseline=theirs,
            ours=geometric_mean(mine),
            theirs=geometric_mean(others),
            ratio=unpaired_ratio(*(_speeds(metric, values) for values in (mine, others))),
            spoilt=worst(spoilt(run, ours), *(spoilt(each, theirs) for each in (base, *more))),
        )


def _speeds(metric: str, values: Sequence[float]) -> list[float]:
    """More is better: a throughput, or one over a time."""
    return list(values) if metric == "system_tps" else [1 / value for value in values]


def geometric_mean(values: Iterable[float]) -> float:
    """Of the values that are known and above zero; NaN without any."""
    known = np.fromiter(values, float)
    known = known[np.isfinite(known) & (known > 0)]
    return float(np.exp(np.log(known).mean())) if len(known) else float("nan")


def spoilt(launches: Launches, kind: Kind) -> Spoil:
    """What failed gates do to the numbers of an arm and pass when other runs are compared.

    Runs did not alternate, so gates that limit times limit a ratio between them too.
    """
    failed, arm, cache_state = launches.run.failed_gates, {kind[0]}, {kind[1]}
    return worst(*(spoil(failed, k, arms=arm, passes=cache_state) for k in ("times", "ratios")))


def worst(*spoils: Spoil) -> Spoil:
    """The strongest of several effects of gates."""
    return min(spoils, key=lambda does: (*WORST_FIRST, "").index(does.effect))


def pairs_of(
    run: Launches, base: Launches, *, any_topology: bool = False
) -> tuple[list[tuple[Kind, Kind]], list[list[Kind]]]:
    """Matching arms and passes of two runs, and those that only one of them has.

    Rules, in this order: the same arm and pass; the same model, arm and pass, if only one of the
    runs has several models; the same model, topology and pass, if each run has only one such arm
    left; with `any_topology`, any arms, if each run has only one, such as two attached
    deployments.
    """
    names = [_names(run.run, base.run), _names(base.run, run.run)]
    pairs: list[tuple[Kind, Kind]] = []
    left = [list(run.kinds), list(base.kinds)]
    for rank in range(4 if any_topology else 3):
        like = [
            (one, other)
            for one, other in product(*left)
            if one[1] == other[1]
            and names[0].get(one[0], (one[0],) * 4)[rank]
            == names[1].get(other[0], (other[0],) * 4)[rank]
        ]
        ours, theirs = Counter(one for one, _ in like), Counter(other for _, other in like)
        found = [(a, b) for a, b in like if ours[a] == theirs[b] == 1]
        pairs += found
        left = [
            [kind for kind in kinds if kind not in {pair[side] for pair in found}]
            for side, kinds in enumerate(left)
        ]
    return pairs, left


def _names(run: RunFacts, beside: RunFacts) -> dict[str, tuple[object, ...]]:
    """The keys by which an arm is matched, closest first: label; model and arm; model and topology;
    model only, if each run has one arm.

    A run of one model has the model's name in a sweep of several that it is held against.
    """
    only = next((row.model for row in beside.models if row.name == run.engine.model), "")
    found: dict[str, tuple[object, ...]] = {}
    single = len(run.arms) == len(beside.arms) == 1
    for arm in run.arms:
        model = arm.short_model or only
        bare = arm.label.removeprefix(f"{arm.short_model} ")
        same_topology = (model, arm.topology)
        last = (model,) if single else same_topology
        found[arm.label] = (arm.label, (model, bare), same_topology, last)
    return found
