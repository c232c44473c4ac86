"""What every reader of another load generator's file gives, and the readers of lists.

vLLM bench and SGLang's bench_serving write one JSON object with a list for each quantity, in the
order of the data set. Which lists there are depends on the version and on --save-detailed: what is
not there is not known, and told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate, pairwise
from math import isfinite, isinf, isnan, nan
from typing import Any

__all__ = [
    "UNREADABLE",
    "PeerFile",
    "Row",
    "all_that_can_be_read",
    "failure",
    "sglang_file",
    "vllm_file",
]

_LONGEST_S = 1e9
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What a reader raises where a file is not as it expects."""

_PHRASES = {status.phrase.lower(): int(status) for status in HTTPStatus}
_LISTS = (
    "ttfts",
    "itls",
    "latencies",
    "input_lens",
    "output_lens",
    "errors",
    "start_times",
    "queue_times",
    "server_queue_times",
    "server_ttfts",
    "cached_tokens",
)
_OWN = {"TTFT p50": "median_ttft_ms", "TTFT p99": "p99_ttft_ms"}
_OWN |= {"E2E p50": "median_e2el_ms", "E2E p99": "p99_e2el_ms"}

Row = tuple[dict[str, Any], float, float]
"""Columns of a RequestRecord, TTFT and E2E in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFile:
    """What a result file of another tool holds."""

    tool: str
    rows: list[Row]
    seen: str = ""
    """Version or form of the file, as far as it tells."""
    total: int = -1
    """Requests that there were, by the file's own count; -1 when it does not say."""
    doubts: tuple[str, ...] = ()
    own: dict[str, float] = field(default_factory=dict)
    """The tool's own percentiles over all requests, in seconds: `TTFT p50` and so on."""
    ordered: bool = False
    """The rows are in the order of the data set, not in that of ending."""


def all_that_can_be_read(
    records: Iterable[Any], read: Callable[[Any], Row | None]
) -> tuple[list[Row], int, tuple[str, ...]]:
    """The rows of the records, how many are unreadable, and a doubt that says so.

    None from `read` is a record that is no request of the measurement. Where no record can be
    read, the first reason is raised.
    """
    rows: list[Row] = []
    reasons: list[Exception] = []
    for record in records:
        try:
            row = read(record)
            if row:
                _check_times(row)
                rows.append(row)
        except UNREADABLE as error:
            reasons.append(error)
    if not reasons:
        return rows, 0, ()
    if not rows:
        raise reasons[0]
    why = f"{type(reasons[0]).__name__}: {reasons[0]}"
    told = f"{len(reasons)} of {len(rows) + len(reasons)} records are unreadable ({why})."
    return rows, len(reasons), (told,)


def _check_times(row: Row) -> None:
    """Raise ValueError for a time that cannot be; NaN is one that is not known."""
    facts, ttft_s, e2e_s = row
    stamps = [facts.get(name, nan) for name in ("scheduled_s", "sent_s", "stream_end_s")]
    for value in (ttft_s, e2e_s, *stamps):
        if isinf(value):
            raise ValueError("a time is infinite")
    chunk_s = facts.get("chunk_s", ())
    if not all(map(isfinite, chunk_s)) or any(a > b for a, b in pairwise(chunk_s)):
        raise ValueError("the times of its chunks are not in order")
    lasts_s = chunk_s[-1] - chunk_s[0] if chunk_s else 0.0
    if ttft_s > _LONGEST_S or e2e_s > _LONGEST_S or lasts_s > _LONGEST_S:
        raise ValueError("an answer takes over 30 years")
    if not facts.get("error") and (ttft_s < 0 or e2e_s < max(ttft_s, 0) - 1e-9):
        raise ValueError(f"TTFT {ttft_s:g} s and E2E {e2e_s:g} s cannot be")


