"""Lines as LMCache writes them, for tests of its logs.

The mp lines were captured from LMCache 0.5.6; the in-process ones, which need a GPU, are written as
its source and those of older versions format them.
"""

from __future__ import annotations

import io

from workbench.metrics.lmcache_log.log_summary import LogSummary, read_log

GREEN, ITALIC, OFF = "\x1b[32;20m", "\x1b[3m", "\x1b[0m"
ENGINE = "(EngineCore_DP0 pid=480732) "
WORKER = "(Worker_TP{0} pid=42{0}) "


def line(
    text: str, *, head: str = "", at: str = "2026-11-21 10:42:29,019", level: str = "INFO"
) -> str:
    where = f"{ITALIC}(vllm_v1_adapter.py:1478:lmcache.integration.vllm.vllm_v1_adapter){OFF}"
    return f"{head}{GREEN}[{at}] LMCache {level}:{OFF} {text} {where}\n"


def lookup(
    request: str, total: int, hit: int, need: int, *, engine: int | None = None, **more: str
) -> str:
    own = "" if engine is None else f"Inference Engine computed tokens: {engine}, "
    text = f"Reqid: {request}, Total tokens {total}, {own}LMCache hit tokens: {hit}, "
    return line(f"{text}need to load: {need}", **more)


def stored(request: str, tokens: int, **more: str) -> str:
    named = f"[req_id={request}] " if request else ""
    text = f"{named}Stored {tokens} out of total {tokens} tokens. size: 0.5000 GB,"
    return line(f"{text} cost 20.0000 ms, throughput: 25.0000 GB/s;", **more)


def storing(request: str, tokens: int) -> str:
    text = f"Storing KV cache for {tokens} out of {tokens} tokens (skip_leading_tokens=0)"
    return line(f"{text} for request {request}")


def retrieved(
    request: str, tokens: int, required: int, *, rank: int = 0, head: str = WORKER, **more: str
) -> str:
    text = f"[req_id={request}] Retrieved {tokens} out of {required} required tokens (from"
    text += f" {required} total tokens). size: 0.25 gb, cost 10.0 ms, throughput: 25.0 GB/s;"
    return line(text, head=head.format(rank), **more)


def short(tokens: int, expected: int, *, rank: int = 0, request: str = "") -> str:
    """The two lines of a worker that got less than the lookup promised; newer ones name it."""
    named = f"Request {request}" if request else ""
    texts = (
        f"{named}The number of retrieved tokens is less than the expected number of tokens!",
        f"Num retrieved tokens: {tokens}, num expected tokens: {expected}",
    )
    return "".join(line(text, head=WORKER.format(rank), level="ERROR") for text in texts)


def lost(request: str, tokens: int) -> str:
    text = f"Request {request} failed to load {tokens} tokens across 96 blocks"
    return line(text, level="WARNING")


def prefetch(request: str, found: int, asked: int, *, l2: int = 0, **more: str) -> str:
    text = f"Prefetch request completed (L1+L2): {found}/{asked} retained keys"
    text += f" ({found - l2} L1, {l2} L2) in 1.4 ms"
    return line(f"{text} (external_request_id={request}, prefetch_request_id=13)", **more)


MP_LINES = (
    line("TokenHasher initialized: chunk_size=256, hash_algorithm=blake3"),
    line("Stored 2048 tokens in 0.004 seconds"),
    prefetch("cmpl-a-0-82e63193", 88, 90, l2=8),
    line("Retrieved 22528 tokens in 0.015 seconds"),
)


def read(*lines: str | bytes, ranks: int = 0) -> LogSummary:
    data = b"".join(x.encode() if isinstance(x, str) else x for x in lines)
    return read_log(io.BytesIO(data), ranks=ranks)


def only(log: LogSummary) -> dict[str, object]:
    """The log's one request."""
    (row,) = log.requests.to_dict("records")
    return {str(key): value for key, value in row.items()}


def causes(log: LogSummary) -> dict[str, int]:
    """What is in doubt, and how often."""
    return {doubt.cause: doubt.count for doubt in log.doubts}
