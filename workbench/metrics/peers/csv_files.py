"""CSV files with one request per line. E2E and TPOT run to the end of the stream in them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from math import nan

from workbench.metrics.peers.peer_request import PeerFile, PeerRequest, read_all

_NO_TOKEN = "no token arrived, no reason was saved"


def columns_of(text: str) -> set[str]:
    """The names in the first line of a CSV."""
    return set(next(csv.reader(StringIO(text.partition("\n")[0])), []))


def _lmcache_request(row: dict[str, str]) -> PeerRequest:
    good = {"True": True, "False": False}[row["successful"]]
    return PeerRequest(
        request_id=row["request_id"],
        ttft_s=float(row["ttft"]),
        e2e_s=float(row["request_latency"]),
        prompt_tokens=int(row["num_input_tokens"]) or -1,
        output_tokens=int(row["num_output_tokens"]) if good else -1,
        sent_s=_time(row, "submit_time"),
        stream_end_s=_time(row, "finish_time"),
        error_message="" if good else row.get("error") or _NO_TOKEN,
    )


def _multi_round_request(row: dict[str, str]) -> PeerRequest:
    ttft_s = float(row["ttft"])
    good = ttft_s > 0  # without a token the script writes zero
    return PeerRequest(
        request_id=f"{row.get('user_id', '')}.{row.get('question_id', '')}",
        ttft_s=ttft_s,
        e2e_s=ttft_s + float(row["generation_time"]),
        prompt_tokens=int(float(row["prompt_tokens"])),
        output_tokens=int(float(row["generation_tokens"])) if good else -1,
        sent_s=_time(row, "launch_time"),
        stream_end_s=_time(row, "finish_time"),
        error_message="" if good else _NO_TOKEN,
    )


def _time(row: dict[str, str], name: str) -> float:
    return float(row[name]) if row.get(name) else nan


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvForm:
    """One tool's table: the columns that identify it, and how a line is read."""

    tool: str
    columns: frozenset[str]
    request: Callable[[dict[str, str]], PeerRequest]
    doubts: tuple[str, ...] = ()

    def read(self, text: str) -> PeerFile:
        """The requests in a table of this form."""
        lines = list(csv.DictReader(StringIO(text, newline="")))
        requests, _, lost = read_all(lines, self.request)
        doubts = (*lost, *self.doubts)
        return PeerFile(tool=self.tool, requests=requests, total=len(lines), doubts=doubts)


CSV_FORMS = (
    # lmcache/cli/commands/bench/engine_bench/stats.py: StatsCollector.export_csv.
    CsvForm(
        tool="LMCache bench",
        columns=frozenset({"request_id", "successful", "ttft"}),
        request=_lmcache_request,
    ),
    # multi-round-qa.py of vLLM's production-stack and of LMCache: UserSession.summary.
    CsvForm(
        tool="multi-round-qa",
        columns=frozenset({"ttft", "generation_time", "generation_tokens"}),
        request=_multi_round_request,
        doubts=(
            "multi-round-qa saves finished requests only. The number of failed or unfinished"
            " requests is unknown.",
        ),
    ),
)
