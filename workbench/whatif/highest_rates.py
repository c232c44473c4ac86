"""The highest rate within TTFT and TPOT limits, for every P:D split of a number of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import floor, inf, isnan, log10, nan
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from workbench.errors import ParameterError, PlanError, must_be, needs, unused
from workbench.experiment.plan.engine_setup import engine_of
from workbench.experiment.plan.offered_load.loads import latency_limits
from workbench.experiment.plan.offered_load.search import Limits, Point, Search
from workbench.experiment.plan.offered_load.traffic import workload_of
from workbench.params.pd_sweep import PdSweep
from workbench.params.price import Price
from workbench.topology import TensorParallel, Topology
from workbench.whatif.model.closed_form import ENGINE_STEPS
from workbench.whatif.model.costs import Costs
from workbench.whatif.model.simulation import Simulated
from workbench.whatif.prediction import (
    SATURATED,
    Case,
    Prediction,
    case_of,
    check_steady,
    interval,
    predict_case,
)
from workbench.whatif.profile import Profile

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 10
"""Draws after the first one, for the interval of a highest rate."""
REQUESTS_PER_GPU = 100
"""Requests in a simulation, per GPU, unless `requests` is set."""
MOST_GPUS = 16
_RESOLUTION = 0.05
_LOWEST = 0.02
"""The lowest rate that is tried, as a fraction of the highest rate of the busiest part."""
_UNUSED = ("topology", "rate_per_s", "end_rate_per_s", "trace_speed", "concurrency")
"""Parameters of a load that the search sets itself."""
_RANGE = "profiled range"
_OF_A_FILE = ("trace", "prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The highest rate of a topology within the limits; without a rate, `refused` says why."""

    topology: Topology
    gpus: int
    rate_per_s: float = nan
    low: float = nan
    high: float = nan
    """If higher rates are not predicted: the rate at which a part saturates, or infinity."""
    limited_by: str = ""
    """The part that is too slow at a higher rate: prefill queue, prefill time, link, decode KV,
    decode steps, engine steps; or the profiled range."""
    open_end: str = ""
    """Why higher rates are not predicted, although they might meet the limits too."""
    refused: str = ""
    missed: bool = False
    """Whether there is no rate because the limits are missed at every rate."""
    doubts: tuple[str, ...] = ()
    output_tokens: float = nan
    """Mean over requests."""

    def cost(self, price: Price | None, rate_per_s: float) -> float:
        """Cost of a million output tokens at a rate, in the price's currency; NaN without one."""
        return price.per_million(rate_per_s * self.output_tokens, self.gpus) if price else nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Every topology of 2 to `gpus` GPUs."""

    profile: Profile
    params: PdSweep
    gpus: int
    served: tuple[Served, ...]

    @property
    def unit(self) -> str:
        """`GPU`, or `instance` if the profile's machine has no GPU."""
        return "GPU" if self.profile.machine["gpus"] else "instance"

    def best(self, gpus: int, *, split: bool = True) -> Served | None:
        """The split (or aggregated topology) with the highest rate on this number of GPUs."""
        rows = [
            row
            for row in self.served
            if row.gpus == gpus and row.topology.disaggregated == split and row.rate_per_s > 0
        ]
        return max(rows, key=lambda row: row.rate_per_s, default=None)

    @property
    def doubts(self) -> list[str]:
        """Doubts about the profile, the best split and the aggregated topology."""
        found = list(self.profile.doubts)
        for row in (self.best(self.gpus), self.best(self.gpus, split=False)):
            found += [f"{row.topology}: {doubt}" for doubt in row.doubts] if row else []
        return found

    def frame(self) -> pd.DataFrame:
        """A row for each topology, for figure and table; `attrs` has unit, currency and limits."""
        import pandas as pd

        price = Price.parse(self.params.gpu_hour_price)
        frame = pd.DataFrame(
            {
                "topology": str(row.topology),
                "split": row.topology.disaggregated,
                "gpus": row.gpus,
                "rate_per_s": row.rate_per_s,
                "low": row.low,
                "high": row.high,
                "limited_by": row.limited_by,
                "open_end": row.open_end,
                "refused": row.refused,
                "missed": row.missed,
                "cost": row.cost(price, row.rate_per_s),
                "cost_low": row.cost(price, row.high) if row.high < inf else nan,
                "cost_high": row.cost(price, row.low),
            }
            for row in self.served
        )
        frame.attrs |= {
            "unit": self.unit, "gpus": self.gpus, "simulated": self.profile.simulated,
            "currency": price.currency if price else "", "limits": str(latency_limits(self.params)),
            "interval": interval(DRAWS),
        }  # fmt: skip
        return frame


