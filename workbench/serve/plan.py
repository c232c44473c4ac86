"""From topology, connector and engine to the list of processes. Pure: nothing is started.

The plan can be printed and tested on any machine; `deployment.deploy` carries it out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.serve import vllm
from workbench.serve.capacity import Capacity, check_capacity, hand_out
from workbench.serve.connectors import Connector, Wiring
from workbench.serve.connectors.lmcache import CHUNK_TOKENS
from workbench.serve.processes.launcher import ProcessSpec
from workbench.serve.simulated.pretend import pretend
from workbench.serve.vllm import EngineSettings
from workbench.topology import TensorParallel, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentPlan:
    """Every process of one deployment, in the order in which they must be ready."""

    topology: Topology
    connector: Connector
    settings: EngineSettings
    tp: TensorParallel
    processes: tuple[ProcessSpec, ...]

    @property
    def instances(self) -> tuple[ProcessSpec, ...]:
        return tuple(p for p in self.processes if p.role not in ("store", "proxy"))

    @property
    def store_http_url(self) -> str:
        """Where the store answers /metrics and takes resets; empty without a store."""
        first = self.processes[0]
        return first.ready_url.rpartition("/")[0] if first.role == "store" else ""

    @property
    def url(self) -> str:
        """Where requests go: the proxy, or the only instance."""
        return self.processes[-1].url

    def __str__(self) -> str:
        tp = self.tp if self.settings.on_gpu else None
        head = f"{self.topology.describe(tp)}; connector {self.connector.name}"
        return "\n".join([head, *(f"  {p.name:12} {p.command_line}" for p in self.processes)])


def plan_deployment(
    topology: Topology,
    connector: Connector,
    settings: EngineSettings,
    *,
    ports: Iterable[int],
    tp: TensorParallel | None = None,
    capacity: Capacity | None = None,
    store_gb: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
    disk_folder: str = "",
    shm_name: str = "workbench",
) -> DeploymentPlan:
    """The processes of one deployment: store, instances by role, proxy.

    `ports` are free ones, taken from the front. The store has `store_gb` of memory, and a second
    tier in `disk_folder` unless that is empty. Raises PlanError when connector, topology and
    machine do not fit.
    """
    tp, capacity = tp or TensorParallel(), capacity or Capacity()
    connector.check(topology)
    check_capacity(topology, tp, capacity, settings)
    free = iter(ports)
    cpu = not settings.on_gpu
    processes: list[ProcessSpec] = []
    store_port = 0
    if connector.store:
        processes += connector.store.processes(
            free, shm_name=shm_name, memory_gb=store_gb, chunk_tokens=chunk_tokens,
            disk_folder=disk_folder, cpu=cpu,
        )  # fmt: skip
        store_port = processes[0].port
    devices = iter([()] * topology.instances if cpu else hand_out(topology, tp, capacity))
    for role, number in ((role, n) for role, count in topology.roles for n in range(count)):
        port, side_port = next(free), next(free)
        wiring = Wiring(role=role, cpu=cpu, store_port=store_port, side_port=side_port)
        args = vllm.instance_argv(
            settings,
            port=port,
            tp=getattr(tp, role),
            share_of_gpu=1.0 / capacity.instances_per_gpu,
        )
        env = vllm.instance_env(settings.platform, devices=next(devices), offline=settings.local)
        processes.append(
            ProcessSpec(
                name=f"{role}-{number}",
                role=role,
                program=vllm.program(settings.platform),
                args=(*args, *connector.engine_args(wiring)),
                forks=vllm.FORKS if cpu else "",
                env=env | connector.env(wiring),
                port=port,
                ready_url=f"http://127.0.0.1:{port}/health",
                fatal=(*vllm.FATAL, *connector.fatal),
            )
        )
    if topology.instances > 1:
        processes.append(_proxy(topology, connector, processes, port=next(free)))
    if settings.platform == "simulated":
        processes = pretend(processes, topology, connector, settings, store_gb=store_gb)
    return DeploymentPlan(
        topology=topology,
        connector=connector,
        settings=settings,
        tp=tp,
        processes=tuple(processes),
    )


def _proxy(
    topology: Topology, connector: Connector, others: Sequence[ProcessSpec], *, port: int
) -> ProcessSpec:
    legs: list[str] = []
    for process in others:
        if process.role != "store":
            legs += ["--prefill" if process.role == "prefill" else "--decode", process.url]
    mode = connector.name if topology.disaggregated else "none"
    return ProcessSpec(
        name="proxy",
        role="proxy",
        program=(sys.executable, "-m", "workbench.serve.proxy.proxy"),
        args=("--port", str(port), "--mode", mode, *legs),
        port=port,
        ready_url=f"http://127.0.0.1:{port}/health",
    )
