"""What the servers count about prompts, requests and KV moved, and what the series mean.

Covers vLLM and the LMCache server as they are today. A series that a server does not have is NaN
and named in `missing`, never zero: what an engine can do is read here, not concluded from its
version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import fsum, nan
from typing import Any, Self

import httpx

from workbench.metrics.prometheus import Counters, read

__all__ = [
    "EngineCounters",
    "NixlCounters",
    "StoreCounters",
    "TokenSources",
    "kv_capacity_tokens",
    "kv_usage",
    "sample",
]

_SOURCE = "vllm:prompt_tokens_by_source_total"
_FINISHED = "vllm:request_success_total"
_PREEMPTED = "vllm:num_preemptions_total"
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_KV_USAGE = "vllm:kv_cache_usage_perc"
_NIXL = {
    "bytes_moved": "vllm:nixl_bytes_transferred_sum",
    "transfers": "vllm:nixl_bytes_transferred_count",
    "failed": "vllm:nixl_num_failed_transfers_total",
    "expired": "vllm:nixl_num_kv_expired_reqs_total",
}
_NOT_SERVED = ("abort", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSources:
    """Where prompt tokens came from. NaN where the server does not say.

    vLLM counts a request once, when it is first admitted. A pull that fails as a whole is then
    counted as computed (policy recompute); KV that expired and was read all the same stays under
    `external_hit`, and so do tokens that a preempted request computes again.
    """

    computed: float = nan
    engine_hit: float = nan
    """Served by the instance's own prefix cache."""
    external_hit: float = nan
    """Loaded through the connector: from a store or from another instance."""

    @property
    def total(self) -> float:
        """All prompt tokens that were counted."""
        return self.computed + self.engine_hit + self.external_hit

    @property
    def cached(self) -> float:
        return self.engine_hit + self.external_hit

    def __add__(self, other: TokenSources) -> TokenSources:
        return TokenSources(
            computed=self.computed + other.computed,
            engine_hit=self.engine_hit + other.engine_hit,
            external_hit=self.external_hit + other.external_hit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """What one vLLM instance did; of a difference, what it did in between."""

    sources: TokenSources
    requests_finished: float
    """Requests that ended by themselves (not `abort`, not `error`)."""
    preemptions: float
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, counters: Counters) -> Self:
        finished = [
            value
            for (name, labels), value in counters.values.items()
            if name == _FINISHED and dict(labels).get("finished_reason") not in _NOT_SERVED
        ]
        return cls(
            sources=TokenSources(
                computed=counters.sum(_SOURCE, source="local_compute"),
                engine_hit=counters.sum(_SOURCE, source="local_cache_hit"),
                external_hit=counters.sum(_SOURCE, source="external_kv_transfer"),
            ),
            requests_finished=fsum(finished) if finished else nan,
            preemptions=counters.sum(_PREEMPTED),
            missing=_absent(counters, (_SOURCE, _FINISHED, _PREEMPTED)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NixlCounters:
    """KV moved by the NIXL connector of one instance."""

    bytes_moved: float
    transfers: float
    failed: float
    expired: float
    """Requests whose KV expired before it was fetched; counted on the prefill side."""
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, counters: Counters) -> Self:
        moved, transfers, failed, expired = (counters.sum(name) for name in _NIXL.values())
        return cls(
            bytes_moved=moved,
            transfers=transfers,
            failed=failed,
            expired=expired,
            missing=_absent(counters, _NIXL.values()),
        )

    @classmethod
    def added(cls, instances: Iterable[Self]) -> Self | None:
        """All instances together; None where none of them has a series of NIXL.

        A series that only the other role has counts as nothing there.
        """
        seen = [one for one in instances if len(one.missing) < len(_NIXL)]
        if not seen:
            return None

        def total(name: str) -> float:
            has = [getattr(one, name) for one in seen if _NIXL[name] not in one.missing]
            return fsum(has) if has else nan

        return cls(
            bytes_moved=total("bytes_moved"),
            transfers=total("transfers"),
            failed=total("failed"),
            expired=total("expired"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCounters:
    """What the LMCache server did.

    It exports a counter from its first addition on, so one that is absent beside others of the
    name lmcache_mp_* is zero. Hits are added at every lookup, so lookups without them are NaN.
    """

    requested_tokens: float
    """Tokens that engines looked up: all whole chunks of a prompt, also those that they hold."""
    hit_tokens: float
    hit_l1_tokens: float
    """Of those, in memory."""
    hit_l2_tokens: float
    """Of those, in the tier below, e.g. a disk."""
    written_chunks: float
    read_chunks: float
    evicted_chunks: float
    dropped_chunks: float = 0.0
    """Chunks for which memory had no room when they came: neither kept nor loaded from below."""
    disk_sent_chunks: float = 0.0
    """Chunks handed to the tier below, and those of them that have been written there."""
    disk_chunks: float = 0.0
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, counters: Counters) -> Self:
        names = {
            "requested_tokens": "lmcache_mp_lookup_requested_tokens_total",
            "hit_tokens": "lmcache_mp_lookup_hit_tokens_total",
            "hit_l1_tokens": "lmcache_mp_lookup_hit_l1_tokens_total",
            "hit_l2_tokens": "lmcache_mp_lookup_hit_l2_tokens_total",
            "written_chunks": "lmcache_mp_l1_write_chunks_total",
            "read_chunks": "lmcache_mp_l1_read_chunks_total",
            "evicted_chunks": "lmcache_mp_l1_evicted_chunks_total",
            "dropped_chunks": "lmcache_mp_l1_allocation_failure_chunks_total",
            "disk_sent_chunks": "lmcache_mp_l2_store_submitted_objects_chunks_total",
            "disk_chunks": "lmcache_mp_l2_store_completed_objects_chunks_total",
        }
        if counters.doubts:  # restarted, or not read: what it has not counted since is not zero
            unknown = dict.fromkeys(names, nan)
            return cls(**unknown, missing=tuple(names.values()))
        present = {name for name, _ in counters.values}
        unborn = set(names.values()) - present
        if not any(name.startswith("lmcache_mp_") for name in present):
            unborn = set()
        elif names["requested_tokens"] in present:
            unborn -= {names["hit_tokens"]}
        return cls(
            **{key: 0.0 if name in unborn else counters.sum(name) for key, name in names.items()},
            missing=tuple(name for name in names.values() if name not in present | unborn),
        )


def kv_capacity_tokens(counters: Counters) -> float:
    """Tokens that vLLM's KV space holds, from cache_config_info; NaN when not given."""
    for name, labels in counters.values:
        if name == "vllm:cache_config_info":
            said = dict(labels)
            blocks, size = said.get("num_gpu_blocks", ""), said.get("block_size", "")
            if blocks.isdecimal() and size.isdecimal():
                return float(int(blocks) * int(size))
    return nan


def kv_usage(counters: Counters) -> float:
    """Share (0 to 1) of vLLM's KV blocks in use: the fullest engine's; NaN when not given."""
    return max(
        (value for (name, _), value in counters.values.items() if name == _KV_USAGE), default=nan
    )


async def sample(
    client: httpx.AsyncClient,
    urls: Mapping[str, str],
    period_s: float,
    stop: asyncio.Event,
) -> list[dict[str, Any]]:
    """Read gauges of each instance (name -> URL) every `period_s`, and once when `stop` is set.

    Rows for gauges.parquet: instance, at_s (monotonic), running, waiting (requests) and
    kv_usage (0 to 1). At least one row per instance; NaN where a server did not answer.
    """
    rows: list[dict[str, Any]] = []
    gauges = (_RUNNING, _WAITING, _KV_USAGE)
    stopped = False
    while not stopped:
        # The first reading waits: a scrape in the first request's way would be part of its TTFT.
        try:
            await asyncio.wait_for(stop.wait(), period_s)
            stopped = True
        except TimeoutError:
            pass
        readings = [read(client, url, name, only=gauges) for name, url in urls.items()]
        for counters in await asyncio.gather(*readings):
            rows.append(
                {
                    "instance": counters.instance,
                    "at_s": counters.read_at_s,
                    "running": counters.sum(_RUNNING),
                    "waiting": counters.sum(_WAITING),
                    "kv_usage": kv_usage(counters),
                }
            )
    return rows


def _absent(counters: Counters, names: Iterable[str]) -> tuple[str, ...]:
    present = {name for name, _ in counters.values}
    return tuple(name for name in names if name not in present)
