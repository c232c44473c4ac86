"""From a notebook's checked parameters to its plan: which arms, opponents and passes.

Refuses, with a PlanError, what this machine or a connector cannot do. Starts none of the servers;
the first plan on a CPU measures the machine, once.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from math import ceil, isnan
from typing import Literal

from workbench.errors import ParameterError, PlanError, unused
from workbench.experiment.load_unit import USERS
from workbench.experiment.plan.arm import Arm, Pass, pass_in
from workbench.experiment.plan.compared import check_targets
from workbench.experiment.plan.engine_setup import (
    check_engine,
    engine_notes,
    engine_of,
    one_instance,
    own_speed,
)
from workbench.experiment.plan.hit_plan import plan_hits
from workbench.experiment.plan.offered_load.loads import loads_of
from workbench.experiment.plan.offered_load.traffic import (
    WorkloadSpec,
    arrivals_of,
    workload_of,
)
from workbench.experiment.plan.plan import ExperimentPlan, OfModel
from workbench.experiment.plan.plan_checks import (
    check_budget,
    check_startable,
    check_stores,
    check_transport,
    connector_doubts,
    plan_doubts,
)
from workbench.experiment.plan.which_connectors import Chosen, chosen
from workbench.experiment.plan.working_sets import with_working_sets
from workbench.load.drive.open_files import check_files, most_in_flight
from workbench.load.workload.arrivals import closed
from workbench.params.engine_args import words
from workbench.params.notebooks import EngineParams, LMCacheHitAnalysis, PrefixCache
from workbench.params.pd_sweep import ALL_CONNECTORS, PdSweep
from workbench.serve.checks.capacity import (
    Capacity,
    check_capacity,
    check_store,
    check_tiers,
    on_hosts,
)
from workbench.serve.connectors import connector
from workbench.serve.deployment import TRANSFER_TIMEOUT_S
from workbench.serve.simulated.faults import check_fault
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

SHORTEST_TIMEOUT_S, BUSY_FACTOR = 30.0, 5.0
"""Of KV transfers: other programs may slow prefill down this many times."""
LONG_RUN_S, FEWER_REQUESTS = 190.0, 2
"""A reference run longer than this sends fewer requests a pass."""


def plan(params: EngineParams) -> ExperimentPlan:
    """The plan of a notebook's checked parameters; starts none of its servers.

    The first plan on a CPU measures the machine's speed, once (`experiment.plan.speed`).

    Raises PlanError for what cannot be run, ParameterError for a workload that cannot be built or
    has more requests in flight than this process may have files.
    """
    made = _of_models(params)
    check_targets(made)
    return made


def _of_models(params: EngineParams) -> ExperimentPlan:
    """The plan of one model, or of several."""
    if not isinstance(params, PdSweep) or not params.models:
        return _checked(_within_minutes(_planned(params)))
    parts = {}
    for name, own in params.each_model.items():
        with _named(name):
            parts[name] = _planned(own)
    whole = _within_minutes(_joined(params, parts))
    for name, part in parts.items():
        with _named(name):
            parts[name] = _checked(replace(part, workload=whole.by_model[name].workload))
    return replace(_joined(params, parts), notes=whole.notes)


@contextmanager
def _named(model: str) -> Iterator[None]:
    """Say which of several models cannot be planned."""
    try:
        yield
    except (ParameterError, PlanError) as error:
        raise type(error)(f"models, {model}: {error}") from error


def _planned(params: EngineParams) -> ExperimentPlan:
    """The plan of one model with what is known of this machine, not checked yet."""
    match params:
        case PrefixCache():
            made = _prefix_cache_plan(params)
        case LMCacheHitAnalysis():
            made = plan_hits(params)
        case PdSweep():
            made = _attached_plan(params) if params.engine == "attach" else _sweep_plan(params)
        case _:
            raise PlanError(f"there is no experiment for {type(params).__name__}")
    if (settings := made.settings) is None:
        return made
    notes, speed = engine_notes(params, settings), own_speed(params, settings)
    return replace(made, notes=tuple(notes), speed=speed)


def _checked(made: ExperimentPlan) -> ExperimentPlan:
    """The plan of one model with its doubts. Raises PlanError for what does not fit."""
    settings, params = made.settings, made.params
    if settings is not None:
        made = _with_timeouts(made)
        for arm in made.arms if settings.cluster else ():
            arm.deployment(count(20_000))  # refuses what its hosts cannot hold
    made = replace(made, doubts=(*made.doubts, *plan_doubts(made)))
    check_stores(made)
    check_budget(made)
    # What workload and client refuse is refused now, not when servers run.
    requests = len(made.workload.sample.requests)
    check_files(most_in_flight(made.arrivals, requests, timeout_s=params.timeout_s))
    return made


def _joined(params: PdSweep, parts: Mapping[str, ExperimentPlan]) -> ExperimentPlan:
    """One plan of several models; the label of each arm begins with its model."""
    arms = tuple(
        replace(arm, label=f"{name} {arm.label}", model=name)
        for name, part in parts.items()
        for arm in part.arms
    )
    return replace(
        next(iter(parts.values())),
        params=params,
        arms=arms,
        notes=_of_all({name: part.notes for name, part in parts.items()}),
        doubts=_of_all({name: part.doubts for name, part in parts.items()}),
        by_model={
            name: OfModel(
                params=part.params, workload=part.workload, speed=part.speed, notes=part.notes
            )
            for name, part in parts.items()
        },
    )


def _of_all(said: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What is said of models; a sentence that is not about all begins with its model."""
    found: dict[str, None] = {}
    for name, texts in said.items():
        for text in texts:
            everywhere = all(text in others for others in said.values())
            found[text if everywhere else f"{name}: {text}"] = None
    return tuple(found)


