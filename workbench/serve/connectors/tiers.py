"""Tiers of LMCache's store below its memory (its L2): a disk, a Redis server, a Mooncake store.

LMCache cannot empty a tier, reports failed writes as done and does not say what a tier holds. So
each tier here also counts and deletes its chunks at its own end.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx

from workbench.control import control_client
from workbench.errors import DeploymentError, LaunchError
from workbench.params.store_tiers import tier_kind
from workbench.serve.connectors import mooncake_store
from workbench.serve.processes.launcher import ProcessSpec

if TYPE_CHECKING:
    from redis.asyncio import Redis

PLUGINS = Path(__file__).parent / "lmcache_plugins"
"""What LMCache's server loads itself; nothing in this folder imports the workbench."""
_REDIS_PROGRAMS = ("redis-server", "valkey-server")
_REDIS_TIMEOUT_S = 5.0
_REDIS_WORKERS = 2
_CHUNK_KEY = re.compile(rb".+@[0-9a-f]{8}@[0-9a-f]+@[0-9a-f]{16,}(@.+)?", re.DOTALL)
"""LMCache's name of a chunk: model, rank, group, hash. Its keys have no prefix of their own."""
_DELETE_AT_ONCE = 500
_MASTER_COUNTS = re.compile(r"^master_((?:evicted_)?key)_count (\S+)", re.MULTILINE)
_EMPTY_MOONCAKE = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
if store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 << 20, "tcp", "", sys.argv[1]):
    sys.exit("no connection to the Mooncake master")
