from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.errors import ParameterError
from workbench.load.traces import (
    MAX_LINE_CHARACTERS,
    Trace,
    TraceRow,
    fitted,
    lru_hit_rates,
    read_trace,
    trace_of_run,
    write_trace,
)
from workbench.load.workload import build
from workbench.machine import repository_root
from workbench.records import RequestRecord

PUBLISHED = repository_root().parent / "shared/data/mooncake_conversation_trace.jsonl"

ROWS = [
    {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 500, "input_length": 1536, "output_length": 7, "hash_ids": [0, 1, 3]},
    {"timestamp": 500, "input_length": 600, "output_length": 0, "hash_ids": [4, 5]},
    {"timestamp": 2000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
]


def written(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return read_trace(written(tmp_path, ROWS))


def test_a_trace_is_read_as_times_lengths_and_blocks(trace: Trace) -> None:
    assert trace.arrivals().offsets_s == (0.0, 0.5, 0.5, 2.0)
    assert trace.rows[1] == TraceRow(
        arrival_s=0.5, prompt_tokens=1536, output_tokens=7, hash_ids=(0, 1, 3), line=2
    )


def test_prompts_share_the_blocks_that_the_trace_shares(trace: Trace) -> None:
    workload = trace.workload(context_tokens=2000, salt="s")
    assert [r.prompt_tokens for r in workload.requests] == [1100, 1536, 600, 1100]
    assert [r.ideal_reuse_tokens for r in workload.requests] == [0, 1024, 0, 1099]
    assert workload.requests[0].prompt_ids[0] != workload.requests[2].prompt_ids[0]


def test_prompts_are_the_same_for_every_salt_and_differ_by_the_seed(trace: Trace) -> None:
    one = trace.workload(context_tokens=2000, salt="one")
    assert trace.workload(context_tokens=2000, salt="two").hash == one.hash
    assert trace.workload(context_tokens=2000, salt="one", seed=1).hash != one.hash
    assert one.hash == "db6954ad3b56"  # on any machine


def test_scaling_changes_times_and_lengths_and_no_sharing(trace: Trace) -> None:
    small = trace.scaled(speed=2, length=0.125)
    assert small.arrivals().offsets_s == (0.0, 0.25, 0.25, 1.0)
    assert [row.prompt_tokens for row in small.rows] == [128 + 10, 192, 64 + 11, 138]
    assert [row.output_tokens for row in small.rows] == [1, 1, 1, 1]
    reuse = [r.ideal_reuse_tokens for r in small.workload(context_tokens=250, salt="s").requests]
    assert reuse == [0, 128, 0, 137]


def test_a_trace_is_fitted_to_the_longest_prompt_and_answer(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS)
    options = {"file": str(path), "prompt_tokens": 300, "output_tokens": 3}
    workload = build("trace", salt="s", requests=4, **options)
    assert [r.prompt_tokens for r in workload.requests] == [215, 300, 117, 215]
    assert [r.max_tokens for r in workload.requests] == [2, 3, 1, 2]
    assert [r.ideal_reuse_tokens for r in workload.requests] == [0, 200, 0, 214]
    with pytest.raises(ParameterError, match="has 4 requests: take no more"):
        build("trace", salt="s", requests=5, **options)


def test_a_trace_is_never_lengthened(trace: Trace) -> None:
    assert [r.prompt_tokens for r in fitted(trace, prompt_tokens=9_999, output_tokens=9).rows] == [
        1100, 1536, 600, 1100,
    ]  # fmt: skip


def test_the_hit_rate_grows_with_the_cache_up_to_the_ideal_reuse(trace: Trace) -> None:
    sizes = [0, 512, 1024, 1536, 2048, 4096]
    rates = lru_hit_rates(trace, sizes)
    total = 1100 + 1536 + 600 + 1100
    # 512: [0], then [4]: one hit. 1024: 0 and 1, then 4 and 5 take their place.
    assert [round(rate * total) for rate in rates] == [0, 512, 1024, 1536, 2048, 2123]
    assert rates[-1] == trace.workload(context_tokens=2000, salt="s").ideal_reuse


def test_a_trace_that_is_written_is_read_again(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "again.jsonl")
    assert read_trace(tmp_path / "again.jsonl").rows == trace.rows
    with pytest.raises(ParameterError, match="before its lengths are scaled"):
        write_trace(trace.scaled(length=0.5), tmp_path / "no.jsonl")


def test_a_run_of_ours_is_a_trace(tmp_path: Path) -> None:
    workload = build("shared_prefix", requests=3, prompt_tokens=1500, shared_tokens=1024, salt="s")
    records = [
        RequestRecord(
            index=r.index,
            request_id=f"r{r.index}",
            prompt_tokens=r.prompt_tokens,
            ideal_reuse_tokens=r.ideal_reuse_tokens,
            max_tokens=r.max_tokens,
            scheduled_s=100.0,
            sent_s=100.0 + r.index / 4,
            output_tokens=30,
        )
        for r in workload.requests
    ]
    run = trace_of_run(workload, records)
    assert [row.hash_ids for row in run.rows] == [(0, 1, 2), (0, 1, 3), (0, 1, 4)]
    write_trace(run, tmp_path / "run.jsonl")
    again = read_trace(tmp_path / "run.jsonl")
    assert again.arrivals().offsets_s == (0.0, 0.25, 0.5)
    assert again.workload(context_tokens=2000, salt="t").ideal_reuse == workload.ideal_reuse
    with pytest.raises(ParameterError, match="r0 is not of workload"):
        trace_of_run(workload, [replace(records[0], prompt_tokens=9)])


GOOD = ROWS[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 is not JSON: '{'"),
        ("", "line 2 is not JSON"),
        ("\x00\xff", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("7", "line 2: a request has the fields timestamp, input_length"),
        ({"timestamp": -1}, "line 2: timestamp is -1: it has milliseconds from 0"),
        ({"timestamp": "now"}, "line 2: timestamp is 'now'"),
        ({"timestamp": float("nan")}, "line 2: timestamp is nan"),
        ({"input_length": 0, "hash_ids": []}, "line 2: input_length is 0: it has tokens, from 1"),
        ({"input_length": 10**400}, r"line 2: input_length is 10+\.\.\.: it has tokens"),
        ({"output_length": 10**400}, r"line 2: output_length is 10+\.\.\."),
        ({"timestamp": 10**400}, r"line 2: timestamp is 10+\.\.\.: it has milliseconds"),
        ({"timestamp": True}, "line 2: timestamp is True"),
        ({"output_length": 2.5}, "line 2: output_length is 2.5"),
        ({"hash_ids": "0,1"}, "line 2: hash_ids is no list of whole numbers"),
        ({"hash_ids": [0, -1, 2]}, "line 2: hash_ids is no list of whole numbers"),
        ({"hash_ids": [0, 1]}, "line 2: 2 hash_ids contradict input_length 1100, which is 3"),
        ({"hash_ids": [0, 2, 9]}, "line 2: hash id 2 comes after other blocks than before"),
        ({"hash_ids": [7, 7, 7]}, "line 2: hash id 7 comes after other blocks"),
    ],
)
def test_a_bad_line_is_named(line: str | dict[str, object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    text = line if isinstance(line, str) else json.dumps({**GOOD, **line})
    path.write_text(json.dumps(GOOD) + "\n" + text + "\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(ParameterError, match=sentence) as refused:
        read_trace(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 400


def test_times_that_go_back_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [ROWS[3], ROWS[0]])
    with pytest.raises(ParameterError, match=r"line 2: timestamp 0 is before .* sort the file"):
        read_trace(path)
    assert len(read_trace(path, first=1).rows) == 1


def test_a_huge_line_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate(20 * MAX_LINE_CHARACTERS)
    with pytest.raises(ParameterError, match="line 1 is longer than 8,000,000 characters"):
        read_trace(path)


def test_files_that_hold_no_trace_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ParameterError, match="is empty"):
        read_trace(tmp_path / "empty")
    with pytest.raises(ParameterError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none")
    with pytest.raises(ParameterError, match="first is 0"):
        read_trace(tmp_path / "empty", first=0)


def test_what_cannot_be_sent_is_refused_with_its_line(trace: Trace) -> None:
    with pytest.raises(ParameterError, match="trace, line 2: 1536 prompt and 7 answer tokens do"):
        trace.workload(context_tokens=1500, salt="s")
    with pytest.raises(ParameterError, match="line 1: the first block has 5 tokens, and the salt"):
        trace.scaled(length=0.01).workload(context_tokens=1500, salt="s")
    with pytest.raises(ParameterError, match="speed is 0 and length 1"):
        trace.scaled(speed=0)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published trace is not beside the checkout")
def test_the_published_trace() -> None:
    trace = read_trace(PUBLISHED)
    assert len(trace.rows) == 12_031
    first = read_trace(PUBLISHED, first=200)
    assert first.rows == trace.rows[:200]
    small = first.scaled(length=1 / 16)
    workload = small.workload(context_tokens=10_000, salt="s")
    (unlimited,) = lru_hit_rates(small, [10**9])
    # Drawn blocks may agree by chance in a token or two more than the ids say.
    assert workload.ideal_reuse == pytest.approx(unlimited, abs=2e-4)
    rates = lru_hit_rates(trace, [10**6, 10**9])
    assert 0 < rates[0] < rates[1] < 1
