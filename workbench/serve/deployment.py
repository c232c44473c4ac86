"""A deployment: the plan of its processes, and the running servers behind one URL.

`plan_deployment` is pure, so that a plan can be printed and tested on any machine; `deploy` starts
it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import nan
from pathlib import Path
from typing import Any, cast

import httpx
import orjson

from workbench.control import connect_problem, control_client
from workbench.errors import DeploymentError, LaunchError, ResetRefusedError
from workbench.hardware.hosts import THIS_MACHINE
from workbench.records import LegRecord, ProxyFacts
from workbench.serve import vllm
from workbench.serve.checks.capacity import (
    Capacity,
    Place,
    check_capacity,
    check_one_host,
    hand_out,
    on_hosts,
)
from workbench.serve.connectors import CONNECTORS, Connector, Store, Wiring, lmcache
from workbench.serve.connectors.tiers import Tier, tiers_of
from workbench.serve.processes.containers import ContainerLauncher
from workbench.serve.processes.forkserver import IF_THERE
from workbench.serve.processes.host_probe import Asked
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
RESET_TIMEOUT_S = 20.0
TRANSFER_TIMEOUT_S = 240
"""Of a prompt's KV, where decode waits for it and the speed of prefill is unknown. vLLM waits for
480 s by default, and 60 s longer if prefill is dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentPlan:
    """Every process of one deployment, in start order."""

    topology: Topology
    connector: Connector
    settings: EngineSettings
    tp: TensorParallel
    processes: tuple[ProcessSpec, ...]
    tiers: tuple[Tier, ...] = ()
    """Where the store keeps chunks below its memory."""

    @property
    def instances(self) -> tuple[ProcessSpec, ...]:
        return tuple(p for p in self.processes if p.role not in ("tier", "store", "proxy"))

    @property
    def store_http_url(self) -> str:
        """URL of the store's /metrics and resets; empty without a store."""
        stores = (_base(p.ready_url) for p in self.processes if p.role == "store")
        return next(stores, "")

    @property
    def url(self) -> str:
        """Where requests go: the proxy, or the only instance."""
        return self.processes[-1].url

    @property
    def heading(self) -> str:
        """What runs, with which connector and where."""
        tp, image = self.tp if self.settings.on_gpu else None, self.settings.image
        head = f"{self.topology.describe(tp)}; connector {self.connector.name}"
        if image is not None:
            head += f"; in containers of {image.name} ({image.program} {image.version})"
        if self.settings.cluster is not None:
            on = (f"{name} on {host}" for name, host in self.hosts.items())
            head += f"; spread {self.settings.cluster.spread}: {', '.join(on)}"
        return head

    def __str__(self) -> str:
        commands = (f"  {p.name:12} {p.command_line}" for p in self.processes)
        return "\n".join([self.heading, *commands])

    @property
    def hosts(self) -> dict[str, str]:
        """The host of each instance; empty where all are processes of this machine."""
        away = (p for p in self.instances if p.host != THIS_MACHINE)
        return {process.name: process.host.name for process in away}


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
            "store_url": next((_base(p.ready_url) for p in processes if p.role == "store"), ""),
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


