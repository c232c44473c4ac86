"""Files of Mooncake traces: JSON Lines, read with every line checked, and written.

A line is one request: `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids`,
one id for each block of 512 prompt tokens.

Format: https://github.com/kvcache-ai/Mooncake (FAST25-release/traces)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.errors import ParameterError
from workbench.load.token_ids import SALT_TOKENS
from workbench.load.traces import BLOCK_TOKENS, Trace, TraceRow, fitted
from workbench.load.workload import Workload, check_numbers

__all__ = ["read_trace", "trace", "write_trace"]

MAX_LINE_CHARACTERS = 8_000_000
"""A longer line is no request: it would hold some 500 million prompt tokens."""

_MOST = 10**12
"""No time (ms) and no length is above it, so that none outgrows a float."""

_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
_EXAMPLE = '{"timestamp": 0, "input_length": 600, "output_length": 32, "hash_ids": [0, 1]}'


def read_trace(path: Path | str, *, first: int | None = None) -> Trace:
    """The trace in a JSON Lines file, or its first so many requests.

    Raises ParameterError, with file and line, for a line that is no request, a time that is
    negative or before the one above, and hash ids that contradict the length or one another.
    """
    path = Path(path)
    if first is not None and first < 1:
        raise ParameterError(f"first is {first}: take 1 request or more")
    rows: list[TraceRow] = []
    parents: dict[int, int] = {}
    try:
        with path.open("rb") as file:
            for line in islice(iter(lambda: file.readline(MAX_LINE_CHARACTERS + 1), b""), first):
                where = f"{path}, line {len(rows) + 1}"
                row = _row(line, where, len(rows) + 1)
                if rows and row.arrival_s < rows[-1].arrival_s:
                    raise ParameterError(
                        f"{where}: timestamp {row.arrival_s * 1000:g} is before that of the line"
                        " above; sort the file by timestamp"
                    )
                _check_chain(row.hash_ids, parents, where)
                rows.append(row)
    except OSError as error:
        raise ParameterError(f"trace {path} cannot be read: {error.strerror}") from error
    if not rows:
        raise ParameterError(f"trace {path} is empty: each line is one request, e.g. {_EXAMPLE}")
    return Trace(name=path.stem, rows=tuple(rows))


def trace(
    *,
    file: str,
    requests: int,
    prompt_tokens: int,
    output_tokens: int,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """The first so many requests of a trace file, `fitted` to these lengths of the longest."""
    check_numbers(salt, prompt_tokens=(prompt_tokens, 1), output_tokens=(output_tokens, 1))
    wanted = read_trace(file, first=requests)
    if len(wanted.rows) < requests:
        raise ParameterError(
            f"{file} has {len(wanted.rows)} lines and requests is {requests}: take no more than"
            f" these, e.g. -p requests {len(wanted.rows)}"
        )
    longest = max(row.prompt_tokens for row in wanted.rows)
    if BLOCK_TOKENS * min(1.0, prompt_tokens / longest) < SALT_TOKENS + 1:
        least = -(-(SALT_TOKENS + 1) * longest // BLOCK_TOKENS)
        raise ParameterError(
            f"prompt_tokens is {prompt_tokens} and the longest of these {requests} prompts has"
            f" {longest}: its blocks would be shorter than the salt of {SALT_TOKENS} tokens; take"
            f" {least} or more, or fewer requests"
        )
    small = fitted(wanted, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    made = small.workload(
        context_tokens=prompt_tokens + output_tokens,
        vocab_tokens=vocab_tokens,
        seed=seed,
        salt=salt,
    )
    return replace(made, name="trace")


def write_trace(trace: Trace, path: Path | str) -> None:
    """Write a trace as the file that `read_trace` reads; times are rounded to a millisecond."""
    if trace.block_tokens != BLOCK_TOKENS:
        raise ParameterError(
            f"{trace.name} has blocks of {trace.block_tokens} tokens: the format has"
            f" {BLOCK_TOKENS}; write the trace before its lengths are scaled"
        )
    with Path(path).open("w", encoding="utf-8") as file:
        for row in trace.rows:
            values = (round(row.arrival_s * 1000), row.prompt_tokens, row.output_tokens)
            line = dict(zip(_FIELDS, (*values, list(row.hash_ids)), strict=True))
            file.write(json.dumps(line) + "\n")


def _row(line: bytes, where: str, number: int) -> TraceRow:
    if len(line) > MAX_LINE_CHARACTERS:
        raise ParameterError(
            f"{where} is longer than {MAX_LINE_CHARACTERS:,} characters: it is no request"
        )
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ParameterError(
            f"{where} is not JSON: {line[:60].decode(errors='replace').strip()!r}; a request is"
            f" e.g. {_EXAMPLE}"
        ) from error
    missing = [name for name in _FIELDS if not isinstance(found, dict) or name not in found]
    if missing:
        raise ParameterError(f"{where} lacks {', '.join(missing)}; a request is e.g. {_EXAMPLE}")
    timestamp, prompt_tokens, output_tokens, hash_ids = (found[name] for name in _FIELDS)
    if type(timestamp) not in (int, float) or not 0 <= timestamp <= _MOST:
        raise ParameterError(
            f"{where}: timestamp is {_cut(timestamp)}: it is milliseconds since the start, 0 or"
            " more"
        )
    for name, value, least in (
        ("input_length", prompt_tokens, 1),
        ("output_length", output_tokens, 0),
    ):
        if type(value) is not int or not least <= value <= _MOST:
            raise ParameterError(
                f"{where}: {name} is {_cut(value)}: it is a whole number of tokens, {least} or more"
            )
    if not isinstance(hash_ids, list) or any(type(i) is not int or i < 0 for i in hash_ids):
        raise ParameterError(
            f"{where}: hash_ids is {_cut(hash_ids)}: it is a list of whole numbers, 0 or more"
        )
    blocks = -(-prompt_tokens // BLOCK_TOKENS)
    if len(hash_ids) != blocks:
        raise ParameterError(
            f"{where}: hash_ids has {len(hash_ids)} and input_length {prompt_tokens} takes"
            f" {blocks}, one for each {BLOCK_TOKENS} tokens or part of them"
        )
    return TraceRow(
        arrival_s=timestamp / 1000,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        hash_ids=tuple(hash_ids),
        line=number,
    )


def _cut(value: object) -> str:
    """The value for a message, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_chain(hash_ids: Sequence[int], parents: dict[int, int], where: str) -> None:
    """An id stands for all blocks up to its own, so the same one always comes before it."""
    for parent, hash_id in zip((-1, *hash_ids), hash_ids, strict=False):
        if parents.setdefault(hash_id, parent) != parent:
            raise ParameterError(
                f"{where}: hash id {hash_id} comes after other blocks than before; an id stands"
                " for its block and all before it"
            )
