"""Reading an LMCache log: MB/s of `read_log`, beside `grep -c` of the same lines, in turns.

Lines of both generations and of vLLM, one in three of them LMCache's, as a busy server writes.
`python benchmarks/log.py [MB]`; 512 MB by default, one minute. Last line JSON.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas  # noqa: F401  its import is no part of reading

from workbench.metrics.lmcache_log import read_log

TURNS = 3
MARKS = "need to load: |Stored [0-9]|Retrieved [0-9]|Prefetch request completed"
AT = "[2026-11-21 10:42:29,019] LMCache INFO:"
ENGINE, GREEN, OFF = "(EngineCore_DP0 pid=48) ", "\x1b[32;20m", "\x1b[0m"
PLACE = "\x1b[3m(cache_engine.py:589:lmcache.v1.cache_engine)\x1b[0m"


def request(draw: random.Random, name: str) -> str:
    """What one request writes: in-process with two ranks, or multi-process."""
    total = draw.randrange(600, 30_000)
    hit = draw.randrange(0, total // 256) * 256
    engine = draw.randrange(0, total // 16) * 16
    lines = [
        f'(APIServer pid=47) INFO:     127.0.0.1:{draw.randrange(65536)} - "POST /v1/completions'
        ' HTTP/1.1" 200 OK',
    ] * 2
    if draw.random() < 0.5:
        lines.append(
            f"{ENGINE}{AT} Reqid: cmpl-{name}, Total tokens {total}, Inference Engine computed"
            f" tokens: {engine}, LMCache hit tokens: {hit}, need to load: {max(0, hit - engine)}"
            f" {PLACE}"
        )
        for rank in range(2):
            cost = f"size: 0.{draw.randrange(9999):04} GB, cost {draw.random() * 90:.4f} ms"
            lines.append(
                f"(Worker_TP{rank} pid={50 + rank}) {GREEN}{AT}{OFF} [req_id=cmpl-{name}] Stored"
                f" {total} out of total {total} tokens. {cost}, throughput: 9.1000 GB/s; {PLACE}"
            )
    else:
        found = hit // 256
        lines += [
            f"{GREEN}{AT}{OFF} Prefetch request completed (L1+L2): {found}/{found} retained keys"
            f" ({found} L1, 0 L2) in 1.4 ms (external_request_id=cmpl-{name},"
            f" prefetch_request_id=13) {PLACE}",
            f"{GREEN}{AT}{OFF} Retrieved {hit} tokens in 0.015 seconds {PLACE}",
            f"{GREEN}{AT}{OFF} Stored 2048 tokens in 0.004 seconds {PLACE}",
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
    left = megabytes * 1e6
    with open(path, "w") as file:
        while left > 0:
            left -= file.write(request(draw, f"{draw.getrandbits(64):016x}-0"))


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 512.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server.log"
        write_log(path, megabytes)
        ours, own, grep = [], [], []
        for _ in range(TURNS):
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            summary = read_log(path)
            ours.append(megabytes / (time.perf_counter() - began_s))
            own.append(megabytes / (time.process_time() - began_cpu_s))
            began_s = time.perf_counter()
            counted = subprocess.run(
                ["grep", "-cE", MARKS, str(path)], capture_output=True, text=True, check=True
            )
            grep.append(megabytes / (time.perf_counter() - began_s))
    assert summary.matching == int(counted.stdout), "grep and read_log found different lines"
    ratios = sorted(a / b for a, b in zip(ours, grep, strict=True))
    print(f"{summary.lines:,} lines, {summary.matching:,} of them LMCache's, {summary.cut} cut")
    # Where other programs share the cores, processor time says what an idle machine would.
    for name, speeds in (("read_log", ours), ("  by processor time", own), ("grep -c", grep)):
        print(f"{name:20} {', '.join(f'{speed:.0f}' for speed in speeds)} MB/s")
    summed = {
        "read_log_mb_per_s": round(sorted(ours)[TURNS // 2]),
        "by_processor_time_mb_per_s": round(sorted(own)[TURNS // 2]),
        "megabytes": megabytes,
    }
    print(json.dumps(summed | {"times_grep": [round(ratio, 3) for ratio in ratios]}))


if __name__ == "__main__":
    main()
