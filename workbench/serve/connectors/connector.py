"""What a connector is: its engines' settings, its store, both legs of a request, its counters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from workbench.errors import LaunchError, PlanError
from workbench.serve.processes.launcher import ProcessSpec
from workbench.topology import Role, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The instance that a connector sets up, and the ports that it is given."""

    role: Role
    cpu: bool
    store_port: int = 0
    store_gb: float = 0.0
    """The part of the store's memory that this instance lends it, where instances do that."""
    side_port: int = 0
    """A second port of the instance itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Servers beside the engines that keep KV longer than their caches."""

    processes: Callable[..., tuple[ProcessSpec, ...]]
    """Made of free `ports`, and `shm_name`, `memory_gb`, `chunk_tokens`, `disk_folder`, `cpu`. The
    first one's port is the `store_port` of instances; /metrics lies where its ready URL does."""
    clear_path: str
    """A POST there empties its memory."""
    cleared_by: Literal["store", "instance"] = "store"
    """Who takes that POST: the store itself, or any one instance on its behalf."""
    counters: Mapping[str, str]
    """The series of each field of `metrics.counters.StoreCounters`."""
    keeps_blocks: bool = False
    """It keeps whole KV blocks of the engine and counts them, in place of chunks and tokens."""
    counts_lookups: bool = True
    """Its hits are what engines looked up; else what they loaded."""
    stalls_when_dead: bool = False
    """Without it every request waits for seconds and succeeds, so a pass is broken off."""
    instance_start_s: float
    """What its connection adds to the start of an instance on a CPU."""


def _nothing(*_: object) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """One way to move KV. What a connector does not have is left out."""

    name: str
    transfers: bool = False
    """KV gets from prefill to decode, so that PD topologies can be served."""
    pulls: bool = False
    """Decode instances fetch it from the prefill instance: a transfer can fail, or KV expire."""
    store: Store | None = None
    transfer_config: Callable[[Wiring], dict[str, Any]] = _nothing
    """What vLLM's `--kv-transfer-config` takes."""
    env: Callable[[Wiring], dict[str, str]] = _nothing
    """Of an instance."""
    env_files: Callable[[Wiring], dict[str, str]] = _nothing
    """Variables of an instance that name a file, with its text."""
    prefill_asks: Mapping[str, Any] = field(default_factory=dict)
    """What the proxy adds to the body of the prefill leg."""
    hand_over: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
    """What the prefill's answer adds to the body of the decode leg. Raises ValueError when it has
    nothing that makes the decode instance fetch KV."""
    transfer_counters: Mapping[str, str] = field(default_factory=dict)
    """The series of each field of `metrics.counters.NixlCounters`."""
    fatal: tuple[str, ...] = ()
    """Texts in an instance's log after which it will not get ready."""
    patch_cpu: Callable[[], object] = _nothing
    """Changes what a process of vLLM needs changed for it where there is no GPU."""
    load: str = ""
    """What a fork server loads for it, as `module:function`."""
    simulated: bool = True
    """Whether engine simulated has it."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """What it needs on the machine, with the version that was measured."""
    modules: tuple[str, ...] = ()
    """One of these is there where it is installed."""
    install: str = ""
    """What to do where none is."""

    def check(self, topology: Topology) -> None:
        """Refuse a topology that this connector cannot serve. Raises PlanError."""
        if topology.disaggregated and not self.transfers:
            raise PlanError(
                f"connector {self.name!r} cannot serve {topology}: no KV would move and both roles"
                " would prefill; take connector lmcache or nixl, or an aggregated topology such as"
                f" {topology.instances}a"
            )
        if not topology.disaggregated and self.transfers and not self.store:
            raise PlanError(
                f"connector {self.name!r} moves KV from prefill to decode and {topology} has"
                " neither; take connector none or lmcache, or a topology such as 1p4d"
            )

    @property
    def loads(self) -> bool:
        """Whether instances can load KV that is not in their own cache."""
        return self.transfer_config is not _nothing

    @property
    def installed(self) -> bool:
        """Whether this machine has what it needs."""
        return not self.modules or any(map(find_spec, self.modules))

    def check_installed(self) -> None:
        """Refuse to start what cannot run here. Raises LaunchError."""
        if not self.installed:
            raise LaunchError(
                f"connector {self.name!r} needs the package {self.modules[0]}, which is not"
                f" installed: {self.install}, or measure without it, e.g. -p connector none"
                " -p topology 2a"
            )

    def passes(self, topology: Topology) -> tuple[str, ...]:
        """The cache states that this connector and topology can have, in measuring order."""
        states = ["cold", "engine-warm"]
        answering = topology.decode or topology.aggregated
        if self.transfers and answering > 1:
            states.append("cross-instance")
        if self.store:
            states.append("store-warm")
        return tuple(states)

    def engine_args(self, wiring: Wiring) -> tuple[str, ...]:
        """Its arguments of an instance."""
        config = self.transfer_config(wiring)
        return ("--kv-transfer-config", json.dumps(config)) if config else ()
