"""Files as other load generators write them, for tests."""

from __future__ import annotations

from typing import Any


def guidellm_report(version: int = 2, **change: Any) -> dict[str, Any]:
    timings = {
        "targeted_start": 99.9, "request_start": 100.0, "first_token_iteration": 100.5,
        "last_token_iteration": 100.9, "request_end": 101.0,
    }  # fmt: skip
    good = {
        "request_id": "g", "info": {"timings": timings, "error": None}, "prompt_tokens": 100,
        "output_tokens": 5, "time_to_first_token_ms": 500.0,
    } | change  # fmt: skip
    late = {"timings": timings | {"request_start": 99.0}, "error": "ReadTimeout: timed out"}
    bad = good | {"info": late, "time_to_first_token_ms": None}
    requests = {"successful": [good], "errored": [bad], "incomplete": []}
    return {"metadata": {"version": version}, "benchmarks": [{"requests": requests}]}


def benchmark_report(version: str = "0.2", units: str = "s", **ttft: Any) -> dict[str, Any]:
    """As inference-perf 0.7 writes it, by llmdbenchmark/analysis/benchmark_report."""
    shown = {"units": units, "mean": 0.3, "p50": 0.25, "p90": 0.5, **ttft}
    load = {"tool": "inference-perf", "tool_version": "0.7.0"}
    aggregate = {
        "requests": {"total": 200, "failures": 3},
        "latency": {"time_to_first_token": shown, "request_latency": {"units": "s", "mean": 1.0}},
    }
    return {
        "version": version,
        "run": {"uid": "inference-perf-stage-0-1"},
        "scenario": {"load": {"standardized": load}},
        "results": {"request_performance": {"aggregate": aggregate}},
    }
