"""A simulated LMCache server: whole chunks, LRU, and the counters of LMCache 0.5.6.

Engines use `StoreClient`; its HTTP port has the endpoints that the workbench uses.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from time import monotonic
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from workbench.serve.simulated.exposition import CONTENT_TYPE, Series
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, TOKEN_BYTES, chain
from workbench.serve.simulated.scheduler import Sequence

CHUNK_TOKENS = 256
CHUNK_BYTES = CHUNK_TOKENS * TOKEN_BYTES
BLOCKS_IN_CHUNK = CHUNK_TOKENS // BLOCK_TOKENS
DIES_AT_LOOKUP = 12
WATERMARK = 0.8
"""Fill fraction above which LMCache evicts, and the fraction that it then evicts."""
EVICTED_SHARE = 0.2
TIMEOUT_S = 1.5
"""Timeout of a store or peer; after it the engine computes the prompt."""
DEGRADED_S = 1.0
"""Pause after a store timed out, like LMCache's heartbeat."""
BROKEN = (aiohttp.ClientError, OSError, TimeoutError)

_P = "lmcache_mp_"
_MODEL = {"model_name": "simulated", "cache_salt": ""}
_L1 = {"l1_tag": "_default"}

Chunks = dict[str, list[str]]
"""By key, the block contents of each chunk (see `kv_blocks`), in hexadecimal."""


