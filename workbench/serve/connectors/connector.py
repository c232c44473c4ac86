"""A connector: engine settings, KV store, both legs of a request, and counters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.errors import LaunchError, PlanError, needs
from workbench.hardware.hosts import THIS_MACHINE, Host
from workbench.hardware.interpreter import Interpreter
from workbench.serve.processes.launcher import ProcessSpec
from workbench.topology import Role, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The instance that a connector configures, its host, and its ports."""

    role: Role
    cpu: bool
    host: Host = THIS_MACHINE
    store_host: Host = THIS_MACHINE
    store_port: int = 0
    store_gb: float = 0.0
    """Memory of this instance that the store uses, where the store's memory is in instances."""
    side_port: int = 0
    """A second port of the instance itself."""
    mooncake_protocol: str = "tcp"
    transfer_timeout_s: int = 0
    """How long a decode instance may wait for a prompt's KV, where it waits for prefill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegsAtOnce:
    """The proxy sends both legs of a request at once, and decode waits for the KV of prefill."""

    lookup_path: str
    """A GET on the side port of a prefill instance, whose JSON object tells which engine runs
    there now: a restarted instance is another engine."""
    prefill: Callable[[str], dict[str, Any]]
    """Fields of the prefill leg for this transfer id."""
    decode: Callable[[str, str, Mapping[str, Any]], dict[str, Any]]
    """Fields of the decode leg for this transfer id, the URL of that side port, and what the lookup
    returned. Raises ValueError if that names no engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Series that only `workbench.monitoring` shows: no gate and no ledger reads them."""

    fill: tuple[str, ...] = ()
    """The gauge of the used fraction of the store's memory, or those of bytes used and in all."""
    gets: tuple[str, ...] = ()
    """Counters of the gets that found their block, and of all gets."""
    transfer_s: str = ""
    """The histogram of the duration of a transfer, without its suffix."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Counters of failures, by what failed, beside those of `transfer_counters` and the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Memory that keeps KV outside the engines' own caches, in servers or in each instance."""

    processes: Callable[..., tuple[ProcessSpec, ...]] | None
    """Made from free `ports`, the `host`, the `interpreter` of the engine, `shm_name`, `memory_gb`,
    `chunk_tokens`, `tiers` and `cpu`. The first one's port is the `store_port` of instances; its
    ready URL also serves /metrics. None where each instance has a store of its own, whose counters
    are among the instance's."""
    shares_memory: bool = False
    """Instances exchange KV with its server by memory, so they must be on its host."""
    state: str = "store-warm"
    """The cache state in which only this store has the KV."""
    clear_path: str
    """A POST to it empties the memory."""
    cleared_by: Literal["store", "instance"] = "store"
    """Who receives that POST: the store itself, or any one instance on its behalf. (Where each
    instance has a store of its own, each of them.)"""
    counters: Mapping[str, str]
    """The Prometheus series of each field of `metrics.counters.StoreCounters`. One of bytes (named
    `_bytes_total`) is converted to the field's tokens or blocks."""
    held: str = ""
    """The gauge of what it holds: 0 proves that it was emptied."""
    told: Mapping[str, str] = field(default_factory=dict)
    """Its own series that a page shows for each pass, in chunks or blocks, by their names there:
    `held` and `bytes held` as they are at the end, counters as their change and rate."""
    read_bytes: str = ""
    """vLLM's series of the bytes that its connector moved, by operation: `load_get` is a read."""
    tier_loads: str = ""
    """It can keep chunks in `tiers` below its memory; the series of loads from each, by l2_name."""
    keeps_blocks: bool = False
    """It keeps whole KV blocks of the engine instead of chunks, and counts blocks or bytes."""
    stores_late: bool = False
    """Engines respond before it has all blocks of a prompt, so a decode instance may miss some."""
    counts_lookups: bool = True
    """Its hits are what engines looked up; otherwise what they loaded."""
    stalls_when_dead: bool = False
    """If it dies, each request waits for seconds and then succeeds; a pass is stopped at once."""
    instance_start_s: float
    """Additional start-up time of an instance on a CPU."""

    @property
    def private(self) -> bool:
        """Whether each instance has one of its own."""
        return self.processes is None


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
    at_once: LegsAtOnce | None = None
    """Both legs are sent at once, instead of decode after prefill. A prefill instance that dies
    then stalls decode, so a pass is stopped at once."""
    transfer_counters: Mapping[str, str] = field(default_factory=dict)
    """The Prometheus series of each field of `metrics.counters.TransferCounters`."""
    watched: Watched = Watched()
    """More series for dashboards."""
    transfer_log_s: float = 0.0
    """The period in which vLLM's log counts transfers, where no series does."""
    rdma: bool = False
    """It can use RDMA instead of TCP, if the machine has such a device."""
    doubt: str = ""
    """What a result with it must say, whatever was measured."""
    cpu_doubt: str = ""
    """The same, on a machine without a GPU."""
    fatal: tuple[str, ...] = ()
    """Log texts after which an instance never becomes ready."""
    patch_cpu: Callable[[], object] = _nothing
    """Patches a vLLM process on a machine without a GPU."""
    load: str = ""
    """What the fork server loads for it, as `module:function`."""
    gpu_only: str = ""
    """Why it cannot run without a GPU; empty if it can."""
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
        if needed := self.refuses(topology):
            raise PlanError(needs(f"topology={topology}", needed, self.name, "lmcache"))

    def refuses(self, topology: Topology) -> str:
        """What this topology needs instead; empty if the connector serves it."""
        if topology.disaggregated and not self.transfers:
            return "connector=lmcache or nixl (without KV transfer, both roles would prefill)"
        if not topology.disaggregated and self.transfers and not self.store:
            return "connector=none or lmcache (it has no prefill instance to receive KV from)"
        return ""

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

    def passes(self, topology: Topology, tiers: Sequence[str] = ()) -> tuple[str, ...]:
        """The cache states of this connector, topology and `store_tiers`, in their order."""
        states = ["cold", "engine-warm"]
        answering = topology.decode or topology.aggregated
        if self.transfers and answering > 1:
            states.append("cross-instance")
        if self.store:
            states.append(self.store.state)
        # A disk comes first: it is emptied before the remote tier's turn.
        states += ["disk-warm"] if "disk" in tiers else []
        states += ["remote-warm"] if {*tiers} - {"disk"} else []
        return tuple(states)

    def engine_args(self, wiring: Wiring) -> tuple[str, ...]:
        """Its command-line arguments of an instance."""
        config = self.transfer_config(wiring)
        return ("--kv-transfer-config", json.dumps(config)) if config else ()
