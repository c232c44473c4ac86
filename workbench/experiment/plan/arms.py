"""From a notebook's checked parameters to its plan: which arms, opponents and passes.

Refuses, with a PlanError, what this machine or a connector cannot do. Starts none of the servers;
the first plan on a CPU measures the machine, once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from workbench.errors import ParameterError, PlanError
from workbench.experiment.plan.hit_plan import plan_hits
from workbench.experiment.plan.plan import Arm, ExperimentPlan, Pass, State
from workbench.experiment.plan.plan_doubts import (
    fault_doubts,
    kv_doubts,
    kv_space_tokens,
    sharing_doubts,
    unequal_doubts,
)
from workbench.experiment.plan.rates import Rates, rates_of
from workbench.experiment.plan.room import (
    check_gpu_memory,
    check_room,
    engine_notes,
    engine_of,
    own_speed,
)
from workbench.experiment.plan.traffic import (
    WorkloadSpec,
    arrivals_of,
    file_doubts,
    length_doubts,
    workload_of,
)
from workbench.load.drive.open_files import check_files, most_in_flight
from workbench.load.workload.arrivals import Arrivals
from workbench.params.notebooks import (
    EngineParams,
    LMCacheHitAnalysis,
    LoadParams,
    PdSweep,
    PrefixCache,
)
from workbench.serve.capacity import check_store
from workbench.serve.connectors import connector
from workbench.serve.simulated.faults import check_fault
from workbench.serve.tiny_model import ModelFacts
from workbench.serve.vllm import EngineSettings, Platform
from workbench.topology import TensorParallel, Topology

__all__ = ["plan"]

LONG_RUN_S, FEWER_REQUESTS = 190.0, 2
"""A reference run longer than this sends fewer requests a pass."""


def plan(params: EngineParams) -> ExperimentPlan:
    """The plan of a notebook's checked parameters; starts none of its servers.

    The first plan on a CPU measures the machine's speed, once (`experiment.plan.speed`).

    Raises PlanError for what cannot be run, ParameterError for a workload that cannot be built or
    has more requests in flight than this process may have files.
    """
    if isinstance(params, PrefixCache):
        made = _prefix_cache_plan(params)
    elif isinstance(params, LMCacheHitAnalysis):
        made = plan_hits(params)
    elif isinstance(params, PdSweep):
        made = _attached_plan(params) if params.engine == "attach" else _sweep_plan(params)
    else:
        raise PlanError(f"there is no experiment for {type(params).__name__}")
    # What workload and client refuse is refused now, not when servers run.
    requests = len(made.workload.sample.requests)
    check_files(most_in_flight(made.arrivals, requests, timeout_s=params.timeout_s))
    return made


def _sweep_plan(params: PdSweep) -> ExperimentPlan:
    topologies = params.topologies
    asked = connector(params.connector)
    for topology in topologies:
        asked.check(topology)
    settings, model, capacity = engine_of(params)
    for topology in topologies:
        check_fault(params.fault, asked.name, topology)
    if not settings.on_gpu and params.tp != TensorParallel():
        raise PlanError(
            "an instance on a CPU is one process: leave prefill_tp, decode_tp and aggregated_tp"
            " at 1, and change the topology instead, e.g. 2p4d"
        )
    wanted: dict[tuple[Topology, str], Literal["subject", "opponent"]] = {}
    for topology in topologies:
        wanted[topology, asked.name] = "subject"
    if params.opponents:
        for topology in (t for t in topologies if t.disaggregated):
            equal = Topology(aggregated=_equal_gpus(topology, params.tp))
            for rival in ("none", "lmcache"):
                wanted.setdefault((equal, rival), "opponent")
    swept = bool(params.rates_per_s or params.search)
    arms = []
    for (topology, name), role in wanted.items():
        means = connector(name)
        check_room(topology, params.tp, capacity, settings)
        if means.store:
            check_store(params.store_gb, capacity)
        arms.append(
            Arm(
                label=_label(topology, name, params.tp, settings.platform),
                role=role,
                topology=topology,
                connector=name,
                passes=tuple(
                    Pass(name=s, state=s, decode_shift=int(s == "cross-instance"))  # type: ignore[arg-type]
                    for s in means.passes(topology)
                    if not swept
                ),
                gpus=topology.gpus(params.tp),
                settings=settings,
                tp=params.tp,
                capacity=capacity,
                store_gb=params.store_gb,
            )
        )
    if settings.on_gpu:
        check_gpu_memory(max(arm.gpus for arm in arms), params.gpu_memory_share)
    workload = workload_of(params, settings, model)
    rates = rates_of(params, len(workload.sample.requests))
    made = ExperimentPlan(
        notebook="pd_sweep",
        params=params,
        platform=settings.platform,
        arms=tuple(arms),
        rounds=params.rounds,
        workload=workload,
        arrivals=_arrivals(params, workload, rates),
        kv_space_tokens=kv_space_tokens(settings, model),
        rates=rates,
        doubts=(
            *fault_doubts(settings),
            *sharing_doubts(capacity, settings),
            *length_doubts(params, settings),
            *file_doubts(workload),
            *kv_doubts(workload, (), settings, model),
            *unequal_doubts(arms, params.tp),
        ),
        speed=own_speed(params, settings),
        notes=tuple(engine_notes(params, settings)),
    )
    return _within_minutes(made, settings, model)


def _within_minutes(
    made: ExperimentPlan, settings: EngineSettings, model: ModelFacts | None
) -> ExperimentPlan:
    """The same with fewer requests where the reference workload would take long on this machine.

    Rounds are what an interval rests on, so they stay. So do requests that are sent at a rate: each
    has its time.
    """
    params = made.params
    assert isinstance(params, LoadParams)
    own = params.workload == "reference" and not params.requests and made.speed is not None
    closed = made.arrivals.kind == "closed"
    if not own or not closed or not made.estimate_s > LONG_RUN_S:
        return made
    fewer = replace(params, requests=FEWER_REQUESTS)
    shorter = replace(made, workload=workload_of(fewer, settings, model))
    note = (
        f"Passes send {FEWER_REQUESTS} requests instead of {params.lengths[1]}: about"
        f" {shorter.estimate_s / 60:.1f} minutes instead of {made.estimate_s / 60:.1f}. Choose"
        " with requests."
    )
    return replace(shorter, notes=(*made.notes, note))


def _arrivals(params: LoadParams, workload: WorkloadSpec, rates: Rates | None = None) -> Arrivals:
    """Of a sweep over rates: those of its highest, for which files are reserved; a pass has its
    own."""
    requests = len(workload.sample.requests)
    return arrivals_of(params, requests, rate_per_s=rates.top_per_s if rates else 0.0)


def _label(topology: Topology, name: str, tp: TensorParallel, platform: Platform) -> str:
    """`1p4d lmcache`; on GPUs with those of each role, `1p4d lmcache, 2+4 GPU`."""
    text = f"{topology} {name}" if name != "none" else str(topology)
    if platform in ("cpu", "simulated"):
        return text
    return f"{text}, {'+'.join(str(n * int(getattr(tp, role))) for role, n in topology.roles)} GPU"


def _equal_gpus(topology: Topology, tp: TensorParallel) -> int:
    """Aggregated instances that take as many GPUs as `topology` does, rounded down."""
    return max(1, topology.gpus(tp) // tp.aggregated)


def _layout(label: str) -> Topology | None:
    """What the label of attached servers says about their layout: any text is allowed."""
    try:
        return Topology.parse(label)
    except ParameterError:
        return None


def _attached_plan(params: PdSweep) -> ExperimentPlan:
    known = bool(params.prefill_urls or params.decode_urls)
    states: list[State] = ["cold", "engine-warm"]
    doubts = [
        "The servers were started by somebody else: rounds are not launches, and nothing was"
        " warmed up, so first requests may pay for connections and handshakes."
    ]
    if known and params.lmcache_url:
        states.append("store-warm")
    if not known:
        doubts.append(
            "No server lists were given, so nothing is reset and no counter is read: cold rests on"
            " the salt alone. Give prefill_urls, decode_urls and lmcache_url."
        )
    workload = workload_of(params, None, None)
    rates = rates_of(params, len(workload.sample.requests))
    label = params.topology or "attached"
    arm = Arm(
        label=label,
        role="attached",
        topology=_layout(label),
        connector="unknown",
        passes=tuple(Pass(name=s, state=s) for s in states if rates is None),
    )
    return ExperimentPlan(
        notebook="pd_sweep",
        params=params,
        platform="cpu",
        arms=(arm,),
        rounds=params.rounds,
        workload=workload,
        arrivals=_arrivals(params, workload, rates),
        rates=rates,
        doubts=(*doubts, *file_doubts(workload)),
    )


def _prefix_cache_plan(params: PrefixCache) -> ExperimentPlan:
    settings, model, capacity = engine_of(params)
    tp = TensorParallel(aggregated=params.aggregated_tp)
    topology = Topology(aggregated=1)
    check_room(topology, tp, capacity, settings)
    check_fault(params.fault, "none", topology)
    if settings.on_gpu:
        check_gpu_memory(topology.gpus(tp), params.gpu_memory_share)
    cold = Pass(name="cold", state="cold")
    # New parts can be drawn for prompts of token ids that share nothing, and for no others.
    plain = params.workload in ("reference", "short") and params.api == "completions"
    warm = tuple(
        Pass(name=f"{share:.0%} cached", state="engine-warm", share=share)
        for share in sorted(params.shares if plain else ())
    )
    workload = workload_of(params, settings, model)
    make = partial(
        Arm,
        role="subject",
        topology=topology,
        connector="none",
        gpus=topology.gpus(tp),
        tp=tp,
        capacity=capacity,
    )
    off = replace(settings, prefix_caching=False)
    everything = Pass(name="engine-warm", state="engine-warm")
    return ExperimentPlan(
        notebook="single_instance_prefix_cache",
        params=params,
        platform=settings.platform,
        arms=(
            make(label="cache off", settings=off, passes=(cold,)),
            make(label="cache on", settings=settings, passes=(cold, *warm, everything)),
        ),
        rounds=params.rounds,
        workload=workload,
        arrivals=_arrivals(params, workload),
        doubts=(
            *fault_doubts(settings),
            *length_doubts(params, settings),
            *file_doubts(workload),
            *kv_doubts(workload, warm, settings, model),
        ),
        speed=own_speed(params, settings),
        notes=tuple(engine_notes(params, settings)),
    )
