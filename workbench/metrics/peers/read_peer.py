"""Results of other load generators (docs/peers.md), read as a `requests` frame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from workbench.errors import ResultError
from workbench.metrics.peers.aiperf import aiperf_file
from workbench.metrics.peers.csv_files import CSV_FORMS, columns_of
from workbench.metrics.peers.guidellm import guidellm_file
from workbench.metrics.peers.not_read import (
    KNOWN_FILES,
    READ,
    why_no_requests,
    why_not_json,
    why_not_table,
    why_several,
)
from workbench.metrics.peers.peer_request import UNREADABLE, PeerFile, PeerRequest
from workbench.metrics.peers.report_file import is_report, report_file
from workbench.metrics.peers.vllm_bench import sglang_file, vllm_file
from workbench.records import to_frame

if TYPE_CHECKING:
    import pandas as pd

_YAML = ("version:", "results:", "run:", "scenario:")
"""How a Benchmark Report in YAML begins."""


def read_peer(path: str | Path, **columns: Any) -> pd.DataFrame:
    """Read a result file, or the one in a folder; the tool is recognised by the content.

    Constant `columns` come first, as in records.to_frame; by default `arm` is the tool's name,
    `round` 1 and `pass` "measured". `index` counts in the order of sending, for vLLM bench and
    SGLang in that of the data set: frames pair by it if both tools got the same list.

    Latencies (ttft_s, ttft_scheduled_s, tpot_s, e2e_s, request_tps) are the tool's own measurement,
    NaN for a failed request; tpot_s is always (last token - first token) / (output tokens - 1),
    since no file gives the tokens of a first chunk. Times are on the tool's clock. `chunk_s` is
    empty if the tool keeps no chunks; `engine_metrics` has the server's own times.

    `attrs` describe the file: `tool`, `version` (if known), `kept` and `total` (requests in the
    file and in all), `doubts` (sentences), `own` (the tool's own percentiles over all requests, in
    seconds), and `quantiles` of a file without single requests (a Benchmark Report), whose frame
    has no rows.

    Raises ResultError if the file cannot be read, holds no requests, or is of an unknown tool or
    version; the message says what to use instead.
    """
    source = _file(Path(path))
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{source} cannot be read ({error})") from error
    found = _read(source, text)
    if not found.requests and not found.quantiles:
        of = f"0 of {found.total:,}" if found.total > 0 else "no"
        raise ResultError(
            f"{source} holds {of} requests of {found.tool}. Run the tool again and let it save"
            " single requests"
        )
    constant = {"arm": found.tool, "round": 1, "pass": "measured", **columns}
    frame = _frame(found.requests, constant, ordered=found.ordered)
    frame.attrs = {
        "tool": found.tool,
        "version": found.version,
        "kept": len(found.requests),
        "total": max(found.total, len(found.requests)),
        "doubts": found.doubts,
        "own": found.own,
        "quantiles": found.quantiles,
    }
    return frame


def _file(path: Path) -> Path:
    """The path itself, or the one result file in a folder."""
    if not path.is_dir():
        return path
    there = [path / name for name in KNOWN_FILES if (path / name).is_file()]
    if len(there) == 1:
        return there[0]
    if there:
        names = " and ".join(file.name for file in there)
        raise ResultError(f"{path} holds {names}. Give one of these files")
    raise ResultError(
        f"{path} must hold one of {', '.join(KNOWN_FILES)}, or give the file itself (example:"
        f" {path / 'result.json'})"
    )


def _read(source: Path, text: str) -> PeerFile:
    """The content of the file, by the reader of the tool that wrote it."""
    tool = "a known tool"
    try:
        columns = columns_of(text)
        for form in CSV_FORMS:
            if form.columns <= columns:
                tool = form.tool
                return form.read(text)
        if text.startswith(_YAML):
            documents, lost = [yaml.safe_load(text)], 0
        else:
            documents, lost = _documents(source, text)
        first = documents[0]
        names = set(first) if isinstance(first, dict) else set()
        about = first.get("metadata") if names else None
        if isinstance(about, dict) and ("metrics" in names or names == {"metadata", "error"}):
            tool = "AIPerf"
            return aiperf_file(source, documents, lost=lost)
        if len(documents) == 1 and is_report(first):
            tool = "Benchmark Report"
            return report_file(source, first)
        if len(documents) > 1:
            raise ResultError(why_several(source, documents))
        if "benchmarks" in names:
            tool = "GuideLLM"
            return guidellm_file(source, first)
        if {"ttfts", "total_output_tokens_retokenized"} <= names:
            tool = "SGLang bench_serving"
            return sglang_file(first)
        if names & {"ttfts", "latencies"} and names & {"model_id", "tokenizer_id"}:
            tool = "vLLM bench"
            return vllm_file(first)
        raise ResultError(why_no_requests(source, first))
    except yaml.YAMLError as error:
        raise ResultError(why_not_json(source, error)) from error
    except UNREADABLE as error:
        raise ResultError(
            f"{source} looks like a result of {tool}, but of an unknown version"
            f" ({type(error).__name__}: {error}). Supported: {READ}"
        ) from error


def _documents(source: Path, text: str) -> tuple[list[Any], int]:
    """The JSON documents of a text (one, or one per line), and the number of bad lines."""
    if not text.strip():
        raise ResultError(f"{source} is empty. The tool was stopped before it wrote its result")
    try:
        whole = json.loads(text)
        return (whole if isinstance(whole, list) and whole else [whole]), 0
    except (json.JSONDecodeError, RecursionError) as error:
        if text.lstrip()[0] not in "{[":
            raise ResultError(why_not_table(source, text)) from error
        documents, lost = [], 0
        for line in text.splitlines():
            try:
                documents += [json.loads(line)] if line.strip() else []
            except (json.JSONDecodeError, RecursionError):
                lost += 1
        # Hardly any line of a cut multi-line document is JSON by itself.
        whole_lines = sum(isinstance(document, dict) for document in documents)
        if whole_lines <= lost:
            raise ResultError(why_not_json(source, error)) from error
        return documents, lost


def _frame(
    requests: list[PeerRequest], columns: Mapping[str, Any], *, ordered: bool
) -> pd.DataFrame:
    if not ordered:  # the others write in the order in which requests end, or by status
        requests = sorted(requests, key=lambda one: (isnan(one.sent_s), one.sent_s))
    records = [
        # The position in the list is the request's, even if an earlier one was unreadable.
        request.record(int(request.request_id) if ordered else index)
        for index, request in enumerate(requests)
    ]
    ok = np.array([record.ok for record in records])
    ttft_s = np.where(ok, [request.ttft_s for request in requests], nan)
    e2e_s = np.where(ok, [request.e2e_s for request in requests], nan)
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
