"""Five real instances and an LMCache server, from nothing to healthy: fork server or plain start.

Alternates the two, so that a drift of the machine meets both, after one start that is not counted:
it fills the disk cache that both read vLLM from. `python benchmarks/start.py [PAIRS]`;
takes about two minutes a pair on 2 cores. The last line is JSON.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from uuid import uuid4

import psutil

from workbench.hardware.machine import fast_bf16
from workbench.serve.connectors import connector
from workbench.serve.deployment import deploy, launcher_for, plan_deployment
from workbench.serve.tiny_model import tiny_model
from workbench.serve.vllm import EngineSettings, number_format
from workbench.topology import Topology

DTYPE = number_format("auto", "cpu", fast_bf16=fast_bf16())

TOPOLOGY = Topology.parse("1p4d")
SETTINGS = EngineSettings(model=tiny_model(), platform="cpu", dtype=DTYPE)


async def start(*, fork: bool, folder: Path) -> tuple[float, float]:
    """Seconds from no process at all to all healthy, and GB (proportional set size) together."""
    began_s = time.monotonic()
    async with (
        launcher_for(SETTINGS, folder, fork=fork) as launcher,
        deploy(
            launcher,
            lambda ports: plan_deployment(
                TOPOLOGY, connector("lmcache"), SETTINGS, ports=ports, shm_name=f"wb-{uuid4().hex}"
            ),
            log_dir=folder / "logs",
        ),
    ):
        took_s = time.monotonic() - began_s
        below = psutil.Process().children(recursive=True)
        return took_s, sum(process.memory_full_info().pss for process in below) / 1e9


def main(pairs: int) -> None:
    def measure(fork: bool) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(start(fork=fork, folder=Path(folder)))

    measure(fork=True)
    rows: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number in range(pairs):
        for fork in (True, False) if number % 2 == 0 else (False, True):
            row = measure(fork)
            rows[fork].append(row)
            name = "fork server" if fork else "plain start"
            print(f"{name:12} {row[0]:6.1f} s  {row[1]:5.2f} GB", flush=True)
    ratios = [p[0] / f[0] for f, p in zip(rows[True], rows[False], strict=True)]
    summary = {
        "fork_s": [round(r[0], 1) for r in rows[True]],
        "plain_s": [round(r[0], 1) for r in rows[False]],
        "times_faster": [round(r, 2) for r in ratios],
        "median_times_faster": round(median(ratios), 2),
        "fork_gb": round(median(r[1] for r in rows[True]), 2),
        "plain_gb": round(median(r[1] for r in rows[False]), 2),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
