"""How a deployment is planned and started.

`plan_deployment` is pure, so that a plan can be printed and tested on any machine; `deploy` starts
it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import orjson

from workbench.errors import LaunchError
from workbench.serve import vllm
from workbench.serve.checks.capacity import (
    Capacity,
    Place,
    check_capacity,
    check_one_host,
    hand_out,
    on_hosts,
)
from workbench.serve.connectors import CONNECTORS, Connector, Wiring, lmcache
from workbench.serve.connectors.tiers import Tier, tiers_of
from workbench.serve.deployed import Deployment, DeploymentPlan, Instance, server_url
from workbench.serve.processes.containers import ContainerLauncher
from workbench.serve.processes.forkserver import IF_THERE
from workbench.serve.processes.launcher import Launcher, Process, ProcessSpec
from workbench.serve.processes.local import LocalLauncher
from workbench.serve.processes.ports import in_use
from workbench.serve.processes.ray_hosts import RayLauncher, shares
from workbench.serve.processes.startup import ready
from workbench.serve.simulated.substitution import LOADS as SIMULATED_LOADS
from workbench.serve.simulated.substitution import simulated_processes
from workbench.serve.vllm import EngineSettings
from workbench.topology import Role, TensorParallel, Topology

PORT_RACES = 3
"""Attempts to start when another program takes a chosen port."""
START_TIMEOUT_S, GPU_START_TIMEOUT_S = 180.0, 1800.0
"""A GPU start loads large weights and captures graphs; in a container all is imported anew."""
TRANSFER_TIMEOUT_S = 240
"""Of a prompt's KV, where decode waits for it and the speed of prefill is unknown. vLLM waits for
480 s by default, and 60 s longer if prefill is dead."""


def plan_deployment(
    topology: Topology,
    connector: Connector,
    settings: EngineSettings,
    *,
    ports: Iterable[int],
    tp: TensorParallel | None = None,
    capacity: Capacity | None = None,
    store_gb: float = 1.0,
    chunk_tokens: int = lmcache.CHUNK_TOKENS,
    store_tiers: Sequence[str] = (),
    tier_gb: float = 1.0,
    disk_folder: Path = Path("disk"),
    shm_name: str = "workbench",
    store_args: Sequence[str] = (),
    mooncake_protocol: str = "tcp",
    transfer_timeout_s: int = TRANSFER_TIMEOUT_S,
) -> DeploymentPlan:
    """The processes of one deployment: tiers of the store, store, instances by role, proxy.

    `ports` are free ones, used in order. The store (or that of each instance) has `store_gb` of
    memory, and each of `store_tiers` below it has `tier_gb`, but for a disk (in `disk_folder`).
    Raises PlanError if connector, topology and machine do not fit together.
    """
    tp, capacity = tp or TensorParallel(), capacity or Capacity()
    connector.check(topology)
    spans, cluster = settings.gpus(tp), settings.cluster
    free = iter(ports)
    cpu, interpreter = not settings.on_gpu, settings.interpreter
    store = connector.store
    if cluster is not None:
        places = on_hosts(topology, spans, cluster, settings)
        if store and store.shares_memory:
            check_one_host(places, cluster, connector.name, topology)
    else:
        check_capacity(topology, spans, capacity, settings)
        handed = [()] * topology.instances if cpu else hand_out(topology, spans, capacity)
        each = settings.cores_per_instance
        places = [
            Place(devices=own, cores=capacity.cores[number * each : (number + 1) * each])
            for number, own in enumerate(handed)
        ]
    store_host = (
        places[0].host if cluster is None or (store and store.shares_memory) else cluster.head
    )
    processes: list[ProcessSpec] = []
    store_port = 0
    tiers: tuple[Tier, ...] = ()
    if store and store.processes:
        if store.tier_loads:
            tiers = tiers_of(
                store_tiers, free, interpreter=interpreter, size_gb=tier_gb, folder=disk_folder
            )
        first, *others = store.processes(
            free, host=store_host, interpreter=interpreter, shm_name=shm_name, memory_gb=store_gb,
            chunk_tokens=chunk_tokens, tiers=tiers, cpu=cpu,
        )  # fmt: skip
        processes += (server for tier in tiers for server in tier.processes)
        processes += (replace(first, args=(*first.args, *store_args)), *others)
        store_port = first.port
    side_urls: list[str] = []
    # A store copies KV from and to the GPUs of all instances.
    all_devices = tuple(dict.fromkeys(gpu for place in places for gpu in place.devices))
    processes = [replace(p, devices=all_devices) for p in processes]
    remaining = iter(places)
    reads, writes, files_env = vllm.files(settings)
    for role, number in ((role, n) for role, count in topology.roles for n in range(count)):
        port, side_port = next(free), next(free)
        place = next(remaining)
        host = place.host
        wiring = Wiring(
            role=role, cpu=cpu, host=host, side_port=side_port,
            store_host=store_host, store_port=store_port,
            store_gb=store_gb if store and store.private else store_gb / topology.instances,
            mooncake_protocol=mooncake_protocol,
            transfer_timeout_s=transfer_timeout_s,
        )  # fmt: skip
        if connector.at_once and role == "prefill":
            side_urls.append(f"http://{host.address}:{side_port}")
        args = vllm.instance_argv(
            settings,
            role=role,
            port=port,
            tp=getattr(tp, role),
            share_of_gpu=1.0 / capacity.instances_per_gpu,
            host=host,
        )
        env = vllm.instance_env(
            settings.platform,
            devices=place.devices,
            offline=settings.local,
            host=host,
            threads=len(place.cores) or 1,
        )
        processes.append(
            ProcessSpec(
                name=f"{role}-{number}",
                role=role,
                program=vllm.program(settings),
                args=(*args, *connector.engine_args(wiring)),
                forks=vllm.FORKS if cpu else "",
                env=env | files_env | connector.env(wiring) | dict(settings.extra_env),
                env_files=connector.env_files(wiring),
                port=port,
                host=host,
                ready_url=f"http://{host.address}:{port}/health",
                fatal=(*vllm.FATAL, *connector.fatal),
                devices=place.devices,
                cores=place.cores,
                reads=reads,
                writes=writes,
            )
        )
    processes = [
        replace(p, env=p.env | interpreter.env(p.env), reads=(*p.reads, *interpreter.reads))
        for p in processes
    ]
    if topology.instances > 1:
        about = {
            "connector": connector.name,
            "store_url": next(
                (server_url(p.ready_url) for p in processes if p.role == "store"), ""
            ),
            "kv_bytes_per_token": settings.kv_bytes_per_token,
            "chunk_tokens": chunk_tokens,
            "store_gb": store_gb,
            "ranks": asdict(tp),
            "prefix_caching": settings.prefix_caching,
            "drop_blocks": [role for role, each in settings.drafting.items() if each.drops_block],
        }
        processes.append(_proxy(topology, connector, processes, side_urls, about, port=next(free)))
    if settings.platform == "simulated":
        processes = simulated_processes(processes, topology, connector, settings, store_gb=store_gb)
    return DeploymentPlan(
        topology=topology,
        connector=connector,
        settings=settings,
        tp=spans,
        processes=tuple(processes),
        tiers=tiers,
    )


def _proxy(
    topology: Topology,
    connector: Connector,
    others: Sequence[ProcessSpec],
    side_urls: Sequence[str],
    about: Mapping[str, Any],
    *,
    port: int,
) -> ProcessSpec:
    legs: list[str] = []
    for process in others:
        if process.role not in ("tier", "store"):
            legs += ["--prefill" if process.role == "prefill" else "--decode", process.url]
    for url in side_urls:
        legs += ["--bootstrap", url]
    mode = connector.name if topology.disaggregated else "none"
    return ProcessSpec(
        name="proxy",
        role="proxy",
        here=True,
        program=(sys.executable, "-m", "workbench.serve.proxy.proxy"),
        args=("--port", str(port), "--mode", mode, *legs, "--about", orjson.dumps(about).decode()),
        port=port,
        ready_url=f"http://127.0.0.1:{port}/health",
    )


def launcher_for(
    settings: EngineSettings,
    log_dir: Path,
    *,
    fork: bool = True,
    plans: Iterable[DeploymentPlan] = (),
) -> LocalLauncher | ContainerLauncher | RayLauncher:
    """The launcher of deployments with these settings; use it as an `async with` block.

    On several hosts it holds what the largest of `plans` needs there.

    Without a GPU instances are forked unless `fork` is False: imports dominate their start-up time.
    In containers nothing is forked.
    """
    if settings.image is not None:
        python = settings.interpreter.path
        return ContainerLauncher(log_dir, settings.image, python, settings.platform)
    start: Callable[..., LocalLauncher | RayLauncher] = LocalLauncher
    if settings.cluster is not None:
        needed = shares(plan.processes for plan in plans)
        start = partial(RayLauncher, cluster=settings.cluster, needed=needed)
    if not fork or settings.on_gpu:
        return start(log_dir)
    if settings.platform == "simulated":
        return LocalLauncher(log_dir, loads=SIMULATED_LOADS)
    interpreter = settings.interpreter
    # An older vLLM may lack what one connector imports; that concerns no other one.
    known = (c for c in CONNECTORS.values() if c.load and c.installed(interpreter))
    connectors = [c.load + IF_THERE for c in known]
    # OpenMP reads the environment once, so the fork server needs that of its instances.
    env = vllm.instance_env(
        "cpu", offline=settings.local, threads=settings.cores_per_instance or 1
    ) | interpreter.env(settings.extra_env)
    loads = (*connectors, vllm.LOAD)
    return start(log_dir, loads=loads, python=interpreter.path, env=env)


@asynccontextmanager
async def deploy(
    launcher: Launcher,
    make_plan: Callable[[Iterator[int]], DeploymentPlan],
    *,
    log_dir: Path,
    ports: Callable[[], Iterator[int]] | None = None,
) -> AsyncIterator[Deployment]:
    """Start the plan that `make_plan` makes for free ports; leaving the block ends it.

    Raises LaunchError with the reason and the log's path if a process does not become ready. It
    retries only if another program took a port in the meantime.
    """
    for attempt in range(1, PORT_RACES + 1):
        plan = make_plan(ports() if ports else await launcher.unused_ports())
        running: list[Process] = []
        began_s = time.monotonic()
        try:
            await _start_all(launcher, plan, log_dir, running)
        except BaseException as error:
            await launcher.stop(running)
            # The system writes "Address", asyncio and uvicorn "address", Mooncake's master nothing.
            lost = "address already in use" in str(error).lower()
            taken = [p for p in plan.processes if p.port and isinstance(error, LaunchError)
                     and in_use(p.port, p.host.address)]  # fmt: skip
            if attempt < PORT_RACES and (lost or taken):
                continue
            if taken and not lost:
                raise LaunchError(
                    f"{error}; another program took port {taken[0].port} of {taken[0].name}"
                ) from error
            raise
        break
    try:
        yield Deployment(
            url=plan.url,
            instances=tuple(
                Instance(name=p.name, role=cast(Role, p.role), url=p.url) for p in plan.instances
            ),
            store_url=plan.store_http_url,
            store=plan.connector.store or lmcache.STORE,
            proxy_url=plan.url if plan.processes[-1].role == "proxy" else "",
            processes=tuple(running),
            plan=plan,
            started_s=time.monotonic() - began_s,
            probes=launcher.probes if isinstance(launcher, RayLauncher) else {},
        )
    finally:
        await launcher.stop(running)


async def _start_all(
    launcher: Launcher, plan: DeploymentPlan, log_dir: Path, running: list[Process]
) -> None:
    """Start the store's tiers, then the store, then all others: each connects to those before.

    If one of the first ends meanwhile, the start fails at once: engines may wait minutes for it.
    """
    slow = plan.settings.on_gpu or plan.settings.image is not None
    timeout_s = GPU_START_TIMEOUT_S if slow else START_TIMEOUT_S
    for stage in ("tier", "store", ""):
        first = len(running)
        for spec in plan.processes:
            if stage == (spec.role if spec.role in ("tier", "store") else ""):
                running.append(await launcher.start(spec, log_dir))
        await ready(running[first:], timeout_s=timeout_s, beside=running[:first])
