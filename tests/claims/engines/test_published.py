from pathlib import Path

import pandas as pd
import pytest

from workbench.claims.engines import published as benchmarks
from workbench.claims.recipes.rows import Rows, row

JOB = {"bench": "latency", "device": "cpu", "model": "/m", "batch": 8, "calls": 3,
       "input_tokens": 256, "output_tokens": 128, "dtype": "float32"}  # fmt: skip


def test_the_command_is_vllms_own():
    words = benchmarks.words(JOB, Path("out.json"))
    assert " ".join(words).startswith("bench latency --model /m --dtype float32")
    assert words[words.index("--batch-size") + 1] == "8"
    assert words[words.index("--max-num-seqs") + 1] == "8"  # as our own timing of the batch has it
    assert words[words.index("--input-len") + 1] == "256" and "--enforce-eager" in words
    # `--input-len` would be overruled by the default of `--random-input-len`
    wide = benchmarks.words(JOB | {"bench": "throughput"}, Path("out.json"))
    assert "--input-len" not in wide and wide[wide.index("--random-input-len") + 1] == "256"
    assert "--enforce-eager" not in benchmarks.words(JOB | {"device": "cuda"}, Path("out.json"))


def test_both_kinds_of_result_can_be_read():
    rows = benchmarks.rows_of({"avg_latency": 2.0, "latencies": [1.0, 3.0]}, JOB)
    assert [(row["quantity"], row["value"]) for row in rows] == [("time", 1.0), ("time", 3.0)]
    said = {"elapsed_time": 2.0, "num_requests": 4, "total_num_tokens": 1536,
            "requests_per_second": 2.0, "tokens_per_second": 768.0}  # fmt: skip
    rows = benchmarks.rows_of(said, JOB | {"bench": "throughput"})
    assert {row["quantity"]: row["value"] for row in rows}["tokens rate"] == 768.0


ASKED = "vllm bench {bench} --model m --{word}input-len 256 --{word}output-len {output}"


def launches(*, made=8 * 32, asked=32, benches=("latency", "throughput")):
    """Five launches of each side: our batch of 8, and `vllm bench` with its command line."""
    values = [
        ("time", "vllm", 1.0), ("output tokens", "vllm", made),
        ("time", "vllm bench latency", 1.01), ("requests rate", "vllm bench throughput", 9.0),
        ("tokens rate", "vllm bench throughput", 2448.0),
    ]  # fmt: skip
    table = pd.DataFrame(
        [
            row(quantity, arm, "batch 8", value * (1 + run / 100 * (quantity == "time")), "")
            | {"run": run}
            for run in range(5)
            for quantity, arm, value in values
        ]
    )
    words = {"latency": "", "throughput": "random-"}
    commands = [ASKED.format(bench=b, word=words[b], output=asked) for b in benches]
    results = ({"threads": 1}, *({"threads": 1, "command": command} for command in commands))
    return Rows(table=table, results=results, doubts=())


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "pass"),
        ({"made": 8 * 32 - 1}, "fail"),
        ({"asked": 128}, "fail"),
        ({"benches": ()}, "unknown"),
    ],
)
def test_lengths_beside_vllms_benchmarks_are_counted_and_read_from_its_commands(
    cpu, changed, state
):
    outcome = benchmarks.read(launches(**changed), cpu)
    assert outcome.checks["same_token_lengths_ignore_eos"] == state
    (rate,) = outcome.measurements["S001-TPUT"].effects["output tokens"]
    assert rate.estimate == pytest.approx(9 * 32)
