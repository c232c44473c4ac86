"""Puts a deployment into a declared cache state, and reads the counters that prove it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from math import isnan, nan
from operator import add
from typing import Any

from workbench.control import control_client
from workbench.errors import ResetRefusedError
from workbench.experiment.plan.plan import Pass
from workbench.load.drive.driver import drive_in_thread
from workbench.load.workload.arrivals import closed
from workbench.load.workload.workload import reference
from workbench.metrics import prometheus
from workbench.metrics.counters import (
    EngineCounters,
    NixlCounters,
    StoreCounters,
    TokenSources,
    block_tokens,
    engine_count,
    kv_capacity_tokens,
)
from workbench.serve.deployment import Deployment
from workbench.topology import Role

WARM_UP_TOKENS = 600
"""More than two chunks of the store and two blocks of the engine, to use the whole path."""
STORE_QUIET_S = 0.3
STORE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was emptied to make a state, and what could not be, as doubts."""

    engines_empty: bool = False
    store_empty: bool = False
    refused: str = ""
    """Why an instance kept its cache."""
    doubts: tuple[str, ...] = ()


async def make_state(deployment: Deployment, wanted: Pass) -> Made:
    """Reset what the state needs to be empty.

    A cold pass goes on if an engine refuses, since its salt makes its prompts unique. For any other
    state ResetRefusedError is raised.
    """
    doubts: list[str] = []
    refused = ""
    engines_empty = store_empty = False
    if wanted.state in ("cold", "store-warm", "offload-warm", "disk-warm"):
        if not await _store_is_quiet(deployment):
            doubts.append(f"The KV store was still writing when a {wanted.name} pass began.")
        try:
            engines_empty = await deployment.reset_engines()
        except ResetRefusedError as error:
            if wanted.state != "cold":
                raise
            refused = str(error)
        if not engines_empty:
            effect = (
                "only unique prompts keep it cold"
                if wanted.state == "cold"
                else "they may have served part of it"
            )
            doubts.append(
                f"Engine caches could not be reset before a {wanted.name} pass, so {effect}."
            )
    if wanted.state == "cold":
        store_empty = await deployment.reset_store()
    elif wanted.state == "disk-warm":
        await deployment.reset_store()  # its memory alone: what the disk holds stays
    return Made(
        engines_empty=engines_empty,
        store_empty=store_empty,
        refused=refused,
        doubts=tuple(doubts),
    )


async def warm_up(deployment: Deployment, *, vocab_tokens: int, salt: str, pairs: int) -> None:
    """Send a short prompt over every prefill-decode pair, so that no pass includes a handshake."""
    workload = reference(
        requests=pairs,
        prompt_tokens=WARM_UP_TOKENS,
        output_tokens=2,
        vocab_tokens=vocab_tokens,
        salt=salt,
    )
    for shift in (0, 1):
        await drive_in_thread(
            workload,
            closed(1),
            base_url=deployment.url,
            model=deployment.model,
            timeout_s=120.0,
            decode_shift=shift,
        )


