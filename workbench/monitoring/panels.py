"""The panels: what is shown, its unit, and for which connectors.

Dashboard, rules and the page of a run are made from these panels. Names of series come from the
ledger (`metrics.counters`) and from each connector. Real servers returned data for every query,
except those of lmcache-inprocess (tests/engine/test_monitoring.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from workbench.metrics import counters
from workbench.monitoring.query import Query, on, or_zero, per_second, quantile, total
from workbench.serve.connectors import CONNECTORS, Connector, Store

Unit = Literal[
    "tokens/s", "fraction", "s", "requests", "requests/s", "chunks/s", "blocks/s", "chunks",
    "B", "B/s", "servers", "failures/s",
]  # fmt: skip

Needs = Literal["", "tier", "prefill"]
"""What a panel needs to have data, beside its connector: a tier below the store's memory, or
prefill instances."""

_TTFT = "vllm:time_to_first_token_seconds"
_ITL = "vllm:inter_token_latency_seconds"
_QUEUE = "vllm:request_queue_time_seconds"
_OUTPUT = "vllm:generation_tokens_total"
_QUANTILES = (0.5, 0.9, 0.99)
_CACHED = {"engine hit": "engine_hit", "external hit": "external_hit"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel: lines over time with one unit."""

    subject: str
    """The row of the dashboard in which it is."""
    title: str
    unit: Unit
    queries: tuple[Query, ...]
    description: str
    connectors: tuple[str, ...] = ()
    """Those whose servers have these series; empty for all."""
    needs: Needs = ""

    def applies(self, connector: str, *, tiers: bool = False, prefill: bool = True) -> bool:
        """Whether servers with this connector have these series."""
        has = {"": True, "tier": tiers, "prefill": prefill}
        return (not self.connectors or connector in self.connectors) and has[self.needs]


def _by_quantile(histogram: str, by: str = "role") -> tuple[Query, ...]:
    return tuple(
        Query(expression=quantile(histogram, of, by), legend=f"{{{{{by}}}}} p{100 * of:.0f}")
        for of in _QUANTILES
    )


def _ledger() -> Iterator[Panel]:
    def tokens(field: str) -> str:
        return per_second(counters.BY_SOURCE, "role", source=counters.SOURCES[field])

    yield Panel(
        subject="Token ledger",
        title="Prompt tokens by source",
        unit="tokens/s",
        queries=tuple(
            Query(expression=tokens(field), legend=f"{{{{role}}}} {field.replace('_', ' ')}")
            for field in counters.SOURCES
        ),
        description="Computed, served by the instance's own prefix cache (engine hit), or loaded"
        " through the connector (external hit). vLLM counts a prompt when it is first scheduled.",
    )
    yield Panel(
        subject="Token ledger",
        title="Hit rate by source",
        unit="fraction",
        queries=tuple(
            Query(
                expression=f"{tokens(field)} / {per_second(counters.PROMPT_TOKENS, 'role')}",
                legend=f"{{{{role}}}} {name}",
            )
            for name, field in _CACHED.items()
        ),
        description="Fraction of prompt tokens that were not computed. No line where no prompt"
        " arrived.",
    )


def _latency() -> Iterator[Panel]:
    for title, histogram, said in (
        ("TTFT", _TTFT, "Time to first token, from the arrival at the API server."),
        ("ITL", _ITL, "Inter-token latency."),
        ("Queue time", _QUEUE, "From the arrival in the scheduler until first scheduled."),
    ):
        yield Panel(
            subject="Latency",
            title=title,
            unit="s",
            queries=_by_quantile(histogram),
            description=f"{said} Per request leg and role, as vLLM's histogram counts it:"
            " quantiles are interpolated within its buckets.",
        )


def _scheduler() -> Iterator[Panel]:
    subject, each = "Scheduler", "{{role}} {{instance}}"
    yield Panel(
        subject=subject,
        title="Requests running and waiting",
        unit="requests",
        queries=tuple(
            Query(expression=total(series, "role, instance"), legend=f"{each} {word}")
            for word, series in (("running", counters.RUNNING), ("waiting", counters.WAITING))
        ),
        description="Gauges: what lasts less than a scrape interval may not show.",
    )
    yield Panel(
        subject=subject,
        title="KV cache usage",
        unit="fraction",
        queries=(
            Query(expression=f"max by (role, instance) ({on(counters.KV_USAGE[0])})", legend=each),
        ),
        description="Fraction of KV blocks in use by running requests; 0 between requests, even"
        " where the prefix cache is full.",
    )
    yield Panel(
        subject=subject,
        title="Preemptions",
        unit="requests/s",
        queries=(Query(expression=per_second(counters.PREEMPTED, "role"), legend="{{role}}"),),
        description="Requests whose KV blocks were given to others, and which are computed again.",
    )
    yield Panel(
        subject=subject,
        title="Output tokens",
        unit="tokens/s",
        queries=(Query(expression=per_second(_OUTPUT, "role"), legend="{{role}}"),),
        description="Generated tokens. A prefill leg generates one.",
    )


