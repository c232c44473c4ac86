"""A tier on a Redis or Valkey server (LMCache's adapter `resp`), started here or the user's."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

from workbench.errors import DeploymentError, LaunchError
from workbench.serve.connectors.tiers.tier import Held, Tier
from workbench.serve.processes.launcher import ProcessSpec

if TYPE_CHECKING:
    from redis.asyncio import Redis

_PROGRAMS = ("redis-server", "valkey-server")
_TIMEOUT_S = 5.0
_WORKERS = 2
_CREDENTIALS = "LMCACHE_RESP_"
_CHUNK_KEY = re.compile(rb".+@[0-9a-f]{8}@[0-9a-f]+@[0-9a-f]{16,}(@.+)?", re.DOTALL)
"""LMCache's name of a chunk: model, rank, group, hash. Its keys have no prefix of their own."""
_DELETE_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTier(Tier):
    """A Redis or Valkey server: one that is started here, or the user's own.

    LMCache writes to database 0, with keys that have no prefix. So a user's database must be empty
    at the start, and only keys with the form of LMCache's are deleted.
    """

    host: str
    port: int
    own: bool

    @property
    def address(self) -> str:
        return f"redis://{self.host}:{self.port}"

    async def check(self) -> None:
        if self.own:
            if not _program():
                raise LaunchError(
                    "store_tiers=redis needs redis-server or valkey-server, not found on PATH. Run"
                    " apt-get install redis-server, or name a running server (example: -p"
                    " store_tiers memory,redis://127.0.0.1:6379)"
                )
            return
        async with self._client(LaunchError) as client:
            keys = int(await client.dbsize())
        if keys:
            raise LaunchError(
                f"store_tiers needs an empty Redis database 0, since LMCache's keys have no prefix,"
                f" got {keys:,} keys at {self.address}. Empty it (redis-cli flushdb), or let the"
                " workbench start a server (example: -p store_tiers memory,redis)"
            )

    async def held(self) -> Held:
        async with self._client() as client:
            said = await client.info("stats")
            keys = [key async for key in _chunk_keys(client)]
        return Held(chunks=float(len(keys)), evicted=float(said.get("evicted_keys", nan)))

    async def empty(self) -> None:
        async with self._client() as client:
            keys = [key async for key in _chunk_keys(client)]
            for first in range(0, len(keys), _DELETE_AT_ONCE):
                await client.delete(*keys[first : first + _DELETE_AT_ONCE])

    def _credential(self, name: str) -> str | None:
        """What LMCache sends too; a server that is started here has no password."""
        return None if self.own else os.environ.get(f"{_CREDENTIALS}{name}") or None

    @asynccontextmanager
    async def _client(
        self, failure: type[DeploymentError | LaunchError] = DeploymentError
    ) -> AsyncIterator[Redis]:
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        client = Redis(
            host=self.host, port=self.port,
            username=self._credential("USERNAME"), password=self._credential("PASSWORD"),
            socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S,
        )  # fmt: skip
        try:
            yield client
        except (RedisError, OSError) as error:
            raise failure(
                f"the Redis server at {self.address} does not answer ({error}); check that it runs"
                " and takes LMCACHE_RESP_PASSWORD of the environment, or let the workbench start"
                " one (example: -p store_tiers memory,redis)"
            ) from error
        finally:
            await client.aclose()


async def _chunk_keys(client: Redis) -> AsyncIterator[bytes]:
    async for key in client.scan_iter(count=1000):
        if _CHUNK_KEY.fullmatch(key):
            yield key


def _program() -> str:
    """The server that is installed; Valkey's speaks the same protocol. Empty without one."""
    return next(filter(None, map(shutil.which, _PROGRAMS)), "")


def redis_tier(name: str, ports: Iterator[int], size_gb: float) -> Tier:
    """A server of `size_gb` on a free port, or the one at the address that `name` is."""
    own = name == "redis"
    host, port = ("127.0.0.1", next(ports)) if own else _host_and_port(name)
    server = ProcessSpec(
        name="redis",
        role="tier",
        here=True,
        program=(_program() or _PROGRAMS[0],),
        args=(
            *("--bind", host, "--port", str(port)),
            *("--save", "", "--appendonly", "no"),  # nothing is written to a file
            *("--maxmemory", str(int(size_gb * 2**30)), "--maxmemory-policy", "allkeys-lru"),
        ),
        port=port,
        ready_url=f"tcp://{host}:{port}",
    )
    return RedisTier(
        name="redis", shown="Redis", l2_name="resp", state="remote-warm",
        adapter={"type": "resp", "host": host, "port": port, "num_workers": _WORKERS},
        processes=(server,) * own, host=host, port=port, own=own,
        env={f"{_CREDENTIALS}{name}": "" for name in ("USERNAME", "PASSWORD") if own},
    )  # fmt: skip


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.partition("://")[2].rpartition(":")
    return host, int(port)
