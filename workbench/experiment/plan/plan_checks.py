"""What a plan must hold before anything starts, and what weakens its result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from math import ceil

from workbench.errors import PlanError, must_be, unused
from workbench.experiment.load_unit import USERS
from workbench.experiment.plan.arm import Arm
from workbench.experiment.plan.engine_setup import (
    check_gpu_memory,
    host_doubts,
)
from workbench.experiment.plan.offered_load.loads import users_by_limits
from workbench.experiment.plan.offered_load.traffic import (
    arrival_doubts,
    check_doubts,
    length_doubts,
)
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.plan.which_connectors import Chosen
from workbench.hardware import machine
from workbench.params.notebooks import LMCacheHitAnalysis, LoadParams
from workbench.params.pd_sweep import PdSweep
from workbench.params.store_tiers import SIZED
from workbench.serve.checks.argument_check import check_store_arguments
from workbench.serve.connectors import connector
from workbench.serve.simulated.faults import FAULTS
from workbench.serve.vllm import EngineSettings


def check_startable(params: PdSweep, arms: Sequence[Arm], settings: EngineSettings) -> None:
    """Refuse what this machine's GPUs or the store's server do not accept. Raises PlanError."""
    check_gpu_memory(max(arm.gpus for arm in arms), settings)
    for arm in arms:
        if params.store_args and arm.store and arm.store.processes:
            processes = arm.deployment(count(20_000)).processes
            (store,) = (process for process in processes if process.role == "store")
            check_store_arguments(arm.store_args, store.program, settings.interpreter)


def check_transport(params: PdSweep, asked: Chosen) -> None:
    """Refuse RDMA where the connector or this machine has none. Raises PlanError."""
    if params.mooncake_protocol == "tcp":
        return
    if not any(one.rdma for one in asked.connectors):
        other = "-p connector mooncake -p mooncake_protocol rdma"
        setting = f"connector={params.connector}"
        raise PlanError(unused("mooncake_protocol", params.mooncake_protocol, setting, other))
    if not machine.rdma_devices():
        allowed = f"tcp on a machine without RDMA devices ({machine.RDMA_DEVICES} is empty)"
        raise PlanError(must_be("mooncake_protocol", allowed, params.mooncake_protocol, "tcp"))


def check_stores(made: ExperimentPlan) -> None:
    """Refuse a KV store, or a tier of it, that cannot hold one prompt.

    The hit analysis has a store that is too small on purpose. Raises PlanError.
    """
    small = isinstance(made.params, LMCacheHitAnalysis)
    longest = max(request.prompt_tokens for request in made.workload.sample.requests)
    prompt_gb = longest * made.kv_bytes_per_token / 2**30
    for arm in made.arms:
        stores = arm.kv_connector and arm.kv_connector.store and not small
        if stores and prompt_gb > arm.store_gb:
            raise PlanError(_too_small("store_gb", arm.store_gb, longest, prompt_gb))
        if {*arm.tiers} & SIZED and prompt_gb > arm.tier_gb:
            raise PlanError(_too_small("tier_gb", arm.tier_gb, longest, prompt_gb))


def check_budget(made: ExperimentPlan) -> None:
    """Refuse a time budget that is too small for one round by the estimate. Raises PlanError."""
    if not (budget_s := made.params.time_budget_s):
        return
    duration = made.duration
    round_s = duration.once_s + duration.round_s
    if round_s > budget_s:  # which an unknown duration is not
        allowed = f"at least {ceil(round_s)} for a round of {len(made.arms)} arms {duration.basis}"
        example = -(-ceil(made.rounds * round_s) // 60) * 60
        raise PlanError(must_be("time_budget_s", allowed, budget_s, example))


def _too_small(name: str, given_gb: float, tokens: int, prompt_gb: float) -> str:
    return (
        f"{name} must hold at least one prompt: {tokens:,} tokens have {prompt_gb:.2f} GB of KV,"
        f" got {given_gb:g} (example: -p {name} {2 * prompt_gb:.1g})"
    )


def connector_doubts(arms: Sequence[Arm]) -> Iterator[str]:
    """What is uncertain about the connectors of these arms; simulated ones have no doubt."""
    platform = arms[0].settings.platform if arms[0].settings else ""
    if platform == "simulated":
        return
    known = [arm.kv_connector for arm in arms if arm.kv_connector]
    on_cpu = platform == "cpu"
    said = [text for one in known for text in (one.doubt, one.cpu_doubt * on_cpu)]
    if any("mooncake" in arm.tiers for arm in arms):
        said.append(connector("mooncake-store").doubt)  # the same program, the same open ports
    yield from dict.fromkeys(filter(None, said))


def plan_doubts(made: ExperimentPlan) -> Iterator[str]:
    """What weakens the result, known before anything has run."""
    params, settings = made.params, made.settings
    if settings is not None:
        if settings.fault:
            shows = FAULTS[settings.fault].shows
            yield f"Fault {settings.fault} is injected on purpose: {shows}."
        sharing = made.arms[0].capacity.instances_per_gpu
        if settings.on_gpu and sharing > 1:
            yield (
                f"Up to {sharing} instances share a GPU, so each is slower than it would be on its"
                " own GPU."
            )
        if isinstance(params, LoadParams):
            yield from length_doubts(params, settings)
        if settings.cluster is not None:
            plans = (arm.deployment(count(20_000)) for arm in made.arms)
            yield from host_doubts(settings.cluster, plans)
    yield from connector_doubts(made.arms)
    if isinstance(params, LoadParams):
        requests = len(made.workload.sample.requests)
        if isinstance(params, PdSweep) and params.predict:
            yield from check_doubts(params, requests)
        yield from arrival_doubts(params, requests)
    yield from made.workload.sample.doubts
    loads, requests = made.loads, len(made.workload.sample.requests)
    if loads is not None and loads.unit == USERS and str(loads.limits):
        users = int(loads.top)
        if users > users_by_limits(loads.limits, requests):
            enough = ceil(users / (1 - loads.limits.share) - 1e-9)
            yield (
                f"At {users} users, {users} of {requests} requests are sent at once, more than may"
                f" miss the limits. Their TTFT decides; use at least {enough} requests."
            )
    # What is shared is held once; a partly warm pass leaves the new part of each prompt behind.
    new = max(sum(1 - p.share for p in arm.passes) for arm in made.arms)
    sent_tokens = sum(
        r.prompt_tokens - r.ideal_reuse_tokens + r.max_tokens + int(new * r.prompt_tokens)
        for r in made.workload.sample.requests
    )
    space_tokens = made.kv_space_tokens
    if sent_tokens > space_tokens and not made.sized:
        yield (
            f"The workload has {sent_tokens:,} tokens but an instance's KV cache holds"
            f" {space_tokens:,.0f}, so warm passes will miss evicted blocks. Raise kv_cache_mib."
        )
    sent_gb = sent_tokens * made.kv_bytes_per_token / 2**30
    tiers_gb = [arm.tier_gb for arm in made.arms if {*arm.tiers} & SIZED]
    if tiers_gb and sent_gb > min(tiers_gb):
        yield (
            f"The workload has {sent_gb:.2g} GB of KV but a tier of the store holds"
            f" {min(tiers_gb):.2g} GB, so it will evict. Raise tier_gb."
        )
    for arm in made.arms:
        each = arm.settings.gpus(arm.tp).aggregated if arm.settings else arm.tp.aggregated
        if arm.role == "subject" and arm.disaggregated and arm.gpus % each:
            yield (
                f"{arm.label} uses {arm.gpus} GPUs, but its aggregated baseline only"
                f" {max(1, arm.gpus // each) * each}, in instances of {each}."
            )
