"""An arm, which is one configuration to measure, and the passes in which it is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from workbench.errors import PlanError
from workbench.experiment.load_unit import USERS, LoadUnit
from workbench.serve.checks.capacity import Capacity
from workbench.serve.connectors import CONNECTORS, Connector, Store, connector
from workbench.serve.connectors.lmcache import CHUNK_TOKENS
from workbench.serve.deployed import DeploymentPlan
from workbench.serve.deployment import TRANSFER_TIMEOUT_S, plan_deployment
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology

State = Literal[
    "cold", "engine-warm", "cross-instance", "store-warm", "offload-warm", "disk-warm",
    "remote-warm",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One run of the workload in a declared cache state.

    `share` is the fraction of each prompt that the cold pass has sent before; the rest is new.
    `decode_shift` routes every request to another decode (or aggregated) instance than before.
    """

    name: str
    state: State
    share: float = 1.0
    decode_shift: int = 0
    rate_per_s: float = 0.0
    """The offered rate in a sweep over rates; 0 for the plan's own arrivals."""
    concurrency: int = 0
    """Requests in flight, where passes differ in it; 0 for the plan's own arrivals."""
    requests: int = 0
    """It sends only so many of the workload's requests, in a working-set sweep; 0 for all."""
    after: str = "cold"
    """The cold pass whose prompts it sends again."""


def pass_in(state: str) -> Pass:
    """The pass that is named after its cache state."""
    return Pass(name=state, state=state, decode_shift=int(state == "cross-instance"))  # type: ignore[arg-type]


def load_pass(unit: LoadUnit, load: float) -> Pass:
    """The cold pass at one load of a sweep."""
    name = unit.pass_name(load)
    if unit == USERS:
        return Pass(name=name, state="cold", concurrency=int(load))
    return Pass(name=name, state="cold", rate_per_s=load)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One configuration that is measured; a `subject` was requested, an `opponent` was added."""

    label: str
    role: Literal["subject", "opponent", "attached"]
    topology: Topology | None
    """None for attached servers whose layout is not known."""
    connector: str
    passes: tuple[Pass, ...]
    gpus: int = 0
    settings: EngineSettings | None = None
    tp: TensorParallel = field(default_factory=TensorParallel)
    capacity: Capacity = field(default_factory=Capacity)
    store_gb: float = 1.0
    store_args: tuple[str, ...] = ()
    """Further arguments of the store's server."""
    mooncake_protocol: str = "tcp"
    transfer_timeout_s: int = TRANSFER_TIMEOUT_S
    """How long decode may wait for the KV of a prompt, where both legs are sent at once."""
    chunk_tokens: int = CHUNK_TOKENS
    """The store's chunk."""
    tiers: tuple[str, ...] = ()
    """Where its store keeps chunks below its memory, as in `store_tiers`."""
    tier_gb: float = 1.0
    model: str = ""
    """Short name of its model in a run over several, with which its label begins; else empty."""
    may_fail: bool = False
    """If the engine refuses to start, this arm is skipped and the reason becomes a doubt."""

    def deployment(
        self, ports: Iterable[int], *, shm_name: str = "workbench", disk_folder: Path = Path("disk")
    ) -> DeploymentPlan:
        """The processes of this arm on these ports. Raises PlanError for an attached arm."""
        if self.settings is None or self.topology is None:
            raise PlanError(
                f"arm {self.label!r} is attached: its servers run already and are not started here"
            )
        return plan_deployment(
            self.topology,
            connector(self.connector),
            self.settings,
            ports=ports,
            tp=self.tp,
            capacity=self.capacity,
            store_gb=self.store_gb,
            chunk_tokens=self.chunk_tokens,
            store_tiers=self.tiers,
            tier_gb=self.tier_gb,
            disk_folder=disk_folder,
            shm_name=shm_name,
            store_args=self.store_args,
            mooncake_protocol=self.mooncake_protocol,
            transfer_timeout_s=self.transfer_timeout_s,
        )

    @property
    def kv_connector(self) -> Connector | None:
        """Its connector; None for attached servers whose connector is unknown."""
        return CONNECTORS.get(self.connector)

    @property
    def store(self) -> Store | None:
        """The KV store of its connector, or the host memory of each of its instances."""
        return self.kv_connector.store if self.kv_connector else None

    @property
    def disaggregated(self) -> bool:
        """True when prefill and decode are known to run on instances of their own."""
        return self.topology is not None and self.topology.disaggregated

    @property
    def topology_text(self) -> str:
        """What rows and files hold: `1p4d`, or the label where the layout is not known."""
        return str(self.topology) if self.topology else self.label