class ChunkStore:
    """Chunks by key, the least recently used first, and their counters."""

    def __init__(self, capacity: int, *, fault: str = "") -> None:
        self.series = Series()
        self.capacity = max(1, capacity)
        self.fault = fault
        self._chunks: OrderedDict[str, list[str]] = OrderedDict()
        self._lookups = self._longest = 0

    def lookup(self, asked: Chunks) -> list[list[str]] | None:
        """The chunks of the longest prefix; None if the store dies instead of responding.

        Counted and read whether or not the engine's own cache already has them.
        """
        self._lookups += 1
        self._longest = max(self._longest, len(asked))
        if self.fault == "store_left_warm":
            self._chunks |= asked  # as if an earlier run had stored all chunks
        if self.fault == "store_dead" and self._lookups >= DIES_AT_LOOKUP:
            return None
        self._count("lookups_requests", 1, _MODEL)
        if not asked:
            self._count("lookup_early_exit_requests", 1, {"reason": "empty_chunk_hashes"} | _MODEL)
            return []
        found: list[list[str]] = []
        for key in asked:
            if key not in self._chunks:
                break
            self._chunks.move_to_end(key)
            found.append(self._chunks[key])
        tokens = len(found) * CHUNK_TOKENS
        self._count("lookup_requested_tokens", len(asked) * CHUNK_TOKENS, _MODEL)
        self._count("lookup_hit_tokens", tokens, _MODEL)
        self._count("lookup_hit_l1_tokens", tokens, _MODEL)
        self._count("lookup_hit_l2_tokens", 0, _MODEL)
        if found:
            self._count("lookup_hit_l1_keys", len(found), _MODEL)
            self._count("l1_read_chunks", len(found), _L1)
        return found

    def write(self, chunks: Chunks) -> None:
        """Store chunks; one that is already stored is not written again."""
        new = {key: value for key, value in chunks.items() if key not in self._chunks}
        self._chunks |= new
        if new:
            self._count("l1_write_chunks", len(new), _L1)
        if len(self._chunks) > WATERMARK * self.capacity:
            self._evict(int(EVICTED_SHARE * len(self._chunks)))
        if self.fault == "eviction":
            self._evict(len(self._chunks) - self._longest)

    def clear(self) -> None:
        """Remove all chunks. LMCache counts them as evicted."""
        if self.fault != "store_left_warm":
            self._evict(len(self._chunks))

    def status(self) -> dict[str, Any]:
        """The body of /status."""
        count = len(self._chunks)
        used = {"total_object_count": count, "memory_used_bytes": count * CHUNK_BYTES}
        return {"is_healthy": True, "chunk_size": CHUNK_TOKENS, "l1_manager": used}

    def page(self) -> str:
        """The page of /metrics."""
        count = len(self._chunks)
        self.series.gauge(f"{_P}l1_memory_usage_bytes", count * CHUNK_BYTES)
        self.series.gauge(f"{_P}l1_usage_ratio", count / self.capacity)
        return self.series.page()

    def _evict(self, count: int) -> None:
        for _ in range(count):
            self._chunks.popitem(last=False)
        if count > 0:
            self._count("l1_evicted_chunks", count, _L1)

    def _count(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        self.series.add(f"{_P}{name}_total", value, **labels)


def private_app(store: ChunkStore) -> web.Application:
    """The server for engines."""

    async def lookup(request: web.Request) -> web.Response:
        found = store.lookup(orjson.loads(await request.read())["chunks"])
        if found is None:
            print("injected fault store_dead: the store exits", file=sys.stderr, flush=True)
            os._exit(1)
        return json_response({"found": found})

    async def write(request: web.Request) -> web.Response:
        store.write(orjson.loads(await request.read())["chunks"])
        return json_response({})

    app = web.Application(client_max_size=2**26)
    app.add_routes([web.post("/lookup", lookup), web.post("/store", write)])
    return app


def http_app(store: ChunkStore) -> web.Application:
    """The server for the workbench."""

    async def healthcheck(_: web.Request) -> web.Response:
        return json_response({"status": "healthy"})

    async def status(_: web.Request) -> web.Response:
        return json_response(store.status())

    async def metrics(_: web.Request) -> web.Response:
        return page_response(store.page())

    async def clear(_: web.Request) -> web.Response:
        store.clear()
        return json_response({"status": "ok", "cleared": {"tier": "l1"}})

    app = web.Application()
    app.add_routes([
        web.get("/healthcheck", healthcheck), web.get("/status", status),
        web.get("/metrics", metrics), web.post("/cache/clear", clear),
    ])  # fmt: skip
    return app


class StoreClient:
    """The store's client in an engine; without a URL every lookup misses."""

    pins_blocks = False

    def __init__(self, session: aiohttp.ClientSession, url: str, *, key_seed: bytes = b"") -> None:
        self._session = session
        self._url = url
        self._key_seed = key_seed
        self._degraded_until_s = 0.0

    async def lookup(self, sequence: Sequence) -> int:
        """Tokens of the prompt that can be loaded: its longest prefix of chunks in the store."""
        answer = await self._ask("lookup", self._chunks(sequence, sequence.hashes))
        found = [bytes.fromhex(block) for chunk in answer.get("found", []) for block in chunk]
        sequence.found = found
        # The last token is always computed, for its logits.
        return min(len(found) * BLOCK_TOKENS, len(sequence.prompt) - 1)

    async def load(self, sequence: Sequence, blocks: range) -> list[bytes] | None:
        """The contents of these blocks of a prompt that was found; None if they are gone."""
        return sequence.found[blocks.start : blocks.stop]

    def saves(self, sequence: Sequence, before: int, new: int) -> bool:
        """Whether blocks are stored after a step that computes `new` tokens."""
        return bool(self._url) and not sequence.outputs and before + new == len(sequence.prompt)

    async def save(self, sequence: Sequence, tokens: int) -> None:
        """Store the prompt's whole chunks after those that were hits."""
        chunks = list(self._chunks(sequence, sequence.contents).items())
        if missing := dict(chunks[len(sequence.found) // BLOCKS_IN_CHUNK :]):
            await self._ask("store", missing)

    async def reset(self) -> bool:
        """LMCache's connector leaves the store as it is."""
        return bool(self._url)

    def _chunks(self, sequence: Sequence, contents: list[bytes]) -> Chunks:
        """Key and contents of each whole chunk of the prompt, in order."""
        chunks = {}
        for end in range(CHUNK_TOKENS, len(sequence.prompt) + 1, CHUNK_TOKENS):
            last = end // BLOCK_TOKENS
            key = sequence.hashes[last - 1]
            if self._key_seed:
                key = chain(self._key_seed + key, [])
            blocks = contents[last - BLOCKS_IN_CHUNK : last]
            chunks[key.hex()] = [block.hex() for block in blocks]
        return chunks

    async def _ask(self, what: str, chunks: Chunks) -> dict[str, Any]:
        if not self._url or monotonic() < self._degraded_until_s:
            return {}
        body = orjson.dumps({"chunks": chunks})
        try:
            async with self._session.post(f"{self._url}/{what}", data=body) as response:
                said: dict[str, Any] = orjson.loads(await response.read())
                return said
        except BROKEN:
            self._degraded_until_s = monotonic() + DEGRADED_S
            return {}


def json_response(value: object, *, status: int = 200) -> web.Response:
    """A JSON response."""
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def page_response(page: str) -> web.Response:
    """A response with a metrics page."""
    return web.Response(body=page.encode(), headers={"Content-Type": CONTENT_TYPE})
