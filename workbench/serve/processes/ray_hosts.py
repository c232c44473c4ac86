"""The launcher of several hosts: Ray starts an actor on each, and the actor starts our supervisor.

    this machine                              a host of the cluster
    RayLauncher -- HostLauncher -- (Ray) -- HostAgent -- supervisor -- vLLM, ...

A host's actor reserves its GPUs for the whole run, so that all arms get the same ones. It forwards
the supervisor's messages and the servers' logs. When the actor ends for any reason, the pipe of the
supervisor closes, and the supervisor ends every server; Ray itself would leave the children of a
killed actor running. If the network fails, the supervisor's lease runs out, with the same effect.

Proxy and client run on this machine.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from workbench.errors import DeploymentError, LaunchError
from workbench.hardware.hosts import Cluster, Host, connected
from workbench.serve.processes import ports
from workbench.serve.processes.host_agent import LEASE_S, HostAgent
from workbench.serve.processes.host_probe import Asked
from workbench.serve.processes.launcher import Process, ProcessSpec
from workbench.serve.processes.local import Link, LocalLauncher

_PERIOD_S = 0.25
_ANSWER_S = 15.0
_RESERVED_S = 60.0
"""Timeout for Ray to reserve what a run needs, and to start the actors."""
_CANDIDATES = 256
_PROBE = "probe"
_PROBE_THREADS = 4
"""An actor runs one call at a time. Questions of the probe may wait for a link, so they have own
threads: news and the lease do not wait behind them, and orders keep their sequence."""
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


class AgentLink:
    """The link to the supervisor of a host. A thread polls it, because the notebook may be busy."""

    def __init__(self, agent: Any, host: Host, ray: Any, notes: list[str]) -> None:
        self._agent, self._host, self._ray, self._notes = agent, host, ray, notes
        self.logs: dict[str, Path] = {}
        """The local copy of each log of the host, by name."""
        self.lost = ""
        """Why the host cannot be reached any more."""
        self._closed = self._cut = False
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        self._agent.order.remote(line)

    def close(self) -> None:
        self._closed = True
        self._agent.close.remote()

    async def wait(self) -> None:
        await self._over.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self._lines.get():
            yield line

    def _follow(self) -> None:
        try:
            while self._news():
                time.sleep(_PERIOD_S)
        finally:
            # Whatever ended this thread: without the word, who waits for the host waits for ever.
            self._gone("nobody follows it any more")
            self._tell(self._lines.put_nowait, b"")
            self._tell(self._over.set)

    def _news(self) -> bool:
        """Fetch news once and pass them on; False if there will be no more."""
        try:
            lines, logs, ended = self._ray.get(self._agent.news.remote(), timeout=LEASE_S)
        except Exception as error:  # Ray's own errors, and those of its sockets
            self.lost = _reason(self._host, error, LEASE_S)
            return False
        if ended:
            self._gone("its supervisor ended")
        for name, text in logs.items():
            # Other files in that folder are not logs of our servers.
            if (here := self.logs.get(name)) is not None:
                self._keep(here, text)
        for line in lines:
            self._tell(self._lines.put_nowait, line)
        return not ended

    def _gone(self, why: str) -> None:
        if not self._closed:
            self.lost = self.lost or f"{self._host} was lost: {why}"

    def _keep(self, log: Path, text: bytes) -> None:
        """Append to a log here. The host is well if that fails, and needs its pings."""
        try:
            with open(log, "ab") as file:
                file.write(text)
        except OSError as error:
            if not self._cut:
                self._notes.append(f"Logs of {self._host} are not whole here: {error.strerror}.")
            self._cut = True

    def _tell(self, act: Callable[..., object], *given: bytes) -> None:
        with suppress(RuntimeError):  # the notebook's loop may be closed
            self._loop.call_soon_threadsafe(act, *given)


def _reason(host: Host, error: Exception, waited_s: float) -> str:
    """Why there is no answer, or what was raised over there."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):  # Ray puts it there, so the host has answered
        said = f"{type(cause).__name__}: {cause}".splitlines()[0][:160].rstrip(":. ")
        return f"{host} answered with an error: {said}"
    if isinstance(error, TimeoutError):
        return f"{host} did not answer for {waited_s:g} s: network failed, or it is busy"
    return f"{host} was lost: its Ray worker ended ({type(error).__name__})"


