"""The explorer with 100,000 requests of 32 tokens: the first picture, and each change.

The kernel's part only, without the browser: wall-clock and CPU time of this process. Last line
JSON.

    python benchmarks/explorer.py [--requests 100000]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result_file import to_plain
from workbench.experiment.result.run_folder import write_frame
from workbench.grammars import spare_grammars

REPEATS = 5


def write_run(folder: Path, count: int) -> None:
    """A run of two arms with two passes each, whose latencies are drawn from a distribution."""
    random = np.random.default_rng(0)
    index = np.arange(count)
    sent_s = 1000.0 + np.sort(random.uniform(0, 600, count))
    ttft_s = random.lognormal(-2.5, 0.6, count)
    gaps_s = random.lognormal(-4, 0.3, (count, 31))
    chunk_s = (sent_s + ttft_s)[:, None] + np.c_[np.zeros(count), gaps_s.cumsum(axis=1)]
    frame = pd.DataFrame({
        "arm": np.where(index % 2, "5a", "1p4d lmcache"), "round": index % 3,
        "pass": np.where(index % 4 < 2, "cold", "store-warm"), "index": index,
        "request_id": [f"reference-0-{n}" for n in index], "prompt_tokens": 2048,
        "cached_tokens": random.integers(0, 2048, count), "expected_cached_tokens": 2048,
        "scheduled_s": sent_s, "sent_s": sent_s, "head_s": sent_s + 0.9 * ttft_s,
        "chunk_s": list(chunk_s), "chunk_tokens": [[1] * 32] * count,
        "stream_end_s": chunk_s[:, -1], "output_tokens": 32, "text": "word " * 32, "error": "",
        "engine_metrics": "", "ttft_s": ttft_s, "tpot_s": gaps_s.mean(axis=1),
        "e2e_s": chunk_s[:, -1] - sent_s,
    })  # fmt: skip
    write_frame(folder / "requests.parquet", frame)
    facts = RunFacts(
        notebook="pd_sweep", run_id="benchmark", status="success", started_at="", finished_at="",
        duration_s=600.0, parameters={}, machine={},
    )  # fmt: skip
    (folder / "result.json").write_text(json.dumps(to_plain(facts)))


def timed(do: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of CPU."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    count = parser.parse_args().requests
    found: dict[str, tuple[float, float]] = {}

    def load() -> None:
        spare_grammars()
        import workbench.explorer.explorer
        import workbench.explorer.sources  # noqa: F401

    found["import, once a kernel"] = timed(load)
    with tempfile.TemporaryDirectory() as scratch:
        write_run(Path(scratch), count)
        import workbench as wb

        made: list[Any] = []
        # The first one loads parts of plotly; notebooks that drew something have them.
        found["first explorer of a kernel"] = timed(
            lambda: made.append(wb.explore(scratch, interactive=True))
        )
        found["explorer from the run folder"] = timed(
            lambda: made.append(wb.explore(scratch, interactive=True))
        )
        explorer = made[-1]

        def brush(low: float) -> None:
            box = {"xref": "x", "yref": "y", "x0": low, "x1": low + 200, "y0": 50, "y1": 5000}
            explorer.figure._js2py_relayout = {
                "relayout_data": {"selections": [box]}, "source_view_id": "one",
            }  # fmt: skip

        def zoom(low: float) -> None:
            explorer.figure.plotly_relayout({"xaxis.range[0]": low, "xaxis.range[1]": low + 200})

        def click(row: int) -> None:
            explorer.found.index = row

        names = list(explorer.metric.options)
        changes: dict[str, Callable[[int], Any]] = {
            "another metric": lambda n: setattr(explorer.metric, "value", names[(n + 1) % 3]),
            "one arm": lambda n: setattr(explorer.arms, "value", (explorer.arms.options[n % 2],)),
            "all arms": lambda n: setattr(
                explorer.arms, "value", explorer.arms.options[:: -1 if n % 2 else 1]
            ),
            "brush": lambda n: brush(10.0 * n),
            "zoom": lambda n: zoom(10.0 * n),
            "a request's page": click,
        }
        for name, change in changes.items():
            runs = [timed(lambda n=n, change=change: change(n)) for n in range(REPEATS)]
            found[name] = median(r[0] for r in runs), median(r[1] for r in runs)
        drawn = len(explorer.figure.data[0].x)
    print(f"{count:,} requests, {drawn:,} points drawn")
    for name, (wall_s, cpu_s) in found.items():
        print(f"{name:30} {1000 * wall_s:8,.0f} ms, CPU {1000 * cpu_s:,.0f} ms")
    print(json.dumps({name: [round(s, 3) for s in both] for name, both in found.items()}))


if __name__ == "__main__":
    main()
