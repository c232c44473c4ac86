"""From topology, connector and engine to the list of processes. Pure: nothing is started.

The plan can be printed and tested on any machine; `deployment.deploy` carries it out.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from workbench.serve.capacity import Capacity, check_capacity, hand_out
from workbench.serve.connectors import (
    LMCACHE_CHUNK_TOKENS,
    LMCACHE_PROGRAM,
    Connector,
    as_option,
    lmcache_server_args,
)
from workbench.serve.simulated.pretend import pretend
from workbench.serve.vllm import EngineSettings, instance_argv, instance_env, program
from workbench.topology import Role, TensorParallel, Topology

__all__ = ["DeploymentPlan", "ProcessSpec", "plan_deployment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process: `role` is an instance's role, `store` or `proxy`."""

    name: str
    role: Role | Literal["store", "proxy"]
    program: tuple[str, ...]
    """How a plain start begins; `args` follow."""
    args: tuple[str, ...]
    port: int
    ready_url: str
    env: dict[str, str] = field(default_factory=dict)
    forks: Literal["", "vllm", "lmcache", "simulated", "proxy"] = ""
    """What a fork server turns into this process; empty where none can."""
    devices: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        return (*self.program, *self.args)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def command_line(self) -> str:
        return shlex.join(self.argv)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentPlan:
    """Every process of one deployment, in the order in which they must be ready."""

    topology: Topology
    connector: Connector
    settings: EngineSettings
    tp: TensorParallel
    processes: tuple[ProcessSpec, ...]
    shm_name: str = ""

    @property
    def instances(self) -> tuple[ProcessSpec, ...]:
        return tuple(p for p in self.processes if p.role not in ("store", "proxy"))

    @property
    def store(self) -> ProcessSpec | None:
        return next((p for p in self.processes if p.role == "store"), None)

    @property
    def store_http_url(self) -> str:
        """Where the store answers /metrics and /cache/clear; empty without a store."""
        return self.store.ready_url.rpartition("/")[0] if self.store else ""

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
    ports: Sequence[int],
    tp: TensorParallel | None = None,
    capacity: Capacity | None = None,
    store_gb: float = 1.0,
    chunk_tokens: int = LMCACHE_CHUNK_TOKENS,
    disk_folder: str = "",
    shm_name: str = "workbench",
) -> DeploymentPlan:
    """The processes of one deployment: store, instances by role, proxy.

    `ports` is consumed from the front and must hold `ports_needed(topology)` free ports. The store
    has `store_gb` of memory, and a second tier in `disk_folder` unless that is empty.
    Raises PlanError when connector, topology and machine do not fit.
    """
    tp, capacity = tp or TensorParallel(), capacity or Capacity()
    connector.check(topology)
    check_capacity(topology, tp, capacity, platform=settings.platform)
    free = iter(ports)
    cpu = not settings.on_gpu
    processes: list[ProcessSpec] = []
    store_port = 0
    if connector.store:
        store_port, http_port = next(free), next(free)
        processes.append(
            ProcessSpec(
                name="store",
                role="store",
                program=LMCACHE_PROGRAM,
                args=tuple(
                    lmcache_server_args(
                        port=store_port,
                        http_port=http_port,
                        shm_name=shm_name,
                        memory_gb=store_gb,
                        chunk_tokens=chunk_tokens,
                        disk_folder=disk_folder,
                    )
                ),
                forks="lmcache" if cpu else "",
                env={"LMCACHE_TRACK_USAGE": "false"},
                port=store_port,
                ready_url=f"http://127.0.0.1:{http_port}/healthcheck",
            )
        )
    devices = iter([()] * topology.instances if cpu else hand_out(topology, tp, capacity))
    share = 1.0 / capacity.instances_per_gpu
    for role, count in topology.roles:
        for number in range(count):
            port, side_port, mine = next(free), next(free), next(devices)
            args = instance_argv(settings, port=port, tp=getattr(tp, role), share_of_gpu=share)
            args += as_option(connector.transfer_config(role, store_port=store_port, cpu=cpu))
            env = instance_env(settings.platform, devices=mine, offline=settings.local)
            if connector.name == "nixl":
                env |= _nixl_env(side_port, cpu=cpu)
            processes.append(
                ProcessSpec(
                    name=f"{role}-{number}",
                    role=role,
                    program=program(settings.platform),
                    args=tuple(args),
                    forks="vllm" if cpu else "",
                    env=env,
                    port=port,
                    ready_url=f"http://127.0.0.1:{port}/health",
                    devices=mine,
                )
            )
    if topology.instances > 1:
        processes.append(_proxy(topology, connector, tuple(processes), port=next(free)))
    if settings.platform == "simulated":
        processes = pretend(processes, topology, connector, settings, store_gb=store_gb)
        shm_name = ""
    return DeploymentPlan(
        topology=topology,
        connector=connector,
        settings=settings,
        tp=tp,
        processes=tuple(processes),
        shm_name=shm_name if connector.store else "",
    )


def ports_needed(topology: Topology) -> int:
    """An upper bound: two for the store, two for each instance, one for the proxy."""
    return 2 * topology.instances + 3


def _nixl_env(side_port: int, *, cpu: bool) -> dict[str, str]:
    env = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port),
    }
    if cpu:
        env |= {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo", "UCX_RCACHE_MAX_UNRELEASED": "1024"}
    return env


def _proxy(
    topology: Topology, connector: Connector, instances: tuple[ProcessSpec, ...], *, port: int
) -> ProcessSpec:
    legs: list[str] = []
    for process in instances:
        if process.role == "prefill":
            legs += ["--prefill", process.url]
        elif process.role in ("decode", "aggregated"):
            legs += ["--decode", process.url]
    mode = connector.name if topology.disaggregated else "none"
    return ProcessSpec(
        name="proxy",
        role="proxy",
        program=(sys.executable, "-m", "workbench.serve.proxy.proxy"),
        args=("--port", str(port), "--mode", mode, *legs),
        port=port,
        ready_url=f"http://127.0.0.1:{port}/health",
    )
