"""The facts of a run, finished or under way, from its plan and what it has logged."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from workbench.experiment.findings.findings import conclude
from workbench.experiment.plan.plan import ExperimentPlan
from workbench.experiment.result.facts import (
    EngineFacts,
    HostRow,
    LaunchFacts,
    ModelRow,
    RunFacts,
    Status,
)
from workbench.experiment.run.run_log import Log
from workbench.hardware import machine
from workbench.hardware.hosts import gpu_names
from workbench.hardware.interpreter import ENGINE_PACKAGES
from workbench.hardware.machine import Machine


def facts_so_far(plan: ExperimentPlan, log: Log, duration_s: float) -> RunFacts:
    """The facts of a run that is under way, from the launches that it has measured."""
    rounds = max((number + 1 for number, _ in log.ended), default=plan.rounds)
    return facts_of(replace(plan, rounds=rounds), log, "started", duration_s, plan)


def facts_of(
    plan: ExperimentPlan,
    log: Log,
    status: Status,
    duration_s: float,
    planned: ExperimentPlan | None = None,
) -> RunFacts:
    """The content of result.json, also of a run that broke off.

    `plan` has the rounds that were measured, `planned` all.
    """
    planned = planned or plan
    facts = RunFacts(
        notebook=plan.notebook,
        run_id=plan.run_id,
        status=status,
        simulated=plan.platform == "simulated",
        started_at=log.sessions[0].started_at,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=round(sum(one.duration_s for one in log.sessions[:-1]) + duration_s, 1),
        measuring_s=round(log.measuring_s, 1),
        launches_s=tuple(round(s, 2) for s in log.launches_s),
        parameters=plan.parameters,
        machine=_machine(plan).as_dict() | _platform(plan),
        engine=_engine(plan),
        models=_models(plan),
        arms=tuple(log.arms.values()),
        pass_times=tuple(log.pass_times),
        hosts=_hosts(plan),
        client=log.client,
        clocks=tuple(log.clocks),
        launches=LaunchFacts(
            planned=len(planned.arms) * planned.rounds,
            measured=len(log.ended),
            planned_rounds=planned.rounds,
            rounds=plan.rounds,
            took_s={arm: tuple(seconds) for arm, seconds in log.took_s.items()},
        ),
        energy=tuple(log.energy),
        sessions=tuple(log.sessions) if len(log.sessions) > 1 else (),
        doubts=tuple(log.doubts),
    )
    try:
        return conclude(
            facts,
            plan,
            requests=log.frame("requests"),
            passes=log.passes,
            legs=log.frame("legs"),
            reasons=log.reasons,
            refusals=log.refusals,
            links=[(arm, rate, forward) for arm, _, rate, forward in log.links],
            earlier=log.earlier,
            unmetered=log.unmetered,
        )
    except Exception as error:  # what was measured must be kept even when it makes no sense
        found = f"The rows could not be analysed: {error!r}"
        return replace(facts, status="started" if status == "started" else "failed", finding=found)


def _engine(plan: ExperimentPlan) -> EngineFacts:
    """The model and number format of all arms; empty for attached servers."""
    settings = plan.arms[0].settings
    if settings is None:
        return EngineFacts()
    if plan.by_model:
        parts = [_engine(part) for part in plan.parts]
        return EngineFacts(
            dtype=", ".join(dict.fromkeys(part.dtype for part in parts)),
            chosen=" ".join(plan.notes),
            lacks=settings.abilities.losses,
        )
    known = settings.facts if settings.local else None
    return EngineFacts(
        model=plan.params.model or settings.model.name,
        layers=known.layers if known else None,
        dtype=settings.dtype or "the model's own",
        kv_bytes_per_token=settings.kv_bytes_per_token if known else None,
        machine_speed=str(plan.speed) if plan.speed else None,
        chosen=" ".join(plan.notes),
        lacks=settings.abilities.losses,
    )


def _models(plan: ExperimentPlan) -> tuple[ModelRow, ...]:
    """Each model of a run over several; empty for one."""
    rows = []
    for part in plan.parts if plan.by_model else ():
        engine = _engine(part)
        rows.append(
            ModelRow(
                model=part.model,
                name=engine.model,
                layers=engine.layers,
                dtype=engine.dtype,
                kv_bytes_per_token=engine.kv_bytes_per_token,
                prompt_tokens=part.workload.longest_prompt_tokens,
                workload_hash=part.workload.sample.hash,
                machine_speed=engine.machine_speed,
            )
        )
    return tuple(rows)


def _hosts(plan: ExperimentPlan) -> tuple[HostRow, ...]:
    """The hosts of a run on several; empty for this machine alone."""
    cluster = plan.settings.cluster if plan.settings else None
    return tuple(
        HostRow(
            host=seen.host.name,
            address=seen.host.address,
            cpu=seen.machine.cpu,
            cores=seen.machine.cores,
            memory_free_gb=round(seen.machine.memory_free_gb, 1),
            shm_free_gb=round(seen.machine.shm_free_gb, 1),
            gpus=gpu_names(seen.machine),
            python=seen.machine.engine_python or seen.machine.python,
            versions={
                name: version
                for name, version in seen.machine.versions.items()
                if name in ENGINE_PACKAGES
            },
            model=bool(seen.model),
        )
        for seen in (cluster.hosts if cluster else ())
    )


def _machine(plan: ExperimentPlan) -> Machine:
    """This machine, with the packages of the interpreter that ran the servers."""
    here = machine.facts()
    return here.with_engine(plan.settings.interpreter) if plan.settings else here


def _platform(plan: ExperimentPlan) -> dict[str, str]:
    """The platform of servers that we started; `attached` for others."""
    return {"platform": "attached" if plan.params.engine == "attach" else plan.platform}
