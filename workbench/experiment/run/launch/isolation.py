"""Puts a deployment into a declared cache state, and reads the counters that prove it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from math import isnan, nan
from operator import add
from typing import Any

from workbench.control import control_client
from workbench.errors import DeploymentError, ResetRefusedError
from workbench.experiment.plan.arm import Pass
from workbench.load.drive.driver import drive_in_thread
from workbench.load.workload.arrivals import closed
from workbench.load.workload.workload import reference
from workbench.metrics import prometheus
from workbench.metrics.counters import (
    DraftCounters,
    EngineCounters,
    StoreCounters,
    TokenSources,
    TransferCounters,
    block_tokens,
    engine_count,
    kv_capacity_tokens,
)
from workbench.metrics.passes import TierCounts
from workbench.serve.connectors.tiers import Held, Tier
from workbench.serve.deployed import Deployment
from workbench.topology import Role

WARM_UP_TOKENS = 600
"""More than two chunks of the store and two blocks of the engine, to use the whole path."""
STORE_QUIET_S = 0.3
STORE_TIMEOUT_S = 30.0
STORE_RESET_S = 15.0
"""Longer than Mooncake's lease (10 s), during which blocks that were read may outlive a reset."""
LOG_PERIODS = 3
"""How many periods of vLLM's log to wait for the last transfers of a pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was emptied to make a state, and what could not be, as doubts."""

    engines_empty: bool = False
    store_empty: bool = False
    emptied: frozenset[str] = frozenset()
    """Names of the store's tiers below its memory."""
    refused: str = ""
    """Why an instance or the store kept what it had."""
    doubts: tuple[str, ...] = ()


async def make_state(deployment: Deployment, wanted: Pass) -> Made:
    """Reset what the state needs to be empty.

    A cold pass goes on if an engine or the store refuses, since its salt makes its prompts unique.
    For any other state ResetRefusedError is raised.
    """
    doubts: list[str] = []
    refused = ""
    engines_empty = store_empty = False
    if wanted.state in ("cold", "store-warm", "offload-warm", "disk-warm", "remote-warm"):
        if not await store_is_quiet(deployment):
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
    emptied: tuple[Tier, ...] = ()
    if wanted.state == "cold":
        try:
            store_empty = await _empty_store(deployment)
        except ResetRefusedError as error:
            refused = refused or str(error)
        emptied = deployment.tiers
    elif wanted.state in ("disk-warm", "remote-warm"):
        await deployment.reset_store()  # its memory alone: what the tiers below hold stays
        if wanted.state == "remote-warm":
            emptied = tuple(tier for tier in deployment.tiers if tier.state != "remote-warm")
    await deployment.reset_tiers(emptied)
    return Made(
        engines_empty=engines_empty,
        store_empty=store_empty,
        emptied=frozenset(tier.name for tier in emptied),
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
            headers=deployment.headers,
            timeout_s=120.0,
            decode_shift=shift,
        )


async def _empty_store(deployment: Deployment) -> bool:
    """Reset the store until its own gauge shows that it is empty; False if there is none.

    Raises ResetRefusedError if it still holds something after 15 s. Host memory of the instances
    has no such gauge.
    """
    if not deployment.store.held:
        return await deployment.reset_store()
    ends_s = time.monotonic() + STORE_RESET_S
    async with control_client() as client:
        while await deployment.reset_store():
            page = await prometheus.read(client, deployment.store_url, "store")
            left = page.sum(deployment.store.held)
            if not left > 0:
                return True
            if time.monotonic() > ends_s:
                raise ResetRefusedError(
                    f"the KV store confirmed its reset, but it is not empty"
                    f" ({deployment.store.held} {left:,.0f})"
                )
            await asyncio.sleep(STORE_QUIET_S)
    return False


