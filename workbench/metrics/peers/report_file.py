"""Benchmark Report v0.2, the format of llm-d-benchmark and inference-perf: statistics only.

It has no single requests, so its percentiles have no confidence interval here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import ResultError
from workbench.metrics.peers.peer_request import PeerFile

_METRICS = {
    "ttft_s": "time_to_first_token",
    "tpot_s": "time_per_output_token",
    "e2e_s": "request_latency",
}
"""Our metrics by the format's names. Its ITL is left out: tools count tokens or chunks."""
_QUANTILES = {0.5: "p50", 0.9: "p90", 0.99: "p99"}
_SECONDS = {"s": 1.0, "ms": 1e-3, "s/token": 1.0, "ms/token": 1e-3}


def is_report(document: Any) -> bool:
    """Whether a document is a Benchmark Report of some version."""
    return isinstance(document, Mapping) and {"version", "results"} <= document.keys()


def report_file(source: object, report: Mapping[str, Any]) -> PeerFile:
    """The statistics of one report: llmdbenchmark/analysis/benchmark_report of llm-d-benchmark."""
    version = str(report["version"])
    if not version.startswith("0.2"):
        raise ResultError(
            f"{source} must be a Benchmark Report of version 0.2, got {version}. Convert it with"
            " llm-d-benchmark (example: version 0.2)"
        )
    performance = report["results"].get("request_performance") or {}
    aggregate = performance.get("aggregate") or {}
    latency, requests = aggregate.get("latency") or {}, aggregate.get("requests") or {}
    quantiles = {}
    for metric, name in _METRICS.items():
        found = latency.get(name) or {}
        for quantile, key in _QUANTILES.items():
            if found.get(key) is not None:
                quantiles[metric, quantile] = float(found[key]) * _SECONDS[found["units"]]
    load = ((report.get("scenario") or {}).get("load") or {}).get("standardized") or {}
    written_by = " ".join(str(load[key]) for key in ("tool", "tool_version") if load.get(key))
    total, failures = int(requests.get("total", -1)), int(requests.get("failures") or 0)
    doubts = ["The file has no single requests, so its percentiles have no confidence interval."]
    if failures:
        doubts.append(f"{failures:,} of {total:,} requests failed.")
    if not written_by:
        doubts.append("The file does not name the load generator, so its definitions are unknown.")
    return PeerFile(
        tool="Benchmark Report",
        requests=[],
        version=f"{version}, {written_by}" if written_by else version,
        total=total,
        doubts=tuple(doubts),
        quantiles=quantiles,
    )
