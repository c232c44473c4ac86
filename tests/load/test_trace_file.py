from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.errors import ParameterError
from workbench.load.catalogue import build
from workbench.load.trace_file import MAX_LINE_CHARACTERS, read_trace, write_trace
from workbench.load.traces import TraceRow

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
def path(tmp_path: Path) -> Path:
    return written(tmp_path, ROWS)


def test_a_trace_is_read_as_times_lengths_and_blocks(path: Path) -> None:
    trace = read_trace(path)
    assert trace.arrivals().offsets_s == (0.0, 0.5, 0.5, 2.0)
    assert trace.rows[1] == TraceRow(
        arrival_s=0.5, prompt_tokens=1536, output_tokens=7, hash_ids=(0, 1, 3), line=2
    )


def test_a_trace_that_is_written_is_read_again(path: Path, tmp_path: Path) -> None:
    trace = read_trace(path)
    write_trace(trace, tmp_path / "again.jsonl")
    assert read_trace(tmp_path / "again.jsonl").rows == trace.rows
    with pytest.raises(ParameterError, match="before its lengths are scaled"):
        write_trace(trace.scaled(length=0.5), tmp_path / "no.jsonl")


def test_a_trace_is_fitted_to_the_longest_prompt_and_answer(path: Path) -> None:
    options = {"file": str(path), "prompt_tokens": 300, "output_tokens": 3}
    workload = build("trace", salt="s", requests=4, **options)
    assert [r.prompt_tokens for r in workload.requests] == [215, 300, 117, 215]
    assert [r.max_tokens for r in workload.requests] == [2, 3, 1, 2]
    assert [r.ideal_reuse_tokens for r in workload.requests] == [0, 200, 0, 214]
    with pytest.raises(ParameterError, match=r"shorter than the salt .* take 51 or"):
        build("trace", salt="s", requests=4, **(options | {"prompt_tokens": 50}))
    assert build("trace", salt="s", requests=4, **(options | {"prompt_tokens": 51})).requests
    with pytest.raises(ParameterError, match=r"has 4 lines and requests is 5: .* -p requests 4"):
        build("trace", salt="s", requests=5, **options)


GOOD = ROWS[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 is not JSON: '{'"),
        ("", "line 2 is not JSON"),
        ("\x00\xff", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("7", "line 2 lacks timestamp, input_length, output_length, hash_ids; a request is e.g. {"),
        ({"timestamp": -1}, "line 2: timestamp is -1: it is milliseconds since the start, 0 or"),
        ({"timestamp": "now"}, "line 2: timestamp is 'now'"),
        ({"timestamp": float("nan")}, "line 2: timestamp is nan"),
        ({"input_length": 0, "hash_ids": []}, "input_length is 0: it is a whole number of"),
        ({"input_length": 10**400}, r"line 2: input_length is 10+\.\.\.: it is a whole"),
        ({"output_length": 10**400}, r"line 2: output_length is 10+\.\.\."),
        ({"timestamp": 10**400}, r"line 2: timestamp is 10+\.\.\.: it is milliseconds"),
        ({"timestamp": True}, "line 2: timestamp is True"),
        ({"output_length": 2.5}, "line 2: output_length is 2.5"),
        ({"hash_ids": "0,1"}, "line 2: hash_ids is '0,1': it is a list of whole numbers"),
        ({"hash_ids": [0, -1, 2]}, r"hash_ids is \[0, -1, 2\]: it is a list of whole numbers, 0"),
        ({"hash_ids": [0, 1]}, "line 2: hash_ids has 2 and input_length 1100 takes 3, one"),
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
