"""What servers count about prompts, requests and KV transfers, for vLLM 0.8 and later.

A missing series is NaN, never zero; each connector names its own series.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from math import fsum, isnan, nan
from pathlib import Path
from typing import Any, Self

import httpx

from workbench.metrics.prometheus import Counters, read

BY_SOURCE = "vllm:prompt_tokens_by_source_total"
SOURCES = {
    "computed": "local_compute",
    "engine_hit": "local_cache_hit",
    "external_hit": "external_kv_transfer",
}
"""Its label `source`, by the fields of TokenSources."""
PROMPT_TOKENS = "vllm:prompt_tokens_total"
_OWN_CACHE = ("vllm:prefix_cache", "vllm:gpu_prefix_cache")
"""Of these vLLM counts `_queries` and `_hits`; the second name is that of 0.8 to 0.10."""
_EXTERNAL_CACHE = "vllm:external_prefix_cache"
_RATE_OF_V0 = "vllm:gpu_prefix_cache_hit_rate"
FINISHED = "vllm:request_success_total"
PREEMPTED = "vllm:num_preemptions_total"
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The second name is that of vLLM before 0.11."""
NOT_SERVED = ("abort", "error")
SERIES = (
    BY_SOURCE, PROMPT_TOKENS, FINISHED, PREEMPTED, RUNNING, WAITING, KV_USAGE[0],
    *(f"{cache}_{kind}_total" for cache in (_OWN_CACHE[0], _EXTERNAL_CACHE)
      for kind in ("queries", "hits")),
)  # fmt: skip
"""What is read of vLLM, apart from the series of connectors, by today's names."""

