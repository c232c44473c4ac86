from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import ParameterError
from workbench.hardware.machine import repository_root
from workbench.load.catalogue import build
from workbench.load.files.trace_file import read_trace, write_trace
from workbench.load.files.traces import TraceRow

File = Callable[..., Path]


def asked(
    tokens: int, ids: list[int] | None = None, *, at: Any = None, answer: int | None = 5
) -> dict[str, Any]:
    """A line of Mooncake's format without what is None."""
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    row = dict(zip(names, (at, tokens, answer, ids), strict=True))
    return {name: value for name, value in row.items() if value is not None}


ROWS = (
    asked(1100, [0, 1, 2], at=0),
    asked(1536, [0, 1, 3], at=500, answer=7),
    asked(600, [4, 5], at=500, answer=0),
    asked(1100, [0, 1, 2], at=2000),
)


def reuse_of(path: Path) -> list[int]:
    made = read_trace(path).workload(context_tokens=2_000, salt="s")
    return [request.ideal_reuse_tokens for request in made.requests]


def test_a_trace_is_read_as_times_lengths_and_blocks_and_written_again(
    file: File, tmp_path: Path
) -> None:
    trace = read_trace(file(*ROWS))
    assert trace.arrivals().offsets_s == (0.0, 0.5, 0.5, 2.0)
    assert trace.rows[1] == TraceRow(
        arrival_s=0.5, prompt_tokens=1536, output_tokens=7, hash_ids=(0, 1, 3), line=2
    )
    write_trace(trace, tmp_path / "again.jsonl")
    assert read_trace(tmp_path / "again.jsonl").rows == trace.rows
    with pytest.raises(ParameterError, match="before its lengths are scaled"):
        write_trace(trace.scaled(length=0.5), tmp_path / "no.jsonl")


def test_a_trace_is_fitted_to_the_longest_prompt_and_answer(file: File) -> None:
    options = {"file": str(file(*ROWS)), "prompt_tokens": 300, "output_tokens": 3}
    workload = build("trace", salt="s", requests=4, **options)
    assert [r.prompt_tokens for r in workload.requests] == [215, 300, 117, 215]
    assert [r.max_tokens for r in workload.requests] == [2, 3, 1, 2]
    assert [r.ideal_reuse_tokens for r in workload.requests] == [0, 200, 0, 214]
    with pytest.raises(
        ParameterError, match=r"requests must be at most 4 .* got 5 .* -p requests 4"
    ):
        build("trace", salt="s", requests=5, **options)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "line 2 is not valid JSON: '{'"),
        (b'{"a": 1}', "input_length is missing, got only 'a'. Supported traces: Azure, Bailian"),
        (
            b'{"prompt": "Hi"}',
            "input_length is missing, but there is text. Use -p workload prompts",
        ),
        (b'{"input_length": null}', "line 2: input_length is missing .example: {"),
        ({"timestamp": -1}, "timestamp must be milliseconds since the start or .*, got -1"),
        ({"timestamp": "now"}, "timestamp must be .*, got 'now'"),
        ({"timestamp": float("nan")}, "timestamp must be .*, got nan"),
        ({"timestamp": 10**400}, r"timestamp must be .*, got 10+\.\.\."),
        ({"timestamp": True}, "timestamp must be .*, got True"),
        (
            {"input_length": 0, "hash_ids": []},
            "input_length must be an integer of at least 1, got 0",
        ),
        ({"input_length": 10**400}, r"input_length must be .*, got 10+\.\.\."),
        ({"output_length": 10**400}, r"output_length must be .*, got 10+\.\.\."),
        ({"output_length": 2.5}, "output_length must be .*, got 2.5"),
        ({"hash_ids": "0,1"}, "hash_ids must be a list of integers of at least 0, got '0,1'"),
        ({"hash_ids": [0, -1, 2]}, r"hash_ids must be a list .*, got \[0, -1, 2\]"),
        (
            {"hash_ids": [0, 1]},
            "input_length 1,100 must have 3 hash_ids .blocks of 512 tokens., got 2.* fit 2 of 3",
        ),
    ],
)
def test_a_bad_line_is_named(line: bytes | dict[str, object], sentence: str, file: File) -> None:
    path = file(ROWS[0], line if isinstance(line, bytes) else ROWS[0] | line, ROWS[0])
    with pytest.raises(ParameterError, match=sentence) as refused:
        read_trace(path)
    assert str(refused.value).startswith(f"trace_file {path}, line 2")
    assert len(str(refused.value)) < 400 and len(str(refused.value).split()) <= 45


