"""vLLM bench and SGLang's bench_serving: one JSON object with a list for each quantity.

The lists depend on version and options; a missing one is a doubt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from math import isnan, nan
from typing import Any

from workbench.metrics.peers.peer_request import PeerFile, PeerRequest, read_all

_LISTS = (
    "ttfts", "itls", "latencies", "input_lens", "output_lens", "errors", "start_times",
    "queue_times", "server_queue_times", "server_ttfts", "cached_tokens",
)  # fmt: skip
_OWN = {
    "TTFT p50": "median_ttft_ms",
    "TTFT p99": "p99_ttft_ms",
    "E2E p50": "median_e2el_ms",
    "E2E p99": "p99_e2el_ms",
}


def vllm_file(result: Mapping[str, Any]) -> PeerFile:
    """vllm/benchmarks/serve.py and benchmarks/benchmark_serving.py before it: benchmark.

    A chunk is a message with choices. In a chat stream the first carries the role and no token;
    versions up to 0.32 time it. A stream that was cut off or holds an error event is a success in
    this file, and stays one.
    """
    doubts, version = [], ""
    if result.get("server_queue_times"):
        version = "0.33 or later, with server_queue_times"
    elif result.get("start_times"):
        version = "0.15 or later, with start_times"
    elif result.get("ttfts"):
        version = "0.14 or older, without start_times"
    if not result.get("ttfts") and "total_output_tokens" not in result:
        doubts.append(
            "This is a run of embeddings or pooling. The file has E2E only, and no tokens."
        )
    elif not result.get("ttfts"):
        doubts.append(
            "The file has E2E only, no TTFT or TPOT, because it was made without --save-detailed."
        )
    elif not result.get("itls"):
        doubts.append("The file has no `itls`, so TPOT and gaps between chunks are unknown.")
    if not result.get("start_times"):
        doubts.append(
            "The file has no send times (`start_times`), so concurrency and arrival rates are"
            " unknown."
        )
    if "steady_state" in result:
        doubts.append(
            "The Rust vllm-bench wrote this file. In a chat, its TTFT ends at the role chunk, which"
            " has no token."
        )
    return _lists_file("vLLM bench", result, version=version, doubts=doubts, stamped=True)


def sglang_file(result: Mapping[str, Any]) -> PeerFile:
    """python/sglang/bench_serving.py (later benchmark/serving.py): the details of its result.

    It divides gaps by their tokens in some modes only, so no chunks are kept. Its E2E is not in the
    file; here it is TTFT plus gaps.
    """
    doubts = ["The file has no send times, so concurrency and arrival rates are unknown."]
    if not any(result["ttfts"]):
        doubts.append("Responses were not streamed, so the file has no TTFT, TPOT or E2E.")
    return _lists_file("SGLang bench_serving", result, version="", doubts=doubts, stamped=False)


def _lists_file(
    tool: str, result: Mapping[str, Any], *, version: str, doubts: list[str], stamped: bool
) -> PeerFile:
    lists = {name: result[name] for name in _LISTS if result.get(name)}
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lists of different lengths: {told}")
    length = next(iter(lengths.values()), 0)
    numbered = [(n, {name: values[n] for name, values in lists.items()}) for n in range(length)]
    requests, _, lost = read_all(numbered, lambda one: _request(*one, stamped=stamped))
    total = sum(int(result.get(name) or 0) for name in ("completed", "failed"))
    return PeerFile(
        tool=tool,
        requests=requests,
        version=version,
        total=max(total, length),
        doubts=(*doubts, *lost),
        own={name: result[key] / 1000 for name, key in _OWN.items() if result.get(key)},
        ordered=True,
    )


def _request(n: int, one: Mapping[str, Any], *, stamped: bool) -> PeerRequest:
    ttft_s, gaps_s = float(one.get("ttfts", nan)), one.get("itls")
    e2e_s = float(one["latencies"]) if "latencies" in one else nan
    output = int(one.get("output_lens", -1))
    # A request that failed before its first chunk has zeros, and perhaps no reason.
    answered = abs(ttft_s) > 0 or output > 0 or (isnan(ttft_s) and e2e_s > 0)
    failed = bool(one.get("errors")) or not answered
    why = one.get("errors") or "no chunk arrived, no reason was saved"
    if ttft_s == 0:
        ttft_s = nan  # one piece, no stream
    sent_s = float(one.get("start_times", nan))
    chunk_s: tuple[float, ...] = ()
    if gaps_s is not None and ttft_s > 0:
        e2e_s = ttft_s + sum(gaps_s)
        if stamped and not failed:
            # Without a send time, stamps count from the request's own start, so gaps stay right.
            chunk_s = tuple(accumulate(gaps_s, initial=ttft_s + (0.0 if isnan(sent_s) else sent_s)))
    server = {
        name: 1000 * one[key] for name, key in _SERVER_TIMES.items() if one.get(key) is not None
    }
    return PeerRequest(
        request_id=str(n),
        ttft_s=ttft_s,
        e2e_s=e2e_s if e2e_s > 0 else nan,
        prompt_tokens=int(one.get("input_lens", -1)),
        output_tokens=-1 if failed else output,
        cached_tokens=-1 if failed else int(one.get("cached_tokens", -1)),
        scheduled_s=sent_s - float(one.get("queue_times", nan)),
        sent_s=sent_s,
        chunk_s=chunk_s,
        engine_metrics=json.dumps(server) if server else "",
        error_message=why if failed else "",
    )


_SERVER_TIMES = {"queue_time_ms": "server_queue_times", "time_to_first_token_ms": "server_ttfts"}
