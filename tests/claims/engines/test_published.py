from pathlib import Path

from workbench.claims.engines import published

JOB = {"bench": "latency", "device": "cpu", "model": "/m", "batch": 8, "calls": 3,
       "input_tokens": 256, "output_tokens": 128, "dtype": "float32"}  # fmt: skip


def test_the_command_is_vllms_own():
    words = published.words(JOB, Path("out.json"))
    assert " ".join(words).startswith("bench latency --model /m --dtype float32")
    assert words[words.index("--batch-size") + 1] == "8"
    assert words[words.index("--max-num-seqs") + 1] == "8"  # as our own timing of the batch has it
    assert words[words.index("--input-len") + 1] == "256" and "--enforce-eager" in words
    # `--input-len` would be overruled by the default of `--random-input-len`
    wide = published.words(JOB | {"bench": "throughput"}, Path("out.json"))
    assert "--input-len" not in wide and wide[wide.index("--random-input-len") + 1] == "256"
    assert "--enforce-eager" not in published.words(JOB | {"device": "cuda"}, Path("out.json"))


def test_both_kinds_of_result_can_be_read():
    rows = published.read({"avg_latency": 2.0, "latencies": [1.0, 3.0]}, JOB)
    assert [(row["quantity"], row["value"]) for row in rows] == [("time", 1.0), ("time", 3.0)]
    said = {"elapsed_time": 2.0, "num_requests": 4, "total_num_tokens": 1536,
            "requests_per_second": 2.0, "tokens_per_second": 768.0}  # fmt: skip
    rows = published.read(said, JOB | {"bench": "throughput"})
    assert {row["quantity"]: row["value"] for row in rows}["tokens rate"] == 768.0
