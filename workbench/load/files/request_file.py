"""Files that hold one request a row: JSON Lines, a JSON array, or CSV; plain or compressed (gzip).

Blank rows, a byte order mark and CRLF are ignored. Rows are read one by one.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, cast

from workbench.errors import ParameterError

MAX_ARRAY_BYTES = 2 * 2**30
"""A JSON array is held in memory as text; the largest public prompt file has 0.7 GB."""
MOST = 10**12
"""Limit of a length, and of a time in seconds, so that both fit into a float."""

_BOM = b"\xef\xbb\xbf"
_OTHER_FORMATS = {
    b"PAR1": "Parquet",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One unchecked request of a file."""

    where: str
    """Parameter, file and line, for error messages."""
    line: int
    """Line, or position in the array, from 1."""
    fields: Mapping[str, Any]
    is_text: bool = False
    """Every value is text, as in CSV."""

    def error(self, problem: str) -> ParameterError:
        """The error to raise for this row."""
        return ParameterError(f"{self.where}: {problem}")

    def value(self, name: str) -> Any:
        """A field, None if the row lacks it; numbers in CSV cells are converted."""
        value = self.fields.get(name)
        if not self.is_text or value is None:
            return value
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
        return value if value.strip() else None

    def tokens(self, name: str, *, least: int) -> int | None:
        """A field that holds a number of tokens. Raises ParameterError for anything else."""
        value = self.value(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not None and not (type(value) is int and least <= value <= MOST):
            raise self.error(
                f"{name} must be an integer of at least {least}, got {cut(self.fields[name])}"
                f' (example: "{name}": 64)'
            )
        return value


def file_rows(path: Path, *, parameter: str, most_bytes: int, example: str) -> Iterator[FileRow]:
    """The rows of the file that a parameter names.

    Raises ParameterError, with parameter, file and line, for a row that is not a JSON object and
    for a file that cannot be read.
    """
    name = f"{parameter} {path}"
    try:
        with _opened(path, name) as file:
            start = file.peek(4096)[:4096].lstrip()
            if start.startswith(b"["):
                yield from _array(file, name, example)
            elif (separator := _separator(path, start)) is not None:
                yield from _table(file, name, separator)
            else:
                yield from _lines(file, name, most_bytes, example)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ParameterError(f"{name} is a damaged gzip file ({error}). Copy it again") from error
    except OSError as error:
        raise ParameterError(f"{name} cannot be read: {error.strerror or error}") from error


def cut(value: object) -> str:
    """The value for a message, limited to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def unused(names: set[str], parameter: str) -> list[str]:
    """A doubt that names the first unused fields."""
    if not names:
        return []
    first = [name if len(name) <= 30 else f"{name[:30]}..." for name in sorted(names)[:6]]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return [f"Unused fields in {parameter}: {', '.join(first)}{more}."]


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BufferedReader]:
    with path.open("rb") as plain:
        packed = plain.peek(2)[:2] == b"\x1f\x8b"
        # GzipFile has what is used of a BufferedReader: peek, read, readline.
        file = cast(BufferedReader, gzip.GzipFile(fileobj=plain)) if packed else plain
        start = file.peek(8)[:8]
        for magic, kind in _OTHER_FORMATS.items():
            if start.startswith(magic):
                raise ParameterError(
                    f"{name} must be JSON Lines, a JSON array or CSV, in UTF-8 (gzip allowed), got"
                    f" {kind}"
                )
        if start.startswith(_BOM):
            file.read(len(_BOM))
        yield file


def _separator(path: Path, start: bytes) -> str | None:
    """The column separator of a CSV file; None for another format."""
    head = start.split(b"\n", 1)[0].decode(errors="replace")
    if start.startswith(b"{") or "\x00" in head:
        return None
    found = max(",;\t", key=head.count)
    named = {".csv", ".tsv"} & {suffix.lower() for suffix in path.suffixes}
    columns = [part.strip() for part in head.split(found)]
    is_head = len(columns) > 1 and all(re.match(r'"?[A-Za-z_]', part) for part in columns)
    return found if named or is_head else None


def _lines(file: BufferedReader, name: str, most: int, example: str) -> Iterator[FileRow]:
    for number, line in enumerate(iter(lambda: file.readline(most + 1), b""), 1):
        where = f"{name}, line {number}"
        if len(line) > most:
            raise ParameterError(f"{where}: a line may have at most {most:,} bytes")
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            start = line[:60].decode(errors="replace").strip()
            raise ParameterError(
                f"{where} is not valid JSON: {start!r} (example: {example})"
            ) from error
        yield _row(found, where, number, example)


def _array(file: BufferedReader, name: str, example: str) -> Iterator[FileRow]:
    data = file.read(MAX_ARRAY_BYTES + 1)
    if len(data) > MAX_ARRAY_BYTES:
        raise ParameterError(f"{name} is a JSON array above 2 GiB. Convert it to JSON Lines")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ParameterError(f"{name} must be UTF-8: {error.reason}") from error
    at = _after(text, _after(text, 0) + 1)  # behind the bracket
    number = 0
    while text[at : at + 1] != "]":
        number += 1
        where = f"{name}, item {number}"
        try:
            found, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise ParameterError(
                f"{where} is not valid JSON: {text[at : at + 60]!r} (example: {example})"
            ) from error
        yield _row(found, where, number, example)
        at = _after(text, end)
        if text[at : at + 1] == ",":
            at = _after(text, at + 1)
        elif text[at : at + 1] != "]":
            raise ParameterError(f"{where}: expected a comma or ] after this item")


def _after(text: str, at: int) -> int:
    """The position after any white space."""
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _row(found: object, where: str, number: int, example: str) -> FileRow:
    if not isinstance(found, dict):
        raise ParameterError(
            f"{where} must be a JSON object, got {cut(found)} (example: {example})"
        )
    return FileRow(where=where, line=number, fields=found)


def _table(file: BufferedReader, name: str, separator: str) -> Iterator[FileRow]:
    reader = csv.reader(
        TextIOWrapper(file, encoding="utf-8", newline=""), delimiter=separator, strict=True
    )
    columns: list[str] = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            where = f"{name}, line {reader.line_num}"
            if not columns:
                columns = [value.strip() for value in values]
            elif len(values) != len(columns):
                raise ParameterError(
                    f"{where} must have {len(columns)} columns like the header, got {len(values)}"
                )
            else:
                fields = dict(zip(columns, values, strict=True))
                yield FileRow(where=where, line=reader.line_num, fields=fields, is_text=True)
    except csv.Error as error:
        raise ParameterError(f"{name}, line {reader.line_num} is not valid CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise ParameterError(f"{name} must be UTF-8: {error.reason}") from error