def vllm_file(result: Mapping[str, Any]) -> PeerFile:
    """vllm/benchmarks/serve.py and benchmarks/benchmark_serving.py before it: benchmark.

    A chunk is a message with choices: in a chat stream the first carries the role and no token,
    which versions up to 0.32 time. A stream cut off or with an error event in it is a success in
    this file, and stays one.
    """
    doubts = []
    if not result.get("ttfts") and "total_output_tokens" not in result:
        doubts.append("A run of embeddings or pooling: the file has E2E only, and no tokens.")
    elif not result.get("ttfts"):
        doubts.append(
            "Made without --save-detailed: the file has E2E only, and neither TTFT nor TPOT."
        )
    elif not result.get("itls"):
        doubts.append("The file has no `itls`: TPOT and gaps between chunks are not known.")
    if not result.get("start_times"):
        doubts.append(
            "The file has no send times (`start_times`): overlap, rates and order in time are not"
            " known."
        )
    if "steady_state" in result:
        doubts.append(
            "Written by the Rust vllm-bench: in a chat, its TTFT ends at the role chunk, which"
            " has no token."
        )
    seen = "0.14 or older, without start_times" if result.get("ttfts") else ""
    if result.get("server_queue_times"):
        seen = "0.33 or later, with server_queue_times"
    elif result.get("start_times"):
        seen = "0.15 or later, with start_times"
    return _lists_file("vLLM bench", result, seen=seen, doubts=doubts, stamped=True)


def sglang_file(result: Mapping[str, Any]) -> PeerFile:
    """python/sglang/bench_serving.py (later benchmark/serving.py): the details of its result.

    It divides a gap by its tokens in some modes and not in others, so no chunks are kept. Its E2E
    is not in the file: that of the row is TTFT plus gaps.
    """
    doubts = ["The file has no send times: overlap, rates and order in time are not known."]
    if not any(result["ttfts"]):
        doubts.append("The answers were not streamed: TTFT, TPOT and E2E are not in the file.")
    return _lists_file("SGLang bench_serving", result, seen="", doubts=doubts, stamped=False)


def _lists_file(
    tool: str, result: Mapping[str, Any], *, seen: str, doubts: list[str], stamped: bool
) -> PeerFile:
    lists = {name: result[name] for name in _LISTS if result.get(name)}
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lists of different lengths: {told}")
    count = next(iter(lengths.values()), 0)
    requests = ({name: values[n] for name, values in lists.items()} for n in range(count))
    rows, _, lost = all_that_can_be_read(
        enumerate(requests), lambda numbered: _list_row(*numbered, stamped=stamped)
    )
    total = sum(int(result.get(name) or 0) for name in ("completed", "failed"))
    own = {name: result[key] / 1000 for name, key in _OWN.items() if result.get(key)}
    return PeerFile(
        tool=tool,
        rows=rows,
        seen=seen,
        total=max(total, count),
        doubts=(*doubts, *lost),
        own=own,
        ordered=True,
    )


def _list_row(n: int, one: Mapping[str, Any], *, stamped: bool) -> Row:
    ttft_s, gaps_s = float(one.get("ttfts", nan)), one.get("itls")
    e2e_s = float(one["latencies"]) if "latencies" in one else nan
    output = int(one.get("output_lens", -1))
    # A request that failed before its first chunk has zeros and may have no reason.
    answered = abs(ttft_s) > 0 or output > 0 or (isnan(ttft_s) and e2e_s > 0)
    message, failed = one.get("errors") or "", bool(one.get("errors")) or not answered
    if ttft_s == 0:
        ttft_s = nan  # one piece, no stream
    if gaps_s is not None and ttft_s > 0:
        e2e_s = ttft_s + sum(gaps_s)
    sent_s = float(one.get("start_times", nan))
    stamps: tuple[float, ...] = ()
    if stamped and not failed and gaps_s is not None and ttft_s > 0:
        # Without a send time the stamps count from the request's own sending: gaps stay right.
        stamps = tuple(accumulate(gaps_s, initial=ttft_s + (0.0 if isnan(sent_s) else sent_s)))
    server = {
        "queue_time_ms": one.get("server_queue_times"),
        "time_to_first_token_ms": one.get("server_ttfts"),
    }
    server = {name: 1000 * seconds for name, seconds in server.items() if seconds is not None}
    facts = {
        "request_id": str(n),
        "prompt_tokens": int(one.get("input_lens", -1)),
        "scheduled_s": sent_s - float(one.get("queue_times", nan)),
        "sent_s": sent_s,
        "chunk_s": stamps,
        "output_tokens": -1 if failed else output,
        "cached_tokens": -1 if failed else int(one.get("cached_tokens", -1)),
        "engine_metrics": json.dumps(server) if server else "",
        **failure(message or "no chunk came, no reason was saved", failed),
    }
    return facts, ttft_s, e2e_s if e2e_s > 0 else nan


def failure(message: str, failed: bool) -> dict[str, str]:
    """The class of a failure as far as its message tells, else `protocol`; nothing if none."""
    if not failed:
        return {}
    last = (message.strip().splitlines() or [""])[-1]
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
