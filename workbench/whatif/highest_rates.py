"""The highest rate within TTFT and TPOT limits, for every P:D split of a number of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import floor, inf, isnan, log10, nan
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from workbench.errors import ParameterError, PlanError, must_be, needs, unused
from workbench.experiment.plan.engine_setup import engine_of
from workbench.experiment.plan.offered_load.loads import latency_limits
from workbench.experiment.plan.offered_load.search import Point, Search
from workbench.experiment.plan.offered_load.traffic import OF_A_FILE, workload_of
from workbench.params.pd_sweep import PdSweep
from workbench.params.price import Price
from workbench.topology import TensorParallel, Topology
from workbench.whatif.load_text import limits_text, requests_text
from workbench.whatif.model.closed_form import ENGINE_STEPS, ClosedForm
from workbench.whatif.model.costs import Costs
from workbench.whatif.model.simulation import Simulated
from workbench.whatif.prediction import (
    SATURATED,
    Case,
    Prediction,
    case_of,
    check_steady,
    check_used,
    interval,
    predict_case,
)
from workbench.whatif.profiles.profile import Profile

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 10
"""Draws after the first one, for the interval of a highest rate."""
REQUESTS = 1000
"""Requests in a simulation, unless `requests` is set. All topologies have the same number: a queue
is empty at first, so a short run meets limits at a rate at which a long one does not."""
MOST_GPUS = 16
_RESOLUTION = 0.05
_LOWEST = 0.02
"""The lowest rate that is tried, as a fraction of the highest rate of the busiest part."""
_EXAMPLE = "workbench predict profile.json --splits 8 -p ttft_limit_ms 500"
_UNUSED = ("topology", "rate_per_s", "end_rate_per_s", "trace_speed", "concurrency")
"""Parameters of a load that the search sets itself."""
_RANGE = "profiled range"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The highest rate of a topology within the limits; without a rate, `refused` says why."""

    topology: Topology
    gpus: int
    rate_per_s: float = nan
    """The median of the draws; if it is `at_least`, the rate at which all draws meet the limits."""
    low: float = nan
    high: float = nan
    """If a draw meets the limits at the highest predicted rate: the rate at which a part saturates,
    or infinity."""
    at_least: bool = False
    """Whether most draws meet the limits at the highest predicted rate: the median is unknown."""
    limited_by: str = ""
    """The part that is too slow at a higher rate: prefill queue, prefill time, link, decode KV,
    decode steps, engine steps; or the profiled range."""
    open_end: str = ""
    """How many draws meet the limits at the highest predicted rate, and why nothing is predicted
    above it; empty if none does."""
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
    load: str
    """The simulated requests, their arrivals and the limits, in words."""

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
                "at_least": row.at_least,
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
            "currency": price.currency if price else "", "limits": limits_text(self.params),
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
    check_used(given)
    for name in _UNUSED:
        if name in given:
            raise ParameterError(unused(name, given[name], "--splits", _EXAMPLE))
    check_steady(given.get("arrivals", "auto"), "with --splits")
    params = profile.params({**given, "rate_per_s": 1.0})
    if not (params.ttft_limit_ms or params.tpot_limit_ms):
        limit = "ttft_limit_ms or tpot_limit_ms"
        raise ParameterError(needs("--splits", limit, 0, "-p ttft_limit_ms 500"))
    if params.instances_per_gpu > 1:
        raise PlanError(must_be("instances_per_gpu", "1 with --splits", params.instances_per_gpu,
                                "workbench profile -p instances_per_gpu 1"))  # fmt: skip
    if "requests" not in given and params.workload not in OF_A_FILE:
        params = replace(params, requests=REQUESTS)
    settings, model, _ = engine_of(params)
    per_instance = settings.gpus(params.tp) if settings else params.tp
    workload = workload_of(params, settings, model).sample
    served: list[Served] = []
    for count in tqdm(range(2, gpus + 1), unit="size", disable=None, leave=False):
        for topology in topologies_of(count, per_instance):
            case = case_of(profile, params, topology, workload=workload)
            served.append(replace(_served(case), gpus=count))
    prompts, outputs = zip(
        *((request.prompt_tokens, request.max_tokens) for request in workload.requests),
        strict=True,
    )
    load = (
        f"{requests_text(params, prompts, outputs)} in each simulation,"
        f" {params.arrival_kind.capitalize()} arrivals. Limits: {limits_text(params)}"
    )
    return Splits(profile=profile, params=params, gpus=gpus, served=tuple(served), load=load)