async def store_is_quiet(deployment: Deployment) -> bool:
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
            waiting = store.tier_sent_tasks > store.tier_done_tasks  # failed ones are done too
            written = store.written_chunks, store.tier_done_tasks
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
    logged: TransferCounters | None = None
    """KV transfers that vLLM counts in its log."""
    held: Mapping[str, Held] = field(default_factory=dict)
    """By name of a tier of the store: what it holds at its own end."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """By name: why a tier does not say what it holds."""

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

    def tiers_since(
        self, begun: CounterReading, emptied: Mapping[str, CounterReading]
    ) -> tuple[TierCounts, ...]:
        """The tiers of the store: loads after `begun`, all else after each was emptied."""
        return tuple(self._tier_since(tier, begun, emptied[tier.name])
                     for tier in self.deployment.tiers)  # fmt: skip

    def _tier_since(self, tier: Tier, begun: CounterReading, emptied: CounterReading) -> TierCounts:
        store, tiers = self.store_since(emptied), len(self.deployment.tiers)
        named = TierCounts(
            name=tier.name, shown=tier.shown, state=tier.state,
            problem=self.problems.get(tier.name, ""),
        )  # fmt: skip
        if store is None or self.store is None or begun.store is None:
            return named
        series = self.deployment.store.tier_loads
        change = prometheus.difference(begun.store, self.store)
        loads = change.sum(series, l2_name=tier.l2_name)
        unheld = Held(chunks=nan, evicted=nan)
        now, then = self.held.get(tier.name, unheld), emptied.held.get(tier.name, unheld)
        return replace(
            named,
            # A series is exported from its first addition on.
            loads=0.0 if isnan(loads) and not change.doubts else loads,
            # The store writes each chunk to each tier.
            sent=store.tier_sent_chunks / tiers,
            written=store.tier_chunks / tiers,
            held=now.chunks - then.chunks,
            evicted=now.evicted - then.evicted,
        )

    def transfers_since(
        self, before: CounterReading, series: Mapping[str, str]
    ) -> TransferCounters | None:
        """The KV that was pulled after `before`, and what failed; None without such counters."""
        if self.logged is not None:
            return self.logged if before.logged is None else self.logged.since(before.logged)
        return TransferCounters.of(self._changes(before).values(), series)

    def read_bytes_since(self, before: CounterReading) -> float | None:
        """Bytes that engines read from the store after `before`, as vLLM's connector counts them.

        None without such a counter; a series is exported from its first addition on.
        """
        name = self.deployment.store.read_bytes
        changes = self._changes(before).values()
        if not any(series == name for change in changes for series, _ in change.values):
            return None
        read = [change.sum(name, operation="load_get") for change in changes]
        return sum(0.0 if isnan(each) else each for each in read)

    def drafts_since(self, before: CounterReading) -> DraftCounters | None:
        """Draft tokens after `before`; None without speculative decoding."""
        return DraftCounters.of(self._changes(before).values())

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
        ] + [
            {
                **columns,
                "instance": tier,
                "read_at_s": self.read_at_s,
                "series": f"tier_{what}_chunks",
                "labels": "",
                "value": value,
            }
            for tier, held in self.held.items()
            for what, value in (("held", held.chunks), ("evicted", held.evicted))
        ]

    @property
    def read_at_s(self) -> float:
        return self.store.read_at_s if self.store else nan


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
    held: dict[str, Held] = {}
    problems: dict[str, str] = {}
    for tier in deployment.tiers:
        try:
            held[tier.name] = await tier.held()
        except DeploymentError as error:
            problems[tier.name] = str(error).partition(";")[0]
    return CounterReading(
        deployment=deployment,
        engines={c.instance: c for c in engines},
        store=store,
        logged=await _logged_transfers(deployment, {c.instance: c for c in engines}),
        held=held,
        problems=problems,
    )


async def _logged_transfers(
    deployment: Deployment, engines: Mapping[str, prometheus.Counters]
) -> TransferCounters | None:
    """KV transfers in the logs of instances, when vLLM has logged those that have ended."""
    period_s = deployment.plan.connector.transfer_log_s if deployment.plan else 0.0
    if not period_s:
        return None
    names = [instance.name for instance in deployment.instances]
    logs = [process.log for process in deployment.processes if process.spec.name in names]
    prefilled = sum(
        EngineCounters.of(engines[instance.name]).requests_finished
        for instance in deployment.instances
        if instance.role == "prefill"
    )
    ends_s = time.monotonic() + LOG_PERIODS * period_s
    while True:
        logged = TransferCounters.logged(logs)
        # A transfer that failed, e.g. that waited too long, expires in prefill as well.
        seen = logged.transfers + max(logged.failed, logged.expired) if logged else 0.0
        # Prompts that are ready together are sent as one transfer, so some may never be counted.
        if seen >= prefilled or time.monotonic() > ends_s:
            return logged
        await asyncio.sleep(period_s / 5)