def highest_rates(profile: Profile, given: Mapping[str, Any], gpus: int) -> Splits:
    """Predict the highest rate of every split of 2 to `gpus` GPUs, and of aggregated instances.

    Raises ParameterError and PlanError without a latency limit, with a rate or topology given, and
    for everything that `predict` refuses.
    """
    if not 2 <= gpus <= MOST_GPUS:
        raise ParameterError(must_be("--splits", f"2 to {MOST_GPUS}", gpus, "--splits 8"))
    for name in _UNUSED:
        if name in given:
            raise ParameterError(
                unused(name, given[name], "--splits", f"workbench predict -p {name} {given[name]}")
            )
    check_steady(given.get("arrivals", "auto"), "with --splits")
    params = profile.params({**given, "rate_per_s": 1.0})
    if not (params.ttft_limit_ms or params.tpot_limit_ms):
        limit = "ttft_limit_ms or tpot_limit_ms"
        raise ParameterError(needs("--splits", limit, 0, "-p ttft_limit_ms 500"))
    if params.instances_per_gpu > 1:
        raise PlanError(must_be("instances_per_gpu", "1 with --splits", params.instances_per_gpu,
                                "workbench profile -p instances_per_gpu 1"))  # fmt: skip
    settings, model, _ = engine_of(params)
    per_instance = settings.gpus(params.tp) if settings else params.tp
    served: list[Served] = []
    for count in tqdm(range(2, gpus + 1), unit="size", disable=None, leave=False):
        topologies = list(topologies_of(count, per_instance))
        sized = params
        if "requests" not in given and params.workload not in _OF_A_FILE:
            sized = replace(params, requests=REQUESTS_PER_GPU * count)
        workload = workload_of(sized, settings, model).sample if topologies else None
        for topology in topologies:
            case = case_of(profile, sized, topology, workload=workload)
            served.append(replace(_served(case), gpus=count))
    return Splits(profile=profile, params=params, gpus=gpus, served=tuple(served))