def test_times_that_go_back_are_refused(file: File) -> None:
    path = file(ROWS[3], ROWS[0])
    with pytest.raises(
        ParameterError, match=r"line 2: its time is 2 s before that of line 1. Sort trace_file"
    ):
        read_trace(path)
    assert len(read_trace(path, first=1).rows) == 1


def test_files_that_hold_no_trace_are_refused(file: File) -> None:
    with pytest.raises(ParameterError, match="has no requests"):
        read_trace(file())
    with pytest.raises(ParameterError, match="first must be at least 1, got 0"):
        read_trace(file(), first=0)


@pytest.mark.parametrize("block", [16, 64, 256])
def test_the_block_size_is_found_from_lengths_and_ids(block: int, file: File) -> None:
    lengths = (815, 887, 873)
    rows = [
        asked(n, [0, *range(100 * i, 100 * i - (-(n - block) // block))])
        for i, n in enumerate(lengths, 1)
    ]
    path = file(*rows)
    trace = read_trace(path)
    assert trace.block_tokens == block
    assert f"stands for {block} tokens" in " ".join(trace.doubts)
    chosen = read_trace(path, block_tokens=block)
    assert [doubt for doubt in chosen.doubts if "stands for" in doubt] == []
    made = build("trace", file=str(path), requests=3, prompt_tokens=900, output_tokens=5, salt="s")
    assert [r.prompt_tokens for r in made.requests] == [*lengths]
    assert [r.ideal_reuse_tokens for r in made.requests] == [0, block, block]
    with pytest.raises(ParameterError, match=r"must have 2 hash_ids .blocks of 512"):
        read_trace(path, block_tokens=512)


def test_prompts_as_short_as_the_salt_are_kept(file: File) -> None:
    ids = {1: [1], 10: [2], 16: [3], 17: [3, 4], 40: [3, 4, 5], 300: [*range(9, 28)]}
    path = file(*(asked(n, each, answer=2) for n, each in ids.items()))
    options = {"file": str(path), "prompt_tokens": 300, "output_tokens": 2}
    made = build("trace", requests=6, salt="s", **options)
    assert [r.prompt_tokens for r in made.requests] == [1, 10, 16, 17, 40, 300]
    # 16 tokens are the whole of the third; what the fifth shares lies in its second block.
    assert [r.ideal_reuse_tokens for r in made.requests] == [0, 0, 0, 16, 17, 0]
    assert any("3 of 6 prompts have at most 16 tokens" in doubt for doubt in made.doubts)
    other = build("trace", requests=6, salt="t", **options)
    assert [r.prompt_ids[0] for r in made.requests] != [r.prompt_ids[0] for r in other.requests]


def test_small_blocks_are_scaled_by_fractions_and_what_that_loses_is_told(file: File) -> None:
    shared = list(range(1_000))
    rows = [asked(32_000, [*shared, *range(n, n + 1_000)], answer=9) for n in (5_000, 10_000)]
    options = {"file": str(file(*rows)), "requests": 2, "output_tokens": 9}
    fine = build("trace", salt="s", prompt_tokens=3_200, **options)
    assert [r.ideal_reuse_tokens for r in fine.requests] == [0, 1_600]
    assert any("scaled by 0.1. The longest has 3,200 tokens" in doubt for doubt in fine.doubts)
    coarse = build("trace", salt="s", prompt_tokens=20, **options)
    assert [r.ideal_reuse_tokens for r in coarse.requests] == [0, 0]  # 10 shared tokens are salt
    assert any("ideal hit rate from 25 % to 0 %" in d for d in coarse.doubts)


FORMATS = {
    "BurstGPT": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n\n45,ChatGPT,1087,0,1087,API log\n"
    ),
    "Azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:17:03.9799600,472,18\r\n2023-11-16 18:17:43.9799600,1087,0\r\n"
    ),
    "Azure of 2024": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,472,18\n2024-05-10 00:00:40.009930+00:00,1087,0\n"
    ),
    "Vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n1.5,472,18\n41.5,1087.0,0\n",
    "Mooncake without ids": (
        '{"timestamp": 0, "input_length": 472, "output_length": 18}\n'
        '{"timestamp": 40000, "input_length": 1087, "output_length": 0}\n'
    ),
    "Bailian": (
        '{"chat_id": 7, "timestamp": 61.5, "input_length": 472, "output_length": 18}\n'
        '{"chat_id": 8, "timestamp": 101.5, "input_length": 1087, "output_length": 0}\n'
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_traces_without_ids_have_times_and_lengths_and_share_nothing(name: str, file: File) -> None:
    path = file(FORMATS[name].encode())
    trace = read_trace(path)
    assert trace.arrivals().offsets_s == pytest.approx((0.0, 40.0))
    assert [(row.prompt_tokens, row.output_tokens) for row in trace.rows] == [(472, 18), (1087, 0)]
    assert reuse_of(path) == [0, 0]
    assert (
        "2 of 2 lines of trace_file have no hash_ids: their prompts share nothing." in trace.doubts
    )
    assert any("1 of 2 lines of trace_file have no output" in doubt for doubt in trace.doubts)


@pytest.mark.parametrize(("times", "told"), [((0.0, 0.2, 0.4), True), ((0, 200, 400), False)])
def test_times_that_must_be_seconds_are_told(
    times: tuple[float, ...], told: bool, file: File
) -> None:
    """GuideLLM and vLLM bench replay files in Mooncake's form whose times are seconds."""
    doubts = read_trace(file(*(asked(600, at=at) for at in times))).doubts
    assert any("trace_speed to 0.001" in doubt for doubt in doubts) == told


def test_fields_that_are_not_used_are_told_once(file: File) -> None:
    row = asked(655, [0, 1], answer=None) | {"session_id": "a", "delay": 500}
    trace = read_trace(file(row | {"extra": None}, row | {"priority": 2}), output_tokens=7)
    assert trace.untimed == 2
    assert [row.output_tokens for row in trace.rows] == [7, 7]
    assert [doubt.split(":")[0] for doubt in trace.doubts] == [
        "Ignored in trace_file",
        "2 of 2 lines of trace_file have no output length",
        "Unused fields in trace_file",
    ]
    assert trace.doubts[-1].endswith(": priority.")


def test_ids_that_name_one_block_alone_share_only_beginnings(file: File) -> None:
    """As in AIPerf's own example, where an id comes after different ones."""
    path = file(asked(1200, [0, 1, 2]), asked(1800, [0, 3, 4, 5]), asked(1300, [1, 4, 6]))
    assert reuse_of(path) == [0, 512, 0]
    assert any("same hash id follows different" in doubt for doubt in read_trace(path).doubts)


def test_ids_of_whole_blocks_only_leave_the_rest_unshared(file: File) -> None:
    path = file(asked(40, [0, 1]), asked(47, [0, 1]), asked(50, [0, 1, 2]), asked(9, []))
    trace = read_trace(path)
    assert trace.block_tokens == 16
    assert reuse_of(path) == [0, 32, 32, 0]
    assert any("whole blocks only" in doubt for doubt in trace.doubts)


def test_the_cases_from_the_field() -> None:
    cases = repository_root().parent / "shared/cases"
    if not cases.exists():
        pytest.skip("the cases are not beside the checkout")
    sizes = {}
    for path in sorted([*cases.glob("17-*/*"), *cases.glob("18-*/*")]):
        trace = read_trace(path)
        sizes[path.stem] = (len(trace.rows), trace.block_tokens)
    assert sizes["mooncake16"] == (30, 16)
    assert sizes["blankline"] == sizes["array"] == sizes["crlf-bom"] == (2, 512)
    assert sizes["aiperf-multi"] == sizes["nohash"] == (10, 512)