def topologies_of(gpus: int, per_instance: TensorParallel) -> Iterator[Topology]:
    """Every split that needs exactly this number of GPUs, fewest prefill first; aggregated last."""
    for prefill in range(1, gpus // per_instance.prefill + 1):
        decode, rest = divmod(gpus - prefill * per_instance.prefill, per_instance.decode)
        if decode and not rest:
            yield Topology(prefill=prefill, decode=decode)
    aggregated, rest = divmod(gpus, per_instance.aggregated)
    if not rest:
        yield Topology(aggregated=aggregated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Highest:
    """The highest rate of one draw within the limits, as its search found it."""

    draw: int
    met: float
    """0 if the limits are missed at every rate."""
    missed: float
    """The next higher rate that was tried; NaN if none is predicted."""

    @property
    def is_open(self) -> bool:
        """Whether the limits are met at the highest predicted rate."""
        return isnan(self.missed)


def _served(case: Case) -> Served:
    """The highest rate of one topology, with its interval and what limits it."""
    limits, closed = latency_limits(case.params), case.closed_form()
    bound_per_s = closed.bound_per_s
    lowest_per_s, top_per_s = _LOWEST * bound_per_s, _floored(SATURATED * bound_per_s)
    seen: dict[float, Prediction] = {}
    """The first draw, which decides what is predicted."""

    def first(rate_per_s: float) -> float:
        if rate_per_s not in seen:
            seen[rate_per_s] = predict_case(case.at(rate_per_s), draws=0, compared=False)
        return seen[rate_per_s].number("goodput").value

    def drawn(draw: int, rate_per_s: float) -> float:
        known_per_s = max(rate for rate, one in seen.items() if not one.refused)
        if rate_per_s > known_per_s and isnan(first(rate_per_s)):
            return nan
        return case.at(rate_per_s).numbers(draw)["goodput"]

    def search(first_per_s: float, top_per_s: float) -> Search:
        return Search(
            limits=limits, first=first_per_s, bottom=lowest_per_s,
            top=top_per_s, resolution=_RESOLUTION, most_points=14,
        )  # fmt: skip

    best = _highest(search(bound_per_s / 2, top_per_s), 0, first)
    asked = [request.max_tokens for request in case.workload.requests]
    empty = Served(
        topology=case.topology, gpus=case.topology.instances, output_tokens=sum(asked) / len(asked)
    )
    if not best.met and best.is_open:
        return replace(empty, refused=seen[min(seen)].refused)
    begin_per_s = best.met or min(seen)
    ceiling_per_s = best.met if best.is_open else top_per_s
    draws = [best] + [
        _highest(search(begin_per_s, ceiling_per_s), draw, partial(drawn, draw))
        for draw in range(1, DRAWS + 1)
    ]
    return of_draws(case, closed, draws, seen, replace(empty, doubts=seen[begin_per_s].doubts))


def of_draws(
    case: Case,
    closed: ClosedForm,
    draws: Sequence[Highest],
    seen: Mapping[float, Prediction],
    empty: Served,
) -> Served:
    """What all draws say together."""
    ranked = sorted(draws, key=lambda one: (one.met, one.is_open))
    median, of_all = ranked[(len(ranked) - 1) // 2], f"of {len(ranked)} simulations"
    missed, still = sum(not one.met for one in ranked), sum(one.is_open for one in ranked)
    if not median.met:
        some = f" in {missed} {of_all}" * (missed < len(ranked))
        by = _limited_by(case, median, closed)
        return replace(
            empty, refused=f"limits missed at every rate{some}", limited_by=by, missed=True
        )
    high, open_end, part = ranked[-1].met, "", closed.bottleneck
    if still:
        high = closed.bound_per_s
        end = f"not predicted above, because it saturates at {high:.3g}"
        if outside := [rate for rate in seen if seen[rate].refused]:
            nearest = seen[min(outside)]
            high, end = inf, nearest.refused
            stuck = nearest.simulated is not None and nearest.simulated.stuck
            part = "decode KV" if stuck else _RANGE  # stuck: requests that never got KV space
        who = f"{still} {of_all}" if still < len(ranked) else f"all {still} simulations"
        open_end = f"{who} meet the limits at {ranked[-1].met:.3g} req/s; {end}"
    if median.is_open and missed:
        return replace(
            empty, refused=f"not resolved: {missed} {of_all} miss the limits at every rate,"
            f" {open_end}", limited_by=part,
        )  # fmt: skip
    low = ranked[0].met
    return replace(
        empty, rate_per_s=low if median.is_open else median.met, low=low, high=high,
        at_least=median.is_open,
        limited_by=part if median.is_open else _limited_by(case, median, closed),
        open_end=open_end,
    )  # fmt: skip


def _highest(search: Search, draw: int, share: Callable[[float], float]) -> Highest:
    """What the search finds; `share` is NaN where nothing is predicted.

    A rate that is not predicted counts as missed, so the search goes below it.
    """
    points: list[Point] = []
    while (rate := search.next_load(points)) is not None:
        met = share(rate)
        counts = ((1_000_000,), (round(1e6 * met),)) if not isnan(met) else ((), ())
        points.append(Point(load=rate, sent=counts[0], met=counts[1]))
    best = max((p.load for p in points if p.share >= search.limits.share), default=0.0)
    above = min((p for p in points if p.load > best), key=lambda p: p.load, default=None)
    missed = nan if above is None or isnan(above.share) else above.load
    return Highest(draw=draw, met=best, missed=missed)


def _floored(rate_per_s: float) -> float:
    """The rate rounded down to three digits."""
    digits = 2 - floor(log10(rate_per_s))
    scale = 10.0**digits
    return floor(rate_per_s * scale) / scale


def _limited_by(case: Case, found: Highest, closed: ClosedForm) -> str:
    """The part that makes requests miss the limits at the next higher rate of a draw."""
    limits, costs = latency_limits(case.params), case.profile.costs(found.draw)
    simulated = case.at(found.missed).simulated(found.draw)
    rows = simulated.requests
    late, slow = rows["ttft_s"] > limits.ttft_s, rows["tpot_s"] > limits.tpot_s
    steps = "decode steps" if case.topology.disaggregated else ENGINE_STEPS
    if slow.sum() >= late.sum():
        return steps
    missed = rows[late]
    waits_s = {
        "prefill queue": missed["prefill_queue_s"].mean(),
        "prefill time": 0.0 if found.met else missed["prefill_compute_s"].mean(),
        "": (missed["transfer_queue_s"] - costs.transfer_of(0)).mean(),
    }
    most = max(waits_s, key=lambda name: waits_s[name])
    return most or _of_transfer(closed, simulated, missed, costs)


def _of_transfer(
    closed: ClosedForm, simulated: Simulated, missed: pd.DataFrame, costs: Costs
) -> str:
    """What a request waits for between prefill and decode: the link, or room on decode."""
    moving_s = costs.transfer_of(float(missed["prompt_tokens"].mean()), max(simulated.beside))
    if moving_s >= missed["transfer_queue_s"].mean() / 2:
        return "link"
    parts = closed.highest_per_s
    return min(("decode KV", "decode steps"), key=lambda part: parts[part])


def sentence(splits: Splits) -> str:
    """The best split and the best aggregated topology on all GPUs, with rate and bottleneck."""
    many = f"{splits.gpus} {splits.unit}s"
    both = [splits.best(splits.gpus), splits.best(splits.gpus, split=False)]
    rows = sorted(filter(None, both), key=lambda row: -row.rate_per_s)
    if not rows:
        return f"{many}: no topology is predicted to meet the limits"
    best, *others = rows
    said = f"{many}: {best.topology} would serve {_rate(best)} req/s{_why(best)}"
    for row in others:
        split = row.topology.disaggregated
        said += f" ({'best split ' * split}{row.topology}: {_rate(row)}{_why(row) * split})"
    return said


def _why(row: Served) -> str:
    """What limits the rate; nothing if the rate may be higher."""
    return "" if row.at_least else f", limited by {row.limited_by}"


def _rate(row: Served) -> str:
    return f"{'at least ' * row.at_least}{row.rate_per_s:.3g}"


def verdicts(splits: Splits) -> list[str]:
    """Topologies that may be as good as the best one, and the cost per million output tokens."""
    mine = [row for row in splits.served if row.gpus == splits.gpus]
    rows = [row for row in mine if row.rate_per_s > 0]
    if not rows:
        return []
    best, *others = sorted(rows, key=lambda row: -row.rate_per_s)
    said = []
    if alike := [str(row.topology) for row in others if row.high >= best.low]:
        said.append(f"Not distinguishable from {best.topology}: {', '.join(alike)}.")
    if unknown := [str(row.topology) for row in mine if row.refused and not row.missed]:
        said.append(f"No rate, so it may be better or worse: {', '.join(unknown)}.")
    if price := Price.parse(splits.params.gpu_hour_price):
        both = filter(None, (splits.best(splits.gpus), splits.best(splits.gpus, split=False)))
        costs = [
            f"{row.topology} {'at most ' * row.at_least}{row.cost(price, row.rate_per_s):.3g}"
            for row in both
        ]
        said.append(
            f"Cost of a million output tokens at the highest rate, in {price.currency}:"
            f" {', '.join(costs)}."
        )
    return said
