"""The engine's settings, its model and what this machine can give, before arms are planned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from workbench.errors import ParameterError, PlanError, must_be, unused
from workbench.experiment.plan.arm import Arm
from workbench.experiment.plan.speed import REFERENCE_TOKENS, Speed, layers_for, machine_speed
from workbench.hardware import machine
from workbench.hardware.hosts import Cluster, Spread, cluster_of, differences
from workbench.hardware.images import Image, image
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.params.engine_args import variables, words
from workbench.params.notebooks import (
    EngineParams,
    EnvironmentCheck,
    LMCacheHitAnalysis,
    PrefixCache,
)
from workbench.params.pd_sweep import PdSweep
from workbench.params.shared import ROLE_ARGS
from workbench.serve import simulated
from workbench.serve.checks.argument_check import abilities, check_arguments
from workbench.serve.checks.capacity import Capacity, check_capacity
from workbench.serve.checks.connector_check import check_vllm
from workbench.serve.deployed import DeploymentPlan
from workbench.serve.simulated.faults import small_kv_mib
from workbench.serve.tiny_model import ModelFacts, all_layers, model_facts, tiny_model
from workbench.serve.vllm import EngineSettings, Platform, number_format
from workbench.topology import ROLES, Role, TensorParallel, Topology

_MAY_EXCEED = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""With this variable vLLM accepts a context longer than the model's."""
_NAMED_ADDRESSES = 5
_WIDE_TAKES = 2.5
"""How much longer a step of a simulated `tiny-wide` takes."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def engine_of(params: EngineParams) -> tuple[EngineSettings, ModelFacts | None, Capacity]:
    """Settings, facts of the model (None for one on a hub), and what the machine can give."""
    if params.engine == "simulated":
        return _simulated(params)
    facts, used = machine.facts(), image_of(params)
    engine = engine_interpreter(params.engine_python, used)
    settings = settings_for(params, facts, used, maker=engine)
    python = "" if engine.own else engine.path
    settings = replace(
        settings,
        python=python,
        abilities=abilities(engine),
        cluster=_cluster(params, python, settings.model),
    )
    tp = getattr(params, "tp", TensorParallel(aggregated=getattr(params, "aggregated_tp", 1)))
    drafting = {role: check_arguments(settings, role, tp=getattr(tp, role)) for role in ROLES}
    settings = replace(settings, drafting=drafting)
    capacity = Capacity(
        devices=devices_of(facts),
        instances_per_gpu=getattr(params, "instances_per_gpu", 1),
        cores=machine.usable_cores(),
        free_memory_gb=facts.memory_free_gb,
        free_shm_gb=_free_shm_gb(settings, facts),
    )
    return settings, facts_of_model(settings), capacity


def settings_for(
    params: EngineParams, facts: machine.Machine, used: Image | None, *, maker: Interpreter
) -> EngineSettings:
    """Settings as far as the engine need not be asked; `maker` makes the tiny model.

    Raises PlanError for an instance of several processes on a CPU, and for reserved cores on GPUs.
    """
    platform: Platform = facts.platform if params.platform == "auto" else params.platform  # type: ignore[assignment]
    dtype = number_format(params.dtype, platform, fast_bf16=facts.fast_bf16)
    cores = getattr(params, "cores_per_instance", 0)
    if cores and platform != "cpu":
        example = f"-p platform cpu -p cores_per_instance {cores}"
        raise PlanError(unused("cores_per_instance", cores, f"platform={platform}", example))
    own = params.built_in_model
    model = own_model(platform, dtype, maker, own) if own else Path(params.model)
    if (params.place != "local" or used is not None) and not _on_hub(model):
        model = model.absolute()  # servers start in another folder
    settings = EngineSettings(
        model=model,
        platform=platform,
        python=params.engine_python,
        image=used,
        dtype=dtype,
        context_tokens=params.context_tokens,
        kv_cache_mib=params.kv_cache_mib,
        gpu_memory_share=params.gpu_memory_share,
        cores_per_instance=cores,
        extra_args=words(params.engine_args),
        role_args=_role_args(params),
        extra_env=variables(params.engine_env),
    )
    if not settings.on_gpu and settings.gpus(TensorParallel()) != TensorParallel():
        raise PlanError(
            "engine_args must leave pipeline and data parallel size at 1 on a CPU, where an"
            " instance is one process; add instances instead (example: topology 2p4d)"
        )
    return settings


def facts_of_model(settings: EngineSettings) -> ModelFacts | None:
    """None for one on a hub.

    Raises PlanError for a folder that has no model, and for a context that vLLM would refuse.
    """
    if _on_hub(settings.model):
        return None
    facts = settings.facts
    longer = settings.context_tokens > facts.context_tokens and not facts.stretched
    if longer and settings.platform != "simulated" and _MAY_EXCEED not in dict(settings.extra_env):
        allowed = f"at most {facts.context_tokens:,}, the context of {settings.model.name}"
        example = f"-p context_tokens {facts.context_tokens}"
        raise PlanError(must_be("context_tokens", allowed, settings.context_tokens, example))
    return facts


def _on_hub(model: Path) -> bool:
    return not model.is_dir() and bool(_HUB_NAME.fullmatch(str(model)))


def image_of(params: EngineParams | EnvironmentCheck) -> Image | None:
    """The image in whose containers servers run; None where place is local.

    Raises PlanError or ParameterError if docker and podman do not run, or do not have it.
    """
    if params.place != "container":
        return None
    return image(params.image, words(params.container_args))


def _cluster(params: EngineParams, python: str, model: Path) -> Cluster | None:
    """The hosts on which instances run; None where that is this machine. Raises PlanError."""
    if params.place != "ray":
        return None
    spread = cast(Spread, params.spread)
    return cluster_of(params.ray_address, spread, python=python, model=str(model))


def host_doubts(cluster: Cluster, plans: Iterable[DeploymentPlan]) -> Iterator[str]:
    """Doubts about a run on several hosts: open ports, and differences between hosts."""
    used = {p.host.address for plan in plans for p in plan.processes if not p.here}
    first, *others = [f.host.address for f in cluster.hosts if f.host.address in used]
    where = ", ".join([first, *others])
    if len(others) > _NAMED_ADDRESSES:
        where = f"{first} and {len(others)} other addresses"
    yield (
        f"Servers accept connections from the network at {where}, without a password. Let only"
        " trusted machines reach them."
    )
    yield from differences(cluster)


def _free_shm_gb(settings: EngineSettings, here: machine.Machine) -> float:
    """What a store may have: containers have shared memory of their own, limited by memory."""
    if settings.cluster is not None:
        return min(host.machine.shm_free_gb for host in settings.cluster.hosts)
    return here.shm_free_gb if settings.image is None else here.memory_free_gb


def check_engine(params: EngineParams) -> None:
    """Refuse an interpreter without vLLM, and arguments that its vLLM does not accept.

    Raises ParameterError and PlanError. Nothing is started here, so none of it applies to attached
    and simulated servers.
    """
    if params.engine != "vllm":
        return
    engine = engine_interpreter(params.engine_python, image_of(params))
    if isinstance(params, PdSweep | PrefixCache):  # others can read without a vLLM
        check_vllm(engine)
    if params.engine_args or _role_args(params):
        engine_of(params)


def _role_args(params: EngineParams) -> dict[Role, tuple[str, ...]]:
    """The arguments of each role that has some."""
    return {
        cast(Role, name.removesuffix("_args")): words(text)
        for name in ROLE_ARGS
        if (text := getattr(params, name, ""))
    }


def engine_interpreter(python: str, used: Image | None = None) -> Interpreter:
    """The interpreter of `engine_python`, with vLLM; ours, with or without, if that is empty.

    With an image it is the image's own. Raises ParameterError if it cannot be used. Our own is
    checked at the start of a run, so that a plan for another machine can be made.
    """
    found = interpreter(python, used)
    if used is not None and not found.find("vllm"):
        allowed = f"one with vLLM (its {found.path} is Python {found.python} without vLLM)"
        raise ParameterError(must_be("image", allowed, used.name, "vllm/vllm-openai:v0.32.0"))
    if not found.own and not found.find("vllm"):
        allowed = f"an interpreter with vLLM (its Python {found.python} has none)"
        raise ParameterError(must_be("engine_python", allowed, python, "/opt/vllm/bin/python"))
    return found


def own_model(platform: Platform, dtype: str, engine: Interpreter, name: str = "tiny") -> Path:
    """A built-in model, with fewer layers on a slow CPU."""
    layers = layers_for(machine_speed(dtype, engine, name)) if platform == "cpu" else 0
    return tiny_model(name=name, layers=layers, engine=engine)


def _simulated(params: EngineParams) -> tuple[EngineSettings, ModelFacts, Capacity]:
    """A simulated engine needs nothing of this machine."""
    folder, wide = Path(simulated.__file__).parent, params.built_in_model == "tiny-wide"
    model = folder / "wide" if wide else folder
    kv_cache_mib = params.kv_cache_mib
    if params.fault == "eviction" and isinstance(params, PdSweep | PrefixCache):
        kv_cache_mib = small_kv_mib(params.lengths[0] + params.output_tokens)
    settings = EngineSettings(
        model=model,
        platform="simulated",
        context_tokens=params.context_tokens,
        kv_cache_mib=kv_cache_mib,
        fault=params.fault,
        seed=params.seed,
        cores_per_instance=getattr(params, "cores_per_instance", 0),
        extra_args=("--times-as-long", f"{_WIDE_TAKES:g}") if wide else (),
    )
    return settings, model_facts(model), Capacity(cores=machine.usable_cores())


def own_speed(params: EngineParams, settings: EngineSettings) -> Speed | None:
    """How fast this machine runs its built-in model; None for another model or engine."""
    own = params.built_in_model
    if not own or params.engine != "vllm" or settings.platform != "cpu":
        return None
    return machine_speed(settings.dtype, settings.interpreter, own)


def engine_notes(params: EngineParams, settings: EngineSettings) -> list[str]:
    """What this vLLM lacks, and what was chosen for this machine: number format, layers."""
    notes = [f"{loss}." for loss in settings.abilities.losses]
    if settings.dtype == "float32" and params.dtype == "auto":
        notes.append(
            "This CPU has no fast bf16 kernels (no AVX-512), so weights and KV use float32 and"
            " twice the bytes. Override with dtype."
        )
    speed = own_speed(params, settings)
    whole = all_layers(params.built_in_model) if speed is not None else 0
    if speed is not None and (layers := model_facts(settings.model).layers) < whole:
        cold_s = speed.prefill_s(REFERENCE_TOKENS)
        notes.append(
            f"This CPU is slow, so the tiny model uses {layers} of {whole} layers. With all, a"
            f" cold {REFERENCE_TOKENS:,}-token prompt would take {cold_s:.1f} s."
        )
    return notes


def check_gpu_memory(gpus: int, settings: EngineSettings) -> None:
    """Refuse GPUs with too little free memory: vLLM would fail after minutes of loading.

    Checks the first `gpus` visible ones, which are those that instances get.
    """
    if not settings.on_gpu or settings.cluster is not None:
        return
    facts, share = machine.facts(), settings.gpu_memory_share
    for gpu in (gpu for gpu in facts.gpus if str(gpu.index) in devices_of(facts)[:gpus]):
        wanted_gb = share * gpu.memory_gb
        if gpu.memory_free_gb < wanted_gb:
            raise PlanError(
                f"GPU {gpu.index} ({gpu.name}) has {gpu.memory_free_gb:.1f} of"
                f" {gpu.memory_gb:.1f} GB free, but gpu_memory_share {share:g} needs"
                f" {wanted_gb:.1f} GB; stop what runs there, or lower it (example:"
                f" gpu_memory_share {max(0.05, 0.95 * gpu.memory_free_gb / gpu.memory_gb):.2f})"
            )


def one_instance(
    params: PrefixCache | LMCacheHitAnalysis, settings: EngineSettings, capacity: Capacity
) -> partial[Arm]:
    """Makes arms of one aggregated instance. Raises PlanError if the machine has no room for it."""
    topology, tp = Topology(aggregated=1), TensorParallel(aggregated=params.aggregated_tp)
    gpus = topology.gpus(settings.gpus(tp))
    check_capacity(topology, settings.gpus(tp), capacity, settings)
    check_gpu_memory(gpus, settings)
    return partial(
        Arm, role="subject", topology=topology, gpus=gpus, settings=settings, tp=tp,
        capacity=capacity,
    )  # fmt: skip


def devices_of(facts: machine.Machine) -> tuple[str, ...]:
    """GPU ids in the order in which instances take them: the visible ones, else all."""
    if facts.visible_devices:
        return tuple(part.strip() for part in facts.visible_devices.split(",") if part.strip())
    return tuple(str(gpu.index) for gpu in facts.gpus)
