from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from workbench.errors import ParameterError
from workbench.load.files.request_file import file_rows, unused


def fields_of(path: Path) -> list[dict[str, object]]:
    rows = file_rows(path, parameter="trace_file", most_bytes=1_000, example="{}")
    return [dict(row.fields) for row in rows]


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b'{"a": 1}\n\n{"a": 2}\n  \n', [{"a": 1}, {"a": 2}]),
        (b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        (b'\n[{"a": 1},\r\n{"a": 2}\n]\n', [{"a": 1}, {"a": 2}]),
        (b"[]", []),
        (b"", []),
        (b"a,b\r\n1,x\r\n\r\n2,y\r\n", [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]),
        (b'a;b\n1;"x;\ny"\n', [{"a": "1", "b": "x;\ny"}]),
        (b"\xef\xbb\xbfa\tb\n1\t\n", [{"a": "1", "b": ""}]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_the_same_however_the_file_was_saved(
    data: bytes, fields: list[dict[str, object]], packed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert fields_of(path) == fields


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"a": 1}\n{"a": 2', """line 2 is not valid JSON: '{"a": 2' .example: """),
        (b'[{"a": 1}, {"a"', "item 2 is not valid JSON"),
        (b'[{"a": 1} {"a": 2}]', "item 1: expected a comma or ] after"),
        (b'[{"a": 1}', "item 1: expected a comma or ] after"),
        (b"[1]", "item 1 must be a JSON object, got 1"),
        (b"[\xff]", "must be UTF-8"),
        (b"a,b\n1,2,3\n", "line 2 must have 2 columns like the header, got 3"),
        (b'a,b\n1,"2\n', "line 2 is not valid CSV"),
        (b"a,b\n1,\xff\n", "must be UTF-8"),
        (b"\x00\xff", "line 1 is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"{" * 1_001, "line 1: a line may have at most 1,000 bytes"),
        (
            b"PAR1\x15\x04",
            "must be JSON Lines, a JSON array or CSV, in UTF-8 .gzip allowed., got Parquet",
        ),
        (b"\xff\xfe{\x00", "got UTF-16"),
        (gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "is a damaged gzip file"),
    ],
)
def test_what_cannot_be_read_is_told_with_parameter_file_and_line(
    data: bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ParameterError, match=sentence) as refused:
        fields_of(path)
    assert str(refused.value).startswith(f"trace_file {path}")


def test_the_first_rows_are_read_though_a_later_one_is_broken(tmp_path: Path) -> None:
    for data in (b'{"a": 1}\nbroken', b'[{"a": 1}, broken'):
        (tmp_path / "file").write_bytes(data)
        rows = file_rows(tmp_path / "file", parameter="p", most_bytes=99, example="{}")
        assert next(rows).fields == {"a": 1}


def test_a_doubt_names_the_first_few_fields() -> None:
    assert unused(set(), "trace_file") == []
    assert unused(set("abcdefgh"), "trace_file") == [
        "Unused fields in trace_file: a, b, c, d, e, f and 2 more."
    ]
