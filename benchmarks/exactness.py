"""How far each load generator's numbers are from the truth, and what it costs.

A server that knows the truth (`truth_server.c`, built here with cc) streams on a set schedule from
core 0 and writes down when it sent each token, on the clock that clients of this machine have too.
Core 1 is the client's: ours with the kernel's stamps and with its own, `vllm bench serve`, AIPerf
and GuideLLM (`load_clients.py`) take turns, so that a drift of the machine meets all of them.

The peers are compared by the whole run as well, from the first import to the last file, as a user
pays for it: `whole_cpu_us_per_token`.

TTFT error is the client's TTFT minus (true first send - the server's read of the request); how late
the server read is reported too. CPU is user and system time of the client's whole process
tree from the first request to the last answer, over all tokens. What others took of core 1 in that
time stands with each row, and for how much of it the client was ready and had to wait for the core:
above a few per cent p99 is theirs.

    python benchmarks/exactness.py                      # everything, 3 rounds: about 25 minutes
    python benchmarks/exactness.py --rounds 1 --clients kernel,user,vllm --cells closed-64
    python benchmarks/exactness.py --table              # the table of what was measured so far

Rows are added to outputs/exactness.jsonl, so that it can be run in slices. `--fresh` starts anew.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from exactness_table import table
from load_clients import OURS, PINS, ROOT, Cell, Seen, command, environment, install, read

RESULTS = ROOT / "outputs" / "exactness.jsonl"
SERVER_CORE, CLIENT_CORE = 0, 1
PATIENCE_S = 180
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CELLS = (
    Cell(name="closed-64", concurrency=64),
    Cell(name="closed-64-unaligned", concurrency=64, aligned=False),
    Cell(name="closed-256", concurrency=256, gap_ms=20.0),
    Cell(name="closed-256-unaligned", concurrency=256, gap_ms=20.0, aligned=False),
    Cell(name="worker", requests=64, tokens=8, concurrency=8),
    Cell(name="open-50", rate_per_s=50, tokens=16, aligned=False),
    Cell(name="open-200", rate_per_s=200, requests=1024, tokens=16, aligned=False),
    Cell(name="open-500", rate_per_s=500, requests=2048, tokens=16, aligned=False),
)
CLIENTS = ("kernel", "user", "vllm", "aiperf", "guidellm", "worker")


def takes_part(client: str, cell: Cell) -> bool:
    """The heavy peers are compared where the issue does: CPU for each token, aligned."""
    if "worker" in (client, cell.name):
        return client == cell.name
    return client not in PINS or cell.name in ("closed-64", "closed-256")


def build(folder: Path) -> Path:
    program = folder / "truth_server"
    source = Path(__file__).with_name("truth_server.c")
    subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    return program


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def tree_cpu_s(pid: int) -> float:
    """User and system seconds of a tree, its ended and waited-for members included."""
    spent = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        spent += sum(map(int, fields[11:15]))
    return spent * TICK_S


def ended_cpu_s() -> float:
    """User and system seconds of all children that have ended, and of theirs that they waited for:
    a tool that kills its workers without waiting is told too little of, never too much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tree_peak_mb(pid: int) -> float:
    """Peak resident memory, summed over the tree."""
    total = 0.0
    for one in tree(pid):
        try:
            status = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    return total / 1000


def tree_waited_s(pid: int) -> float:
    """Seconds that threads of a tree were ready to run and had to wait for the core, exactly."""
    waited = 0
    for one in tree(pid):
        for thread in Path(f"/proc/{one}/task").glob("*/schedstat"):
            try:
                waited += int(thread.read_text().split()[1])
            except OSError:
                continue
    return waited / 1e9


def core_busy_s(core: int) -> float:
    """Seconds that a core was busy, by the ticks of /proc/stat, up to 10 % of them misplaced."""
    (line,) = (x for x in Path("/proc/stat").read_text().splitlines() if x[:5] == f"cpu{core} ")
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK_S


