"""The definition card: TTFT, TPOT, ICL, ITL and E2E of four tools, from the same timestamps.

Columns differ only by definition, never by run. docs/metrics.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.metrics.latency import DEFINITIONS, icl, latencies, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Formula = Callable[[pd.DataFrame], Values]

TOOLS = ("workbench", "vllm_bench", "guidellm", "aiperf")
"""The columns of `card`."""
VERSIONS = {
    "workbench": "",
    "vllm_bench": "0.32.0 and 0.33.0",
    "guidellm": "0.8.1 (or 0.3.1 to 0.7.4 where marked)",
    "aiperf": "0.13.0",
}
"""The versions whose sources were read. A formula holds for these, and names versions that differ.
"""
METRICS = ("TTFT", "TPOT", "ICL", "ITL", "E2E")
_LIKE_SUCCESS = {
    "vllm_bench": ("truncated", "stream_error"),
    "aiperf": ("truncated", "stream_error"),
    "guidellm": ("truncated",),
}
"""Failures that a tool counts as successes once a chunk has arrived: no tool checks for the end of
the stream, and two ignore an error event inside HTTP 200. Observed with vLLM bench 0.32.0,
AIPerf 0.13.0 and GuideLLM 0.8.1 on broken streams; read in the source of vLLM bench 0.33.0."""

_OURS = "workbench/metrics/latency.py: "
_VLLM = "vllm/benchmarks/serve.py: calculate_metrics"
_VLLM_SENDER = "vllm/benchmarks/lib/endpoint_request_func.py: async_request_openai_completions"
_GUIDELLM = "src/guidellm/schemas/base/request_stats.py: GenerativeRequestStats."
_AIPERF = "src/aiperf/metrics/types/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What one tool means by one metric."""

    metric: str
    tool: str
    formula: str
    """In words; `not reported` where the tool lacks the metric."""
    source: str = ""
    """The tool's file and function with the formula."""
    values: Formula | None = None
    """Seconds of a frame with latencies, one per request or, for gaps, per gap; None: no metric."""


