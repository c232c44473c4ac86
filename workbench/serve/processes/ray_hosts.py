"""The launcher of several hosts: on each, Ray starts an actor, and the actor our supervisor.

    this machine                              a host of the cluster
    RayLauncher -- HostLauncher -- (Ray) -- HostAgent -- supervisor -- vLLM, ...

A host's actor holds its GPUs for the whole run, so that all arms get the same ones. It passes on
the supervisor's lines and what servers write to their logs. Whatever ends it closes the
supervisor's pipe, and the supervisor ends every server: Ray itself leaves the children of a killed
actor behind. If the network fails, the supervisor's lease runs out.

Proxy and client run on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
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
from queue import Empty, SimpleQueue
from typing import Any, Self

from workbench.errors import DeploymentError, LaunchError
from workbench.hardware.hosts import Cluster, Host, connected
from workbench.serve.processes import ports
from workbench.serve.processes.host_probe import Asked, HostProbe
from workbench.serve.processes.launcher import Process, ProcessSpec
from workbench.serve.processes.local import SUPERVISOR, Link, LocalLauncher

LEASE_S = 6.0
"""A host that hears nothing for so long ends its servers; one that says nothing is given up. With
the supervisor's grace that is less than the 15 s within which nothing may be left."""
_PERIOD_S = 0.25
_ANSWER_S = 15.0
_RESERVED_S = 60.0
"""For Ray to reserve what a run needs, and to start its workers."""
_CANDIDATES = 256
_PROBE = "probe"
_PROBE_THREADS = 4
"""An actor runs one call at a time. Questions of the probe may wait for a link, so they have own
threads: news and the lease do not wait behind them, and orders keep their sequence."""
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_SOURCES = str(Path(__file__).resolve().parents[3])


