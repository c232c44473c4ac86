"""The prediction for a topology under a load, and where the profile does not support one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, inf, isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ParameterError, PlanError, must_be, unused
from workbench.experiment.findings.sentences import percent
from workbench.experiment.plan.engine_setup import engine_of
from workbench.experiment.plan.offered_load.loads import latency_limits
from workbench.experiment.plan.offered_load.search import Limits
from workbench.experiment.plan.offered_load.traffic import (
    arrival_doubts,
    arrivals_of,
    workload_of,
)
from workbench.experiment.result.predicted import GOAL
from workbench.load.workload.workload import Workload
from workbench.metrics.ideal import Asked, Call, IdealCaches
from workbench.params.pd_sweep import PdSweep
from workbench.serve.connectors import connector
from workbench.topology import Topology
from workbench.whatif.load_kind import LoadKind
from workbench.whatif.load_text import span
from workbench.whatif.model.closed_form import ClosedForm, closed_form
from workbench.whatif.model.costs import Costs
from workbench.whatif.model.simulation import Load, Simulated, simulate
from workbench.whatif.profiles.fits import RESAMPLES
from workbench.whatif.profiles.profile import Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

SATURATED = 0.85
"""Utilisation of the busiest part above which nothing is predicted."""
OUTSIDE = 0.01
"""Largest fraction of decode time, or of transfers, beyond what was profiled."""
METRICS = ("ttft_s", "tpot_s", "e2e_s", "system_tps", "goodput")
_OF_A_RUN = (
    *("rounds", "opponents", "client_workers", "time_budget_s", "targets", "output_dir"),
    *("predict", "measure"),
)
_EXAMPLE = "workbench predict profile.json"
STEADY = ("auto", "poisson", "constant", "gamma")
"""Arrivals with one rate, for predictions that choose it themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A number for the given seed, and the range of 21 draws with other seeds and resamples of the
    profile: a 91 % prediction interval, (n - 1) / (n + 1), for a draw of the same kind."""

    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The prediction for one topology; without numbers if `refused` says why."""

    topology: Topology
    closed: ClosedForm
    load: LoadKind
    numbers: tuple[Predicted, ...] = ()
    refused: str = ""
    doubts: tuple[str, ...] = ()
    simulated: Simulated | None = None

    def number(self, metric: str) -> Predicted:
        """The prediction of a metric; NaN if it was refused."""
        empty = Predicted(metric=metric, value=nan, low=nan, high=nan)
        return next((one for one in self.numbers if one.metric == metric), empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A load on a topology, ready to simulate."""

    profile: Profile
    params: PdSweep
    topology: Topology
    workload: Workload
    hits: tuple[NDArray[np.int64], NDArray[np.int64]]

    def at(self, rate_per_s: float) -> Case:
        """The same requests at another rate."""
        return replace(self, params=replace(self.params, rate_per_s=rate_per_s))

    @property
    def kind(self) -> LoadKind:
        return LoadKind.of(self.params, self.workload)

    def load(self, draw: int = 0) -> Load:
        """The requests of a draw. Draw 0 has the seed of the parameters; others have their own."""
        seed = self.params.seed + draw
        return _load(self.profile, self.params, self.workload, self.hits, seed)

    def numbers(self, draw: int) -> dict[str, float]:
        """The metrics of a draw, with its own seed and resample of the profile."""
        return _numbers(self.simulated(draw), latency_limits(self.params))

    def simulated(self, draw: int) -> Simulated:
        """The requests of a draw."""
        return simulate(self.topology, self.load(draw), self.profile.costs(draw))

    def closed_form(self, *, compared: bool = False) -> ClosedForm:
        """The highest rates; if `compared`, also queueing theory against a long simulation."""
        poisson = compared and self.params.arrival_kind == "poisson"
        load, costs = self.load(), self.profile.costs()
        rate = _rate(self.params, load)
        return closed_form(self.topology, load, costs, rate_per_s=rate, poisson=poisson)


def case_of(
    profile: Profile, params: PdSweep, topology: Topology, *, workload: Workload | None = None
) -> Case:
    """The case of a load. `workload` is that of these parameters, if it was built before.

    Raises PlanError where the workload does not fit the profile: lengths that were not measured,
    prompts beyond the KV space, limits that no request can meet.
    """
    if workload is None:
        settings, model, _ = engine_of(params)
        workload = workload_of(params, settings, model).sample
    _check(profile, params, workload, topology)
    hits = _hits(profile, workload, topology)
    return Case(profile=profile, params=params, topology=topology, workload=workload, hits=hits)


def predict(profile: Profile, params: PdSweep, topology: Topology) -> Prediction:
    """Predict the cold pass of `params` on a topology. Raises PlanError as `case_of` does."""
    return predict_case(case_of(profile, params, topology), draws=RESAMPLES)


def level(draws: int) -> str:
    """The level of the range of the first draw and `draws` more, as a prediction interval: of n
    values (n - 1) / (n + 1)."""
    return percent(draws / (draws + 2))


def interval(draws: int) -> str:
    """What that range is."""
    return f"{level(draws)} prediction interval (range of {draws + 1} simulations)"


def predict_case(case: Case, *, draws: int, compared: bool = True) -> Prediction:
    """Predict a case, with intervals from the first draw and `draws` more.

    `compared` also compares the simulation with the closed form, which takes longer than a draw.
    """
    profile, topology = case.profile, case.topology
    costs = profile.costs()
    closed = case.closed_form(compared=compared)
    if why := _saturated(closed):
        return Prediction(topology=topology, closed=closed, load=case.kind, refused=why)
    first = simulate(topology, case.load(), costs)
    # it never waits for another
    lone = case.params.arrival_kind == "closed" and case.params.concurrency == 1
    if isnan(closed.rate_per_s):
        ended_s = (first.requests["sent_s"] + first.requests["e2e_s"]).max()
        closed = replace(closed, rate_per_s=float(len(first.requests) / ended_s))
    if why := (not lone and _saturated(closed)) or _outside(profile, first, costs):
        return Prediction(
            topology=topology, closed=closed, load=case.kind, refused=why, simulated=first
        )
    found = [_numbers(first, latency_limits(case.params))]
    found += [case.numbers(draw) for draw in range(1, draws + 1)]
    return Prediction(
        topology=topology,
        closed=closed,
        load=case.kind,
        numbers=tuple(
            Predicted(metric=metric, value=values[0], low=min(values), high=max(values))
            for metric in METRICS
            if (values := [one[metric] for one in found])
        ),
        doubts=tuple(_doubts(case, closed, first)),
        simulated=first,
    )


def check_steady(arrivals: str, where: str) -> None:
    """Raises ParameterError for arrivals without one rate; `where` says why one is needed."""
    if arrivals not in STEADY:
        allowed = f"{', '.join(STEADY[:-1])} or {STEADY[-1]} {where}"
        raise ParameterError(must_be("arrivals", allowed, arrivals, "poisson"))


def check_used(given: Mapping[str, Any]) -> None:
    """Raises ParameterError for parameters that only a measured run uses."""
    for name in _OF_A_RUN:
        if name in given:
            raise ParameterError(unused(name, given[name], "a prediction", _EXAMPLE))


def check_no_price(given: Mapping[str, Any]) -> None:
    """Raises ParameterError for a price, which only `--splits` uses."""
    if (price := given.get("gpu_hour_price")) is not None:
        example = f"{_EXAMPLE} --splits 8 -p ttft_limit_ms 500 -p gpu_hour_price '4 USD'"
        setting = "a prediction without --splits"
        raise ParameterError(unused("gpu_hour_price", price, setting, example))


def check_turns(params: PdSweep, workload: Workload) -> None:
    """Raises PlanError for a workload whose requests wait for responses."""
    if any(request.after is not None for request in workload.requests):
        allowed = "one whose requests do not wait for responses"
        raise PlanError(must_be("workload", allowed, params.workload, "batch_processing"))


def _check(profile: Profile, params: PdSweep, workload: Workload, topology: Topology) -> None:
    """Raises PlanError where the profile says nothing about this workload."""
    check_turns(params, workload)
    prompts = [request.prompt_tokens for request in workload.requests]
    whole = max(request.prompt_tokens + request.max_tokens for request in workload.requests)
    for role, _ in topology.roles:
        if whole > profile.kv_tokens[role]:
            allowed = f"at most the KV space of a {role} instance ({profile.kv_tokens[role]:,})"
            raise PlanError(must_be("prompt_tokens + output_tokens", allowed, whole,
                                    "-p prompt_tokens 2000"))  # fmt: skip
    low, high = profile.prefill.ranges["tokens"]
    if min(prompts) < low or max(prompts) > high:
        got = span(prompts)
        allowed = f"within the profiled lengths ({low:,.0f} to {high:,.0f})"
        raise PlanError(must_be("prompt_tokens", allowed, got, f"{high:.0f}"))
    least_ms = 1000 * profile.lone_ttft_s[0] / 2
    if 0 < params.ttft_limit_ms < least_ms:
        allowed = (
            f"at least {least_ms:.0f} (half the TTFT of the shortest profiled prompt, sent alone)"
        )
        raise PlanError(
            must_be("ttft_limit_ms", allowed, params.ttft_limit_ms, round(4 * least_ms))
        )
    least_ms = 1000 * profile.costs().decode_s(1, min(prompts)) / 2
    if 0 < params.tpot_limit_ms < least_ms:
        allowed = f"at least {least_ms:.2g} (half a decode step of one sequence)"
        raise PlanError(
            must_be("tpot_limit_ms", allowed, params.tpot_limit_ms, f"{4 * least_ms:.2g}")
        )


def _hits(
    profile: Profile, workload: Workload, topology: Topology
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens that the first instance of each request has, and those that decode has to fetch.

    As in the ledger's ideal caches, which never evict. With a KV store all prefill instances
    have what one of them has.
    """
    requests = workload.requests
    prompts = np.array([request.prompt_tokens for request in requests], np.int64)
    if not any(request.ideal_reuse_tokens for request in requests):
        return np.zeros_like(prompts), prompts
    store = connector(profile.connector).store is not None
    caches = IdealCaches(block_tokens=profile.block_tokens, pulls=topology.disaggregated)
    asked = []
    for number, request in enumerate(requests):
        calls = []
        for role, count in topology.roles:
            shared = store and role == "prefill"
            instance = role if shared else f"{role}-{number % count}"
            calls.append(Call(role=role, instance=instance, asked_s=number, held_s=number))
        reuse = request.ideal_reuse_tokens
        asked.append(
            Asked(index=number, prompt=request.prompt_ids, ideal_tokens=reuse, calls=tuple(calls))
        )
    cached, moved = np.zeros_like(prompts), np.zeros_like(prompts)
    for served in caches.serve(asked):
        if served.role == "decode":
            moved[served.index] = served.external_hit
        else:
            cached[served.index] = served.engine_hit
    return cached, moved


def _load(
    profile: Profile,
    params: PdSweep,
    workload: Workload,
    hits: tuple[NDArray[np.int64], NDArray[np.int64]],
    seed: int,
) -> Load:
    """The requests as the client sends them, with the overheads of requests that were measured."""
    requests = workload.requests
    arrivals = arrivals_of(replace(params, seed=seed), len(requests))
    prompts = np.array([request.prompt_tokens for request in requests], np.int64)
    return Load(
        prompt_tokens=prompts,
        cached_tokens=hits[0],
        moved_tokens=hits[1],
        output_tokens=np.array([request.max_tokens for request in requests], np.int64),
        offsets_s=None if arrivals.kind == "closed" else np.asarray(arrivals.offsets_s),
        concurrency=arrivals.concurrency,
        overheads_s=profile.overheads_of(prompts, seed),
    )


def _rate(params: PdSweep, load: Load) -> float:
    """The offered rate, of a ramp the highest; 0 where only a simulation tells it."""
    if load.offsets_s is None:
        return 0.0
    if params.arrival_kind == "trace":
        span_s = float(np.ptp(load.offsets_s))
        return (len(load.offsets_s) - 1) / span_s if span_s else 0.0
    ends = params.end_rate_per_s if params.arrival_kind == "ramp" else 0.0
    return max(params.rate_per_s, ends)


def _saturated(closed: ClosedForm) -> str:
    """Why nothing is predicted at this utilisation; empty if it is low enough."""
    if not closed.utilisation > SATURATED:
        return ""
    return (
        f"near saturation: not predicted ({closed.bottleneck} at {percent(closed.utilisation)}"
        f" of its highest rate, limit {percent(SATURATED)})"
    )


def _outside(profile: Profile, found: Simulated, costs: Costs) -> str:
    """Why the simulated run left what was profiled; empty if it did not."""
    most = round(profile.decode.ranges["batch"][1])
    above_s = sum(s for batch, s in found.batch_s.items() if batch > most)
    whole_s = sum(found.batch_s.values())
    if above_s > OUTSIDE * whole_s:
        got = max(found.batch_s)
        return (
            f"not predicted: decode batches of up to {got}, profiled up to {most}. Profile larger"
            f" ones (example: workbench profile -p concurrency {2 * got})"
        )
    if found.kv_above_s > OUTSIDE * whole_s:
        # The profile's lengths are spread evenly over their range.
        at_once = ceil(found.most_kv / np.mean(profile.prefill.ranges["tokens"]))
        return (
            f"not predicted: decode batches with up to {found.most_kv:,} KV tokens, profiled up to"
            f" {costs.profiled_kv_tokens:,.0f}. Profile larger batches (example: workbench profile"
            f" -p concurrency {max(at_once, most + 1)})"
        )
    if found.stuck:
        return f"not predicted: {found.stuck} requests never got KV space"
    # At worst the others share the link, and each adds a whole transfer.
    most_others = profile.transfer.ranges["others"][1]
    more = _beyond(found, most_others)
    added_s = sum(n * (others - most_others) for others, n in more.items()) / len(found.requests)
    added_s *= costs.transfer_of(float(found.requests["prompt_tokens"].mean()))
    if added_s > GOAL * float(found.requests["ttft_s"].median()):
        return (
            f"not predicted: transfers beside up to {max(more)} others, profiled up to"
            f" {most_others:.0f}; on a shared link TTFT could be {1000 * added_s:.0f} ms longer."
            " Measure it (example: workbench run pd_sweep -p topology 4p1d)"
        )
    return ""


def _beyond(found: Simulated, most_others: float) -> dict[int, int]:
    """Transfers beside more others than were profiled, by how many."""
    return {others: n for others, n in found.beside.items() if others > most_others}


def _numbers(found: Simulated, limits: Limits) -> dict[str, float]:
    """The metrics of a simulated pass, by the definitions of measured ones."""
    rows = found.requests
    took_s = (rows["sent_s"] + rows["e2e_s"]).max() - rows["sent_s"].min()
    limited = limits.ttft_s < inf or limits.tpot_s < inf
    return {
        **{name: float(rows[name].median()) for name in METRICS[:3]},
        "system_tps": float(rows["output_tokens"].sum() / took_s),
        "goodput": float(limits.met(rows["ttft_s"], rows["tpot_s"]).mean()) if limited else nan,
    }


def _transfer_doubts(profile: Profile, found: Simulated) -> list[str]:
    """Transfers that the profile has not seen."""
    moves = sum(found.beside.values())
    most_others = profile.transfer.ranges["others"][1]
    share = sum(_beyond(found, most_others).values()) / moves if moves else 0.0
    if share <= OUTSIDE:
        return []
    return [
        f"{percent(share)} of transfers overlap with more others than profiled"
        f" ({most_others:.0f}). TTFT may be too low."
    ]


def _doubts(case: Case, closed: ClosedForm, found: Simulated) -> list[str]:
    profile, workload, topology = case.profile, case.workload, case.topology
    doubts = arrival_doubts(case.params, len(workload.requests))
    if not isnan(closed.wait_s) and closed.differs:
        doubts.append(
            "Simulation and closed form differ: mean prefill queue"
            f" {1000 * closed.simulated_wait_s:.0f} and {1000 * closed.wait_s:.0f} ms. Do not rely"
            " on TTFT."
        )
    doubts += _transfer_doubts(profile, found)
    if found.preemptions:
        doubts.append(f"Decode runs out of KV space: {found.preemptions} preemptions are expected.")
    if connector(profile.connector).store and any(
        request.ideal_reuse_tokens for request in workload.requests
    ):
        doubts.append("Loads of shared prefixes from the KV store are assumed to take no time.")
    on_cpu = not profile.machine["gpus"] and not profile.simulated
    own, cores = profile.parameters.get("cores_per_instance", 0), profile.machine["cores"]
    if on_cpu and (not own or topology.instances * own > cores):
        doubts.append(
            "On a CPU all instances share the cores, but the simulation gives each its own."
        )
    elif on_cpu and 2 * own >= cores:
        doubts.append(
            "Proxy, load generator and API servers have no cores of their own here. Latencies may"
            " be several times as long."
        )
    return doubts