_PERIOD = re.compile(rb"KV Transfer metrics: (.*)")
_LOGGED = re.compile(rb"(?:Num|Avg) ([\w /]+?)(?: \(\w+\))?=([\d.]+)")
_FAILED = re.compile(rb"Failing (\d+) request\(s\) due to KV load failure")
_WHY = re.compile(rb"pulling kv_caches for \[.*?\] failed: (.{1,200})")
_EXPIRED = re.compile(rb"without being sent\. Freeing its blocks")
_ROUNDED_BYTES = 0.0005 * 2**20
"""What the log's `Avg MB per transfer` leaves open, for each transfer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSources:
    """Sources of prompt tokens. NaN where the server does not report one.

    vLLM counts a request once, when it is first admitted. A pull that fails as a whole counts as
    computed (policy recompute). KV that was read after it expired stays under `external_hit`, and
    so do tokens that a preempted request recomputes.
    """

    computed: float = nan
    engine_hit: float = nan
    """Served by the instance's own prefix cache."""
    external_hit: float = nan
    """Loaded through the connector: from a store or from another instance."""
    all_tokens: float = nan
    """All prompt tokens, where the total is counted but one source is not."""
    unknown: str = ""
    """Why a source is unknown, and which version reports it."""

    @property
    def total(self) -> float:
        """All prompt tokens that were counted."""
        added = self.computed + self.engine_hit + self.external_hit
        return self.all_tokens if isnan(added) else added

    @property
    def cached(self) -> float:
        return self.engine_hit + self.external_hit

    def __add__(self, other: TokenSources) -> TokenSources:
        known = not isnan(self.cached + self.computed + other.cached + other.computed)
        return TokenSources(
            computed=self.computed + other.computed,
            engine_hit=self.engine_hit + other.engine_hit,
            external_hit=self.external_hit + other.external_hit,
            all_tokens=nan if known else self.total + other.total,
            unknown=self.unknown or other.unknown,
        )

    def without_external(self) -> TokenSources:
        """The same for servers without a connector, where nothing can have been loaded."""
        if isnan(self.all_tokens - self.engine_hit) or not isnan(self.external_hit):
            return self
        computed = self.all_tokens - self.engine_hit
        return TokenSources(computed=computed, engine_hit=self.engine_hit, external_hit=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """What one vLLM instance did; for a difference of readings, what it did in between."""

    sources: TokenSources
    requests_finished: float
    """Requests that finished normally (not `abort`, not `error`)."""
    preemptions: float

    @classmethod
    def of(cls, counters: Counters) -> Self:
        finished = [
            value
            for (name, labels), value in counters.values.items()
            if name == FINISHED and dict(labels).get("finished_reason") not in NOT_SERVED
        ]
        return cls(
            sources=_sources(counters),
            requests_finished=fsum(finished) if finished else nan,
            preemptions=counters.sum(PREEMPTED),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCounters:
    """KV that the instances of a deployment sent each other."""

    bytes_moved: float
    transfers: float
    failed: float
    expired: float
    """Requests whose KV expired before it was fetched; counted on the prefill side."""
    rounding_bytes: float = 0.0
    """By this much `bytes_moved` may differ, where a log rounds it."""
    reason: str = ""
    """Of the last failure, where a log has one."""

    @classmethod
    def of(cls, instances: Iterable[Counters], series: Mapping[str, str]) -> Self | None:
        """All instances together, from the connector's series for each field.

        None where no instance has any of these series. A series that only one role has counts
        nothing for the other.
        """
        seen = list(instances)
        present = {name for counters in seen for name, _ in counters.values}
        if not present & set(series.values()):
            return None

        def total(name: str) -> float:
            has = [c.sum(name) for c in seen if any(name == known for known, _ in c.values)]
            return fsum(has) if has else nan

        found: dict[str, Any] = {field: total(name) for field, name in series.items()}
        return cls(**found)

    @classmethod
    def logged(cls, logs: Iterable[Path]) -> Self | None:
        """All that the logs of instances have counted so far, where no series does (Mooncake).

            KV Transfer metrics: Num successful transfers=4, ..., Avg MB per transfer=8.062, ...

        A line counts one period (VLLM_LOG_STATS_INTERVAL), and there is none while the engine is
        idle (vLLM 0.32, `KVConnectorLogging.log`), so failures are read from their own lines too.
        None without such a line.
        """
        text = b"\n".join(log.read_bytes() for log in logs if log.is_file())
        periods = [
            {name.decode(): float(value) for name, value in _LOGGED.findall(line)}
            for line in _PERIOD.findall(text)
        ]
        if not periods:
            return None

        def total(name: str) -> float:
            return fsum(period.get(name, 0.0) for period in periods)

        moved_mb = fsum(
            p.get("successful transfers", nan) * p.get("MB per transfer", nan) for p in periods
        )
        failing = fsum(map(float, _FAILED.findall(text)))
        reasons = _WHY.findall(text)
        return cls(
            bytes_moved=moved_mb * 2**20,
            transfers=total("successful transfers"),
            # A transfer that prefill could not send is one that decode did not receive.
            failed=max(total("failed transfers"), total("failed recvs"), failing),
            expired=max(total("KV expired reqs"), len(_EXPIRED.findall(text))),
            rounding_bytes=total("successful transfers") * _ROUNDED_BYTES,
            reason=reasons[-1].decode(errors="replace").strip() if reasons else "",
        )

    def since(self, before: TransferCounters) -> Self:
        """What was counted after `before`, by the same logs."""
        failed = self.failed - before.failed
        return replace(
            self,
            bytes_moved=self.bytes_moved - before.bytes_moved,
            transfers=self.transfers - before.transfers,
            failed=failed,
            expired=self.expired - before.expired,
            rounding_bytes=self.rounding_bytes - before.rounding_bytes,
            reason=self.reason if failed else "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounters:
    """Speculative decoding of a deployment's instances."""

    proposed: float
    """Draft tokens."""
    accepted: float

    @classmethod
    def of(cls, instances: Iterable[Counters]) -> Self | None:
        """All instances together; None if none has proposed a draft."""
        seen = list(instances)
        proposed, accepted = (
            fsum(value for c in seen if not isnan(value := c.sum(f"vllm:spec_decode_num_{name}")))
            for name in ("draft_tokens_total", "accepted_tokens_total")
        )
        return cls(proposed=proposed, accepted=accepted) if proposed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCounters:
    """What the KV store did.

    LMCache exports a counter after its first increment, so a missing one is zero if the exporter
    has others. Hits are added at every lookup, so lookups without them are NaN. A field of which a
    store has no series is NaN, or 0 where other stores have what it counts.
    """

    requested_tokens: float = nan
    """Tokens that engines looked up: all whole chunks of a prompt, including those they hold."""
    hit_tokens: float = nan
    hit_l1_tokens: float = nan
    """Of those, in memory."""
    hit_l2_tokens: float = 0.0
    """Of those, in the tier below, e.g. a disk."""
    written_chunks: float = nan
    read_chunks: float = nan
    evicted_chunks: float = nan
    dropped_chunks: float = 0.0
    """Chunks rejected because memory was full: neither stored nor loaded from the tier below."""
    tier_sent_chunks: float = 0.0
    """Chunks that it began to write to tiers below its memory, and how many it says it wrote."""
    tier_chunks: float = 0.0
    tier_sent_tasks: float = 0.0
    """The same in tasks; LMCache counts failed tasks as done."""
    tier_done_tasks: float = 0.0
    tier_loaded_chunks: float = 0.0
    """Chunks that it read back from tiers below."""

    @classmethod
    def of(
        cls,
        counters: Counters,
        names: Mapping[str, str],
        *,
        block_tokens: int = 1,
        block_bytes: float = nan,
    ) -> Self:
        """From the store's series for each field.

        `block_tokens` converts to tokens where the store counts KV blocks, and `block_bytes` to
        blocks where it counts bytes.
        """
        if counters.doubts:  # restarted or not read: missing counters are not zero
            return cls(**dict.fromkeys(names, nan))
        present = {name for name, _ in counters.values}
        unborn = set(names.values()) - present
        exporter = "_".join(next(iter(names.values())).split("_")[:2])
        if not any(name.startswith(exporter) for name in present):
            unborn = set()
        elif names.get("requested_tokens") in present:
            unborn -= {names.get("hit_tokens", "")}
        found = {key: 0.0 if name in unborn else counters.sum(name) for key, name in names.items()}
        for key, name in names.items():
            if name.endswith("_bytes_total"):
                found[key] /= block_bytes
            if key.endswith("_tokens"):
                found[key] *= block_tokens
        return cls(**found)

    def __add__(self, other: StoreCounters) -> StoreCounters:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return StoreCounters(**sums)


def _sources(counters: Counters) -> TokenSources:
    """Sources of prompt tokens, from the counters that exist.

    vLLM 0.16 and later count them. Before, they follow from the counters of the prefix cache and,
    since 0.12, of the connector.
    """
    present = {name for name, _ in counters.values}
    if BY_SOURCE in present:
        counted: dict[str, Any] = {
            field: counters.sum(BY_SOURCE, source=source) for field, source in SOURCES.items()
        }
        return TokenSources(**counted)
    tokens = counters.sum(PROMPT_TOKENS)
    nothing = nan, "prefix cache hits are not counted"
    if _RATE_OF_V0 in present:
        nothing = nan, "the V0 engine exports only a hit rate since its start"
    found = (_hits(counters, name, tokens) for name in _OWN_CACHE)
    own, why_own = next(filter(None, found), nothing)
    uncounted = nan, "tokens loaded through the connector are not counted"
    external, why_external = _hits(counters, _EXTERNAL_CACHE, tokens) or uncounted
    computed = tokens - own - external
    if computed < 0:
        computed, why_own = nan, "more hits than prompt tokens were counted"
    if not isnan(computed):
        return TokenSources(computed=computed, engine_hit=own, external_hit=external)
    why = "" if counters.doubts else f"{why_own or why_external}; this takes vLLM 0.16 or later"
    return TokenSources(engine_hit=own, external_hit=external, all_tokens=tokens, unknown=why)


def _hits(counters: Counters, name: str, prompt_tokens: float) -> tuple[float, str] | None:
    """Tokens that a cache served, or NaN and the reason; None where it has no counters.

    It counts each lookup: with more lookups than prompts (one waited for free blocks), hits are
    not the tokens served. Before 0.9 vLLM counts in blocks, as its HELP text says.
    """
    queries, hits = (_either(counters, f"{name}_{kind}") for kind in ("queries", "hits"))
    if isnan(queries + hits):
        return None
    if name == _OWN_CACHE[1]:
        said = counters.helps.get(f"{name}_hits", "")
        unit = block_tokens(counters) if "block" in said else 1.0 if "token" in said else nan
        if isnan(unit):
            return nan, f"the unit of {name}_hits is unknown"
        queries, hits = queries * unit, hits * unit
    if isnan(prompt_tokens):
        return nan, "prompt tokens are not counted"
    if queries > prompt_tokens:
        return nan, "prompts were looked up more than once"
    return hits, ""


def _either(counters: Counters, name: str) -> float:
    """A counter by its name, with or without the ending `_total`."""
    value = counters.sum(f"{name}_total")
    return counters.sum(name) if isnan(value) else value


def block_tokens(counters: Counters) -> float:
    """Tokens of vLLM's KV block, from cache_config_info; NaN when unknown."""
    return next((float(size) for _, size in _kv_spaces(counters) if size), nan)


def kv_capacity_tokens(counters: Counters) -> float:
    """Tokens that vLLM's KV space holds, those of data-parallel engines together; NaN when
    unknown; from cache_config_info."""
    spaces = [blocks * size for blocks, size in _kv_spaces(counters) if blocks and size]
    return float(sum(spaces)) if spaces else nan


def _kv_spaces(counters: Counters) -> list[tuple[int, int]]:
    """(blocks, tokens per block) of each engine; 0 where one is missing."""
    found = []
    for name, labels in counters.values:
        if name == "vllm:cache_config_info":
            said = dict(labels)
            texts = (said.get("num_gpu_blocks", ""), said.get("block_size", ""))
            blocks, size = (int(text) if text.isdecimal() else 0 for text in texts)
            found.append((blocks, size))
    return found


def engine_count(counters: Counters) -> int:
    """Data-parallel engines of an instance, each with its own cache; their counters are summed."""
    engines = {dict(labels).get("engine") for name, labels in counters.values if name == RUNNING}
    return max(1, len(engines))


def kv_usage(counters: Counters) -> float:
    """Fraction (0 to 1) of vLLM's KV blocks in use, of the fullest engine; NaN when unknown."""
    return max(
        (value for (name, _), value in counters.values.items() if name in KV_USAGE), default=nan
    )


async def sample(
    client: httpx.AsyncClient,
    urls: Mapping[str, str],
    period_s: float,
    stop: asyncio.Event,
    rows: list[dict[str, Any]],
) -> None:
    """Read gauges of each instance (name -> URL) every `period_s`, and once when `stop` is set.

    Appends rows for gauges.parquet: instance, at_s (monotonic), running, waiting (requests) and
    kv_usage (0 to 1). At least one row per instance; NaN where a server did not respond.
    """
    gauges = (RUNNING, WAITING, *KV_USAGE)
    stopped = False
    while not stopped:
        # The first reading waits: a scrape during the first request would add to its TTFT.
        with suppress(TimeoutError):
            stopped = await asyncio.wait_for(stop.wait(), period_s)
        readings = [read(client, url, name, only=gauges) for name, url in urls.items()]
        for counters in await asyncio.gather(*readings):
            rows.append(
                {"instance": counters.instance, "at_s": counters.read_at_s,
                 "running": counters.sum(RUNNING), "waiting": counters.sum(WAITING),
                 "kv_usage": kv_usage(counters)}
            )  # fmt: skip
