"""Readers of GuideLLM's reports and of AIPerf's records, whose requests are objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from math import isnan, nan
from pathlib import Path
from typing import Any

from workbench.errors import ResultError
from workbench.metrics.peers.peer_rows import PeerFile, Row, all_that_can_be_read, failure

__all__ = ["aiperf_file", "guidellm_file"]

_GUIDELLM_TIMES = (
    "targeted_start",
    "request_start",
    "first_token_iteration",
    "last_token_iteration",
    "request_end",
)
_GUIDELLM_OLD_TIMES = (
    "targeted_start_time",
    "start_time",
    "first_token_time",
    "last_token_time",
    "end_time",
)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}


def guidellm_file(source: Path, report: Mapping[str, Any]) -> PeerFile:
    """guidellm/schemas/base/request_stats.py of 0.4 and later, benchmark/benchmark.py of 0.2, 0.3.

    The second is told by its `scheduler_info`; a report has a version since 0.5.
    """
    about = report.get("metadata") or {}
    seen = str(about.get("guidellm_version") or "")
    if about and about.get("version") not in (1, 2):
        raise ResultError(
            f"{source} is a GuideLLM report of version {about.get('version')}"
            f" ({seen or 'GuideLLM unknown'}); read are versions 1 and 2 (GuideLLM 0.5 to 0.8) and"
            " GuideLLM 0.2 to 0.4"
        )
    benchmarks = report["benchmarks"]
    if len(benchmarks) > 1:
        raise ResultError(
            f"{source} holds {len(benchmarks)} GuideLLM benchmarks (a sweep), which are"
            " not one kind of load; run guidellm with one rate, or keep one entry of `benchmarks`"
        )
    benchmark = benchmarks[0] if benchmarks else {}
    if "results" in benchmark and "requests" not in benchmark:
        raise ResultError(
            f"{source} is a report of GuideLLM 0.1; read are 0.2 to 0.8: run a later GuideLLM"
        )
    lists = benchmark.get("requests") or {}
    requests = [
        (status, request)
        for status in ("successful", "errored", "incomplete")
        for request in lists.get(status) or []
    ]
    rows, _, doubts = all_that_can_be_read(requests, lambda pair: _guidellm_row(*pair))
    metrics = benchmark.get("metrics") or {}
    totals = benchmark.get("request_totals") or metrics.get("request_totals") or {}
    kinds = ("successful", "errored", "incomplete")
    total = totals.get("total") or sum(totals.get(kind) or 0 for kind in kinds)
    if 0 < total < len(requests):
        doubts += (
            f"GuideLLM measured {total} requests; the {len(requests)} in the file include"
            " warm-up or cool-down.",
        )
    if any(not facts.get("error") and isnan(ttft_s) for facts, ttft_s, _ in rows):
        doubts += ("Some requests have no time of a first token: they were not streamed.",)
    if not seen:
        seen = "0.4" if any("info" in request for _, request in requests) else "0.3 and older"
    return PeerFile(
        tool="GuideLLM",
        rows=rows,
        seen=seen,
        total=max(total, len(requests)),
        doubts=doubts,
        own=_guidellm_own(metrics),
    )


def _guidellm_row(status: str, request: Mapping[str, Any]) -> Row:
    if "info" in request:
        info, times, names = request["info"], request["info"]["timings"], _GUIDELLM_TIMES
    else:
        info, names = request, _GUIDELLM_OLD_TIMES
        times = {**request["scheduler_info"], **request}
    due_s, start_s, first_s, last_s, end_s = (_time(times.get(name)) for name in names)
    good = status == "successful"
    told = info.get("error") or "GuideLLM cut it at the end of the benchmark"
    ttft_ms = request["time_to_first_token_ms"]
    facts = {
        "request_id": str(request["request_id"]),
        "prompt_tokens": _count(request["prompt_tokens"]),
        "scheduled_s": due_s,
        "sent_s": start_s,
        "stream_end_s": end_s,
        "output_tokens": _count(request["output_tokens"]) if good else -1,
        "cached_tokens": _count(request.get("cached_tokens")),
        **(
            {"error": "cancelled", "error_message": told}
            if status == "incomplete"
            else failure(told, not good)
        ),
    }
    ttft_s = first_s - start_s if ttft_ms is None else ttft_ms / 1000
    e2e_s = (end_s if isnan(last_s) else last_s) - start_s
    return facts, ttft_s if good else nan, e2e_s if good else nan


def _guidellm_own(metrics: Mapping[str, Any]) -> dict[str, float]:
    """GuideLLM's own percentiles of all its successes."""
    own = {}
    for name, key, unit_s in (
        ("TTFT", "time_to_first_token_ms", 1e-3),
        ("E2E", "request_latency", 1.0),
    ):
        found = ((metrics.get(key) or {}).get("successful") or {}).get("percentiles") or {}
        for which in ("p50", "p90", "p99"):
            if found.get(which):
                own[f"{name} {which}"] = unit_s * float(found[which])
    return own