def _store(connector: Connector, store: Store) -> Iterator[Panel]:
    """Lookups, hits, blocks and memory of one connector's store."""
    name, own = f"KV store: {connector.name}", (connector.name,)
    known, by = store.counters, "connector"
    asked, hit = known.get("requested_tokens", ""), known["hit_tokens"]
    if store.counts_lookups:
        words = {"requested": asked, "hit": hit}
        if store.tier_loads:
            words |= {"hit in memory": known["hit_l1_tokens"], "hit below": known["hit_l2_tokens"]}
        yield Panel(
            subject=name, title=f"{connector.name}: lookups", unit="tokens/s", connectors=own,
            queries=tuple(
                Query(expression=per_second(series, by), legend=word)
                for word, series in words.items()
            ),
            description="Tokens of whole chunks that engines looked up, including those they hold"
            " themselves, and how many the store had.",
        )  # fmt: skip
        tiers = {"memory": "hit_l1_tokens", "tiers below": "hit_l2_tokens"}
        if not store.tier_loads:
            tiers = {"hit": "hit_tokens"}
        yield Panel(
            subject=name, title=f"{connector.name}: hit rate", unit="fraction", connectors=own,
            queries=tuple(
                Query(
                    expression=f"{per_second(known[field], by)} / {per_second(asked, by)}",
                    legend=word,
                )
                for word, field in tiers.items()
            ),
            description="Fraction of the tokens looked up that the store had, by tier.",
        )  # fmt: skip
    words = {
        word: known[field]
        for word, field in (("written", "written_chunks"), ("read", "read_chunks"),
                            ("evicted", "evicted_chunks"))
        if field in known
    }  # fmt: skip
    in_bytes = any(series.endswith("_bytes_total") for series in words.values())
    if not in_bytes:
        what: Unit = "blocks/s" if store.keeps_blocks else "chunks/s"
        beside = known.get("written_chunks", hit)
        yield Panel(
            subject=name, title=f"{connector.name}: {what.partition('/')[0]}", unit=what,
            connectors=own,
            queries=tuple(
                Query(expression=or_zero(per_second(series, by), beside, by), legend=word)
                for word, series in words.items()
            ),
            description="What the store wrote, read and evicted.",
        )  # fmt: skip
    watched = connector.watched
    if watched.fill:
        yield Panel(
            subject=name, title=f"{connector.name}: fill", unit="fraction", connectors=own,
            queries=(
                Query(
                    expression=" / ".join(total(gauge, by) for gauge in watched.fill),
                    legend="memory in use",
                ),
            ),
            description="Fraction of the store's memory in use. A full store evicts; that is not"
            " a fault.",
        )  # fmt: skip
    if bytes_held := store.told.get("bytes held"):
        yield Panel(
            subject=name, title=f"{connector.name}: bytes held", unit="B", connectors=own,
            queries=(Query(expression=total(bytes_held, by), legend="held"),),
            description="KV that the store holds in memory.",
        )  # fmt: skip
    if watched.gets:
        found, gets = watched.gets
        yield Panel(
            subject=name, title=f"{connector.name}: gets that found their block",
            unit="fraction", connectors=own,
            queries=(
                Query(
                    expression=f"{per_second(found, by)} / {per_second(gets, by)}",
                    legend="found",
                ),
            ),
            description="Fraction of the blocks asked for that the store had.",
        )  # fmt: skip
    if store.tier_loads:
        yield from _tiers(connector, store)


def _tiers(connector: Connector, store: Store) -> Iterator[Panel]:
    """What the store moved to and from the tiers below its memory."""
    known, by = store.counters, "connector"
    name, own = f"KV store: {connector.name}", (connector.name,)
    sent, written = known["tier_sent_chunks"], known["tier_chunks"]
    yield Panel(
        subject=name, title=f"{connector.name}: tiers below memory", unit="chunks/s",
        connectors=own, needs="tier",
        queries=tuple(
            Query(expression=or_zero(per_second(series, by), sent, by), legend=word)
            for word, series in (
                ("sent", sent), ("written", written), ("loaded", known["tier_loaded_chunks"])
            )
        ),
        description="Chunks that the store began to write to its tiers, says it wrote, and loaded.",
    )  # fmt: skip
    yield Panel(
        subject=name, title=f"{connector.name}: chunks not written to tiers", unit="chunks",
        connectors=own, needs="tier",
        queries=(
            Query(expression=f"{total(sent, by)} - {total(written, by)}", legend="not written"),
        ),
        description="Chunks in flight, or lost. If the line stays above 0 while nothing is sent,"
        " chunks were lost.",
    )  # fmt: skip


