"""Which gates apply to a run, and their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from workbench.experiment.load_unit import RATE
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.hardware import machine
from workbench.hardware.physics import (
    Accelerator,
    accelerator,
    decode_ceiling_tps,
    prefill_ceiling_tps,
)
from workbench.load.drive.workers import most_workers
from workbench.load.workload.workload import Workload
from workbench.metrics.gates import cache_gates, response_gates, run_gates
from workbench.metrics.gates.client_gate import (
    LAG_P99_S,
    OTHERS_SHARE,
    client_kept_up,
    clock_not_set,
)
from workbench.metrics.gates.gate import Gate
from workbench.metrics.ledger.ledger import ledger_closes
from workbench.metrics.passes import PassCounters
from workbench.params.engine_args import count_of, value_of
from workbench.topology import Role

if TYPE_CHECKING:
    import pandas as pd


def check(
    plan: ExperimentPlan,
    requests: pd.DataFrame,
    *,
    legs: pd.DataFrame,
    passes: Sequence[PassCounters],
    client: Mapping[str, float],
    reasons: Sequence[str],
    refusals: Sequence[str],
    under_way: bool = False,
) -> tuple[Gate, ...]:
    """The gates that apply to this plan.

    `client` is the worst reading of the client's health; `reasons` say why passes were not run,
    `refusals` which caches were not emptied. `under_way`: launches are still to come.
    """
    busy = client.get("others_cpu_share", 0.0) > OTHERS_SHARE
    late = client.get("loop_lag_p99_s", 0.0) > LAG_P99_S
    workers = most_workers(plan.workload.sample, plan.arrivals)
    asked = [
        run_gates.every_pass_ran(
            _planned(plan, requests),
            [(p.arm, p.round, p.pass_name) for p in passes],
            reasons,
            under_way=under_way,
        ),
        response_gates.no_failures(requests),
        *_caches(plan, passes, refusals),
        ledger_closes(passes),
        run_gates.streamed(requests, disturbed=busy or late),
        run_gates.cached_plausible(requests, passes),
        *_responses(plan, requests, legs, others_share=client.get("others_cpu_share", 0.0)),
        client_kept_up(client, most_workers=workers, open_loop=plan.arrivals.kind != "closed"),
        clock_not_set(client),
    ]
    arms = {arm.label for arm in plan.arms}
    # A gate that concerns every arm concerns the whole run.
    return tuple(
        replace(gate, arms=()) if {*gate.arms} >= arms else gate
        for gate in asked
        if gate is not None
    )


def _planned(plan: ExperimentPlan, requests: pd.DataFrame) -> list[tuple[str, int, str]]:
    """(arm, round, pass) of all that was to be measured."""
    return [
        (arm.label, number, name)
        for number in range(plan.rounds)
        for arm in plan.arms
        for name in [*(p.name for p in arm.passes), *_load_passes(plan, requests, arm.label)]
    ]


def _load_passes(plan: ExperimentPlan, requests: pd.DataFrame, arm: str) -> list[str]:
    """Given loads, or those that the first round of a search has tried."""
    if (loads := plan.loads) is None:
        return []
    tried = loads.points(requests, arm) if loads.search else ()
    return [loads.unit.pass_name(load) for load in loads.given or [each.load for each in tried]]


def _caches(
    plan: ExperimentPlan, passes: Sequence[PassCounters], refusals: Sequence[str]
) -> Iterator[Gate]:
    """Gates on cache state: caches were emptied, each pass had its state, and KV arrived.

    A state without a pass needs no gate; PD has one even if none of its passes ran.
    """
    if any(arm.kv_connector and arm.kv_connector.pulls for arm in plan.arms):
        yield run_gates.no_failed_transfers(passes)
    # Attached servers that are not listed cannot be reset at all.
    if any(arm.settings is not None for arm in plan.arms):
        yield run_gates.caches_emptied(refusals)
    yield cache_gates.cold_was_cold(passes)
    split = any(arm.disaggregated and arm.settings is not None for arm in plan.arms)
    if split or any({"prefill", "decode"} & p.sources.keys() for p in passes):
        yield cache_gates.kv_moved(passes)
    states = {p.name for arm in plan.arms for p in arm.passes}
    for state in ("engine-warm", "cross-instance", "store-warm", "offload-warm"):
        if state in states:
            yield cache_gates.in_state(state, passes)
    for state in ("disk-warm", "remote-warm"):
        if state in states:
            yield cache_gates.tier_warm(state, passes)
    if any(arm.tiers for arm in plan.arms):
        yield cache_gates.tiers_kept(passes)


def _responses(
    plan: ExperimentPlan, requests: pd.DataFrame, legs: pd.DataFrame, *, others_share: float
) -> Iterator[Gate | None]:
    import pandas as pd

    yield response_gates.output_counts_equal(requests)
    yield run_gates.possible(requests)
    partly = {p.name for arm in plan.arms for p in arm.passes if p.share < 1}
    if partly:
        unit = max(256, *(arm.chunk_tokens for arm in plan.arms))
        yield response_gates.cached_as_planned(requests, partly, block=unit)
    # The texts of a profile would differ with the batches, and only times are taken from it.
    if plan.loads is None and not plan.profiles:
        same_prompts = requests[~requests["pass"].isin(partly)]
        alike = pd.concat([_alike(part, same_prompts) for part in plan.parts])
        references = [part.text_reference for part in plan.parts]
        batched = plan.arrivals.kind != "closed" or plan.arrivals.concurrency > 1
        yield response_gates.same_text(alike, *references, batched=batched)
    if "decode_instance" in legs:
        yield run_gates.instances_alike(requests, legs, others_share=others_share)
    if plan.platform in ("cuda", "rocm"):
        yield response_gates.below_ceilings(requests, *ceilings(plan))
    # rates are raised until the queue grows: that is what they are for
    if plan.loads is None or plan.loads.unit != RATE:
        yield run_gates.steady(
            requests, concurrency=plan.arrivals.concurrency, others_share=others_share
        )


def _alike(part: ExperimentPlan, requests: pd.DataFrame) -> pd.DataFrame:
    """The rows of one model whose text must equal that of its reference."""
    mine = requests[requests["arm"].isin([arm.label for arm in part.arms])]
    colds = [p.name for p in part.arms[0].passes if p.state == "cold"]
    if part.sized:  # the largest size has the prompts of all others
        mine = mine.replace({"pass": {colds[-1]: "cold"}})
    return with_same_history(mine, part.workload.sample, part.text_reference)


def with_same_history(requests: pd.DataFrame, workload: Workload, reference: str) -> pd.DataFrame:
    """The rows whose prompts equal those of the reference arm in the same round.

    A turn's prompt contains the cold responses to earlier turns. If one of these differs from the
    reference's, for example at a tie of two tokens, later turns of that arm and round had other
    prompts, in every pass.
    """
    before = {r.index: r.after for r in workload.requests if r.after is not None}
    if not before or requests.empty:
        return requests
    cold = requests[requests["pass"] == "cold"].set_index(["arm", "round", "index"])["text"]
    texts = cold.to_dict()
    kept = []
    for arm, number, index in zip(
        requests["arm"], requests["round"], requests["index"], strict=True
    ):
        turn: int | None = before.get(index)
        while turn is not None and texts.get((arm, number, turn)) == texts.get(
            (reference, number, turn)
        ):
            turn = before.get(turn)
        kept.append(turn is None)
    return requests[kept]


def ceilings(plan: ExperimentPlan) -> tuple[dict[str, response_gates.Ceilings], str]:
    """Rooflines by arm, and the reason if there are none.

    Only for dense models in a local folder that are not quantised: a ceiling is never guessed. The
    embedding table and the output head are left out, which makes the prefill ceiling too high
    rather than too low. Stages of a pipeline prefill chunks at once and decode a token in turn; a
    step may accept all draft tokens.
    """
    gpus = machine.facts().gpus
    known = accelerator(gpus[0].name) if gpus else None
    if known is None:
        return {}, f"No hardware limit is known for {gpus[0].name if gpus else 'this machine'}"
    found: dict[str, response_gates.Ceilings] = {}
    unknown = ""
    for part in plan.parts:
        limits, why = _ceilings_of(part, known)
        found |= limits
        unknown = unknown or (f"{part.model}: {why}" if part.model and why else why)
    return found, unknown


def _ceilings_of(
    plan: ExperimentPlan, known: Accelerator
) -> tuple[dict[str, response_gates.Ceilings], str]:
    """The same of one model on known GPUs."""
    found = {}
    for arm in plan.arms:
        if arm.settings is None or not arm.settings.local:
            return {}, "The size of a model on a hub is unknown"
        facts = arm.settings.without_arguments().facts  # the KV cache may have a dtype of its own
        roles: tuple[Role, Role] = ("aggregated", "aggregated")
        if arm.disaggregated:
            roles = "prefill", "decode"
        first, last = roles
        quantised = any(value_of(arm.settings.args_of(r), "--quantization", "-q") for r in roles)
        if quantised or not facts.plain:
            return {}, "A mixture of experts or a quantised model has no simple hardware limit"
        parameters = facts.parameters
        if not parameters:
            return {}, f"Model {arm.settings.model.name} has no weight files"
        stages = count_of(arm.settings.args_of(first), "--pipeline-parallel-size", "-pp")
        prefills, answers = stages * getattr(arm.tp, first), getattr(arm.tp, last)
        found[arm.label] = response_gates.Ceilings(
            prefill_tps=prefill_ceiling_tps(parameters=parameters, gpu=known, gpus=prefills),
            decode_tps=(1 + arm.settings.drafts(last).tokens)
            * decode_ceiling_tps(
                weight_bytes=facts.element_bytes * parameters, gpu=known, gpus=answers
            ),
        )
    return found, ""