store.remove_all(True)
"""
"""Leased keys go only by force, and only a client can ask for that; the master's HTTP has no such
request. In a process of its own, since Mooncake's threads would outlive it here."""
_EMPTY_MOONCAKE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier of a deployment."""

    name: str
    """`disk`, `redis` or `mooncake`."""
    shown: str
    """For sentences, such as `Redis`."""
    l2_name: str
    """LMCache's name for its kind: the label of its counters."""
    state: Literal["disk-warm", "remote-warm"]
    """The cache state in which it alone has the KV."""
    adapter: Mapping[str, Any]
    """The value of LMCache's `--l2-adapter`."""
    processes: tuple[ProcessSpec, ...] = ()
    """Servers that are started for it, before LMCache's own."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of LMCache's server."""

    async def check(self) -> None:
        """Raises LaunchError if it cannot be used here and now."""

    async def held(self) -> Held:
        """What it holds now, asked at its own end. Raises DeploymentError if it cannot say."""
        raise NotImplementedError

    async def empty(self) -> None:
        """Delete its chunks. Raises DeploymentError if it cannot."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Chunks that a tier holds, and how many it has evicted so far (NaN if it does not say)."""

    chunks: float
    evicted: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskTier(Tier):
    """A folder with one file for each chunk."""

    folder: Path

    async def held(self) -> Held:
        return Held(chunks=float(len(self._files())))

    async def empty(self) -> None:
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self.folder.rglob("*.data"))


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
            if not _redis_program():
                raise LaunchError(
                    "store_tiers redis needs redis-server or valkey-server, which is not installed;"
                    " run apt-get install redis-server, or name a running server (example: -p"
                    " store_tiers memory,redis://127.0.0.1:6379)"
                )
            return
        async with self._client(LaunchError) as client:
            keys = int(await client.dbsize())
        if keys:
            raise LaunchError(
                f"store_tiers needs an empty Redis database 0, but {self.address} has {keys:,} keys"
                " that LMCache's keys could not be told from. Empty it, or let the workbench start"
                " a server (example: -p store_tiers memory,redis)"
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

    @asynccontextmanager
    async def _client(
        self, failure: type[DeploymentError | LaunchError] = DeploymentError
    ) -> AsyncIterator[Redis]:
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        client = Redis(
            host=self.host, port=self.port,
            username=os.environ.get("LMCACHE_RESP_USERNAME") or None,
            password=os.environ.get("LMCACHE_RESP_PASSWORD") or None,
            socket_timeout=_REDIS_TIMEOUT_S, socket_connect_timeout=_REDIS_TIMEOUT_S,
        )  # fmt: skip
        try:
            yield client
        except (RedisError, OSError) as error:
            raise failure(
                f"the Redis server at {self.address} does not answer ({error}); check that it runs,"
                " and LMCACHE_RESP_PASSWORD if it needs one, or let the workbench start one"
                " (example: -p store_tiers memory,redis)"
            ) from error
        finally:
            await client.aclose()


async def _chunk_keys(client: Redis) -> AsyncIterator[bytes]:
    async for key in client.scan_iter(count=1000):
        if _CHUNK_KEY.fullmatch(key):
            yield key


def _redis_program() -> str:
    """The server that is installed; Valkey's speaks the same protocol. Empty without one."""
    return next(filter(None, map(shutil.which, _REDIS_PROGRAMS)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class MooncakeTier(Tier):
    """A Mooncake store: a master that is started here, and memory that LMCache's server lends."""

    master: str
    metrics_url: str

    async def check(self) -> None:
        if find_spec("mooncake") is None:
            raise LaunchError(
                "store_tiers mooncake needs the package mooncake, which is not installed; run make"
                " setup MOONCAKE=1 (docs/engine.md), or use another tier (example: -p store_tiers"
                " memory,redis)"
            )

    async def held(self) -> Held:
        try:
            async with control_client() as client:
                answer = await client.get(f"{self.metrics_url}/metrics")
        except httpx.HTTPError as error:
            raise DeploymentError(
                f"the Mooncake master at {self.master} does not answer ({error!r}); see its log"
            ) from error
        told = dict(_MASTER_COUNTS.findall(answer.text))
        return Held(chunks=float(told.get("key", nan)), evicted=float(told.get("evicted_key", 0)))

    async def empty(self) -> None:
        run = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _EMPTY_MOONCAKE, self.master,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = await asyncio.wait_for(run.communicate(), _EMPTY_MOONCAKE_TIMEOUT_S)
        except TimeoutError:
            run.kill()
            said = f"no answer within {_EMPTY_MOONCAKE_TIMEOUT_S:g} s".encode()
        if run.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["no reason"]
            raise DeploymentError(
                f"the Mooncake store at {self.master} was not emptied: {last[0]}; check that its"
                " master runs"
            )


def tiers_of(
    names: Sequence[str], ports: Iterator[int], *, size_gb: float, folder: Path
) -> tuple[Tier, ...]:
    """The tiers of `store_tiers` without `memory`, in order; each has `size_gb`, but for a disk."""
    makers = {"disk": _disk, "redis": _redis, "mooncake": _mooncake}
    return tuple(makers[tier_kind(name)](name, ports, size_gb, folder) for name in names)


def _disk(name: str, ports: Iterator[int], size_gb: float, folder: Path) -> Tier:
    return DiskTier(
        name=name, shown="the disk", l2_name="fs", state="disk-warm", folder=folder,
        adapter={"type": "fs", "base_path": str(folder)},
    )  # fmt: skip


def _redis(name: str, ports: Iterator[int], size_gb: float, folder: Path) -> Tier:
    own = name == "redis"
    host, port = ("127.0.0.1", next(ports)) if own else _host_and_port(name)
    server = ProcessSpec(
        name="redis",
        role="tier",
        program=(_redis_program() or _REDIS_PROGRAMS[0],),
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
        adapter={"type": "resp", "host": host, "port": port, "num_workers": _REDIS_WORKERS},
        processes=(server,) * own, host=host, port=port, own=own,
    )  # fmt: skip


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.partition("://")[2].rpartition(":")
    return host, int(port)


def _mooncake(name: str, ports: Iterator[int], size_gb: float, folder: Path) -> Tier:
    master = replace(mooncake_store.master(ports), name="mooncake", role="tier")
    address = f"127.0.0.1:{master.port}"
    params = {"master": address, "segment_mb": int(size_gb * 1024)}
    return MooncakeTier(
        name=name, shown="Mooncake", l2_name="plugin", state="remote-warm",
        adapter={"type": "plugin", "module_path": "mooncake_tier", "class_name": "MooncakeTier",
                 "adapter_params": params},
        processes=(master,), env={"PYTHONPATH": python_path()},
        master=address, metrics_url=master.ready_url.removesuffix("/health"),
    )  # fmt: skip


def python_path() -> str:
    """PYTHONPATH of an LMCache server that loads a tier from this room."""
    return os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))
