"""Sentences on result files of other tools: what they lack, what they tell, what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isnan, nan
from typing import TYPE_CHECKING

from workbench.metrics.definitions import VERSIONS, definition_of
from workbench.metrics.statistics import three_digits

if TYPE_CHECKING:
    import pandas as pd

_CARD = {"vLLM bench": "vllm_bench", "GuideLLM": "guidellm", "AIPerf": "aiperf"}
_OTHERS = {
    "GuideLLM": {
        "E2E": "last token - request start here; the tool's own runs to the end of the stream",
    },
    "LMCache bench": {
        "version": "0.5.6",
        "TTFT": "first text (reasoning only where there is no content) - time before the call",
        "E2E": "end of the stream - time before the call",
    },
    "SGLang bench_serving": {
        "version": "00f9ec4",
        "TTFT": "first chunk with text (chat: or reasoning) - time before the POST",
        "E2E": "TTFT + all gaps; the tool's own E2E, to the last line, is not in its file",
    },
    "multi-round-qa": {
        "version": "production-stack 0a330da",
        "TTFT": "first text (or reasoning, in later versions) - time before the call",
        "E2E": "end of the stream - time before the call",
    },
}
"""What the numbers read from a file mean, where the definition card does not say, and the version
whose source was read:
lmcache/cli/commands/bench/engine_bench/request_sender.py, sglang/benchmark/serving.py,
benchmarks/multi-round-qa/multi-round-qa.py."""


def parts_told(parts: Mapping[str, tuple[int, int]]) -> Iterable[str]:
    """Which arms are drawn and computed from a part of their requests."""
    for arm, (kept, total) in parts.items():
        yield f"{arm}: {kept:,} of {total:,} requests are in the file."


def told_by_file(requests: pd.DataFrame) -> Iterable[str]:
    """What a tool's file says of itself: what it lacks, and what it tells beside requests."""
    arm, marks = str(requests["arm"].iloc[0]), requests.attrs
    version = f" ({marks['version']})" if marks["version"] else ""
    for doubt in marks["doubts"]:
        yield f"{arm}{version}: {doubt}"
    if marks["own"] and marks["kept"] < marks["total"]:
        own = ", ".join(f"{name} {_ms(value)} ms" for name, value in marks["own"].items())
        yield f"{arm}, the tool's own summary of its whole run: {own}."
    yield from _server_times(arm, requests)


def _server_times(arm: str, requests: pd.DataFrame) -> Iterable[str]:
    """The server's own queue and first token beside the client's TTFT, where a file has them."""
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
        "not known" if isnan(value) else f"{_ms(value)} ms"
        for value in (queue_s.median(), first_s.median(), outside_s.median())
    )
    yield (
        f"{arm}, medians of {len(told):,} by the server's own times: queue {queue}, from scheduling"
        f" to the first token {first}; TTFT outside the engine {rest}."
    )


def meanings(tools: Iterable[str]) -> Iterable[str]:
    """What each tool means by the names, where it is not what the workbench means."""
    for tool in dict.fromkeys(tools):
        version = VERSIONS[_CARD[tool]] if tool in _CARD else _OTHERS[tool]["version"]
        for metric in ("TTFT", "E2E"):
            theirs = _OTHERS.get(tool, {}).get(metric)
            if theirs is None:
                theirs = definition_of(metric, _CARD[tool]).formula
            ours = definition_of(metric, "workbench").formula
            yield f"{metric} of {tool} (read at {version}): {theirs}; of the workbench: {ours}."
        yield (
            f"TPOT of {tool} is (last - first token) / (output tokens - 1) here: its file does not"
            " tell the tokens of the first chunk."
        )


def _ms(seconds: float) -> str:
    return three_digits(1000 * seconds)