@dataclass(slots=True)
class HostLauncher(LocalLauncher):
    """The launcher of one host: sends orders to its supervisor through Ray."""

    agent: Any = None
    host: Host = field(default_factory=Host)
    ray: Any = None
    here: bool = False
    """The host is this machine, so process ids are valid here."""
    folder: str = ""
    gpus: Sequence[str] = ()
    link: AgentLink | None = None
    _processes: list[Process] = field(default_factory=list)

    async def _open(self) -> Link:
        try:
            self.folder = await asyncio.to_thread(self._fetch, self.agent.folder)
            self.gpus = await asyncio.to_thread(self._fetch, self.agent.gpus)
        except DeploymentError as error:
            raise LaunchError(f"Ray could not start its workers on the hosts: {error}") from error
        self.link = AgentLink(self.agent, self.host, self.ray, self.notes)
        return self.link

    @property
    def lost(self) -> str:
        """Why the host cannot be reached any more; empty if it can."""
        return self.link.lost if self.link else ""

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the host's probe; blocks. Raises DeploymentError without an answer."""
        method = getattr(self.agent, name).options(concurrency_group=_PROBE)
        return self._fetch(method, *arguments, within_s=_ANSWER_S)

    def _fetch(self, method: Any, *arguments: Any, within_s: float = LEASE_S) -> Any:
        try:
            return self.ray.get(method.remote(*arguments), timeout=within_s)
        except Exception as error:  # Ray's own errors, and those that the host raised
            raise DeploymentError(self.lost or _reason(self.host, error, within_s)) from error

    async def free(self, candidates: Sequence[int]) -> list[int]:
        """Those of these ports that are free on the host.

        Raises DeploymentError if it is lost, because every later launch needs it.
        """
        if self.lost:
            raise DeploymentError(self.lost)
        found: list[int] = await asyncio.to_thread(
            self._fetch, self.agent.free, candidates, self.host.address
        )
        return found

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        """Start one process there. Raises LaunchError if the host is lost."""
        if self.lost:
            raise LaunchError(f"{spec.name} did not start: {self.lost}")
        try:
            # Slots have no zero-argument super in a dataclass that is made anew.
            process = await LocalLauncher.start(self, with_gpus(spec, self.gpus), log_dir)
        except DeploymentError as error:
            raise LaunchError(f"{spec.name} did not start: {error}") from error
        if not self.here:
            process.pid = 0
        if not process.alive:
            process.end = self.lost
        self._processes.append(process)
        return process

    async def stop(self, processes: Iterable[Process], **grace: Any) -> None:
        """End processes, and wait for the last of their logs. A lost host ends its own."""
        given = list(processes)
        if given and not self.lost:
            with suppress(DeploymentError):
                await LocalLauncher.stop(self, given, **grace)
                await asyncio.wait([process.exited for process in given], timeout=LEASE_S)

    async def _files_of(self, spec: ProcessSpec, log_dir: Path) -> dict[str, str]:
        texts = {f"{spec.name}.{name.lower()}": text for name, text in spec.env_files.items()}
        if not texts:
            return {}
        paths = await asyncio.to_thread(self._fetch, self.agent.write, texts)
        return dict(zip(spec.env_files, paths.values(), strict=True))

    def _log_there(self, log: Path) -> str:
        assert self.link is not None
        # Logs of different rounds and arms have the same file name, so folders become part of it.
        name = "-".join((*log.parts[-3:-1], log.name)).lstrip("/-")
        self.link.logs[name] = log
        return f"{self.folder}/{name}"

    def _why_gone(self) -> str:
        return self.lost

    def _ended(self, name: str, status: int) -> None:
        if self.lost:
            for process in self._processes:
                process.end = process.end or self.lost
        LocalLauncher._ended(self, name, status)


