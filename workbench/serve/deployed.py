"""What a deployment is: its planned processes, and the running servers behind one URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any

import httpx

from workbench.control import connect_problem, control_client
from workbench.errors import DeploymentError, ResetRefusedError
from workbench.hardware.hosts import THIS_MACHINE
from workbench.records import LegRecord, ProxyFacts
from workbench.serve import vllm
from workbench.serve.connectors import Connector, Store, lmcache
from workbench.serve.connectors.tiers import Tier
from workbench.serve.processes.host_probe import Asked
from workbench.serve.processes.launcher import Process, ProcessSpec
from workbench.serve.vllm import EngineSettings
from workbench.topology import Role, TensorParallel, Topology

RESET_TIMEOUT_S = 20.0


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
        stores = (server_url(p.ready_url) for p in self.processes if p.role == "store")
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


def server_url(ready_url: str) -> str:
    """The address of a server, from that of its health check."""
    return ready_url.rpartition("/")[0]


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