def _base(ready_url: str) -> str:
    return ready_url.rpartition("/")[0]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One vLLM server of a deployment."""

    name: str
    role: Role
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Running servers behind one URL, started here or attached.

    `instances` is empty if they are unknown (attach without lists); `store_url` and `proxy_url` are
    empty if there is none. `started_s` is the start-up time until all are healthy.
    """

    url: str
    model: str = vllm.SERVED_MODEL
    instances: tuple[Instance, ...] = ()
    store_url: str = ""
    store: Store = lmcache.STORE
    """The kind of store; an attached one is LMCache's."""
    proxy_url: str = ""
    proxy: ProxyFacts | None = None
    """What the workbench's proxy says about servers that this run did not start."""
    processes: tuple[Process, ...] = ()
    plan: DeploymentPlan | None = None
    started_s: float = nan
    api_key: str = field(default="", repr=False)
    """API key of attached servers; never shown or written."""
    doubts: tuple[str, ...] = ()
    """What is uncertain about attached servers."""
    probes: Mapping[str, Asked] = field(default_factory=dict, repr=False)
    """Hosts of instances that can be asked for their clocks and links, by address."""

    @property
    def topology(self) -> Topology | None:
        """The instances behind the proxy; None if they are unknown."""
        if self.plan is not None:
            return self.plan.topology
        if self.proxy is None:
            return None
        prefill, decode = len(self.proxy.prefill), len(self.proxy.decode)
        return Topology(prefill=prefill, decode=decode) if prefill else Topology(aggregated=decode)

    @property
    def headers(self) -> dict[str, str]:
        """Headers for requests to `url` and the instances; the store gets no key."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @property
    def store_urls(self) -> dict[str, str]:
        """Whose /metrics count what the store does: the store, or each instance; empty without."""
        if self.store.private:
            return {instance.name: instance.url for instance in self.instances}
        return {"store": self.store_url} if self.store_url else {}

    async def reset_engines(self) -> bool:
        """Empty the prefix cache of every instance; False if an instance has no such endpoint.

        An engine refuses while blocks are in use (a pending NIXL transfer), so this retries.
        Raises ResetRefusedError if it still refuses after 20 s.
        """
        return await self._reset_each("/reset_prefix_cache")

    async def _reset_each(self, path: str) -> bool:
        if not self.instances:
            return False
        async with control_client(headers=self.headers) as client:
            done = await asyncio.gather(*(_reset(client, i, path) for i in self.instances))
        return all(done)

    async def reset_store(self) -> bool:
        """Empty the KV store, or that of each instance; False if there is none."""
        if self.store.private:
            return await self._reset_each(self.store.clear_path)
        if not self.store_url:
            return False
        asked = self.store_url if self.store.cleared_by == "store" else self.instances[0].url
        async with control_client(RESET_TIMEOUT_S, headers=self.headers) as client:
            try:
                answer = await client.post(asked + self.store.clear_path)
                answer.raise_for_status()
                if not _succeeded(answer):
                    raise DeploymentError(
                        f"the KV store at {self.store_url} was not emptied: {answer.text[:100]}"
                    )
            except httpx.HTTPError as error:
                raise DeploymentError(
                    f"the KV store at {self.store_url} did not clear its cache: {error!r};"
                    " check that it is running"
                ) from error
        return True

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Tiers of the store below its memory; none are known of an attached store."""
        return self.plan.tiers if self.plan else ()

    async def reset_tiers(self, tiers: Iterable[Tier]) -> None:
        """Empty tiers at their own end and count what is left: LMCache can do neither.

        Raises DeploymentError if one does not answer, or still holds a chunk.
        """
        for tier in tiers:
            await tier.empty()
            if left := (await tier.held()).chunks:
                raise DeploymentError(
                    f"{tier.shown} still holds {left:,.0f} chunks after it was emptied; check that"
                    " nothing else writes to it"
                )

    async def legs(self) -> list[LegRecord]:
        """Legs that the proxy recorded since the last call; empty without our proxy."""
        rows = await self._of_proxy("/legs") or []
        cleaned: list[dict[str, Any]] = [
            {name: nan if value is None else value for name, value in row.items()} for row in rows
        ]
        return [LegRecord(**row) for row in cleaned]

    async def proxy_stats(self) -> dict[str, Any]:
        """CPU seconds and requests of the proxy; empty without our proxy."""
        return await self._of_proxy("/stats") or {}

    async def _of_proxy(self, path: str) -> Any:
        if not self.proxy_url:
            return None
        async with control_client(30.0, headers=self.headers) as client:
            try:
                return (await client.get(self.proxy_url + path)).json()
            except httpx.HTTPError:
                return None

    @property
    def stalling_roles(self) -> frozenset[str]:
        """Roles of processes without which requests wait for a timeout instead of failing."""
        roles = {"store"} if self.store_url and self.store.stalls_when_dead else set()
        if self.plan is not None and self.plan.connector.at_once:
            roles.add("prefill")
        # A host that is cut off closes no connection.
        roles |= {p.spec.role for p in self.processes if p.spec.host != THIS_MACHINE}
        return frozenset(roles)

    def dead(self) -> list[Process]:
        """Processes of this deployment that have exited on their own."""
        return [process for process in self.processes if not process.alive]


async def _reset(client: httpx.AsyncClient, instance: Instance, path: str) -> bool:
    ends_s = time.monotonic() + RESET_TIMEOUT_S
    while True:
        try:
            answer = await client.post(instance.url + path)
        except httpx.HTTPError as error:
            why = connect_problem(error) or str(error) or type(error).__name__
            raise DeploymentError(
                f"{instance.name} at {instance.url} did not reset its prefix cache: {why}"
            ) from error
        if answer.status_code in (404, 405):
            return False
        if answer.status_code == 200 and _succeeded(answer):
            return True
        if time.monotonic() > ends_s:
            raise ResetRefusedError(
                f"{instance.name} refuses to reset its prefix cache ({answer.status_code}"
                f" {answer.text[:100]}): some KV blocks are still in use"
            )
        await asyncio.sleep(0.1)


def _succeeded(answer: httpx.Response) -> bool:
    """vLLM reports a refusal as `{"success": false}` in HTTP 200; old ones send no body."""
    try:
        said = answer.json()
    except ValueError:
        return True
    return not (isinstance(said, dict) and said.get("success") is False)


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
