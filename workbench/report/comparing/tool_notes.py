"""What another tool's file says besides its requests, and how that tool defines its metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import isnan, nan
from typing import TYPE_CHECKING

from workbench.metrics.definitions import VERSIONS, definition_of
from workbench.report.comparing.run_pair import (
    milliseconds,
)

if TYPE_CHECKING:
    import pandas as pd

_CARD = {"vLLM bench": "vllm_bench", "GuideLLM": "guidellm", "AIPerf": "aiperf"}
_OTHERS = {
    "GuideLLM": {
        "E2E": "from request start to the last token; the tool's own E2E ends with the stream",
    },
    "LMCache bench": {
        "version": "0.5.6",
        "TTFT": "from before the call to the first text (reasoning only if there is no content)",
        "E2E": "from before the call to the end of the stream",
    },
    "SGLang bench_serving": {
        "version": "00f9ec4",
        "TTFT": "from before the POST to the first chunk with text (in a chat, or reasoning)",
        "E2E": "TTFT plus all gaps; the tool's own E2E is not in its file",
    },
    "Benchmark Report": {
        "version": "0.2",
        "TTFT": "as the load generator that the file names defines it",
        "E2E": "likewise",
    },
    "multi-round-qa": {
        "version": "production-stack 0a330da",
        "TTFT": "from before the call to the first text (or reasoning, in later versions)",
        "E2E": "from before the call to the end of the stream",
    },
}
"""Definitions of tools that the definition card does not cover, and the version that was read:
lmcache/cli/commands/bench/engine_bench/request_sender.py, sglang/benchmark/serving.py,
benchmarks/multi-round-qa/multi-round-qa.py."""


def told_by_file(arm: str, requests: pd.DataFrame) -> Iterable[str]:
    """What a tool's file lacks, and what it holds in addition to requests."""
    marks = requests.attrs
    version = f" ({marks['version']})" if marks["version"] else ""
    for doubt in marks["doubts"]:
        yield f"{arm}{version}: {doubt}"
    if marks["own"] and marks["kept"] < marks["total"]:
        own = ", ".join(f"{name} {milliseconds(value)} ms" for name, value in marks["own"].items())
        yield f"{arm}, the tool's own summary of all requests: {own}."
    yield from _server_times(arm, requests)


def _server_times(arm: str, requests: pd.DataFrame) -> Iterable[str]:
    """The server's own queue time and first token, if a file has them."""
    told = requests[(requests["engine_metrics"] != "") & requests["ttft_s"].notna()]
    if told.empty:
        return
    server = told["engine_metrics"].map(json.loads)
    queue_s, first_s = (
        server.map(lambda found, name=name: found.get(name, nan)) / 1000
        for name in ("queue_time_ms", "time_to_first_token_ms")
    )
    outside_s = told["ttft_s"] - queue_s - first_s
    queue, first, rest = (
        "unknown" if isnan(value) else f"{milliseconds(value)} ms"
        for value in (queue_s.median(), first_s.median(), outside_s.median())
    )
    yield (
        f"{arm}, medians of the server's own times of {len(told):,} requests: queue {queue},"
        f" scheduling to first token {first}, TTFT outside the engine {rest}."
    )


def meanings(tools: Iterable[str]) -> Iterable[str]:
    """How each tool defines the metrics."""
    for tool in dict.fromkeys(tools):
        version = VERSIONS[_CARD[tool]] if tool in _CARD else _OTHERS[tool]["version"]
        for metric in ("TTFT", "E2E"):
            theirs = _OTHERS.get(tool, {}).get(metric)
            if theirs is None:
                theirs = definition_of(metric, _CARD[tool]).formula
            ours = definition_of(metric, "workbench").formula
            yield f"{metric} in {tool} ({version}): {theirs}. In the workbench: {ours}."
        if tool == "Benchmark Report":
            continue  # its TPOT is the tool's own
        yield (
            f"TPOT of {tool} is computed as (last - first token) / (output tokens - 1), because its"
            " file does not give the tokens of the first chunk."
        )
