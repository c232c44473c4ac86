"""Results of other load generators, read as a `requests` frame.

    vLLM bench    `vllm bench serve --save-result --save-detailed`, one JSON object
    GuideLLM      benchmarks.json, report versions 1 and 2
    AIPerf        profile_export.jsonl, one record a line
    LMCache bench bench_results.csv of `lmcache bench engine`

The latencies are the tool's own measurement, under the names of the workbench. `tpot_s` is
(last token - first token) / (output tokens - 1) for all four: none of these files tells the tokens
of the first chunk. What a tool measures differently stays different: see metrics.definitions.
Times are on the tool's clock (vLLM bench: monotonic; others: since the epoch), so they cannot be
subtracted from stamps of the workbench. A number that the file does not hold is -1, a time NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ResultError
from workbench.metrics.peer_rows import (
    Row,
    aiperf_rows,
    guidellm_rows,
    lmcache_rows,
    vllm_rows,
)
from workbench.records import RequestRecord, to_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_peer"]


def read_peer(path: str | Path, **columns: Any) -> pd.DataFrame:
    """Read a result file; which tool wrote it is seen from its content.

    Constant `columns` stand in front as in records.to_frame; unless given, `arm` is the tool's
    name, `round` 1 and `pass` "measured". `index` counts in the order of sending, for vLLM bench
    in that of its data set: frames pair by it where both tools were given one list. ttft_s,
    tpot_s, e2e_s and request_tps are there, NaN for a failed request; ttft_scheduled_s where the
    file has the due time. `chunk_s` is empty where the tool keeps no chunks (GuideLLM, LMCache
    bench), so that no gap is invented.

    Raises ResultError when the file cannot be read, is of a tool or version that is not known, or
    has no requests in it; the message says which and what to run instead.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{source} cannot be read ({error}); name a result file") from error
    tool, rows = _rows(source, text)
    try:
        found = list(rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ResultError(
            f"{source} looks like a result of {tool}, but of a version that is not known"
            f" ({type(error).__name__}: {error}); known are the formats listed in"
            " workbench.metrics.peers"
        ) from error
    if not found:
        raise ResultError(f"{source} is a result of {tool} without a request; nothing to compare")
    constant = {"arm": tool, "round": 1, "pass": "measured", **columns}
    return _frame(found, constant, ordered=tool == "vLLM bench")


def _rows(source: Path, text: str) -> tuple[str, Iterator[Row]]:
    """The tool that wrote the text, and its rows, not read yet."""
    if text.startswith("request_id,"):
        return "LMCache bench", lmcache_rows(text)
    documents = _documents(source, text)
    first = documents[0]
    names = set(first) if isinstance(first, dict) else set()
    if {"metadata", "metrics"} <= names:
        return "AIPerf", aiperf_rows(documents)
    if len(documents) > 1:
        raise ResultError(
            f"{source} holds {len(documents)} results, as --append-result writes them;"
            " give each a file of its own"
        )
    if {"metadata", "benchmarks"} <= names:
        return "GuideLLM", guidellm_rows(source, first)
    if {"endpoint_type", "request_rate"} <= names:
        if "ttfts" not in names:
            raise ResultError(
                f"{source} has no single requests: vllm bench serve writes them only with"
                " --save-detailed beside --save-result"
            )
        return "vLLM bench", vllm_rows(first)
    if names == {"config", "results"}:
        raise ResultError(
            f"{source} is the summary of lmcache bench engine, which holds no requests;"
            " read bench_results.csv beside it"
        )
    if {"input_config", "request_latency"} <= names:
        raise ResultError(
            f"{source} is AIPerf's summary, which holds no requests; read profile_export.jsonl"
            " beside it"
        )
    raise ResultError(
        f"{source} is no result of a known tool; known are vLLM bench (--save-detailed), GuideLLM"
        " JSON, AIPerf's profile_export.jsonl and LMCache bench's bench_results.csv"
    )


def _documents(source: Path, text: str) -> list[Any]:
    """The JSON documents of a text: one, or one a line."""
    try:
        return [json.loads(text)]
    except (json.JSONDecodeError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            if len(lines) > 1:
                return [json.loads(line) for line in lines]
        except (json.JSONDecodeError, RecursionError):
            pass
        raise ResultError(f"{source} is neither JSON nor a known CSV ({error})") from error


def _frame(rows: list[Row], columns: Mapping[str, Any], ordered: bool) -> pd.DataFrame:
    if not ordered:  # the others write in the order of ending, or by status
        rows = sorted(rows, key=_sent_last_if_unknown)
    records = [
        RequestRecord(
            index=index,
            ideal_reuse_tokens=-1,
            scheduled_s=facts.pop("scheduled_s", nan),
            max_tokens=-1,
            **facts,
        )
        for index, (facts, _, _) in enumerate(rows)
    ]
    ok = np.array([record.ok for record in records])
    ttft_s = np.where(ok, [row[1] for row in rows], nan)
    e2e_s = np.where(ok, [row[2] for row in rows], nan)
    tokens = np.array([record.output_tokens for record in records], float)
    late_s = np.array([record.sent_s - record.scheduled_s for record in records])
    tpot_s = (e2e_s - ttft_s) / np.where(tokens > 1, tokens - 1, nan)
    return to_frame(records, **columns).assign(
        ttft_s=ttft_s,
        ttft_scheduled_s=ttft_s + late_s,
        tpot_s=tpot_s,
        e2e_s=e2e_s,
        request_tps=1.0 / np.where(tpot_s > 0, tpot_s, nan),
    )


def _sent_last_if_unknown(row: Row) -> tuple[bool, float]:
    sent_s = row[0]["sent_s"]
    return isnan(sent_s), sent_s
