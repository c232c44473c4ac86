"""The exactness benchmark works: one small cell against the server that knows the truth."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "exactness.py"

pytestmark = pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("taskset") and (os.cpu_count() or 1) > 1),
    reason="needs a C compiler, taskset and two cores",
)


def test_a_worker_process_against_the_server_that_knows_the_truth(tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    words = ["--rounds", "1", "--clients", "worker", "--results", str(results)]
    ended = subprocess.run(
        [sys.executable, str(BENCHMARK), *words], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    (row,) = map(json.loads, results.read_text().splitlines())
    assert "error" not in row, row
    assert row["requests"] == 64  # each was found by its id in what the server wrote down
    assert row["connections"] == 8  # of 64 requests: the server counted its accepts
    assert row["worker_peak_mb"] < 150
    assert row["whole_cpu_us_per_token"] > row["cpu_us_per_token"] > 0
    # A stamp of the kernel lies behind the send; how far behind, a busy machine decides.
    assert row["receive_late_ms_p50"] > 0
    assert row["ttft_error_ms_p50"] > 0
    assert "| memory of a worker | 150 MB |" in ended.stdout
    assert "| TTFT error p50, c=64 | 0.2 ms | - | - | not measured | |" in ended.stdout