async def _store_is_quiet(deployment: Deployment) -> bool:
    """Wait until the store has written what the engines gave it, which it does asynchronously.

    False if it still writes after 30 s; True without a store, or with one that has no counters.
    """
    if not deployment.store_urls:
        return True
    ends_s = time.monotonic() + STORE_TIMEOUT_S
    last: tuple[float, float] | None = None
    async with control_client() as client:
        while time.monotonic() < ends_s:
            each = [
                StoreCounters.of(
                    await prometheus.read(client, url, name), deployment.store.counters,
                    block_bytes=1,  # any unit shows whether it still writes
                )
                for name, url in deployment.store_urls.items()
            ]  # fmt: skip
            store = reduce(add, each)
            waiting = store.disk_sent_chunks > store.disk_chunks
            written = store.written_chunks, store.disk_chunks
            if isnan(store.written_chunks) or (written == last and not waiting):
                return True
            last = written
            await asyncio.sleep(STORE_QUIET_S)
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterReading:
    """The counters of every instance of a deployment and of its store at one moment."""

    deployment: Deployment
    engines: dict[str, prometheus.Counters]
    store: prometheus.Counters | None

    def since(self, before: CounterReading) -> Counted:
        """What was counted between `before` and this reading, added up by role."""
        sources: dict[Role, TokenSources] = {}
        requests: dict[Role, float] = {}
        preemptions: dict[Role, float] = {}
        doubts: list[str] = []
        changes = self._changes(before)
        for instance in self.deployment.instances:
            change, role = changes[instance.name], instance.role
            counted = EngineCounters.of(change)
            sources[role] = sources[role] + counted.sources if role in sources else counted.sources
            requests[role] = requests.get(role, 0.0) + counted.requests_finished
            preemptions[role] = preemptions.get(role, 0.0) + counted.preemptions
            doubts += change.doubts
            if (engines := engine_count(change)) > 1:
                doubts.append(
                    f"{instance.name} runs {engines} data-parallel engines with separate caches, so"
                    " a repeated prompt may miss."
                )
        if self.store is not None and before.store is not None:
            doubts += prometheus.difference(before.store, self.store).doubts
        return Counted(
            sources=sources, requests=requests, preemptions=preemptions, doubts=tuple(doubts)
        )

    def store_since(
        self, before: CounterReading, *, block_bytes: float = nan, held_blocks: float = nan
    ) -> StoreCounters | None:
        """What the store did after `before`, or those of all instances; None without a store.

        Where each instance has one of its own, of `held_blocks`, which was empty at `before`, what
        was written beyond them was evicted: no counter of vLLM says so.
        """
        store = self.deployment.store
        if store.private:
            changes = list(self._changes(before).values())
        elif self.store is not None and before.store is not None:
            changes = [prometheus.difference(before.store, self.store)]
        else:
            return None
        tokens = self.block_tokens if store.keeps_blocks else 1
        each = [
            StoreCounters.of(
                change, store.counters, block_tokens=tokens, block_bytes=block_bytes
            )
            for change in changes
        ]  # fmt: skip
        if store.private:
            each = [
                replace(one, evicted_chunks=max(0.0, one.written_chunks - held_blocks))
                for one in each
            ]
        return reduce(add, each)

    def transfers_since(
        self, before: CounterReading, series: Mapping[str, str]
    ) -> NixlCounters | None:
        """The KV that was pulled after `before`, and what failed; None without such counters."""
        return NixlCounters.of(self._changes(before).values(), series)

    def _changes(self, before: CounterReading) -> dict[str, prometheus.Counters]:
        return {
            name: prometheus.difference(before.engines[name], now)
            for name, now in self.engines.items()
        }

    @property
    def capacity_tokens(self) -> dict[str, float]:
        """Tokens that fit the KV cache of each instance; NaN if it does not report it."""
        return {name: kv_capacity_tokens(counters) for name, counters in self.engines.items()}

    @property
    def block_tokens(self) -> int:
        """The KV block size that the engines report, else vLLM's default."""
        sizes = map(block_tokens, self.engines.values())
        return next((int(size) for size in sizes if not isnan(size)), 16)

    def rows(self, **columns: Any) -> list[dict[str, Any]]:
        """Every series as a row of counters.parquet: instance, series, labels, value."""
        both = [*self.engines.values(), *([self.store] if self.store else [])]
        return [
            {
                **columns,
                "instance": counters.instance,
                "read_at_s": counters.read_at_s,
                "series": name,
                "labels": ",".join(f"{key}={value}" for key, value in labels),
                "value": value,
            }
            for counters in both
            for (name, labels), value in counters.values.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The change of all counters over one pass."""

    sources: dict[Role, TokenSources]
    requests: dict[Role, float]
    preemptions: dict[Role, float]
    doubts: tuple[str, ...] = ()

    def without_first_tokens(self) -> Counted:
        """The counts without the token that a proxy appends to each prompt for decode instances,
        the first of the response: one per request is taken from what they computed."""
        decode = self.sources.get("decode")
        if decode is None:
            return self
        sent = replace(decode, computed=decode.computed - self.requests["decode"])
        return replace(self, sources=self.sources | {"decode": sent})


async def read_counters(deployment: Deployment) -> CounterReading:
    """Read /metrics of every instance and of the store, at once."""
    async with (
        control_client(headers=deployment.headers) as client,
        control_client() as without_key,
    ):
        engines = await asyncio.gather(
            *(prometheus.read(client, i.url, i.name) for i in deployment.instances)
        )
        store = (
            await prometheus.read(without_key, deployment.store_url, "store")
            if deployment.store_url
            else None
        )
    return CounterReading(
        deployment=deployment, engines={c.instance: c for c in engines}, store=store
    )
