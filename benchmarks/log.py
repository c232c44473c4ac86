"""MB/s of `read_log` on an LMCache log, and of `grep -c` on the same lines, in turns.

On several cores `read_log` takes several processes; one process is timed as well. Lines of both
generations and of vLLM, one in three of them LMCache's, as a busy server writes.
`python benchmarks/log.py [MB]`; 512 MB by default, one minute. Last line JSON.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from unittest.mock import patch

import pandas  # noqa: F401  its import is no part of reading

from workbench.metrics.lmcache_log import parallel_scan
from workbench.metrics.lmcache_log.log_summary import LogSummary, read_log

TURNS = 5
MARKS = "need to load: |Stored [0-9]|Retrieved [0-9]|Prefetch request completed"
DAY = datetime(2026, 11, 21)
ENGINE, GREEN, OFF = "(EngineCore_DP0 pid=48) ", "\x1b[32;20m", "\x1b[0m"
PLACE = "\x1b[3m(cache_engine.py:589:lmcache.v1.cache_engine)\x1b[0m"


def request(draw: random.Random, name: str, at: datetime) -> str:
    """What one request writes: in-process with two ranks, or multi-process."""
    stamp = f"[{at:%Y-%m-%d %H:%M:%S},{at.microsecond // 1000:03}] LMCache INFO:"
    total = draw.randrange(600, 30_000)
    hit = draw.randrange(0, total // 256) * 256
    engine = draw.randrange(0, total // 16) * 16
    lines = [
        f'(APIServer pid=47) INFO:     127.0.0.1:{draw.randrange(65536)} - "POST /v1/completions'
        ' HTTP/1.1" 200 OK',
    ] * 2
    if draw.random() < 0.5:
        lines.append(
            f"{ENGINE}{stamp} Reqid: cmpl-{name}, Total tokens {total}, Inference Engine computed"
            f" tokens: {engine}, LMCache hit tokens: {hit}, need to load: {max(0, hit - engine)}"
            f" {PLACE}"
        )
        for rank in range(2):
            cost = f"size: 0.{draw.randrange(9999):04} GB, cost {draw.random() * 90:.4f} ms"
            lines.append(
                f"(Worker_TP{rank} pid={50 + rank}) {GREEN}{stamp}{OFF} [req_id=cmpl-{name}] Stored"
                f" {total} out of total {total} tokens. {cost}, throughput: 9.1000 GB/s; {PLACE}"
            )
    else:
        found = hit // 256
        lines += [
            f"{GREEN}{stamp}{OFF} Prefetch request completed (L1+L2): {found}/{found} retained keys"
            f" ({found} L1, 0 L2) in 1.4 ms (external_request_id=cmpl-{name},"
            f" prefetch_request_id=13) {PLACE}",
            f"{GREEN}{stamp}{OFF} Retrieved {hit} tokens in 0.015 seconds {PLACE}",
            f"{GREEN}{stamp}{OFF} Stored 2048 tokens in 0.004 seconds {PLACE}",
        ]
    stats = (
        "(APIServer pid=47) INFO 11-21 10:42:29 [loggers.py:257] Engine 000: Avg prompt throughput:"
        f" {draw.random() * 9e3:.1f} tokens/s, Running: {draw.randrange(99)} reqs, Waiting: 0 reqs,"
        " GPU KV cache usage: 12.0%, Prefix cache hit rate: 34.5%"
    )
    lines += [stats] * 4
    draw.shuffle(lines)
    return "\n".join(lines) + "\n"


def write_log(path: Path, megabytes: float) -> None:
    draw = random.Random(0)
    left, at = megabytes * 1e6, DAY
    with open(path, "w") as file:
        while left > 0:
            at += timedelta(milliseconds=draw.expovariate(1 / 20))
            left -= file.write(request(draw, f"{draw.getrandbits(64):016x}-0", at))


def alone(path: Path) -> LogSummary:
    """Read by one process, as a small file is."""
    with patch.object(parallel_scan, "ALONE_BYTES", sys.maxsize):
        return read_log(path)


def grep(path: Path) -> int:
    command = ["grep", "-cE", MARKS, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 512.0
    programs = {"read_log": read_log, "  by one process": alone, "grep -c": grep}
    speeds: dict[str, list[float]] = {name: [] for name in programs}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server.log"
        write_log(path, megabytes)
        for _ in range(TURNS):
            for name, program in programs.items():
                began_s = time.perf_counter()
                found[name] = program(path)
                speeds[name].append(megabytes / (time.perf_counter() - began_s))
    summary = found["read_log"]
    assert summary.matching == found["grep -c"], "grep and read_log found different lines"
    counts = summary.counts
    print(f"{counts.lines:,} lines, {summary.matching:,} of them LMCache's, {counts.cut} cut")
    for name, turns in speeds.items():
        print(f"{name:16} {', '.join(f'{speed:.0f}' for speed in turns)} MB/s")
    summed = {
        "read_log_mb_per_s": round(median(speeds["read_log"])),
        "by_one_process_mb_per_s": round(median(speeds["  by one process"])),
        "megabytes": megabytes,
    }
    pairs = zip(speeds["read_log"], speeds["grep -c"], strict=True)
    print(json.dumps(summed | {"times_grep": [round(ours / theirs, 3) for ours, theirs in pairs]}))


if __name__ == "__main__":
    main()