def measure(program: Path, client: str, cell: Cell) -> dict[str, Any]:
    """One client on one cell: a row of facts. Raises RuntimeError with its last words."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = subprocess.Popen(
            [program, str(SERVER_CORE), str(int(1000 * cell.first_ms)),
             str(int(1000 * cell.gap_ms)), str(int(cell.aligned)), str(cell.requests),
             str(folder / "truth.jsonl")],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        argv = ["taskset", "-c", str(CLIENT_CORE), *command(client, cell, url, folder)]
        log = folder / "log"
        began_s, others_cpu_s = time.monotonic(), ended_cpu_s()
        with open(log, "w") as out:
            running = subprocess.Popen(argv, stdout=out, stderr=out, env=environment(client))
            try:
                row = _watch(server.stdout, running, cell, began_s)
                running.wait(120)
                whole_s = ended_cpu_s() - others_cpu_s
            finally:
                if running.poll() is None:
                    running.kill()
                running.wait()
                server.send_signal(signal.SIGTERM)
                server.wait()
        if running.returncode or not row:
            words = log.read_text().strip().splitlines() or ["it said nothing"]
            raise RuntimeError(words[-1][:300])
        truth = [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]
        row |= {"client": client, "cell": cell.name}
        row["whole_cpu_us_per_token"] = 1e6 * whole_s / (cell.requests * cell.tokens)
        if client in OURS:
            row |= json.loads((folder / "ours.json").read_text())["cost"]
            # The records of the last answers are made when the server has long ended them.
            spent = 1e6 * row["drive_cpu_s"] / (cell.requests * cell.tokens)
            row["cpu_us_per_token"] = max(spent, row["cpu_us_per_token"])
        return row | compare(truth, read(client, folder), cell)


def _watch(
    told: Any, running: subprocess.Popen[bytes], cell: Cell, began_s: float
) -> dict[str, float]:
    """CPU and wall time between the first request and the last answer; nothing if it fails."""
    marks = []
    while len(marks) < 2:
        if time.monotonic() - began_s > PATIENCE_S:
            raise RuntimeError(f"it had not ended after {PATIENCE_S} s")
        ready, _, _ = select.select([told], [], [], 0.5)
        if ready:
            told.readline()
            pid = running.pid
            spent = tree_cpu_s(pid), core_busy_s(CLIENT_CORE), tree_waited_s(pid)
            marks.append((time.monotonic(), *spent))
        elif running.poll() is not None:
            return {}
    (first_s, cpu_0, busy_0, waited_0), (last_s, cpu_1, busy_1, waited_1) = marks
    wall_s, cpu_s = last_s - first_s, cpu_1 - cpu_0
    return {
        "start_up_s": first_s - began_s,
        "wall_s": wall_s,
        "cpu_us_per_token": 1e6 * cpu_s / (cell.requests * cell.tokens),
        "core_share": cpu_s / wall_s,
        "others_share": max(0.0, (busy_1 - busy_0 - cpu_s) / wall_s),
        "waited_share": (waited_1 - waited_0) / wall_s,
        "peak_mb": tree_peak_mb(running.pid),
    }


def compare(truth: list[dict[str, Any]], seen: list[Seen], cell: Cell) -> dict[str, Any]:
    """A client's numbers against the true ones; milliseconds, percentiles over requests."""
    known = {row["id"]: row for row in truth if len(row["sent"]) == cell.tokens}
    pairs = [(known[one.id], one) for one in seen if one.id in known]
    facts: dict[str, Any] = {
        "requests": len(pairs),
        "connections": len({row["connection"] for row in truth}),
        "tokens_per_s": cell.requests * cell.tokens
        / (max(row["sent"][-1] for row in truth) - min(row["read"] for row in truth)) * 1e9,
    }  # fmt: skip
    series: dict[str, Any] = {
        "server_read_late_ms": [1e-6 * (row["read"] - row["arrived"]) for row in truth],
        "server_send_late_ms": [1e-6 * row["late"] for row in truth],
    }
    if pairs:
        series["ttft_error_ms"] = [
            1e3 * one.ttft_s - 1e-6 * (row["sent"][0] - row["read"]) for row, one in pairs
        ]
        series["receive_late_ms"] = [
            1e3 * one.first_s - 1e-6 * row["sent"][0] for row, one in pairs
        ]
        series["send_late_ms"] = [1e3 * (one.sent_s - one.scheduled_s) for _, one in pairs]
        gaps = [(np.diff(row["sent"]), one.icl_s) for row, one in pairs]
        whole = [(a, b) for a, b in gaps if len(a) == len(b)]
        if whole:
            a, b = (np.concatenate([np.asarray(x[i], float) for x in whole]) for i in (0, 1))
            series["icl_error_ms"] = np.abs(1e3 * b - 1e-6 * a)
    else:  # no id in common: only the distributions can be told apart
        true_ms = np.array([1e-6 * (row["sent"][0] - row["read"]) for row in truth])
        told_ms = 1e3 * np.array([one.ttft_s for one in seen])
        facts["unpaired"] = True
        for q in (50, 99):
            apart = np.nanpercentile(told_ms, q) - np.percentile(true_ms, q)
            facts[f"ttft_error_ms_p{q}"] = float(apart)
    for name, values in series.items():
        for q in (50, 99):
            facts[f"{name}_p{q}"] = float(np.nanpercentile(np.asarray(values, float), q))
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default=",".join(CLIENTS))
    parser.add_argument("--cells", default=",".join(cell.name for cell in CELLS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--table", action="store_true", help="only print the table")
    asked = parser.parse_args()
    clients, names = asked.clients.split(","), asked.cells.split(",")
    if asked.fresh:
        asked.results.unlink(missing_ok=True)
    asked.results.parent.mkdir(exist_ok=True)
    if not asked.table:
        os.sched_setaffinity(0, {SERVER_CORE})
        missing = {peer: why for peer in PINS if peer in clients and (why := install(peer))}
        with tempfile.TemporaryDirectory() as name:
            program = build(Path(name))
            for number in range(asked.rounds):
                turned = clients[number % len(clients) :] + clients[: number % len(clients)]
                for cell in CELLS:
                    for client in turned:
                        if cell.name not in names or not takes_part(client, cell):
                            continue
                        _one(program, client, cell, missing, asked.results)
    rows = [json.loads(line) for line in asked.results.read_text().splitlines()]
    print(table(rows))


def _one(program: Path, client: str, cell: Cell, missing: dict[str, str], path: Path) -> None:
    row: dict[str, Any] = {"client": client, "cell": cell.name}
    try:
        if client in missing:
            raise RuntimeError(f"not installed: {missing[client]}")
        row = measure(program, client, cell)
        print(
            f"{client:9} {cell.name:22} {row['cpu_us_per_token']:7.1f} us/token  TTFT error"
            f" {row.get('ttft_error_ms_p50', np.nan):6.2f} /"
            f" {row.get('ttft_error_ms_p99', np.nan):.2f} ms"
            f"  others {row['others_share']:.1%}, waited {row['waited_share']:.1%}",
            flush=True,
        )
    except (RuntimeError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        row["error"] = f"{type(error).__name__}: {error}"
        print(f"{client:9} {cell.name:22} not measured: {row['error']}", flush=True)
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
