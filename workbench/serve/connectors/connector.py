"""A connector: engine settings, KV store, both legs of a request, and counters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.errors import LaunchError, PlanError, needs
from workbench.hardware.interpreter import Interpreter
from workbench.serve.processes.launcher import ProcessSpec
from workbench.topology import Role, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The instance that a connector configures, and its ports."""

    role: Role
    cpu: bool
    store_port: int = 0
    store_gb: float = 0.0
    """The part of the store's memory that this instance lends it, where instances do that."""
    side_port: int = 0
    """A second port of the instance itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Servers that keep KV outside the engines' own caches."""

    processes: Callable[..., tuple[ProcessSpec, ...]]
    """Made from free `ports`, the `interpreter` of the engine, `shm_name`, `memory_gb`,
    `chunk_tokens`, `disk_folder` and `cpu`. The first one's port is the `store_port` of instances;
    its ready URL also serves /metrics."""
    clear_path: str
    """A POST to it empties the memory."""
    cleared_by: Literal["store", "instance"] = "store"
    """Who receives that POST: the store itself, or any one instance on its behalf."""
    counters: Mapping[str, str]
    """The Prometheus series of each field of `metrics.counters.StoreCounters`."""
    keeps_blocks: bool = False
    """It keeps and counts whole KV blocks of the engine, instead of chunks and tokens."""
    stores_late: bool = False
    """Engines respond before it has all blocks of a prompt, so a decode instance may miss some."""
    counts_lookups: bool = True
    """Its hits are what engines looked up; otherwise what they loaded."""
    stalls_when_dead: bool = False
    """If it dies, each request waits for seconds and then succeeds; a pass is stopped at once."""
    instance_start_s: float
    """Additional start-up time of an instance on a CPU."""


def _nothing(*_: object) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """One way to move KV. Fields that do not apply keep their defaults."""

    name: str
    transfers: bool = False
    """KV moves from prefill to decode, so PD topologies can be served."""
    pulls: bool = False
    """Decode instances pull KV from prefill instances: a transfer can fail, or KV can expire."""
    store: Store | None = None
    transfer_config: Callable[[Wiring], dict[str, Any]] = _nothing
    """The value of vLLM's `--kv-transfer-config`."""
    env: Callable[[Wiring], dict[str, str]] = _nothing
    """Environment variables of an instance."""
    env_files: Callable[[Wiring], dict[str, str]] = _nothing
    """Environment variables that name a file, with the text of that file."""
    prefill_asks: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the proxy adds to the body of the prefill leg."""
    hand_over: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
    """Fields of the prefill response that go into the body of the decode leg. Raises ValueError if
    there are none that make the decode instance fetch KV."""
    transfer_counters: Mapping[str, str] = field(default_factory=dict)
    """The Prometheus series of each field of `metrics.counters.NixlCounters`."""
    doubt: str = ""
    """What a result with it must say, whatever was measured."""
    fatal: tuple[str, ...] = ()
    """Log texts after which an instance never becomes ready."""
    patch_cpu: Callable[[], object] = _nothing
    """Patches a vLLM process on a machine without a GPU."""
    load: str = ""
    """What the fork server loads for it, as `module:function`."""
    simulated: bool = True
    """Whether engine=simulated models it."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Packages it needs, with the measured version."""
    modules: tuple[str, ...] = ()
    """It is installed if one of these can be imported."""
    install: str = ""
    """How to install it."""

    def check(self, topology: Topology) -> None:
        """Refuse a topology that this connector cannot serve. Raises PlanError."""
        if topology.disaggregated and not self.transfers:
            needed = "connector=lmcache or nixl (without KV transfer, both roles would prefill)"
            raise PlanError(needs(f"topology={topology}", needed, self.name, "lmcache"))
        if not topology.disaggregated and self.transfers and not self.store:
            needed = "connector=none or lmcache (it has no prefill instance to receive KV from)"
            raise PlanError(needs(f"topology={topology}", needed, self.name, "lmcache"))

    @property
    def loads(self) -> bool:
        """Whether instances can load KV that is not in their own cache."""
        return self.transfer_config is not _nothing

    def installed(self, engine: Interpreter) -> bool:
        """Whether its packages are installed where vLLM is."""
        return not self.modules or any(map(engine.find, self.modules))

    def check_installed(self, engine: Interpreter) -> None:
        """Raises LaunchError if its packages are missing."""
        if self.installed(engine):
            return
        install = self.install if engine.own else f"install it next to that vLLM ({engine.path})"
        if engine.image is not None:
            install = f"use another image than {engine.image.name}"
        raise LaunchError(
            f"connector {self.name!r} needs the package {self.modules[0]}, which is not"
            f" installed; {install}, or measure without it (example: -p connector none"
            " -p topology 2a)"
        )

    def passes(self, topology: Topology) -> tuple[str, ...]:
        """The cache states of this connector and topology, in the order of measurement."""
        states = ["cold", "engine-warm"]
        answering = topology.decode or topology.aggregated
        if self.transfers and answering > 1:
            states.append("cross-instance")
        if self.store:
            states.append("store-warm")
        return tuple(states)

    def engine_args(self, wiring: Wiring) -> tuple[str, ...]:
        """Its command-line arguments of an instance."""
        config = self.transfer_config(wiring)
        return ("--kv-transfer-config", json.dumps(config)) if config else ()
