"""Readers of CSV files with one request a line: LMCache bench, and multi-round-qa.

Both end a request at the end of its stream, so E2E and TPOT hold what follows the last token.
"""

from __future__ import annotations

import csv
from io import StringIO
from math import nan
from typing import Any

from workbench.metrics.peers.peer_rows import PeerFile, Row, all_that_can_be_read, failure

__all__ = ["columns_of", "lmcache_file", "multi_round_file"]


def columns_of(text: str) -> list[str]:
    """The names in the first line of a CSV."""
    return next(csv.reader(StringIO(text.partition("\n")[0])), [])


def lmcache_file(text: str) -> PeerFile:
    """lmcache/cli/commands/bench/engine_bench/stats.py: StatsCollector.export_csv."""
    rows, _, doubts = all_that_can_be_read(_lines(text), _lmcache_row)
    return PeerFile(tool="LMCache bench", rows=rows, total=len(_lines(text)), doubts=doubts)


def multi_round_file(text: str) -> PeerFile:
    """multi-round-qa.py of vLLM's production-stack and of LMCache: UserSession.summary."""
    rows, _, doubts = all_that_can_be_read(_lines(text), _multi_round_row)
    doubts += (
        "multi-round-qa writes finished requests only: how many failed or were cut off is not"
        " known.",
    )
    return PeerFile(tool="multi-round-qa", rows=rows, total=len(_lines(text)), doubts=doubts)


def _lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text, newline="")))


def _lmcache_row(row: dict[str, str]) -> Row:
    good = {"True": True, "False": False}[row["successful"]]
    facts = {
        "request_id": row["request_id"],
        "prompt_tokens": int(row["num_input_tokens"]) or -1,
        "sent_s": _time(row, "submit_time"),
        "stream_end_s": _time(row, "finish_time"),
        "output_tokens": int(row["num_output_tokens"]) if good else -1,
        **failure(row.get("error") or "no token came, no reason was saved", not good),
    }
    return facts, float(row["ttft"]), float(row["request_latency"])


def _multi_round_row(row: dict[str, str]) -> Row:
    ttft_s, output = float(row["ttft"]), int(float(row["generation_tokens"]))
    good = ttft_s > 0  # without a token the script writes zero
    facts: dict[str, Any] = {
        "request_id": f"{row.get('user_id', '')}.{row.get('question_id', '')}",
        "prompt_tokens": int(float(row["prompt_tokens"])),
        "sent_s": _time(row, "launch_time"),
        "stream_end_s": _time(row, "finish_time"),
        "output_tokens": output if good else -1,
        **failure("no token came, no reason was saved", not good),
    }
    return facts, ttft_s, ttft_s + float(row["generation_time"])


def _time(row: dict[str, str], name: str) -> float:
    return float(row[name]) if row.get(name) else nan