def moved_bytes_per_second(connector: Connector, by: str) -> dict[str, str]:
    """KV bytes that instances moved per second, by what was done with them."""
    store, found = connector.store, {}
    if pulled := connector.transfer_counters.get("bytes_moved"):
        found["pulled"] = per_second(pulled, by)
    if store is None:
        return found
    for word, field, operation in (
        ("read", "read_chunks", "load_get"), ("written", "written_chunks", "save_put")
    ):  # fmt: skip
        series = store.counters.get(field, "")
        if store.read_bytes:
            found[word] = per_second(store.read_bytes, by, operation=operation)
        elif series.endswith("_bytes_total"):
            found[word] = per_second(series, by)
    return found


def _transfers() -> Iterator[Panel]:
    for connector in CONNECTORS.values():
        name, own = connector.name, (connector.name,)
        if moved := moved_bytes_per_second(connector, "role"):
            yield Panel(
                subject="KV transfers", title=f"{name}: KV moved", unit="B/s", connectors=own,
                queries=tuple(
                    Query(expression=expression, legend=f"{{{{role}}}} {word}")
                    for word, expression in moved.items()
                ),
                description="Bytes of KV that instances moved, as vLLM's connector counts them.",
            )  # fmt: skip
        if histogram := connector.watched.transfer_s:
            yield Panel(
                subject="KV transfers", title=f"{name}: time of a transfer", unit="s",
                connectors=own, needs="prefill", queries=_by_quantile(histogram),
                description="Duration of single transfers; one prompt can need several.",
            )  # fmt: skip


def _failures() -> Iterator[Panel]:
    subject = "Failures"
    yield Panel(
        subject=subject,
        title="Servers that answer",
        unit="servers",
        queries=(Query(expression="sum by (role) (up{$on})", legend="{{role}}"),),
        description="Targets whose last scrape succeeded.",
    )
    yield Panel(
        subject=subject,
        title="Requests that ended without an answer",
        unit="requests/s",
        queries=tuple(
            Query(
                expression=per_second(counters.FINISHED, "role", finished_reason=reason),
                legend=f"{{{{role}}}} {reason}",
            )
            for reason in counters.NOT_SERVED
        ),
        description="Aborted by the client or the proxy, or ended by an error of the engine.",
    )
    for connector in CONNECTORS.values():
        if queries := tuple(
            Query(expression=expression, legend=word)
            for word, expression in failed_per_second(connector).items()
        ):
            yield Panel(
                subject=subject, title=f"{connector.name}: failures", unit="failures/s",
                connectors=(connector.name,), queries=queries,
                description="Transfers that failed, prompts whose KV expired before decode fetched"
                " it, and what the store rejected.",
            )  # fmt: skip


def failed_per_second(connector: Connector) -> dict[str, str]:
    """Failures of KV transfers and of the store per second, by what failed."""
    by, store = "connector", connector.store
    found = {
        word: per_second(connector.transfer_counters[field], by)
        for word, field in (("failed transfers", "failed"), ("expired prompts", "expired"))
        if field in connector.transfer_counters
    }
    if store is None or "written_chunks" not in store.counters:
        return found
    counted = {f"failed {word}": series for word, series in connector.watched.failures.items()}
    if dropped := store.counters.get("dropped_chunks"):
        counted["rejected by the store"] = dropped
    beside = store.counters["written_chunks"]
    return found | {
        word: or_zero(per_second(series, by), beside, by) for word, series in counted.items()
    }


def _all() -> Iterator[Panel]:
    yield from _ledger()
    yield from _latency()
    yield from _scheduler()
    for connector in CONNECTORS.values():
        if connector.store:
            yield from _store(connector, connector.store)
    yield from _transfers()
    yield from _failures()


PANELS: tuple[Panel, ...] = tuple(_all())


def panels_for(connector: str, *, tiers: bool = False, prefill: bool = True) -> tuple[Panel, ...]:
    """The panels that servers with this connector have data for."""
    return tuple(
        panel for panel in PANELS if panel.applies(connector, tiers=tiers, prefill=prefill)
    )
