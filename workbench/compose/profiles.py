"""The deployments of a compose file, each as a profile: the given topology, and its opponents.

Arms and plans are those of a sweep, with two differences. The image may not be on this machine, so
it is not inspected. The file may be started later, so free memory is not checked.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError, must_be, needs, shown
from workbench.experiment.plan.arms import sweep_arms
from workbench.experiment.plan.engine_setup import devices_of, facts_of_model, settings_for
from workbench.experiment.plan.which_connectors import chosen
from workbench.hardware import machine
from workbench.hardware.images import Image
from workbench.hardware.interpreter import interpreter
from workbench.params.notebooks import EngineParams, LoadParams, as_typed, changed, check_params
from workbench.params.pd_sweep import ALL_CONNECTORS, PdSweep
from workbench.serve.checks.capacity import Capacity
from workbench.serve.connectors import lmcache
from workbench.serve.deployed import DeploymentPlan
from workbench.serve.vllm import EngineSettings

IMAGES = {"cuda": "vllm/vllm-openai:v0.32.0", "rocm": "vllm/vllm-openai-rocm:v0.32.0"}
DISK = Path("/kv-disk")
"""Where LMCache's disk tier is in its container."""
_SECRET = re.compile(
    r"""\b(
        \w*(?:SECRET|PASSWORD|PASSWD|CREDENTIAL)\w*
        # TOKENIZERS_PARALLELISM, MAX_TOKENS and PATH are no secrets.
        | (?:\w*_)?(?:PASS|PAT|AUTH|[^\W_]*(?:TOKEN|KEYS?))\d*(?:_\w*)?
    )\s*=""",
    re.IGNORECASE | re.VERBOSE,
)
_FIRST_PORT, _PORTS_EACH, _PORT_STEP = 15_000, 2_500, 10
"""A side channel may take the ports after its own, one for each rank."""
_MEMORY_EACH_GB = 16
"""Limit of the shared memory of one instance, without the store; unused memory is not taken."""
_OF_A_RUN = ("timeout_s", "kernel_stamps", "client_workers", "seed", "context_tokens", "output_dir")
_OF_A_SWEEP = (
    *("rates_per_s", "concurrencies", "search"),
    *("ttft_limit_ms", "tpot_limit_ms", "limits_share", "rounds"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One deployment of the file, which starts and ends as a whole."""

    name: str
    plan: DeploymentPlan
    load: Mapping[str, Any]
    """Parameters of the measurement that were given."""
    memory_gb: int
    """Limit of the shared memory of all its services."""
    first: bool

    def service(self, process: str) -> str:
        """The name of the service of a process of the plan."""
        return process if self.first else f"{self.name}-{process.removeprefix('aggregated-')}"

    @property
    def image(self) -> str:
        """The image of its instances and its store."""
        assert self.plan.settings.image is not None
        return self.plan.settings.image.name

    @property
    def notebook(self) -> str:
        """The notebook that its measurement writes."""
        return "out.ipynb" if self.first else f"out-{self.name}.ipynb"

    @property
    def attach_line(self) -> str:
        """The command that measures its servers."""
        plan = self.plan
        urls = {p.url: p.role for p in plan.instances}
        given: dict[str, Any] = {
            "engine": "attach",
            "topology": str(plan.topology),
            "base_url": plan.url,
            "prefill_urls": [url for url, role in urls.items() if role == "prefill"],
            "decode_urls": [url for url, role in urls.items() if role != "prefill"],
            # Other stores are emptied by instances.
            "lmcache_url": plan.store_http_url if plan.connector.store is lmcache.STORE else "",
        }
        words = as_typed({name: value for name, value in given.items() if value} | {**self.load})
        return f"papermill notebooks/pd_sweep.ipynb {self.notebook} {shlex.join(words)}"


def compose_params(given: Mapping[str, Any]) -> PdSweep:
    """The checked parameters, those of a sweep. Raises ParameterError."""
    for name, needed in (("engine", "vllm"), ("place", "container")):
        if (value := given.get(name, needed)) != needed:
            allowed = f"{needed}, because a compose file starts vLLM in containers"
            raise ParameterError(must_be(name, allowed, value, needed))
    if options := given.get("container_args"):
        raise ParameterError(
            f"container_args must be empty, got {shown(options)}. Put these options into a second"
            " compose file (example: docker compose -f compose.yaml -f mine.yaml up)"
        )
    if secret := _SECRET.search(str(given.get("engine_env", ""))):
        raise ParameterError(
            f"engine_env must not contain {secret[1]}, because a compose file must have no"
            " secrets. HF_TOKEN is taken from your shell; put others into a second compose file"
            " (example: export HF_TOKEN=...)"
        )
    platform = given.get("platform", "auto")
    if platform == "auto":
        platform = machine.facts().platform
    image = given.get("image") or IMAGES.get(platform, "")
    if platform == "cpu" and not image:
        raise ParameterError(needs("platform=cpu", "image", "", "my/vllm-cpu:0.32.0"))
    params: PdSweep = check_params("pd_sweep", {**given, "place": "container", "image": image})
    if params.connector == ALL_CONNECTORS:
        allowed = "one connector, because a compose file has one deployment"
        raise ParameterError(must_be("connector", allowed, params.connector, "lmcache"))
    if params.predict:
        raise ParameterError(must_be("predict", "False, because a file starts servers and predicts"
                                     " nothing", True, False))  # fmt: skip
    if len(params.topologies) > 1:
        allowed = "one topology, because a compose file has one deployment"
        raise ParameterError(must_be("topology", allowed, params.topology, "1p4d"))
    return params


def profiles_of(params: PdSweep) -> list[Profile]:
    """The profiles of a file: the given topology, then its opponents on the same GPUs.

    Raises PlanError for what does not fit connector, topology or the GPUs of this machine.
    """
    facts = machine.facts()
    image = Image.elsewhere(params.image)
    settings = settings_for(params, facts, image, maker=interpreter())
    facts_of_model(settings)
    capacity = Capacity(
        devices=_devices(params, settings, facts), instances_per_gpu=params.instances_per_gpu
    )
    arms, _ = sweep_arms(params, settings, capacity, chosen(params, params.topologies, settings))
    load = _load(params)
    found: list[Profile] = []
    for number, arm in enumerate(arms):
        name = "disaggregated" if arm.disaggregated else "aggregated"
        if any(other.name == name for other in found):
            name = f"{name}-{arm.connector}"
        ports = count(_FIRST_PORT + number * _PORTS_EACH, _PORT_STEP)
        plan = arm.deployment(ports, shm_name=f"workbench-{name}", disk_folder=DISK)
        memory_gb = ceil(arm.store_gb) + _MEMORY_EACH_GB * plan.topology.instances
        found.append(
            Profile(name=name, plan=plan, load=load, memory_gb=memory_gb, first=not number)
        )
    return found


def _devices(params: PdSweep, settings: EngineSettings, facts: machine.Machine) -> tuple[str, ...]:
    """The GPUs of this machine; if the file is for another one, as many ids as are needed."""
    if not settings.on_gpu:
        return ()
    if facts.platform == settings.platform and (here := devices_of(facts)):
        return here
    spans = settings.gpus(params.tp)
    (topology,) = params.topologies
    needed = max(topology.gpus(spans), spans.aggregated)
    return tuple(map(str, range(ceil(needed / params.instances_per_gpu))))


def _load(params: PdSweep) -> dict[str, Any]:
    """The given parameters of the load and of the measurement, for the attach line."""
    engine = {field.name for field in fields(EngineParams)}
    load = {field.name for field in fields(LoadParams)} - engine
    names = {*load, *_OF_A_RUN, *_OF_A_SWEEP}
    return {name: value for name, value in changed(params).items() if name in names}
