"""A million records of 128 stamps each, summarised by `result.percentiles`, pandas and duckdb.

Summarised: p50, p90 and p99 of TTFT, TPOT and the gaps between chunks. The file is a run folder as
a run writes it, made up here; each engine reads it in a process of its own, on one core, in turns.
CPU and peak memory are those of the whole process, interpreter and imports included. Only the
workbench gives intervals. All have to agree to 1 us. duckdb gets a venv of its own.

`python benchmarks/analysis.py [RECORDS] [--duckdb PYTHON]`; five minutes, 2 GB of disk. Last line
JSON. Target: at most 4 s CPU and 1.3 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from workbench.experiment.result.frame_file import GROUP_ROWS, write_options

TURNS = 3
CHUNKS = 128
BATCH = 100_000
ROOT = Path(__file__).resolve().parent.parent

WORKBENCH = """
import sys, pyarrow
pyarrow.set_cpu_count(1)
import workbench as wb
found = wb.load_result(sys.argv[1]).percentiles
chosen = found[found["metric"] != "e2e_s"]
assert chosen["low_s"].notna().all() and chosen["high_s"].notna().all()
values = chosen["value_s"].tolist()
"""
PANDAS = """
import sys, pyarrow
pyarrow.set_cpu_count(1)
import numpy as np, pandas as pd
frame = pd.read_parquet(
    sys.argv[1] + "/requests.parquet", columns=["error", "ttft_s", "tpot_s", "chunk_s"]
)
frame = frame[frame["error"] == ""]
gaps = np.concatenate([np.diff(stamps) for stamps in frame["chunk_s"]])
q = [0.5, 0.9, 0.99]
values = [*frame["ttft_s"].quantile(q), *frame["tpot_s"].quantile(q), *np.quantile(gaps, q)]
"""
DUCKDB = """
import sys, duckdb
db = duckdb.connect(config={"threads": 1})
db.sql("set enable_progress_bar = false")
rows = f"from '{sys.argv[1]}/requests.parquet' where error = ''"
q = "[0.5, 0.9, 0.99]"
ttft, tpot = db.sql(f"select quantile_cont(ttft_s, {q}), quantile_cont(tpot_s, {q}) {rows}"
    ).fetchall()[0]
gap = f"select unnest(chunk_s[2:]) - unnest(chunk_s[:-2]) as gap {rows}"
values = [*ttft, *tpot, *db.sql(f"select quantile_cont(gap, {q}) from ({gap})").fetchall()[0][0]]
"""
SAY = "\nprint([float(value) for value in values])\n"


def make_run(folder: Path, records: int) -> None:
    """A run folder whose requests.parquet has the columns and types that a run writes."""
    (folder / "result.json").write_text(json.dumps({"schema": 1, "finding": "made up"}))
    draw = np.random.default_rng(0)
    noise = draw.gamma(4.0, 0.0025, (BATCH, CHUNKS))
    starts = np.arange(BATCH + 1, dtype=np.int32) * CHUNKS
    ones = pa.ListArray.from_arrays(starts, np.ones(BATCH * CHUNKS, np.int64))
    writer = None
    for first in range(0, records, BATCH):  # records: a multiple of BATCH
        index = np.arange(first, first + BATCH)
        sent_s = 1e5 + index * 0.002
        # Other rows behind one another in each batch, so that no two batches hold the same sums.
        gaps = np.roll(noise, 977 * (first // BATCH), axis=0) * draw.uniform(0.8, 1.2, (BATCH, 1))
        gaps[:, 0] *= 20
        stamps = sent_s[:, None] + np.cumsum(gaps, axis=1)
        ttft_s, e2e_s = stamps[:, 0] - sent_s, stamps[:, -1] - sent_s
        words = {"arm": "1p4d", "topology": "1p4d", "connector": "lmcache", "pass": "cold"}
        table = pa.table(
            {
                **{name: np.full(BATCH, word) for name, word in words.items()},
                "round": np.full(BATCH, first * 5 // records),
                "index": index,
                "request_id": [f"short-0-{n}" for n in index],
                "sent_s": sent_s,
                "scheduled_s": sent_s,
                "chunk_s": pa.ListArray.from_arrays(starts, stamps.ravel()),
                "chunk_tokens": ones,
                "stream_end_s": stamps[:, -1] + 1e-4,
                "output_tokens": np.full(BATCH, CHUNKS),
                "error": np.where(draw.random(BATCH) < 0.001, "reset", ""),
                "ttft_s": ttft_s,
                "tpot_s": (e2e_s - ttft_s) / (CHUNKS - 1),
                "e2e_s": e2e_s,
            }
        )
        if writer is None:
            path, schema = folder / "requests.parquet", table.schema
            writer = pq.ParquetWriter(path, schema, **write_options(schema))
        writer.write_table(table, row_group_size=GROUP_ROWS)
    if writer is not None:
        writer.close()


def measured(python: str, program: str, folder: Path) -> tuple[float, float, list[float]]:
    """CPU seconds, peak memory in GB and the values of one process on one core."""
    core = max(os.sched_getaffinity(0))
    child = subprocess.Popen(
        [python, "-c", program + SAY, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"an engine ended with {child.returncode}:\n{program}")
    return (
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024 / 1e9,
        json.loads(said.splitlines()[-1]),
    )


def duckdb_python(folder: Path) -> str:
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "duckdb==2.0.1", "numpy"], check=True
    )
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--duckdb", default="", help="a Python that has duckdb")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engines = {
            "workbench": (sys.executable, WORKBENCH),
            "pandas": (sys.executable, PANDAS),
            "duckdb": (options.duckdb or duckdb_python(folder), DUCKDB),
        }
        make_run(folder, options.records)
        size_mb = (folder / "requests.parquet").stat().st_size / 1e6
        print(f"{options.records:,} records of {CHUNKS} stamps, {size_mb:,.0f} MB of parquet")
        (folder / "requests.parquet").read_bytes()  # into the system's cache, for all alike
        seen: dict[str, list[tuple[float, float, list[float]]]] = {name: [] for name in engines}
        for _ in range(TURNS):
            for name, (python, program) in engines.items():
                seen[name].append(measured(python, program, folder))
    reference = seen["pandas"][0][2]
    summary = {}
    for name, turns in seen.items():
        apart_us = max(abs(a - b) for a, b in zip(turns[0][2], reference, strict=True)) * 1e6
        cpu_s, memory_gb = [turn[0] for turn in turns], max(turn[1] for turn in turns)
        print(
            f"{name:10} {median(cpu_s):6.1f} s CPU ({min(cpu_s):.1f} to {max(cpu_s):.1f}),"
            f" {memory_gb:.2f} GB, at most {apart_us:.2f} us from pandas"
        )
        if apart_us > 1:
            sys.exit(f"{name} gives other values: {turns[0][2]} where pandas has {reference}")
        summary[name] = {"cpu_s": [round(s, 2) for s in cpu_s], "memory_gb": round(memory_gb, 2)}
    cpu_s, memory_gb = median(summary["workbench"]["cpu_s"]), summary["workbench"]["memory_gb"]
    met = "met" if cpu_s <= 4 and memory_gb <= 1.3 else "NOT met"
    print(f"target of 4 s CPU and 1.3 GB: {met}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