def _sweep_plan(params: PdSweep) -> ExperimentPlan:
    settings, model, capacity = engine_of(params)
    asked = chosen(params, params.measured, settings)
    arms, left_out = sweep_arms(params, settings, capacity, asked)
    check_startable(params, arms, settings)
    made = _with_load("pd_sweep", params, arms, workload_of(params, settings, model))
    made = replace(made, doubts=left_out)
    return with_working_sets(made) if params.working_sets else made


def servers_of(params: PdSweep) -> tuple[Arm, list[str]]:
    """The arm that the topology names, for servers without a load, and what to know about it.

    Raises PlanError for what cannot be run, and for arguments that vLLM does not accept.
    """
    check_engine(params)
    settings, _, capacity = engine_of(params)
    asked = chosen(params, params.measured, settings)
    arms, _ = sweep_arms(params, settings, capacity, asked)
    check_startable(params, arms, settings)
    return arms[0], [*engine_notes(params, settings), *connector_doubts(arms[:1])]


def sweep_arms(
    params: PdSweep, settings: EngineSettings, capacity: Capacity, asked: Chosen
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """What was asked for, then its opponents: aggregated instances on the same number of GPUs.

    With them, a sentence for each connector or opponent that was left out. Raises PlanError for
    what does not fit connector, topology and capacity.
    """
    tp, topologies = params.tp, params.measured
    subjects = {topology: asked.subjects(topology) for topology in topologies}
    check_transport(params, asked)
    for topology, names in subjects.items():
        for name in names if params.connector != ALL_CONNECTORS else ():
            check_fault(params.fault, name, topology)
    if not settings.on_gpu and tp != TensorParallel():
        raise PlanError(
            "prefill_tp, decode_tp and aggregated_tp must be 1 on a CPU, where an instance is one"
            " process. Use more instances instead (example: -p topology 2p4d)"
        )
    spans = settings.gpus(tp)
    wanted: dict[tuple[Topology, str], Literal["subject", "opponent"]] = {}
    left_out = list(asked.left_out)
    for topology, names in subjects.items():
        wanted |= dict.fromkeys(((topology, name) for name in names), "subject")
    for topology in topologies if params.opponents else ():
        if topology.disaggregated:
            # The same number of GPUs, rounded down.
            equal = Topology(aggregated=max(1, topology.gpus(spans) // spans.aggregated))
            for rival in asked.rivals(equal):
                if not _beside_its_store(rival, equal, spans, settings):
                    left_out.append(
                        f"The baseline {equal} {rival} was left out: its store shares memory with"
                        " instances, which are on several hosts here."
                    )
                    continue
                wanted.setdefault((equal, rival), "opponent")
        elif any(one.store and one.store.private for one in map(connector, subjects[topology])):
            wanted.setdefault((topology, "none"), "opponent")
    arms = []
    for (topology, name), role in wanted.items():
        means = connector(name)
        private = means.store is not None and means.store.private
        host_gb = params.store_gb if private else 0.0
        check_capacity(topology, spans, capacity, settings, host_gb=host_gb)
        if means.store and not private:
            check_store(params.store_gb, capacity)
            check_tiers(params.store_tiers, params.tier_gb, capacity)
        tiers = tuple(params.store_tiers[1:]) if means.store and means.store.tier_loads else ()
        label = str(topology) if name == "none" else f"{topology} {name}"
        if settings.on_gpu:
            gpus = "+".join(str(n * int(getattr(spans, part))) for part, n in topology.roles)
            label = f"{label}, {gpus} GPU"
        arms.append(
            Arm(
                label=label,
                role=role,
                topology=topology,
                connector=name,
                passes=() if params.swept else tuple(map(pass_in, means.passes(topology, tiers))),
                gpus=topology.gpus(spans),
                settings=settings,
                tp=tp,
                capacity=capacity,
                store_gb=params.store_gb,
                store_args=words(params.store_args),
                mooncake_protocol=params.mooncake_protocol,
                tiers=tiers,
                tier_gb=params.tier_gb,
            )
        )
    started = [arm for arm in arms if params.store_args and arm.store and arm.store.processes]
    if params.store_args and not started:
        example = f"-p connector lmcache -p store_args {shlex.quote(params.store_args)}"
        given = shlex.quote(params.store_args), f"connector={params.connector}"
        raise PlanError(unused("store_args", *given, example))
    return tuple(arms), tuple(dict.fromkeys(left_out))


def _beside_its_store(
    name: str, topology: Topology, spans: TensorParallel, settings: EngineSettings
) -> bool:
    """Whether a store that shares memory with instances has them all on its host."""
    store = connector(name).store
    if settings.cluster is None or store is None or not store.shares_memory:
        return True
    places = on_hosts(topology, spans, settings.cluster, settings)
    return len({place.host for place in places}) == 1


def _with_load(
    notebook: str, params: PdSweep | PrefixCache, arms: tuple[Arm, ...], workload: WorkloadSpec
) -> ExperimentPlan:
    """The plan of these arms, still without its notes and doubts."""
    requests = len(workload.sample.requests)
    loads = loads_of(params, workload.sample) if isinstance(params, PdSweep) else None
    # Of a sweep those of its highest load, for which files are reserved.
    if loads is not None and loads.unit == USERS:
        arrivals = closed(int(loads.top))
    else:
        arrivals = arrivals_of(params, requests, rate_per_s=loads.top if loads else 0.0)
    return ExperimentPlan(
        notebook=notebook,
        params=params,
        arms=arms,
        rounds=params.rounds,
        workload=workload,
        arrivals=arrivals,
        loads=loads,
    )


def _within_minutes(made: ExperimentPlan) -> ExperimentPlan:
    """The plan with fewer requests if the reference workload would take long on this machine.

    Rounds stay, since intervals come from them, and so do requests of a sweep or at a rate.
    """
    params = made.params
    if not isinstance(params, PdSweep) or params.workload != "reference" or params.requests:
        return made
    if params.working_sets or params.swept:
        return made
    closed = made.arrivals.kind == "closed"
    if made.speed is None or not closed or not made.rule_s > LONG_RUN_S:
        return made
    fewer = {"requests": FEWER_REQUESTS}
    workload = replace(made.workload, options=made.workload.options | fewer)
    each = {
        name: replace(own, workload=replace(own.workload, options=own.workload.options | fewer))
        for name, own in made.by_model.items()
    }
    shorter = replace(made, workload=workload, by_model=each)
    note = (
        f"Passes send {FEWER_REQUESTS} requests instead of {params.lengths[1]}, to take about"
        f" {shorter.rule_s / 60:.1f} minutes instead of {made.rule_s / 60:.1f}. Override"
        " with requests."
    )
    return replace(shorter, notes=(*made.notes, note))


def _with_timeouts(made: ExperimentPlan) -> ExperimentPlan:
    """The plan whose transfers wait longer than the slowest prompt queues and prefills."""
    wait_s = made.longest_wait_s
    if isnan(wait_s):
        return made
    timeout_s = ceil(min(TRANSFER_TIMEOUT_S, max(SHORTEST_TIMEOUT_S, BUSY_FACTOR * wait_s)))
    arms = tuple(replace(arm, transfer_timeout_s=timeout_s) for arm in made.arms)
    return replace(made, arms=arms)


def _layout(label: str) -> Topology | None:
    """The layout that the label of attached servers names; None for any other text."""
    try:
        return Topology.parse(label)
    except ParameterError:
        return None


def _attached_plan(params: PdSweep) -> ExperimentPlan:
    states = ["cold", "engine-warm"]
    doubts = [
        "This run did not start the servers: rounds reuse one launch, and first requests may"
        " include connection set-up."
    ]
    if not (params.prefill_urls or params.decode_urls):
        doubts.append(
            "Without server URLs nothing is reset or counted: only unique prompts keep cold passes"
            " cold. Set prefill_urls, decode_urls and lmcache_url."
        )
    elif params.lmcache_url:
        states.append("store-warm")
    label = params.topology or "attached"
    arm = Arm(
        label=label,
        role="attached",
        topology=_layout(label),
        connector="unknown",
        passes=() if params.swept else tuple(map(pass_in, states)),
    )
    made = _with_load("pd_sweep", params, (arm,), workload_of(params, None, None))
    return replace(made, doubts=tuple(doubts))


def _prefix_cache_plan(params: PrefixCache) -> ExperimentPlan:
    settings, model, capacity = engine_of(params)
    make = one_instance(params, settings, capacity)
    check_fault(params.fault, "none", Topology(aggregated=1))
    cold, everything = pass_in("cold"), pass_in("engine-warm")
    # New parts can be drawn for prompts of token ids that share nothing, and for no others.
    plain = params.workload in ("reference", "short") and params.api == "completions"
    warm = tuple(
        Pass(name=f"{share:.0%} cached", state="engine-warm", share=share)
        for share in sorted(params.shares)
        if plain
    )
    off = replace(settings, prefix_caching=False)
    arms = (
        make(label="cache off", connector="none", settings=off, passes=(cold,)),
        make(label="cache on", connector="none", passes=(cold, *warm, everything)),
    )
    workload = workload_of(params, settings, model)
    return _with_load("single_instance_prefix_cache", params, arms, workload)
