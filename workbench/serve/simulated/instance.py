"""A simulated vLLM instance: its engine steps, KV loads, and blocks held for other instances.

Times come from a seeded model; its constants are round numbers like those of a small model and
measure nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from uuid import uuid4
from zlib import crc32

import aiohttp
from aiohttp import web

from workbench.serve.simulated.answers import Asked
from workbench.serve.simulated.exposition import vllm_series
from workbench.serve.simulated.faults import STRUCK_TOKENS
from workbench.serve.simulated.host_memory import HostMemory
from workbench.serve.simulated.kv_blocks import (
    BLOCK_TOKENS,
    TOKEN_BYTES,
    BlockPool,
    blocks_of,
    chain,
)
from workbench.serve.simulated.master import MasterClient
from workbench.serve.simulated.peers import MooncakePeer, NixlPeer, PullFailed, Side
from workbench.serve.simulated.scheduler import Scheduler, Sequence
from workbench.serve.simulated.store import TIMEOUT_S, StoreClient

SPEED = 10.0
"""Speed-up over the constants, so that tests are short."""
STEP_S = 0.010
TOKEN_S = 20e-6
PAIR_S = 8e-10
"""Per new token and per token it attends to."""
NEIGHBOUR_S = 0.0005
"""Additional time per further sequence of a batch."""
TRANSFER_S = 0.002
TRANSFER_BYTES_PER_S = 1e9
SPREAD = 0.03
"""Standard deviation of the logarithm."""
CATCH_UP_S = 0.005
"""Timers are late; the step clock compensates for this much, so that rates are right."""
LEASE_S = 30.0
"""How long a prefill instance holds blocks that are not fetched (vLLM's NIXL lease), unless
kv_connector_extra_config has vLLM's `kv_lease_duration`."""
SLOWDOWN = 4.0
DIES_AT_REQUEST = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSettings:
    """Settings of one simulated instance."""

    name: str = "engine"
    port: int
    context_tokens: int = 24_576
    kv_bytes: int = 2**28
    prefix_caching: bool = True
    transfer: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's kv_transfer_config; empty without a connector."""
    mooncake: Mapping[str, Any] = field(default_factory=dict)
    """The file that vLLM's MooncakeStoreConnector reads; empty with any other connector."""
    bootstrap_port: int = 0
    """Where a prefill instance says which engine it is; 0 without such a server."""
    transfer_timeout_s: float = 480.0
    """How long a transfer waits for its prompt, where decode waits for prefill."""
    times_as_long: float = 1.0
    """How much longer a step takes than of the model `tiny`."""
    log_period_s: float = 10.0
    """The period in which the log counts transfers."""
    seed: int = 0
    speed: float = SPEED
    """Durations are divided by it. With a low value the machine's own work is a small part."""
    fault: str = ""

    @property
    def blocks(self) -> int:
        return self.kv_bytes // (BLOCK_TOKENS * TOKEN_BYTES)

    @property
    def connector(self) -> str:
        """The class of vLLM's connector; empty without one."""
        return str(self.transfer.get("kv_connector", ""))

    @property
    def host_bytes(self) -> int:
        """Host memory to which KV is offloaded; 0 without it."""
        extra = self.transfer.get("kv_connector_extra_config") or {}
        return int(extra.get("cpu_bytes_to_use", 0))

    @property
    def lease_s(self) -> float:
        extra = self.transfer.get("kv_connector_extra_config") or {}
        return float(extra.get("kv_lease_duration", LEASE_S))

    @property
    def store_url(self) -> str:
        """URL of the simulated LMCache server; empty without one."""
        extra = self.transfer.get("kv_connector_extra_config") or {}
        host = str(extra.get("lmcache.mp.host", "")).replace("tcp://", "http://")
        return f"{host}:{extra.get('lmcache.mp.port')}" if host else ""


class Latency:
    """Seeded durations of steps and transfers."""

    def __init__(self, *, seed: int, speed: float = SPEED, times_as_long: float = 1.0) -> None:
        self._random = random.Random(seed)
        self._speed = speed
        self._times_as_long = times_as_long

    def step_s(self, batch: Iterable[tuple[int, int]]) -> float:
        """One engine step for (tokens to compute, tokens before them) of each sequence."""
        seconds = STEP_S - NEIGHBOUR_S
        for new, before in batch:
            seconds += NEIGHBOUR_S + new * TOKEN_S + new * (before + new / 2) * PAIR_S
        return self._drawn(seconds * self._times_as_long)

    def transfer_s(self, moved_bytes: float) -> float:
        """Loading KV into the instance."""
        return self._drawn(TRANSFER_S + moved_bytes / TRANSFER_BYTES_PER_S)

    def _drawn(self, seconds: float) -> float:
        return seconds * self._random.lognormvariate(0.0, SPREAD) / self._speed


class Instance:
    """The scheduler with its clock; it runs inside `alive`, a cleanup context of aiohttp."""

    _session: aiohttp.ClientSession
    _store: StoreClient | MasterClient | HostMemory
    peer: NixlPeer | MooncakePeer | None = None
    """What moves KV between instances, where these send it to each other."""

    def __init__(self, settings: InstanceSettings) -> None:
        self.settings = settings
        self.series = vllm_series(nixl=settings.connector == "NixlConnector")
        pool = BlockPool(settings.blocks, caching=settings.prefix_caching)
        self.scheduler = Scheduler(self.series, pool, connector=bool(settings.transfer))
        speed = settings.speed / (SLOWDOWN if settings.fault == "slow_instance" else 1.0)
        self._latency = Latency(
            seed=settings.seed ^ crc32(settings.name.encode()),
            speed=speed,
            times_as_long=settings.times_as_long,
        )
        self._requests = self._strikeable = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def alive(self, _app: web.Application) -> AsyncIterator[None]:
        """Run steps and keep connections to store and peers while the server runs."""
        seed = self.settings.name.encode() if self.settings.fault == "hash_seed_mismatch" else b""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as self._session:
            if mooncake := self.settings.mooncake:
                late = self.settings.fault == "late_store"
                url = f"http://{mooncake['master_server_address']}"
                self._store = MasterClient(self._session, url, self.series, late=late)
                await self._store.mount(self.settings.name, mooncake["global_segment_size"])
            elif host_bytes := self.settings.host_bytes:
                self._store = HostMemory(host_bytes, self.series)
            else:
                self._store = StoreClient(self._session, self.settings.store_url, key_seed=seed)
            self.peer = self._connect()
            working = [asyncio.create_task(self._work())]
            if isinstance(self.peer, MooncakePeer):
                working.append(asyncio.create_task(self.peer.log(self.settings.log_period_s)))
            yield
            for task in working:
                task.cancel()

    async def submit(self, asked: Asked, request_id: str) -> Sequence:
        """Accept a request."""
        sequence = Sequence(
            id=f"{'chatcmpl' if asked.chat else 'cmpl'}-{request_id or uuid4().hex}",
            prompt=asked.prompt,
            max_tokens=asked.max_tokens,
            arrived_s=monotonic(),
            hold=self.peer is not None and bool(asked.transfer.get("do_remote_decode")),
            transfer=asked.transfer,
        )
        self._requests += 1
        if self.settings.fault == "prefill_dead" and self._requests >= DIES_AT_REQUEST:
            print("injected fault prefill_dead: the instance exits", file=sys.stderr, flush=True)
            os._exit(1)
        if asked.max_tokens >= STRUCK_TOKENS:
            self._strikeable += 1
            sequence.number = self._strikeable
        await self._look_elsewhere(sequence)
        self.scheduler.waiting.append(sequence)
        self._wake.set()
        return sequence

    async def stored(self, sequence: Sequence) -> None:
        """Wait until the store has the prompt, so that the next request hits it.

        Mooncake's does not promise that; here it is late only as a fault, not at random.
        """
        if sequence.write is not None and self.settings.fault != "late_store":
            await sequence.write

    def end(self, sequence: Sequence) -> None:
        """Remove a request, ended or not."""
        self.scheduler.abort(sequence)
        self._wake.set()

    def preempt(self, sequence: Sequence) -> None:
        """Preempt a running request."""
        if sequence in self.scheduler.running:
            self.scheduler.preempt(sequence)
            self._wake.set()

    async def reset(self, *, external: bool) -> bool:
        """Empty the prefix cache, as /reset_prefix_cache does; False while blocks are in use.

        With `external` the connector's store is emptied too.
        """
        done = self.settings.fault != "reset_refused" and self.scheduler.pool.reset()
        return (not external or await self._store.reset()) and done

    async def _work(self) -> None:
        """Run engine steps forever."""
        clock_s = monotonic()
        while True:
            self._wake.clear()
            step = self.scheduler.schedule(monotonic())
            for sequence in step.loads:
                self._spawn(self._load(sequence))
            again, self.scheduler.preempted = self.scheduler.preempted, []
            for sequence in again:
                # A preempted request is looked up again, but nothing is loaded.
                self._spawn(self._store.lookup(sequence))
            if not step.batch:
                await self._wake.wait()
                clock_s = monotonic()
                continue
            saves = [
                self._save(sequence, before + new)
                for sequence, new, before in step.batch
                if self._store.saves(sequence, before, new)
            ]
            took_s = self._latency.step_s((new, before) for _, new, before in step.batch)
            clock_s = max(clock_s, monotonic() - CATCH_UP_S) + took_s
            await asyncio.sleep(max(0.0, clock_s - monotonic()))
            answered = self.scheduler.complete(step, monotonic())
            for save in saves:
                save()
            for sequence in answered:
                if self.peer and sequence.id in self.scheduler.held:
                    self.peer.prefilled(sequence)
                sequence.tokens.put_nowait(sequence.outputs[-1])

    async def _look_elsewhere(self, sequence: Sequence) -> None:
        """Find the part of the prompt that the store or a prefill instance has."""
        blind = self.settings.fault == "prefilled_again" and sequence.number > 0
        if self.peer is None:
            tokens = await self._store.lookup(sequence)
            sequence.offered = 0 if blind else tokens
        elif sequence.transfer.get("do_remote_prefill"):
            if blind:
                # Like vLLM without a load: the prefill instance is told and frees the blocks.
                self._spawn(self.peer.decline(sequence))
            else:
                self.peer.offer(sequence)

    async def _load(self, sequence: Sequence) -> None:
        """Load the offered prefix."""
        first = sequence.local // BLOCK_TOKENS
        moved = blocks_of(sequence.local + sequence.external) - first
        moved_bytes = moved * BLOCK_TOKENS * TOKEN_BYTES
        contents: list[bytes] | None
        final = b""
        if self.peer is not None:
            try:
                contents, final = await self.peer.pull(sequence, moved_bytes)
            except PullFailed as failure:
                if failure.ends_request:
                    self.scheduler.failed(sequence)
                else:
                    self.scheduler.lost(sequence)
                self._wake.set()
                return
            contents = contents[first:]
        else:
            contents = await self._store.load(sequence, range(first, first + moved))
            if contents is None:
                self.scheduler.lost(sequence)
                self._wake.set()
                return
            await asyncio.sleep(self._latency.transfer_s(moved_bytes))
        if self.settings.fault == "wrong_kv" and sequence.struck:
            contents = [chain(content, [1]) for content in contents]
            final = chain(final, [1]) if final else final
        self.scheduler.loaded(sequence, contents, final)
        self._wake.set()

    def _connect(self) -> NixlPeer | MooncakePeer | None:
        settings = self.settings
        side = Side(
            name=settings.name, port=settings.port, fault=settings.fault, session=self._session,
            scheduler=self.scheduler, transfer_s=self._latency.transfer_s, wake=self._wake.set,
        )  # fmt: skip
        if settings.connector == "NixlConnector":
            return NixlPeer(side, lease_s=settings.lease_s)
        if settings.connector == "MooncakeConnector":
            recomputes = settings.transfer.get("kv_load_failure_policy") == "recompute"
            return MooncakePeer(side, timeout_s=settings.transfer_timeout_s, recomputes=recomputes)
        return None

    def _save(self, sequence: Sequence, tokens: int) -> Callable[[], None]:
        """What stores a sequence's first `tokens` once its step is over."""
        pool, pinned = self.scheduler.pool, list(sequence.blocks)
        if not self._store.pins_blocks:
            pinned = []
        pool.take(pinned)

        async def save() -> None:
            try:
                await self._store.save(sequence, tokens)
            finally:
                pool.give_back(pinned)
                self._wake.set()

        def begin() -> None:
            sequence.write = self._spawn(save())

        return begin

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
