"""Counters of a simulated server, and their page in Prometheus's text format."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

from workbench.serve.vllm import SERVED_MODEL

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Labels = tuple[tuple[str, str], ...]
_STARTED_S = time.time()


class Series:
    """Series by name and labels; all have the `constant` labels."""

    def __init__(self, **constant: str) -> None:
        self._constant = constant
        self._kinds: dict[str, str] = {}
        self._values: dict[tuple[str, _Labels], float] = defaultdict(float)

    def add(self, name: str, value: float, **labels: str) -> None:
        """Increase a counter; by 0 to show it before the first count."""
        self._kinds[name] = "counter"
        self._values[name, self._labels(labels)] += value

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._kinds[name] = "gauge"
        self._values[name, self._labels(labels)] = value

    def observe(self, name: str, *values: float, **labels: str) -> None:
        """Add to sum and count of a histogram; without values only show it."""
        self._kinds[name] = "histogram"
        self._values[f"{name}_count", self._labels(labels)] += len(values)
        self._values[f"{name}_sum", self._labels(labels)] += sum(values)

    def page(self) -> str:
        """All series, and those that every process has."""
        lines = [
            "# TYPE process_start_time_seconds gauge",
            f"process_start_time_seconds {_STARTED_S!r}",
            "# TYPE process_cpu_seconds_total counter",
            f"process_cpu_seconds_total {time.process_time()!r}",
        ]
        families: dict[str, list[str]] = defaultdict(list)
        for (name, labels), value in self._values.items():
            family = name if name in self._kinds else name.rpartition("_")[0]
            inside = ",".join(f'{key}="{text}"' for key, text in labels)
            families[family].append(f"{name}{{{inside}}} {float(value)!r}")
        for family, samples in families.items():
            lines += [f"# TYPE {family} {self._kinds[family]}", *samples]
        return "\n".join([*lines, ""])

    def _labels(self, labels: Mapping[str, str]) -> _Labels:
        return tuple(sorted({**self._constant, **labels}.items()))


def vllm_series(*, nixl: bool) -> Series:
    """The counters that vLLM shows before the first request."""
    series = Series(engine="0", model_name=SERVED_MODEL)
    for name in (
        "prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries",
        "external_prefix_cache_hits", "num_preemptions", "prompt_tokens", "prompt_tokens_cached",
        "generation_tokens",
    ):  # fmt: skip
        series.add(f"vllm:{name}_total", 0)
    for source in ("local_compute", "local_cache_hit", "external_kv_transfer"):
        series.add("vllm:prompt_tokens_by_source_total", 0, source=source)
    for tier in ("device", "host", "p2p", "disk", "external_unspecified"):
        series.add("vllm:prompt_tokens_cached_by_source_total", 0, source=tier)
    for reason in ("stop", "length", "abort", "error", "repetition"):
        series.add("vllm:request_success_total", 0, finished_reason=reason)
    if nixl:
        for name in ("bytes_transferred", "num_descriptors", "xfer_time_seconds"):
            series.observe(f"vllm:nixl_{name}")
        for name in (
            "failed_transfers", "failed_notifications", "kv_expired_reqs",
            "notifications_after_expiry",
        ):  # fmt: skip
            series.add(f"vllm:nixl_num_{name}_total", 0)
    return series