class HostAgent(HostProbe):
    """On a host: its supervisor, and what that says and what servers write, to be fetched.

    A plain class, which `RayLauncher` makes an actor of. One thread runs what is defined here; the
    methods of the probe run beside it, and share nothing with it.
    """

    def __init__(self, lease_s: float = LEASE_S) -> None:
        super().__init__()
        self._folder = tempfile.mkdtemp(prefix="workbench-host-")
        self._read: dict[str, int] = {}
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        # What Ray sets for its own workers is not for servers: one OpenMP thread, for example.
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        for name in ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"):
            env.pop(name, None)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (_SOURCES, env.get("PYTHONPATH"))))
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", SUPERVISOR, "--lease", str(lease_s), "--apart"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True,
        )  # fmt: skip
        self._supervisor.wait()  # it goes on apart
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        # Also where the actor is killed: the logs are on the other machine by then.
        self.order(json.dumps({"finally": ["rm", "-rf", self._folder]}).encode() + b"\n")

    def folder(self) -> str:
        """Where logs are on this host."""
        return self._folder

    def gpus(self) -> list[str]:
        """The GPUs that Ray has given this actor."""
        context = import_module("ray").get_runtime_context()
        return list(context.get_accelerator_ids().get("GPU", ()))

    def free(self, candidates: Sequence[int], address: str) -> list[int]:
        """Those of these ports that are free on this host."""
        return list(ports.free(candidates, address))

    def write(self, files: Mapping[str, str]) -> dict[str, str]:
        """Write files by name; their paths."""
        paths = {name: f"{self._folder}/{name}" for name in files}
        for name, text in files.items():
            Path(paths[name]).write_text(text, encoding="utf-8")
        return paths

    def order(self, line: bytes) -> None:
        """Pass an order on."""
        assert self._supervisor.stdin is not None
        with suppress(OSError, ValueError):
            self._supervisor.stdin.write(line)
            self._supervisor.stdin.flush()

    def news(self) -> tuple[list[bytes], dict[str, bytes], bool]:
        """New lines of the supervisor, new text of each log, and whether it has ended.

        Who asks is alive, so the lease begins anew.
        """
        self.order(b'{"ping": 1}\n')
        ended = not self._listener.is_alive()
        lines = []
        with suppress(Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return lines, self._new_text(), ended

    def close(self) -> None:
        """No more orders: the supervisor ends everything."""
        assert self._supervisor.stdin is not None
        with suppress(OSError):
            self._supervisor.stdin.close()

    def _listen(self) -> None:
        assert self._supervisor.stdout is not None
        for line in self._supervisor.stdout:
            self._lines.put(line)

    def _new_text(self) -> dict[str, bytes]:
        found = {}
        for log in Path(self._folder).glob("*.log"):
            with suppress(OSError), open(log, "rb") as file:
                file.seek(self._read.get(log.name, 0))
                if text := file.read():
                    self._read[log.name] = file.tell()
                    found[log.name] = text
        return found


class AgentLink:
    """The way to the supervisor of a host. A thread asks for news: the notebook may be busy."""

    def __init__(self, agent: Any, host: Host, ray: Any, notes: list[str]) -> None:
        self._agent, self._host, self._ray, self._notes = agent, host, ray, notes
        self.logs: dict[str, Path] = {}
        """Where what a host writes to its log of this name is kept here."""
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
        except Exception as error:  # Ray raises its own, and what its sockets raise
            self.lost = _reason(self._host, error, LEASE_S)
            return False
        if ended:
            self._gone("our supervisor there ended")
        for name, text in logs.items():
            # A file for whose name nobody asked is none of ours.
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
        return f"{host} did not answer for {waited_s:g} s: cut off, or overloaded"
    return f"{host} was lost: Ray's worker there ended ({type(error).__name__})"


@dataclass(slots=True)
class HostLauncher(LocalLauncher):
    """The launcher of one host: orders go to its supervisor by way of Ray."""

    agent: Any = None
    host: Host = field(default_factory=Host)
    ray: Any = None
    here: bool = False
    """The host is this machine, so that ids of processes mean something."""
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
        """What the host's probe says; blocks. Raises DeploymentError without an answer."""
        method = getattr(self.agent, name).options(concurrency_group=_PROBE)
        return self._fetch(method, *arguments, within_s=_ANSWER_S)

    def _fetch(self, method: Any, *arguments: Any, within_s: float = LEASE_S) -> Any:
        try:
            return self.ray.get(method.remote(*arguments), timeout=within_s)
        except Exception as error:  # Ray raises its own, and what was raised over there
            raise DeploymentError(self.lost or _reason(self.host, error, within_s)) from error

    async def free(self, candidates: Sequence[int]) -> list[int]:
        """Those of these ports that are free on the host.

        Raises DeploymentError if it is lost: no later launch can do without it.
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
        """End processes, and wait for the ends of their logs; a lost host does it by its lease."""
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
        # Rounds and arms have logs of one name, and a port of their own.
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
    """The same process with the GPUs that Ray assigned, where the plan counts from 0."""
    if not spec.devices or not gpus:
        return spec
    devices = tuple(gpus[int(number)] for number in spec.devices)
    visible = {name: ",".join(devices) for name in _GPU_VARIABLES if spec.env.get(name)}
    return replace(spec, devices=devices, env=spec.env | visible)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a run needs of a host at once."""

    instances: int
    gpus: int


def shares(runs: Iterable[Collection[ProcessSpec]]) -> dict[Host, Share]:
    """What deployments of a run need of each host, where they follow one another."""
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
    """What the fork server of each host loads."""
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
        """An actor on each host that is needed, with the resources of what runs below it."""
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
                f"Ray did not lend {wanted} within {_RESERVED_S:.0f} s; see who uses them (example:"
                " ray status), or use a smaller topology"
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
        """The launcher of that host; this machine's own for the proxy, and where none runs."""
        return self.hosts.get(host, self.local)

    async def unused_ports(self) -> Iterator[int]:
        """Ports that are free on this machine and on every host, so that a number means one thing.

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
