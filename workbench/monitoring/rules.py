"""Prometheus rules: recording rules for long-term history, and alerts on faults.

A full store, a long queue and a rejected chunk can be normal under load, so they raise no alert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from workbench.metrics import counters
from workbench.monitoring.panels import failed_per_second, moved_bytes_per_second
from workbench.monitoring.query import Query, per_second, total
from workbench.serve.connectors import CONNECTORS

_WINDOW = "1m"
_PLACE = "connector, role"
_TOKENS = f"connector_role_source:prompt_tokens:rate{_WINDOW}"


def rules() -> str:
    """A rule file of Prometheus, as YAML."""
    groups = [
        {"name": "workbench", "rules": list(_recorded())},
        {"name": "workbench-alerts", "rules": list(_alerts())},
    ]
    return yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000)


def _recorded() -> Iterator[dict[str, Any]]:
    yield _record(_TOKENS, per_second(counters.BY_SOURCE, f"{_PLACE}, source"))
    yield _record(
        f"connector_role_source:prompt_tokens:ratio_rate{_WINDOW}",
        f"{_TOKENS} / ignoring (source) group_left sum without (source) ({_TOKENS})",
    )
    for word, series in (("running", counters.RUNNING), ("waiting", counters.WAITING)):
        yield _record(f"connector_role:requests_{word}:sum", total(series, _PLACE))
    for connector in CONNECTORS.values():
        named = {"connector": connector.name}
        for word, expression in moved_bytes_per_second(connector, _PLACE).items():
            name = f"connector_role:kv_moved_bytes:rate{_WINDOW}"
            yield _record(name, expression, **named, moved=word)
        for word, expression in failed_per_second(connector).items():
            name = f"connector:kv_failures:rate{_WINDOW}"
            yield _record(name, expression, **named, failed=word)
        if fill := connector.watched.fill:
            filled = " / ".join(total(gauge, "connector") for gauge in fill)
            yield _record("connector:store_fill:ratio", filled, **named)


def _alerts() -> Iterator[dict[str, Any]]:
    yield _alert(
        "ServerDown", 'up{connector!=""} == 0', "1m",
        "{{ $labels.instance }} does not respond to Prometheus.",
    )  # fmt: skip
    yield _alert(
        "KVTransfersFail",
        f'connector:kv_failures:rate{_WINDOW}{{failed!="rejected by the store"}} > 0', "0s",
        "{{ $labels.connector }}: {{ $labels.failed }}. Decode computes their KV again, or the"
        " request fails.",
    )  # fmt: skip
    for connector in CONNECTORS.values():
        store = connector.store
        if store is None or not store.tier_loads:
            continue
        sent, written = store.counters["tier_sent_chunks"], store.counters["tier_chunks"]
        yield _alert(
            "TierLosesChunks",
            f"{sent} - {written} > 0 and rate({sent}[5m]) == 0", "1m",
            "{{ $value }} chunks were sent to the tiers below memory and never written.",
        )  # fmt: skip


def _record(name: str, expression: str, **labels: str) -> dict[str, Any]:
    filled = Query(expression=expression, legend="").filled(rate=_WINDOW)
    return {"record": name, "expr": filled} | ({"labels": labels} if labels else {})


def _alert(name: str, expression: str, lasts: str, said: str) -> dict[str, Any]:
    return {"alert": name, "expr": expression, "for": lasts, "annotations": {"summary": said}}
