"""The requests in a result file of another load generator, one reader per format.

Each yields, per request, the columns of a RequestRecord that the file tells, the TTFT and the E2E
in seconds. An unknown version of a format raises KeyError, TypeError, ValueError, AttributeError
or IndexError where it differs: metrics.peers says it in a sentence.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from io import StringIO
from itertools import accumulate
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import ResultError

__all__ = ["Row", "aiperf_rows", "guidellm_rows", "lmcache_rows", "vllm_rows"]

_LMCACHE_FIELDS = (
    "request_id,successful,ttft,request_latency,num_input_tokens,num_output_tokens,"
    "decode_speed,submit_time,first_token_time,finish_time,error"
).split(",")
_GUIDELLM_VERSIONS = (1, 2)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
_PHRASES = {status.phrase.lower(): int(status) for status in HTTPStatus}

Row = tuple[dict[str, Any], float, float]
"""Columns of a RequestRecord, TTFT and E2E in seconds."""


def vllm_rows(result: Mapping[str, Any]) -> Iterator[Row]:
    """vllm/benchmarks/serve.py: benchmark, the lists of its result.

    A chunk is a message with choices: in a chat stream the first carries the role and no token. A
    stream cut off or with an error event in it is a success in this file, and stays one.
    """
    names = ("start_times", "ttfts", "itls", "input_lens", "output_lens", "errors")
    lists = [result[name] for name in names]
    waits = result.get("queue_times") or [nan] * len(lists[0])
    for n, (start_s, ttft_s, itls, prompt, output, error, wait_s) in enumerate(
        zip(*lists, waits, strict=True)
    ):
        # A request that failed before its first chunk has a TTFT of zero and may have no reason.
        failed = bool(error) or not ttft_s > 0
        stamps = () if failed else tuple(accumulate(itls, initial=start_s + ttft_s))
        yield (
            {
                "request_id": str(n),
                "prompt_tokens": int(prompt),
                "scheduled_s": start_s - wait_s,
                "sent_s": float(start_s),
                "chunk_s": stamps,
                "output_tokens": -1 if failed else int(output),
                **_failure(error or "no chunk came, no reason was saved", failed),
            },
            float(ttft_s),
            ttft_s + sum(itls),
        )


def guidellm_rows(source: Path, report: Mapping[str, Any]) -> Iterator[Row]:
    """guidellm/schemas/base/request_stats.py: GenerativeRequestStats, with its computed fields."""
    version = report["metadata"].get("version")
    if version not in _GUIDELLM_VERSIONS:
        raise ResultError(
            f"{source} is a GuideLLM report of version {version}; known are versions"
            f" {' and '.join(map(str, _GUIDELLM_VERSIONS))}"
        )
    if len(report["benchmarks"]) > 1:
        raise ResultError(
            f"{source} holds {len(report['benchmarks'])} GuideLLM benchmarks (a sweep), which are"
            " not one kind of load; run guidellm with one rate, or keep one entry of `benchmarks`"
        )
    for benchmark in report["benchmarks"]:
        for status in ("successful", "errored", "incomplete"):
            for request in benchmark["requests"].get(status) or []:
                timings = request["info"]["timings"]
                start_s, last_s = timings["request_start"], timings["last_token_iteration"]
                good = status == "successful"
                told = request["info"].get("error") or "GuideLLM cut it at the end of the benchmark"
                yield (
                    {
                        "request_id": str(request["request_id"]),
                        "prompt_tokens": _count(request["prompt_tokens"]),
                        "scheduled_s": _time(timings.get("targeted_start")),
                        "sent_s": _time(start_s),
                        "stream_end_s": _time(timings.get("request_end")),
                        "output_tokens": _count(request["output_tokens"]) if good else -1,
                        "cached_tokens": _count(request.get("cached_tokens")),
                        **(
                            {"error": "cancelled", "error_message": told}
                            if status == "incomplete"
                            else _failure(told, not good)
                        ),
                    },
                    _time(request["time_to_first_token_ms"]) / 1000 if good else nan,
                    last_s - start_s if good and last_s is not None else nan,
                )


def aiperf_rows(records: list[Any]) -> Iterator[Row]:
    """AIPerf's docs/tutorials/working-with-profile-exports.md: the per-request records.

    Token counts are the server's where it told them; else AIPerf's, who tokenises texts again. A
    stream cut off or with an error event in it is a success in this file, and stays one.
    """
    for record in records:
        about, metrics, error = record["metadata"], record["metrics"], record.get("error")
        if about["benchmark_phase"] != "profiling":
            continue
        sent_s = about["request_start_ns"] / 1e9
        facts: dict[str, Any] = {
            "request_id": str(about["x_request_id"]),
            "sent_s": sent_s,
            "stream_end_s": about["request_end_ns"] / 1e9,
        }
        if error is not None or about["was_cancelled"]:
            message = str((error or {}).get("message", "cancelled"))
            code = (error or {}).get("code")
            http = isinstance(code, int) and 400 <= code < 600
            told = {"error": f"http_{code}" if http else "protocol", "error_message": message}
            if about["was_cancelled"]:
                told["error"] = "cancelled"
            size = metrics.get("error_isl", {}).get("value")
            yield facts | {"prompt_tokens": _count(size)} | told, nan, nan
            continue
        ttft_s = float(_aiperf_s(metrics, "time_to_first_token"))
        gaps_s = (
            _aiperf_s(metrics, "inter_chunk_latency") if "inter_chunk_latency" in metrics else ()
        )
        facts |= {
            "prompt_tokens": _aiperf_count(metrics, "usage_prompt_tokens", "input_sequence_length"),
            "output_tokens": _aiperf_count(
                metrics, "usage_completion_tokens", "output_sequence_length"
            ),
            "chunk_s": tuple(accumulate(map(float, gaps_s), initial=sent_s + ttft_s)),
        }
        yield facts, ttft_s, float(_aiperf_s(metrics, "request_latency"))


def _aiperf_count(metrics: Mapping[str, Any], told: str, own: str) -> int:
    return _count(metrics.get(told, metrics[own])["value"])


def _aiperf_s(metrics: Mapping[str, Any], name: str) -> Any:
    """A metric's value, or array of values, in seconds."""
    return np.asarray(metrics[name]["value"], float) * _SECONDS[metrics[name]["unit"]]


