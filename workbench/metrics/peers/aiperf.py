"""AIPerf's profile_export.jsonl, one record per request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from math import nan
from pathlib import Path
from typing import Any

from workbench.metrics.peers.peer_request import (
    PeerFile,
    PeerRequest,
    count,
    read_all,
    unstreamed,
)

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}


def aiperf_file(source: Path, records: list[Any], *, lost: int = 0) -> PeerFile:
    """AIPerf's docs/tutorials/working-with-profile-exports.md: the per-request records.

    Token counts are the server's if present, else AIPerf's, which tokenises texts again. A stream
    that was cut off or holds an error event is a success in this file, and stays one. `lost` lines
    were not JSON. The count of all requests is in the summary beside the file.
    """
    requests, unreadable, doubts = read_all(records, _request)
    total, version = _summary(source)
    missing = unstreamed(requests)
    if requests and all(missing):
        doubts += ("The file has no TTFT, so TPOT is unknown: AIPerf ran without --streaming.",)
    elif any(missing):
        doubts += ("Some requests have no TTFT, so their TPOT is unknown.",)
    if lost:
        doubts += (f"Lines left out because they are cut off or not JSON: {lost}.",)
    return PeerFile(
        tool="AIPerf",
        requests=requests,
        version=version,
        total=max(total, len(requests) + unreadable + lost),
        doubts=doubts,
    )


def _request(record: Mapping[str, Any]) -> PeerRequest | None:
    about, error = record["metadata"], record.get("error")
    metrics = record.get("metrics") or {}  # none of a request that failed
    if about.get("benchmark_phase", "profiling") != "profiling":
        return None
    sent_s = about["request_start_ns"] / 1e9
    name = about.get("x_request_id") or f"{about.get('session_num')}.{about.get('turn_index')}"
    when = {"sent_s": sent_s, "stream_end_s": about["request_end_ns"] / 1e9}
    if error is not None or about.get("was_cancelled"):
        code = (error or {}).get("code")
        told = f"http_{code}" if isinstance(code, int) and 400 <= code < 600 else "protocol"
        return PeerRequest(
            request_id=str(name),
            prompt_tokens=_tokens(metrics, "error_isl", "input_sequence_length"),
            error="cancelled" if about.get("was_cancelled") else told,
            error_message=str((error or {}).get("message", "cancelled")),
            **when,
        )
    ttft_s, chunk_s = nan, tuple[float, ...]()
    if "time_to_first_token" in metrics:
        ttft_s = _seconds(metrics, "time_to_first_token")[0]
        named = "inter_chunk_latency" in metrics
        gaps_s = _seconds(metrics, "inter_chunk_latency") if named else []
        chunk_s = tuple(accumulate(gaps_s, initial=sent_s + ttft_s))
    return PeerRequest(
        request_id=str(name),
        ttft_s=ttft_s,
        e2e_s=_seconds(metrics, "request_latency")[0],
        prompt_tokens=_tokens(metrics, "usage_prompt_tokens", "input_sequence_length"),
        output_tokens=_tokens(metrics, "usage_completion_tokens", "output_sequence_length"),
        chunk_s=chunk_s,
        **when,
    )


def _summary(source: Path) -> tuple[int, str]:
    """AIPerf's count of requests and its version, from the summary beside the records."""
    try:
        summary = json.loads(source.with_name(f"{source.stem}_aiperf.json").read_text("utf-8"))
        counts = [summary.get(name) or {} for name in ("request_count", "error_request_count")]
        total = sum(int(one.get("avg") or 0) for one in counts)
        return total or -1, str(summary.get("aiperf_version") or "")
    except (OSError, ValueError, AttributeError, TypeError):
        return -1, ""


def _tokens(metrics: Mapping[str, Any], *names: str) -> int:
    """The first of these counts that the record has."""
    return next((count(metrics[name]["value"]) for name in names if name in metrics), -1)


def _seconds(metrics: Mapping[str, Any], name: str) -> list[float]:
    """A metric's values; most metrics have one."""
    value, unit_s = metrics[name]["value"], _SECONDS[metrics[name]["unit"]]
    return [float(each) * unit_s for each in (value if isinstance(value, list) else [value])]
