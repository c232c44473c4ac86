"""A simulated Mooncake master, and the client of vLLM's MooncakeStoreConnector in an engine.

The rules and counters are those of Mooncake 0.3.13 and vLLM 0.32. The blocks themselves are kept
here too; in reality they are in the memory that each instance lends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence as Tokens
from itertools import takewhile
from math import ceil
from time import monotonic
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from workbench.serve.simulated.exposition import Series
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, TOKEN_BYTES
from workbench.serve.simulated.scheduler import Sequence
from workbench.serve.simulated.store import BROKEN, json_response, page_response

BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES
DIES_AT_LOOKUP = 48
"""Engines look up before they compute and again before they store."""
WATERMARK, EVICTED_SHARE = 0.9, 0.05
"""Fill fraction above which the master evicts, and how much more than the excess."""
LEASE_S = 1.0
"""How long a block that was looked up or read cannot be evicted: 10 s, at a tenth of the time."""
DEAD_S = 0.43
"""How long one call waits for a master that is gone: 4.3 s, at a tenth of the time."""
CONNECT_S = 9.0
"""How long an instance waits for its master: 90 s, at a tenth of the time."""
LATE_S = 0.1

_BATCHES = ("exist_key", "get_replica_list", "put_start", "put_end")
_COUNTERS = (
    *(f"master_batch_{batch}_{what}_total" for batch in _BATCHES for what in ("requests", "items")),
    "master_put_start_alloc_failures_total", "master_remove_all_requests_total",
    "master_attempted_evictions_total", "master_successful_evictions_total",
    "master_evicted_key_count", "master_evicted_size_bytes",
    "mem_cache_hit_nums_", "mem_cache_hit_bytes_total", "file_cache_hit_nums_",
    "valid_get_nums_", "total_get_nums_",
)  # fmt: skip
_OPERATION = "vllm:mooncake_store_operation"


class Master:
    """Blocks by key, the least recently used first, and the master's counters."""

    def __init__(self, *, fault: str = "") -> None:
        self.series = Series()
        self.fault = fault
        self._blocks: OrderedDict[str, str] = OrderedDict()
        self._leased_until_s: dict[str, float] = {}
        self._segments: dict[str, int] = {}
        self._lookups = self._longest = 0
        for name in _COUNTERS:
            self.series.add(name, 0)

    @property
    def capacity(self) -> int:
        """Blocks that fit into what the instances lend."""
        return sum(size // BLOCK_BYTES for size in self._segments.values())

    def mount(self, instance: str, lent_bytes: int) -> None:
        """An instance lends the store memory."""
        self._segments[instance] = lent_bytes

    def exist(self, keys: Tokens[str]) -> list[bool] | None:
        """Which of these blocks are stored; None if the master dies instead of responding."""
        self._lookups += 1
        self._longest = max(self._longest, len(keys))
        if self.fault == "store_dead" and self._lookups >= DIES_AT_LOOKUP:
            return None
        self._batch("exist_key", len(keys))
        self._use(keys)
        return [key in self._blocks for key in keys]

    def get(self, keys: Tokens[str]) -> list[str | None]:
        """The blocks of these keys; None for one that is gone."""
        self._batch("get_replica_list", len(keys))
        found = [self._blocks.get(key) for key in keys]
        hits = len(keys) - found.count(None)
        self._use(keys)
        for name, value in (
            ("total_get_nums_", len(keys)), ("valid_get_nums_", hits),
            ("mem_cache_hit_nums_", hits), ("mem_cache_hit_bytes_total", hits * BLOCK_BYTES),
        ):  # fmt: skip
            self.series.add(name, value)
        return found

    def put(self, blocks: Mapping[str, str]) -> int:
        """Store blocks in order; returns how many fitted."""
        self._batch("put_start", len(blocks))
        fit = min(len(blocks), self.capacity - len(self._blocks))
        stored = dict(list(blocks.items())[: max(0, fit)])
        self.series.add("master_put_start_alloc_failures_total", len(blocks) - len(stored))
        if stored:
            self._batch("put_end", len(stored))
        self._blocks |= stored
        used = len(self._blocks) / max(1, self.capacity)
        if used > WATERMARK:
            share = max(EVICTED_SHARE, used - WATERMARK + EVICTED_SHARE)
            self._evict(ceil(len(self._blocks) * share))
        if self.fault == "eviction":
            self._evict(len(self._blocks) - self._longest, leased=True)
        return len(stored)

    def remove_all(self) -> int:
        """Remove all blocks; returns how many."""
        self.series.add("master_remove_all_requests_total", 1)
        removed = 0 if self.fault == "leased_blocks" else len(self._blocks)
        if removed:
            self._blocks.clear()
            self._leased_until_s.clear()
        return removed

    def page(self) -> str:
        """The page of /metrics."""
        for name, value in (
            ("master_key_count", len(self._blocks)), ("mem_cache_nums_", len(self._blocks)),
            ("master_allocated_bytes", len(self._blocks) * BLOCK_BYTES),
            ("master_total_capacity_bytes", sum(self._segments.values())),
            ("master_active_clients", len(self._segments)),
        ):  # fmt: skip
            self.series.gauge(name, value)
        return self.series.page()

    def _use(self, keys: Tokens[str]) -> None:
        for key in keys:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                self._leased_until_s[key] = monotonic() + LEASE_S

    def _evict(self, count: int, *, leased: bool = False) -> None:
        """Evict this many blocks, or all that are not leased."""
        now_s = monotonic()
        free = [k for k in self._blocks if leased or self._leased_until_s.get(k, 0.0) <= now_s]
        gone = free[: max(0, count)]
        for key in gone:
            del self._blocks[key]
            self._leased_until_s.pop(key, None)
        for name, value in (
            ("attempted_evictions_total", count > 0), ("successful_evictions_total", bool(gone)),
            ("evicted_key_count", len(gone)), ("evicted_size_bytes", len(gone) * BLOCK_BYTES),
        ):  # fmt: skip
            self.series.add(f"master_{name}", value)

    def _batch(self, name: str, items: int) -> None:
        self.series.add(f"master_batch_{name}_requests_total", 1)
        self.series.add(f"master_batch_{name}_items_total", items)


def rpc_app(master: Master) -> web.Application:
    """The server for engines."""

    def end(fault: str) -> None:
        print(f"injected fault {fault}: the master exits", file=sys.stderr, flush=True)
        os._exit(1)

    async def call(request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        match request.match_info["what"]:
            case "mount":
                if master.fault == "store_dead_at_start":
                    end(master.fault)
                master.mount(body["instance"], body["bytes"])
                answer: Any = None
            case "exist":
                answer = master.exist(body)
                if answer is None:
                    end(master.fault)
            case "get":
                answer = master.get(body)
            case "put":
                answer = master.put(body)
            case _:
                answer = master.remove_all()
        return json_response(answer)

    app = web.Application(client_max_size=2**26)
    app.add_routes([web.post("/{what:mount|exist|get|put|remove_all}", call)])
    return app


def http_app(master: Master) -> web.Application:
    """The server for the workbench."""

    async def health(_: web.Request) -> web.Response:
        return json_response({"status": "ok", "service_ready": True})

    async def metrics(_: web.Request) -> web.Response:
        return page_response(master.page())

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/metrics", metrics)])
    return app


class MasterClient:
    """The master's client in an engine, with the counters that vLLM has for it."""

    pins_blocks = True

    def __init__(
        self, session: aiohttp.ClientSession, url: str, series: Series, *, late: bool
    ) -> None:
        self._session = session
        self._url = url
        self._series = series
        self._late = late
        self._saving = asyncio.Lock()
        self._saved: dict[str, int] = {}

    async def mount(self, instance: str, lent_bytes: int) -> None:
        """Lend the store memory. Ends the process if there is no master, as vLLM does."""
        ends_s = monotonic() + CONNECT_S
        while await self._call("mount", {"instance": instance, "bytes": lent_bytes}, {}) == {}:
            if monotonic() > ends_s:
                sys.exit("Initialize MooncakeDistributedStore failed.")
            await asyncio.sleep(0.1)

    async def lookup(self, sequence: Sequence) -> int:
        """Tokens of the prompt that can be loaded: never all of it."""
        keys = _keys(sequence.hashes[: sequence.length // BLOCK_TOKENS])
        if not keys:
            return 0
        exists = await self._operate("lookup_exists", "exist", keys, len(keys), [])
        found = len(list(takewhile(bool, exists)))
        return min(found, (sequence.length - 1) // BLOCK_TOKENS) * BLOCK_TOKENS

    async def load(self, sequence: Sequence, blocks: range) -> list[bytes] | None:
        """The contents of these blocks of a prompt that was found; None if they are gone."""
        keys = _keys(sequence.hashes[blocks.start : blocks.stop])
        found = await self._operate("load_get", "get", keys, len(keys), [], moves=True)
        return None if not found or None in found else [bytes.fromhex(block) for block in found]

    def saves(self, sequence: Sequence, before: int, new: int) -> bool:
        """Whether blocks are stored after a step that computes `new` tokens: in each prefill step
        that fills one, with those before it that this request has not stored yet."""
        full = (before + new) // BLOCK_TOKENS
        return before < len(sequence.prompt) and full > self._saved.get(sequence.id, 0)

    async def save(self, sequence: Sequence, tokens: int) -> None:
        """Store the whole blocks among the first `tokens`, one request after the other."""
        if self._late:
            await asyncio.sleep(LATE_S)
        async with self._saving:
            span = slice(self._saved.get(sequence.id, 0), tokens // BLOCK_TOKENS)
            keys = _keys(sequence.hashes[span])
            exists = await self._operate("save_exists", "exist", keys, len(keys), [])
            contents = _keys(sequence.contents[span])
            known = {key for key, there in zip(keys, exists, strict=False) if there}
            missing = {k: c for k, c in zip(keys, contents, strict=True) if k not in known}
            stored = len(missing)
            if missing:
                put = await self._operate("save_put", "put", missing, stored, 0, moves=True)
                stored = put
            if stored == len(missing):
                self._saved[sequence.id] = span.stop
            if tokens >= len(sequence.prompt):
                self._saved.pop(sequence.id, None)

    async def reset(self) -> bool:
        """Empty the whole store."""
        async with self._saving:
            return bool(await self._call("remove_all", None, -1) >= 0)

    async def _operate(
        self,
        operation: str,
        what: str,
        body: Any,
        keys: int,
        otherwise: Any,
        *,
        moves: bool = False,
    ) -> Any:
        """One call, counted as vLLM counts it: lookups are "ok" even without a master."""
        began_s = monotonic()
        answer = await self._call(what, body, otherwise)
        done = answer if isinstance(answer, int) else keys - answer.count(None) if answer else 0
        failed = keys - done if moves else 0
        labels = {"operation": operation, "status": "partial_failure" if failed else "ok"}
        add = self._series.add
        add(f"{_OPERATION}_total", 1, **labels)
        add(f"{_OPERATION}_keys_total", keys, **labels)
        add(f"{_OPERATION}_bytes_total", keys * BLOCK_BYTES if moves else 0, **labels)
        add(f"{_OPERATION}_failed_keys_total", failed, **labels)
        self._series.observe(f"{_OPERATION}_time_seconds", monotonic() - began_s, **labels)
        return answer

    async def _call(self, what: str, body: Any, otherwise: Any) -> Any:
        """The master's answer, or `otherwise` after a while if there is no master."""
        try:
            async with self._session.post(f"{self._url}/{what}", data=orjson.dumps(body)) as said:
                return orjson.loads(await said.read())
        except BROKEN:
            await asyncio.sleep(0.0 if what == "mount" else DEAD_S)
            return otherwise


def _keys(hashes: Tokens[bytes]) -> list[str]:
    return [one.hex() for one in hashes]