def aiperf_file(source: Path, records: list[Any], *, lost: int = 0) -> PeerFile:
    """AIPerf's docs/tutorials/working-with-profile-exports.md: the per-request records.

    Token counts are the server's where it told them; else AIPerf's, who tokenises texts again. A
    stream cut off or with an error event in it is a success in this file, and stays one. `lost`
    lines were no JSON. The count of all requests is in the summary beside the file.
    """
    rows, unreadable, doubts = all_that_can_be_read(records, _aiperf_row)
    total, seen = _aiperf_summary(source)
    if rows and all(isnan(ttft_s) for facts, ttft_s, _ in rows if not facts.get("error")):
        doubts += ("No TTFT in the file: AIPerf ran without --streaming. TPOT is not known.",)
    elif any(isnan(ttft_s) for facts, ttft_s, _ in rows if not facts.get("error")):
        doubts += ("Some requests have no TTFT in the file: their TPOT is not known.",)
    return PeerFile(
        tool="AIPerf",
        rows=rows,
        seen=seen,
        total=max(total, len(rows) + unreadable + lost),
        doubts=doubts,
    )


def _aiperf_row(record: Mapping[str, Any]) -> Row | None:
    about, error = record["metadata"], record.get("error")
    metrics = record.get("metrics") or {}  # none of a request that failed
    if about.get("benchmark_phase", "profiling") != "profiling":
        return None
    sent_s = about["request_start_ns"] / 1e9
    name = about.get("x_request_id") or f"{about.get('session_num')}.{about.get('turn_index')}"
    facts: dict[str, Any] = {
        "request_id": str(name),
        "sent_s": sent_s,
        "stream_end_s": about["request_end_ns"] / 1e9,
    }
    if error is not None or about.get("was_cancelled"):
        code = (error or {}).get("code")
        told = f"http_{code}" if isinstance(code, int) and 400 <= code < 600 else "protocol"
        facts |= {
            "prompt_tokens": _aiperf_count(metrics, "error_isl", "input_sequence_length"),
            "error": "cancelled" if about.get("was_cancelled") else told,
            "error_message": str((error or {}).get("message", "cancelled")),
        }
        return facts, nan, nan
    e2e_s = _aiperf_s(metrics, "request_latency")[0]
    streamed = "time_to_first_token" in metrics
    ttft_s = _aiperf_s(metrics, "time_to_first_token")[0] if streamed else nan
    facts |= {
        "prompt_tokens": _aiperf_count(metrics, "usage_prompt_tokens", "input_sequence_length"),
        "output_tokens": _aiperf_count(
            metrics, "usage_completion_tokens", "output_sequence_length"
        ),
    }
    if streamed:
        gaps_s = (
            _aiperf_s(metrics, "inter_chunk_latency") if "inter_chunk_latency" in metrics else []
        )
        facts["chunk_s"] = tuple(accumulate(gaps_s, initial=sent_s + ttft_s))
    return facts, ttft_s, e2e_s


def _aiperf_summary(source: Path) -> tuple[int, str]:
    """Requests that AIPerf counted and its version, from the summary beside the records."""
    try:
        summary = json.loads(source.with_name(f"{source.stem}_aiperf.json").read_text("utf-8"))
        counts = [summary.get(name) or {} for name in ("request_count", "error_request_count")]
        total = sum(int(count.get("avg") or 0) for count in counts)
        return total or -1, str(summary.get("aiperf_version") or "")
    except (OSError, ValueError, AttributeError, TypeError):
        return -1, ""


def _aiperf_count(metrics: Mapping[str, Any], *names: str) -> int:
    """The first of the counts that the record has."""
    return next((_count(metrics[name]["value"]) for name in names if name in metrics), -1)


def _aiperf_s(metrics: Mapping[str, Any], name: str) -> list[float]:
    """A metric's values in seconds; most have one."""
    value, unit_s = metrics[name]["value"], _SECONDS[metrics[name]["unit"]]
    return [float(each) * unit_s for each in (value if isinstance(value, list) else [value])]


def _count(value: float | None) -> int:
    return -1 if value is None else int(value)


def _time(value: float | None) -> float:
    """A time of the file; GuideLLM up to 0.3 writes -1 for one that never came."""
    return nan if value is None or value < 0 else float(value)
