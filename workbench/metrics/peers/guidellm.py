"""GuideLLM's reports, which list requests by status."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan, nan
from typing import Any

from workbench.errors import ResultError
from workbench.metrics.peers.peer_request import (
    PeerFile,
    PeerRequest,
    count,
    read_all,
    unstreamed,
)

_STATUSES = ("successful", "errored", "incomplete")
_TIMES = (
    "targeted_start", "request_start", "first_token_iteration", "last_token_iteration",
    "request_end",
)  # fmt: skip
_OLD_TIMES = (
    "targeted_start_time", "start_time", "first_token_time", "last_token_time", "end_time",
)  # fmt: skip
_OWN = {"TTFT": ("time_to_first_token_ms", 1e-3), "E2E": ("request_latency", 1.0)}


def guidellm_file(source: object, report: Mapping[str, Any]) -> PeerFile:
    """guidellm/schemas/base/request_stats.py of 0.4 and later, benchmark/benchmark.py of 0.2, 0.3.

    The older form has `scheduler_info`; reports name their version since 0.5.
    """
    about = report.get("metadata") or {}
    version = str(about.get("guidellm_version") or "")
    if about and about.get("version") not in (1, 2):
        raise ResultError(
            f"{source} must be a GuideLLM report of version 1 or 2 (GuideLLM 0.2 to 0.8), got"
            f" version {about.get('version')} ({version or 'GuideLLM unknown'})"
        )
    benchmarks = report["benchmarks"]
    if len(benchmarks) > 1:
        raise ResultError(
            f"{source} must hold one GuideLLM benchmark, got {len(benchmarks)} (a sweep). Run"
            " guidellm with one rate, or keep one entry of `benchmarks`"
        )
    benchmark = benchmarks[0] if benchmarks else {}
    if "results" in benchmark and "requests" not in benchmark:
        raise ResultError(
            f"{source} must be a report of GuideLLM 0.2 to 0.8, got GuideLLM 0.1. Run a later"
            " GuideLLM"
        )
    lists = benchmark.get("requests") or {}
    told = [(status, request) for status in _STATUSES for request in lists.get(status) or []]
    requests, _, doubts = read_all(told, lambda pair: _request(*pair))
    metrics = benchmark.get("metrics") or {}
    totals = benchmark.get("request_totals") or metrics.get("request_totals") or {}
    total = totals.get("total") or sum(totals.get(status) or 0 for status in _STATUSES)
    if 0 < total < len(told):
        doubts += (
            f"GuideLLM measured {total} requests. The {len(told)} in the file include warm-up or"
            " cool-down.",
        )
    if any(unstreamed(requests)):
        doubts += ("Some requests have no first-token time, because they were not streamed.",)
    if not version:
        version = "0.4" if any("info" in request for _, request in told) else "0.3 and older"
    return PeerFile(
        tool="GuideLLM",
        requests=requests,
        version=version,
        total=max(total, len(told)),
        doubts=doubts,
        own=_own(metrics),
    )


def _request(status: str, request: Mapping[str, Any]) -> PeerRequest:
    if "info" in request:
        info, times, names = request["info"], request["info"]["timings"], _TIMES
    else:
        info, names = request, _OLD_TIMES
        times = {**request["scheduler_info"], **request}
    due_s, start_s, first_s, last_s, end_s = (_time(times.get(name)) for name in names)
    good = status == "successful"
    told = info.get("error") or "cut off by GuideLLM at the end of the benchmark"
    ttft_ms = request["time_to_first_token_ms"]
    ttft_s = first_s - start_s if ttft_ms is None else ttft_ms / 1000
    e2e_s = (end_s if isnan(last_s) else last_s) - start_s
    return PeerRequest(
        request_id=str(request["request_id"]),
        ttft_s=ttft_s if good else nan,
        e2e_s=e2e_s if good else nan,
        prompt_tokens=count(request["prompt_tokens"]),
        output_tokens=count(request["output_tokens"]) if good else -1,
        cached_tokens=count(request.get("cached_tokens")),
        scheduled_s=due_s,
        sent_s=start_s,
        stream_end_s=end_s,
        error="cancelled" if status == "incomplete" else "",
        error_message="" if good else told,
    )


def _own(metrics: Mapping[str, Any]) -> dict[str, float]:
    """GuideLLM's own percentiles of all successful requests."""
    own = {}
    for name, (key, unit_s) in _OWN.items():
        found = ((metrics.get(key) or {}).get("successful") or {}).get("percentiles") or {}
        for which in ("p50", "p90", "p99"):
            if found.get(which):
                own[f"{name} {which}"] = unit_s * float(found[which])
    return own


def _time(value: float | None) -> float:
    """A time of the file; GuideLLM up to 0.3 writes -1 for a missing one."""
    return nan if value is None or value < 0 else float(value)