def topologies_of(gpus: int, per_instance: TensorParallel) -> Iterator[Topology]:
    """Every split that needs exactly this number of GPUs, fewest prefill first; aggregated last."""
    for prefill in range(1, gpus // per_instance.prefill + 1):
        decode, rest = divmod(gpus - prefill * per_instance.prefill, per_instance.decode)
        if decode and not rest:
            yield Topology(prefill=prefill, decode=decode)
    aggregated, rest = divmod(gpus, per_instance.aggregated)
    if not rest:
        yield Topology(aggregated=aggregated)


def _served(case: Case) -> Served:
    """The highest rate of one topology, with its interval and what limits it."""
    limits = latency_limits(case.params)
    bound_per_s = case.closed_form().bound_per_s
    top_per_s = _floored(SATURATED * bound_per_s)
    seen: dict[float, Prediction] = {}

    def share(rate_per_s: float) -> float:
        found = predict_case(case.at(rate_per_s), draws=0, compared=False)
        seen[rate_per_s] = found
        return found.number("goodput").value

    def search(first_per_s: float, top_per_s: float) -> Search:
        return Search(
            limits=limits, first=first_per_s, bottom=_LOWEST * bound_per_s,
            top=top_per_s, resolution=_RESOLUTION, most_points=14,
        )  # fmt: skip

    met = _highest(search(bound_per_s / 2, top_per_s), share)
    asked = [request.max_tokens for request in case.workload.requests]
    empty = Served(
        topology=case.topology, gpus=case.topology.instances, output_tokens=sum(asked) / len(asked)
    )
    above = min((rate for rate in seen if not rate <= met), default=nan)
    if isnan(met):
        if seen[above].refused:
            return replace(empty, refused=seen[above].refused)
        by = _limited_by(seen[above], limits, case.profile.costs(), alone=True)
        return replace(empty, refused="limits missed at every rate", limited_by=by, missed=True)
    found = seen[met]
    open_end, by = "", found.closed.bottleneck
    if isnan(above):
        open_end = f"not predicted above {met:.3g} req/s, because it saturates at {bound_per_s:.3g}"
    elif seen[above].refused:
        simulated = seen[above].simulated
        full = simulated is not None and simulated.stuck  # requests that never got KV space
        open_end, by = seen[above].refused, "decode KV" if full else _RANGE
    else:
        by = _limited_by(seen[above], limits, case.profile.costs())
    outside = min((rate for rate, one in seen.items() if one.refused), default=inf)
    ceiling = met if open_end else min(top_per_s, outside)
    rates = [met]
    for draw in range(1, DRAWS + 1):

        def drawn(rate_per_s: float, draw: int = draw) -> float:
            return case.at(rate_per_s).numbers(draw)["goodput"]

        rate = _highest(search(met, ceiling), drawn)
        rates.append(0.0 if isnan(rate) else rate)
    high = max(rates)
    if high >= ceiling:  # higher rates are not predicted, but a saturated part bounds them
        high = bound_per_s if outside == inf else inf
    return replace(
        empty, rate_per_s=met, low=min(rates), high=high,
        limited_by=by, open_end=open_end, doubts=found.doubts,
    )  # fmt: skip


def _highest(search: Search, share: Callable[[float], float]) -> float:
    """The highest rate that the search finds within the limits; NaN if none is.

    A rate that is not predicted counts as missed, so the search goes below it.
    """
    points: list[Point] = []
    while (rate := search.next_load(points)) is not None:
        met = share(rate)
        counts = ((1_000_000,), (round(1e6 * met),)) if not isnan(met) else ((), ())
        points.append(Point(load=rate, sent=counts[0], met=counts[1]))
    within = [p.load for p in points if p.share >= search.limits.share]
    return max(within, default=nan)


def _floored(rate_per_s: float) -> float:
    """The rate rounded down to three digits."""
    digits = 2 - floor(log10(rate_per_s))
    scale = 10.0**digits
    return floor(rate_per_s * scale) / scale


def _limited_by(found: Prediction, limits: Limits, costs: Costs, *, alone: bool = False) -> str:
    """The part that makes requests miss the limits; `alone` if they miss them at every rate."""
    assert found.simulated is not None
    rows = found.simulated.requests
    late, slow = rows["ttft_s"] > limits.ttft_s, rows["tpot_s"] > limits.tpot_s
    steps = "decode steps" if found.topology.disaggregated else ENGINE_STEPS
    if slow.sum() >= late.sum():
        return steps
    missed = rows[late]
    waits_s = {
        "prefill queue": missed["prefill_queue_s"].mean(),
        "prefill time": missed["prefill_compute_s"].mean() if alone else 0.0,
        "": (missed["transfer_queue_s"] - costs.transfer_of(0)).mean(),
    }
    most = max(waits_s, key=lambda name: waits_s[name])
    return most or _of_transfer(found, found.simulated, missed, costs)


def _of_transfer(
    found: Prediction, simulated: Simulated, missed: pd.DataFrame, costs: Costs
) -> str:
    """What a request waits for between prefill and decode: the link, or room on decode."""
    moving_s = costs.transfer_of(float(missed["prompt_tokens"].mean()), max(simulated.beside))
    if moving_s >= missed["transfer_queue_s"].mean() / 2:
        return "link"
    parts = found.closed.highest_per_s
    return min(("decode KV", "decode steps"), key=lambda part: parts[part])


def sentence(splits: Splits) -> str:
    """The best split and the best aggregated topology on all GPUs, with rate and bottleneck."""
    many = f"{splits.gpus} {splits.unit}s"
    both = [splits.best(splits.gpus), splits.best(splits.gpus, split=False)]
    rows = sorted(filter(None, both), key=lambda row: -row.rate_per_s)
    if not rows:
        return f"{many}: no topology is predicted to meet the limits"
    best, *others = rows
    said = f"{many}: {best.topology} would serve {_rate(best)} req/s, {_why(best)}"
    for row in others:
        kind = "best split " if row.topology.disaggregated else ""
        why = f", {_why(row)}" if kind else ""
        said += f" ({kind}{row.topology}: {_rate(row)}{why})"
    return said


def _why(row: Served) -> str:
    if row.limited_by == _RANGE:
        return "where the profiled range ends"
    return f"limited by {row.limited_by}"


def _rate(row: Served) -> str:
    return f"{'at least ' if row.open_end else ''}{row.rate_per_s:.3g}"


def verdicts(splits: Splits) -> list[str]:
    """Topologies that may be as good as the best one, and the cost per million output tokens."""
    rows = [row for row in splits.served if row.gpus == splits.gpus and row.rate_per_s > 0]
    if not rows:
        return []
    best, *others = sorted(rows, key=lambda row: -row.rate_per_s)
    said = []
    if alike := [str(row.topology) for row in others if row.high >= best.low]:
        said.append(f"Not distinguishable from {best.topology}: {', '.join(alike)}.")
    if price := Price.parse(splits.params.gpu_hour_price):
        both = filter(None, (splits.best(splits.gpus), splits.best(splits.gpus, split=False)))
        costs = [f"{row.topology} {row.cost(price, row.rate_per_s):.3g}" for row in both]
        said.append(
            f"Cost of a million output tokens at the highest rate, in {price.currency}:"
            f" {', '.join(costs)}."
        )
    return said
