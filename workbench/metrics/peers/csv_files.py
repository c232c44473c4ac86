"""CSV files with one request a line: LMCache bench, and multi-round-qa.

Both end a request at the end of its stream, so E2E and TPOT hold what follows the last token.
"""

from __future__ import annotations

import csv
from io import StringIO
from math import nan

from workbench.metrics.peers.peer_request import (
    PeerFile,
    PeerRequest,
    failure,
    read_all,
)

_NO_TOKEN = "no token came, no reason was saved"


def columns_of(text: str) -> set[str]:
    """The names in the first line of a CSV."""
    return set(next(csv.reader(StringIO(text.partition("\n")[0])), []))


def lmcache_file(text: str) -> PeerFile:
    """lmcache/cli/commands/bench/engine_bench/stats.py: StatsCollector.export_csv."""
    lines = _lines(text)
    requests, _, doubts = read_all(lines, _lmcache_request)
    return PeerFile(tool="LMCache bench", requests=requests, total=len(lines), doubts=doubts)


def multi_round_file(text: str) -> PeerFile:
    """multi-round-qa.py of vLLM's production-stack and of LMCache: UserSession.summary."""
    lines = _lines(text)
    requests, _, doubts = read_all(lines, _multi_round_request)
    doubts += (
        "multi-round-qa writes finished requests only: how many failed or were cut off is not"
        " known.",
    )
    return PeerFile(tool="multi-round-qa", requests=requests, total=len(lines), doubts=doubts)


def _lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text, newline="")))


def _lmcache_request(row: dict[str, str]) -> PeerRequest:
    good = {"True": True, "False": False}[row["successful"]]
    error, message = failure(row.get("error") or _NO_TOKEN, not good)
    return PeerRequest(
        request_id=row["request_id"],
        ttft_s=float(row["ttft"]),
        e2e_s=float(row["request_latency"]),
        prompt_tokens=int(row["num_input_tokens"]) or -1,
        output_tokens=int(row["num_output_tokens"]) if good else -1,
        sent_s=_time(row, "submit_time"),
        stream_end_s=_time(row, "finish_time"),
        error=error,
        error_message=message,
    )


def _multi_round_request(row: dict[str, str]) -> PeerRequest:
    ttft_s = float(row["ttft"])
    good = ttft_s > 0  # without a token the script writes zero
    error, message = failure(_NO_TOKEN, not good)
    return PeerRequest(
        request_id=f"{row.get('user_id', '')}.{row.get('question_id', '')}",
        ttft_s=ttft_s,
        e2e_s=ttft_s + float(row["generation_time"]),
        prompt_tokens=int(float(row["prompt_tokens"])),
        output_tokens=int(float(row["generation_tokens"])) if good else -1,
        sent_s=_time(row, "launch_time"),
        stream_end_s=_time(row, "finish_time"),
        error=error,
        error_message=message,
    )


def _time(row: dict[str, str], name: str) -> float:
    return float(row[name]) if row.get(name) else nan