def card(requests: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of each metric (rows) by the formula of each tool (columns `TOOLS`).

    `requests` is a `requests` frame of one kind of request: one arm and one pass, any rounds. NaN
    where a tool lacks the metric or no value is defined. The rows are `METRICS`, the index is
    called `metric`, and a last row `requests` counts what each tool calls a success.
    """
    import pandas as pd

    by_tool = {tool: _timed(requests, tool) for tool in TOOLS}
    rows = [
        [_median(definition_of(metric, tool), by_tool[tool]) for tool in TOOLS]
        for metric in METRICS
    ]
    rows.append([float(len(frame)) for frame in by_tool.values()])
    index = pd.Index([*METRICS, "requests"], name="metric")
    return pd.DataFrame(rows, index=index, columns=list(TOOLS))


def definition_of(metric: str, tool: str) -> Definition:
    """The formula, its source and its function. Raises KeyError for a name not in the card."""
    return _BY_NAME[metric, tool]


def _timed(requests: pd.DataFrame, tool: str) -> pd.DataFrame:
    """The requests that the tool calls successes, with the latencies of the workbench."""
    good = succeeded(requests)
    counted = requests["error"].isin(_LIKE_SUCCESS.get(tool, ()))
    good |= counted & (requests["chunk_s"].map(len) > 0)
    # Without the error, as the tool sees it; else the timestamps of its "successes" become NaN.
    return latencies(requests[good].assign(error=""))


def _median(definition: Definition, frame: pd.DataFrame) -> float:
    if definition.values is None:
        return float("nan")
    values = definition.values(frame)
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _column(name: str) -> Formula:
    return lambda frame: frame[name].to_numpy(float)


def _tokens(frame: pd.DataFrame) -> Values:
    """Output tokens; NaN where the server did not report them."""
    tokens = frame["output_tokens"].to_numpy(float, na_value=np.nan)
    return np.where(tokens > 0, tokens, np.nan)


def _chunk_s(frame: pd.DataFrame, which: int) -> Values:
    """When the first (0) or the last (-1) chunk with a token arrived; NaN without one."""
    stamps = frame["chunk_s"].map(lambda chunks: chunks[which] if len(chunks) else np.nan)
    return stamps.to_numpy(float)


# Peers' columns come from the stamps, so that ours can be defined anew without changing them.
def _to_first(frame: pd.DataFrame) -> Values:
    return np.asarray(_chunk_s(frame, 0) - frame["sent_s"].to_numpy(float))


def _to_last(frame: pd.DataFrame) -> Values:
    return np.asarray(_chunk_s(frame, -1) - frame["sent_s"].to_numpy(float))


def _decoding_s(frame: pd.DataFrame) -> Values:
    return np.asarray(_chunk_s(frame, -1) - _chunk_s(frame, 0))


def _after_first(frame: pd.DataFrame) -> Values:
    """(last chunk - first chunk) / (output tokens - 1), assuming one token in the first chunk."""
    later = _tokens(frame) - 1
    return np.asarray(_decoding_s(frame) / np.where(later > 0, later, np.nan))


def _with_first(frame: pd.DataFrame) -> Values:
    """(last chunk - sent) / output tokens, which includes TTFT."""
    return np.asarray(_to_last(frame) / _tokens(frame))


def _after_first_chunk(frame: pd.DataFrame) -> Values:
    """As `_after_first`, minus all tokens of the first chunk if the stream reports them."""
    told = frame["chunk_tokens"].map(lambda counts: counts[0] if len(counts) else 1)
    first, tokens = told.to_numpy(float), _tokens(frame)
    # An impossible count (none, or all tokens) is taken as one token, as AIPerf does.
    later = tokens - np.where((first > 0) & (tokens - first >= 1), first, 1.0)
    return np.asarray(_decoding_s(frame) / np.where(tokens >= 2, later, np.nan))


def _to_stream_end(frame: pd.DataFrame) -> Values:
    return (frame["stream_end_s"] - frame["sent_s"]).to_numpy(float)


_OUR_WORDS = {name: words for name, words, _ in DEFINITIONS}
_DEFINITIONS: tuple[tuple[str, str, str, str, Formula | None], ...] = (
    ("TTFT", "workbench",
     _OUR_WORDS["ttft_s"], _OURS + "latencies", _column("ttft_s")),
    ("TTFT", "vllm_bench",
     "from before the POST to the first message with choices, even without text (chat since 0.33:"
     " to the first chunk with a token)",
     _VLLM_SENDER, _to_first),
    ("TTFT", "guidellm",
     "from request start (0.8: headers written; 0.3 to 0.7: before the POST) to the first chunk"
     " with text, reasoning or a tool call",
     _GUIDELLM + "time_to_first_token_ms", _to_first),
    ("TTFT", "aiperf",
     "from request start, before the connection, to the first response with content",
     _AIPERF + "ttft_metric.py: TTFTMetric", _to_first),
    ("TPOT", "workbench",
     _OUR_WORDS["tpot_s"], _OURS + "latencies", _column("tpot_s")),
    ("TPOT", "vllm_bench", "(E2E - TTFT) / (output tokens - 1)", _VLLM, _after_first),
    ("TPOT", "guidellm",
     "(last token - request start) / output tokens, so it includes TTFT (up to 0.3: (last token - "
     "first token) / output tokens)",
     _GUIDELLM + "time_per_output_token_ms", _with_first),
    ("TPOT", "aiperf", "reported as ITL", "", None),
    ("ICL", "workbench", _OUR_WORDS["icl_s"], _OURS + "icl", icl),
    ("ICL", "vllm_bench", "reported as ITL", "", None),
    ("ICL", "guidellm", "not reported", "", None),
    ("ICL", "aiperf", "gaps between responses with content, pooled",
     _AIPERF + "inter_chunk_latency_metric.py: InterChunkLatencyMetric", icl),
    ("ITL", "workbench", "not reported: the name is ambiguous, see ICL and TPOT",
     "", None),
    ("ITL", "vllm_bench",
     "gaps between messages with choices (chat since 0.33: chunks with a token), pooled: per "
     "chunk, not per token",
     _VLLM, icl),
    ("ITL", "guidellm", "(last token - first token) / (output tokens - 1), one value per request",
     _GUIDELLM + "inter_token_latency_ms", _after_first),
    ("ITL", "aiperf",
     "(E2E - TTFT) / (output tokens - tokens of the first chunk, 1 if unknown)",
     _AIPERF + "inter_token_latency_metric.py: InterTokenLatencyMetric", _after_first_chunk),
    ("E2E", "workbench", _OUR_WORDS["e2e_s"], _OURS + "latencies", _column("e2e_s")),
    ("E2E", "vllm_bench",
     "from before the POST to the last message with choices, even without a token (chat since"
     " 0.33: to the last chunk with one)",
     _VLLM_SENDER, _to_last),
    ("E2E", "guidellm", "from request start to the end of the stream",
     _GUIDELLM + "request_latency", _to_stream_end),
    ("E2E", "aiperf",
     "from request start, before the connection, to the last response with content",
     _AIPERF + "request_latency_metric.py: RequestLatencyMetric", _to_last),
)  # fmt: skip
_BY_NAME = {
    (metric, tool): Definition(
        metric=metric, tool=tool, formula=formula, source=source, values=values
    )
    for metric, tool, formula, source, values in _DEFINITIONS
}