def with_gpus(spec: ProcessSpec, gpus: Sequence[str]) -> ProcessSpec:
    """The same process with the GPUs that Ray assigned. The plan counts them from 0."""
    if not spec.devices or not gpus:
        return spec
    devices = tuple(gpus[int(number)] for number in spec.devices)
    visible = {name: ",".join(devices) for name in _GPU_VARIABLES if spec.env.get(name)}
    return replace(spec, devices=devices, env=spec.env | visible)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The most that a run needs of a host at the same time."""

    instances: int
    gpus: int


def shares(runs: Iterable[Collection[ProcessSpec]]) -> dict[Host, Share]:
    """The most that any deployment of a run needs of each host; they run one after the other."""
    needed: dict[Host, Share] = {}
    for processes in runs:
        away = [process for process in processes if not process.here]
        for host in {process.host for process in away}:
            ours = [process for process in away if process.host == host]
            gpus = {gpu for process in ours for gpu in process.devices}
            before = needed.get(host, Share(instances=0, gpus=0))
            needed[host] = Share(
                instances=max(before.instances, len(ours)), gpus=max(before.gpus, len(gpus))
            )
    return needed


@dataclass(slots=True)
class RayLauncher:
    """Starts each process on its host. Use as `async with RayLauncher(...) as launcher`.

    Raises LaunchError if Ray cannot reserve what the run needs.
    """

    log_dir: Path
    cluster: Cluster
    needed: Mapping[Host, Share]
    loads: Sequence[str] = ()
    """Modules that the fork server of each host loads."""
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    local: LocalLauncher = field(init=False)
    hosts: dict[Host, HostLauncher] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.local = LocalLauncher(self.log_dir, notes=self.notes)

    async def __aenter__(self) -> Self:
        await self.local.__aenter__()
        try:
            ray, agents = await asyncio.to_thread(self._reserve)
            for host, agent in agents.items():
                launcher = HostLauncher(
                    self.log_dir / host.name, loads=self.loads, python=self.python, env=self.env,
                    notes=self.notes, agent=agent, host=host, ray=ray,
                    here=host == self.cluster.head,
                )  # fmt: skip
                await launcher.__aenter__()
                self.hosts[host] = launcher
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        ending = [launcher.__aexit__() for launcher in self.hosts.values()]
        await asyncio.gather(*ending, self.local.__aexit__(), return_exceptions=True)
        await asyncio.shield(asyncio.to_thread(self._stack.close))

    def _reserve(self) -> tuple[Any, dict[Host, Any]]:
        """Start an actor on each needed host, with the CPUs and GPUs of the servers there."""
        ray = self._stack.enter_context(connected(self.cluster.address))
        util = import_module("ray.util")
        pinned = import_module("ray.util.scheduling_strategies").PlacementGroupSchedulingStrategy
        bundles = [
            {"CPU": share.instances, "GPU": share.gpus, f"node:{host.address}": 0.001}
            for host, share in self.needed.items()
        ]
        bundles = [{name: n for name, n in bundle.items() if n} for bundle in bundles]
        group = util.placement_group(bundles, strategy="SPREAD")
        self._stack.callback(util.remove_placement_group, group)
        agents = {}
        try:
            ray.get(group.ready(), timeout=_RESERVED_S)
            for index, (host, share) in enumerate(self.needed.items()):
                kind = ray.remote(concurrency_groups={_PROBE: _PROBE_THREADS})(HostAgent).options(
                    num_cpus=share.instances,
                    num_gpus=share.gpus,
                    scheduling_strategy=pinned(group, placement_group_bundle_index=index),
                )
                agents[host] = kind.remote()
                self._stack.callback(ray.kill, agents[host])
            ray.get([agent.folder.remote() for agent in agents.values()], timeout=_RESERVED_S)
        except ray.exceptions.GetTimeoutError as error:
            wanted = ", ".join(
                f"{share.gpus or share.instances} {'GPUs' if share.gpus else 'CPUs'} on {host}"
                for host, share in self.needed.items()
            )
            raise LaunchError(
                f"Ray did not provide {wanted} within {_RESERVED_S:.0f} s; end what uses them"
                " (example: ray status lists them), or use a smaller topology"
            ) from error
        except ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[-1][:160].rstrip(".")
            raise LaunchError(f"Ray could not start its workers on the hosts: {said}") from error
        return ray, agents

    @property
    def probes(self) -> dict[str, Asked]:
        """Every host that can be asked, by address."""
        return {host.address: launcher for host, launcher in self.hosts.items()}

    def _on(self, host: Host) -> LocalLauncher:
        """The launcher of that host; this machine's own for the proxy and for other hosts."""
        return self.hosts.get(host, self.local)

    async def unused_ports(self) -> Iterator[int]:
        """Ports that are free on this machine and on every host, so no number is used twice.

        Raises DeploymentError if a host is lost.
        """
        found = random.SystemRandom().sample(ports.PORTS, _CANDIDATES)
        for launcher in self.hosts.values():
            found = await launcher.free(found)
        common = list(ports.free(found))
        if len(common) < _CANDIDATES // 4:
            raise LaunchError(
                f"too few ports between {ports.PORTS.start} and {ports.PORTS.stop} are free on all"
                f" hosts ({len(common)} of {_CANDIDATES}); end programs that listen there (example:"
                " ss -ltnp lists them)"
            )
        return iter(common)

    async def start(self, spec: ProcessSpec, log_dir: Path) -> Process:
        """Start one process on its host, without waiting until it is ready."""
        return await self._on(spec.host).start(spec, log_dir)

    async def stop(self, processes: Iterable[Process]) -> None:
        """End processes on every host."""
        given = list(processes)
        ending = []
        for launcher in (self.local, *self.hosts.values()):
            ours = [p for p in given if self._on(p.spec.host) is launcher]
            ending.append(launcher.stop(ours))
        await asyncio.gather(*ending)
