"""A pretend LMCache server: whole chunks, LRU, and the counters of LMCache 0.5.6.

Engines ask it over two private endpoints, POST /lookup and POST /store; the HTTP port has what
the real one has and the workbench uses: /healthcheck, /status, /metrics and /cache/clear.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Sequence

import orjson
from aiohttp import web

from workbench.serve.simulated.blocks import BLOCK_TOKENS
from workbench.serve.simulated.series import CONTENT_TYPE, Series

__all__ = ["BLOCKS_IN_CHUNK", "CHUNK_TOKENS", "ChunkStore", "http_app", "private_app"]

CHUNK_TOKENS = 256
BLOCKS_IN_CHUNK = CHUNK_TOKENS // BLOCK_TOKENS
DIES_AT_LOOKUP = 12
WATERMARK = 0.8
"""Share of the capacity from which on LMCache evicts, and the share that it then evicts."""
EVICTED_SHARE = 0.2

_P = "lmcache_mp_"
_MODEL = {"model_name": "simulated", "cache_salt": ""}
_L1 = {"l1_tag": "_default"}


class ChunkStore:
    """Chunks by key, the least recently used first, and what is counted about them.

    A chunk's value says what lies in its blocks (see `blocks`).
    """

    def __init__(self, capacity: int, *, chunk_bytes: float, fault: str = "") -> None:
        self.series = Series()
        self.capacity = capacity
        self.chunk_bytes = chunk_bytes
        self.fault = fault
        self._chunks: OrderedDict[str, list[str]] = OrderedDict()
        self._lookups = self._longest = 0

    def lookup(self, keys: Sequence[str]) -> list[list[str]] | None:
        """The chunks of the longest prefix; None when the store dies instead of answering.

        Counted whatever the engine's own cache has, and read whether it needs them or not.
        """
        self._lookups += 1
        self._longest = max(self._longest, len(keys))
        if self.fault == "store_dead" and self._lookups >= DIES_AT_LOOKUP:
            return None
        add = self.series.add
        add(f"{_P}lookups_requests_total", 1, **_MODEL)
        if not keys:
            reason = "empty_chunk_hashes"
            add(f"{_P}lookup_early_exit_requests_total", 1, reason=reason, **_MODEL)
            return []
        found: list[list[str]] = []
        for key in keys:
            if key not in self._chunks:
                break
            self._chunks.move_to_end(key)
            found.append(self._chunks[key])
        tokens = len(found) * CHUNK_TOKENS
        add(f"{_P}lookup_requested_tokens_total", len(keys) * CHUNK_TOKENS, **_MODEL)
        add(f"{_P}lookup_hit_tokens_total", tokens, **_MODEL)
        add(f"{_P}lookup_hit_l1_tokens_total", tokens, **_MODEL)
        add(f"{_P}lookup_hit_l2_tokens_total", 0, **_MODEL)
        if found:
            add(f"{_P}lookup_hit_l1_keys_total", len(found), **_MODEL)
            add(f"{_P}l1_read_chunks_total", len(found), **_L1)
        return found

    def write(self, chunks: dict[str, list[str]]) -> None:
        """Keep chunks; one that is there already is not written again."""
        new = {key: value for key, value in chunks.items() if key not in self._chunks}
        self._chunks |= new
        if new:
            self.series.add(f"{_P}l1_write_chunks_total", len(new), **_L1)
        if len(self._chunks) > WATERMARK * self.capacity:
            self._evict(int(EVICTED_SHARE * len(self._chunks)))
        if self.fault == "eviction":
            self._evict(len(self._chunks) - self._longest)

    def preload(self, chunks: dict[str, list[str]]) -> None:
        """Have chunks without having been given them: nothing is counted."""
        self._chunks |= chunks

    def clear(self) -> None:
        """Forget all chunks. LMCache counts them as evicted."""
        self._evict(len(self._chunks))

    @property
    def gauges(self) -> dict[str, float]:
        used = len(self._chunks) * self.chunk_bytes
        share = len(self._chunks) / self.capacity
        return {f"{_P}l1_memory_usage_bytes": used, f"{_P}l1_usage_ratio": share}

    @property
    def chunks(self) -> int:
        return len(self._chunks)

    def _evict(self, count: int) -> None:
        for _ in range(count):
            self._chunks.popitem(last=False)
        if count > 0:
            self.series.add(f"{_P}l1_evicted_chunks_total", count, **_L1)


def private_app(store: ChunkStore) -> web.Application:
    """What engines talk to."""

    async def lookup(request: web.Request) -> web.Response:
        asked = orjson.loads(await request.read())
        if store.fault == "store_left_warm":
            # What an earlier run has left there: every chunk that is asked for.
            store.preload(asked["chunks"])
        found = store.lookup(list(asked["chunks"]))
        if found is None:
            print("simulated fault store_dead: the store ends here", file=sys.stderr, flush=True)
            os._exit(1)
        return _json({"found": found})

    async def write(request: web.Request) -> web.Response:
        store.write(orjson.loads(await request.read())["chunks"])
        return _json({})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/lookup", lookup)
    app.router.add_post("/store", write)
    return app


def http_app(store: ChunkStore) -> web.Application:
    """What the workbench talks to."""

    async def healthcheck(_: web.Request) -> web.Response:
        return _json({"status": "healthy"})

    async def status(_: web.Request) -> web.Response:
        used = int(store.chunks * store.chunk_bytes)
        l1 = {"total_object_count": store.chunks, "memory_used_bytes": used}
        return _json({"is_healthy": True, "chunk_size": CHUNK_TOKENS, "l1_manager": l1})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=store.series.page(store.gauges, {}).encode(),
            headers={"Content-Type": CONTENT_TYPE},
        )

    async def clear(_: web.Request) -> web.Response:
        if store.fault != "store_left_warm":
            store.clear()
        return _json({"status": "ok", "cleared": {"tier": "l1"}})

    app = web.Application()
    app.router.add_get("/healthcheck", healthcheck)
    app.router.add_get("/status", status)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/cache/clear", clear)
    return app


def _json(value: object) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")