def lmcache_rows(text: str) -> Iterator[Row]:
    """lmcache/cli/commands/bench/engine_bench/stats.py: StatsCollector.export_csv.

    Its end of a request is the end of the stream, so E2E and TPOT hold what follows the last token.
    """
    reader = csv.DictReader(StringIO(text, newline=""))
    if reader.fieldnames != _LMCACHE_FIELDS:
        raise ValueError(f"its columns are {', '.join(reader.fieldnames or [])}")
    for row in reader:
        good = {"True": True, "False": False}[row["successful"]]
        yield (
            {
                "request_id": row["request_id"],
                "prompt_tokens": int(row["num_input_tokens"]) or -1,
                "sent_s": float(row["submit_time"]),
                "stream_end_s": float(row["finish_time"]),
                "output_tokens": int(row["num_output_tokens"]) if good else -1,
                **_failure(row["error"] or "no token came, no reason was saved", not good),
            },
            float(row["ttft"]),
            float(row["request_latency"]),
        )


def _failure(message: str, failed: bool) -> dict[str, str]:
    """The class of a failure as far as its message tells, else `protocol`; nothing if none."""
    if not failed:
        return {}
    last = message.strip().splitlines()[-1]
    status = _PHRASES.get(last.lower()) or _first_int(
        r"(?:error code|status)\W+([45]\d\d)", message
    )
    if status:
        error = f"http_{status}"
    elif re.search(r"streaming response returned an error", last, re.IGNORECASE):
        error = "stream_error"
    elif re.search(r"timed? ?out", last, re.IGNORECASE):
        error = "timeout"
    elif re.search(r"connect(or|ion)? ?(error|refused)|cannot connect", last, re.IGNORECASE):
        error = "connect"
    elif re.search(r"reset by peer|disconnected", last, re.IGNORECASE):
        error = "reset"
    else:
        error = "protocol"
    return {"error": error, "error_message": message}


def _first_int(pattern: str, text: str) -> int:
    found = re.search(pattern, text, re.IGNORECASE)
    return int(found[1]) if found else 0


def _count(value: float | None) -> int:
    return -1 if value is None else int(value)


def _time(value: float | None) -> float:
    return nan if value is None else float(value)
