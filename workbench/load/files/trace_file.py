"""Files of traces: the published formats, read with every row checked, and Mooncake's, written.

On GitHub: kvcache-ai/Mooncake (AIPerf and Dynamo take it too), HPMLL/BurstGPT,
alibaba-edu/qwen-bailian-usagetraces-anon, Azure/AzurePublicDataset. A row is one request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count, islice, pairwise
from math import isnan, nan
from pathlib import Path
from typing import NamedTuple

from workbench.errors import ParameterError
from workbench.load.files.request_file import MOST, FileRow, cut, file_rows, unused
from workbench.load.files.trace_blocks import Length, block_size
from workbench.load.files.traces import BLOCK_TOKENS, Trace, TraceRow, fitted, lru_hit_rates
from workbench.load.workload.token_ids import SALT_TOKENS
from workbench.load.workload.workload import Workload, check_numbers

MAX_LINE_BYTES = 8_000_000
"""Limit of a line: more would be some 500 million prompt tokens."""

_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
_EXAMPLE = '{"timestamp": 0, "input_length": 600, "output_length": 32, "hash_ids": [0, 1]}'


class _Format(NamedTuple):
    """Column names and time unit of a published format."""

    name: str
    time: str
    prompt: str
    output: str
    per_second: int = 1
    """Units of a numeric time in a second."""
    also: str = ""
    """A field that distinguishes it from a format with the same names."""


_FORMATS = (
    _Format("Bailian", "timestamp", "input_length", "output_length", also="chat_id"),
    _Format("Mooncake", "timestamp", "input_length", "output_length", per_second=1_000),
    _Format("BurstGPT", "Timestamp", "Request tokens", "Response tokens"),
    _Format("Azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    _Format("Vidur", "arrived_at", "num_prefill_tokens", "num_decode_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A checked row; None for a missing length or ids."""

    row: FileRow
    time_s: float
    """NaN for a row without a time."""
    prompt_tokens: int
    output_tokens: int | None
    hash_ids: tuple[int, ...] | None


def read_trace(
    path: Path | str, *, first: int | None = None, block_tokens: int = 0, output_tokens: int = 1
) -> Trace:
    """The trace in a file, or its `first` requests.

    `block_tokens` is the number of tokens per hash id, 0 to derive it from the file. Rows without
    hash ids share nothing; rows without an output length ask for `output_tokens`.

    Raises ParameterError, with parameter, file and line, for a row that is not a request, a time
    that is negative or earlier than the one before, and hash ids that fit no block size.
    """
    path = Path(path)
    if first is not None and first < 1:
        raise ParameterError(f"first must be at least 1, got {first} (example: first=100)")
    known: set[str] = set()
    names: set[str] = set()
    found = []
    for row in islice(_rows(path), first):
        layout = _layout(row)
        known |= {layout.time, layout.prompt, layout.output, "hash_ids"}
        names |= {name for name, value in row.fields.items() if value is not None}
        found.append(_request(row, layout))
    if not found:
        raise ParameterError(f"trace_file {path} has no requests (example of a line: {_EXAMPLE})")
    lengths = [
        Length(each.row.where, each.prompt_tokens, len(each.hash_ids))
        for each in found
        if each.hash_ids is not None
    ]
    block, block_doubts = block_size(lengths, asked=block_tokens)
    chains, chain_doubts = _chains(found, block)
    timed = [each for each in found if not isnan(each.time_s)]
    _check_order(timed)
    start_s = timed[0].time_s if timed else 0.0
    used = known | {"session_id", "delay"}
    return Trace(
        name=path.stem,
        rows=tuple(
            TraceRow(
                arrival_s=0.0 if isnan(each.time_s) else each.time_s - start_s,
                prompt_tokens=each.prompt_tokens,
                output_tokens=output_tokens if each.output_tokens is None else each.output_tokens,
                hash_ids=ids,
                line=each.row.line,
            )
            for each, ids in zip(found, chains, strict=True)
        ),
        block_tokens=block,
        untimed=len(found) - len(timed),
        doubts=(
            *block_doubts,
            *chain_doubts,
            *_row_doubts(found, timed, names),
            *unused(names - used, "trace_file"),
        ),
    )


def trace_requests(path: Path | str, usual: int) -> int:
    """Default number of requests of a trace: `usual`, or all if it has fewer."""
    return sum(1 for _ in islice(_rows(Path(path)), usual)) or usual


def _rows(path: Path) -> Iterator[FileRow]:
    return file_rows(path, parameter="trace_file", most_bytes=MAX_LINE_BYTES, example=_EXAMPLE)


def trace(
    *,
    file: str,
    requests: int,
    prompt_tokens: int,
    output_tokens: int,
    block_tokens: int = 0,
    vocab_tokens: int = 12_288,
    seed: int = 0,
    salt: str,
) -> Workload:
    """The first requests of a trace file, `fitted` so that the longest has these lengths."""
    check_numbers(salt, prompt_tokens=(prompt_tokens, 1), output_tokens=(output_tokens, 1))
    lengths = {"block_tokens": block_tokens, "output_tokens": output_tokens}
    wanted = read_trace(file, first=requests, **lengths)
    if len(wanted.rows) < requests:
        raise ParameterError(
            f"requests must be at most {len(wanted.rows):,} (the lines of trace_file {file}), got"
            f" {requests:,} (example: -p requests {len(wanted.rows)})"
        )
    small = fitted(wanted, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    made = small.workload(
        context_tokens=prompt_tokens + output_tokens,
        vocab_tokens=vocab_tokens,
        seed=seed,
        salt=salt,
    )
    return replace(made, name="trace", doubts=(*made.doubts, *_size_doubts(wanted, small, made)))


def write_trace(trace: Trace, path: Path | str) -> None:
    """Write a trace in Mooncake's format; times are rounded to a millisecond."""
    if trace.block_tokens != BLOCK_TOKENS:
        raise ParameterError(
            f"trace {trace.name} must have blocks of {BLOCK_TOKENS} tokens, got"
            f" {trace.block_tokens:g}. Write the trace before its lengths are scaled"
        )
    with Path(path).open("w", encoding="utf-8") as file:
        for row in trace.rows:
            values = (round(row.arrival_s * 1000), row.prompt_tokens, row.output_tokens)
            line = dict(zip(_FIELDS, (*values, list(row.hash_ids)), strict=True))
            file.write(json.dumps(line) + "\n")


def _layout(row: FileRow) -> _Format:
    for layout in _FORMATS:
        if layout.prompt in row.fields and (not layout.also or layout.also in row.fields):
            return layout
    has = ", ".join(str(name) for name in row.fields)
    if {"messages", "text_input", "prompt"} & set(row.fields):
        raise row.error(
            "input_length is missing, but there is text. Use -p workload prompts -p prompts_file"
            " FILE instead of trace_file"
        )
    raise row.error(
        f"input_length is missing, got only {cut(has)}. Supported traces:"
        f" {', '.join(sorted(each.name for each in _FORMATS))} (example: {_EXAMPLE})"
    )


def _request(row: FileRow, layout: _Format) -> _Request:
    prompt_tokens = row.tokens(layout.prompt, least=1)
    if prompt_tokens is None:
        raise row.error(f"{layout.prompt} is missing (example: {_EXAMPLE})")
    return _Request(
        row=row,
        time_s=_time_s(row, layout),
        prompt_tokens=prompt_tokens,
        output_tokens=row.tokens(layout.output, least=0),
        hash_ids=_hash_ids(row),
    )


def _time_s(row: FileRow, layout: _Format) -> float:
    """Seconds on the file's own clock; NaN if the row has no time."""
    number = row.value(layout.time)
    if number is None:
        return nan
    if isinstance(number, str):
        with suppress(ValueError):  # the error follows
            moment = datetime.fromisoformat(number.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if type(number) not in (int, float) or not 0 <= number <= MOST * layout.per_second:
        unit = "milliseconds" if layout.per_second == 1_000 else "seconds"
        said = cut(row.fields[layout.time])
        raise row.error(
            f"{layout.time} must be {unit} since the start or a date and time, got {said}"
            " (examples: 1500, 2024-05-10 00:00:01.5)"
        )
    return float(number / layout.per_second)


def _hash_ids(row: FileRow) -> tuple[int, ...] | None:
    value = row.fields.get("hash_ids")
    if row.is_text and value:
        with suppress(ValueError, RecursionError):  # the error follows
            value = json.loads(value)
    if value is None or value == "":
        return None
    if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
        raise row.error(
            f"hash_ids must be a list of integers of at least 0, got {cut(value)} (example: [0, 1])"
        )
    return tuple(value)


def _check_order(timed: Sequence[_Request]) -> None:
    for before, each in pairwise(timed):
        back_s = before.time_s - each.time_s
        if back_s > 0:
            raise each.row.error(
                f"its time is {back_s:g} s before that of line {before.row.line}. Sort trace_file"
                " by time"
            )


def _chains(
    found: Sequence[_Request], block_tokens: int
) -> tuple[list[tuple[int, ...]], list[str]]:
    """An id for each block of each prompt, which stands for the block and all blocks before it.

    Ids of the file are kept if they do so. A block without an id gets a new one.
    """
    given = [each.hash_ids or () for each in found]
    new = count(max((hash_id for ids in given for hash_id in ids), default=-1) + 1)
    doubts = []
    if not _are_chains(given):
        doubts.append(
            "In trace_file, the same hash id follows different blocks, so it names one block alone."
            " Only equal prefixes count as shared."
        )
        chain: dict[tuple[int, int], int] = {}
        renamed = []
        for ids in given:
            own: list[int] = []
            for hash_id in ids:
                before = own[-1] if own else -1
                if (before, hash_id) not in chain:
                    chain[before, hash_id] = next(new)
                own.append(chain[before, hash_id])
            renamed.append(tuple(own))
        given = renamed
    without = sum(each.hash_ids is None for each in found)
    doubts += _lacking(without, len(found), "hash_ids", "their prompts share nothing")
    whole = [
        (*ids, *islice(new, -(-each.prompt_tokens // block_tokens) - len(ids)))
        for each, ids in zip(found, given, strict=True)
    ]
    return whole, doubts


def _are_chains(given: Iterable[Sequence[int]]) -> bool:
    parents: dict[int, int] = {}
    return all(
        parents.setdefault(hash_id, parent) == parent
        for ids in given
        for parent, hash_id in zip((-1, *ids), ids, strict=False)
    )


def _lacking(rows: int, of: int, what: str, then: str) -> list[str]:
    return [f"{rows} of {of} lines of trace_file have no {what}: {then}."] if rows else []


def _row_doubts(
    found: Sequence[_Request], timed: Sequence[_Request], names: set[str]
) -> Iterator[str]:
    # Other tools write seconds under Mooncake's names, and the file does not say which it has.
    # Fractions of a millisecond are seldom written, and few servers get 1,000 requests a second.
    if len({each.time_s for each in timed}) > 2 and _layout(timed[0].row).name == "Mooncake":
        if len(timed) - 1 >= 1000 * (timed[-1].time_s - timed[0].time_s):
            yield (
                "timestamp of trace_file is read as milliseconds, which gives over 1,000 req/s. If"
                " it is in seconds, set trace_speed to 0.001."
            )
    # AIPerf puts the earlier turns of a session in front of each, and waits between them.
    if turns := sorted(names & {"session_id", "delay"}):
        yield (
            f"Ignored in trace_file: {', '.join(turns)}. Each line is sent alone, without earlier"
            " turns of its session."
        )
    unanswered = sum(each.output_tokens is None for each in found)
    yield from _lacking(unanswered, len(found), "output length", "output_tokens is used")
    empty = sum(each.output_tokens == 0 for each in found)
    yield from _lacking(empty, len(found), "output (0 tokens)", "1 token is requested")


def _size_doubts(wanted: Trace, small: Trace, made: Workload) -> Iterator[str]:
    """Effects of scaling the trace to the lengths asked for."""
    short = sum(row.prompt_tokens <= SALT_TOKENS for row in small.rows)
    if short:
        yield (
            f"{short} of {len(small.rows)} prompts have at most {SALT_TOKENS} tokens. They are all"
            " salt, so no cache can serve them."
        )
    for what, name in (("prompts", "prompt_tokens"), ("outputs", "output_tokens")):
        before, after = (max(getattr(row, name) for row in each.rows) for each in (wanted, small))
        if after < before:
            yield (
                f"The {what} of trace_file are scaled by {after / before:.2g}. The longest has"
                f" {after:,} tokens instead of {before:,}. Raise {name} to keep the recorded ones."
            )
    (ideal,) = lru_hit_rates(wanted, [10**15])
    if abs(ideal - made.ideal_reuse) > 0.02:
        yield (
            f"Scaling changes the trace's ideal hit rate from {100 * ideal:.0f} % to"
            f" {100 * made.ideal_reuse:.0f} %. Raise prompt_tokens."
        )
