from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from workbench.errors import ParameterError
from workbench.hardware.machine import repository_root
from workbench.load.catalogue import build
from workbench.load.files.trace_file import read_trace, write_trace
from workbench.load.files.traces import Trace, TraceRow, fitted, lru_hit_rates, trace_of_run
from workbench.records import RequestRecord

PUBLISHED = repository_root().parent / "shared/data/mooncake_conversation_trace.jsonl"

ROWS = (
    TraceRow(line=1, arrival_s=0.0, prompt_tokens=1100, output_tokens=5, hash_ids=(0, 1, 2)),
    TraceRow(line=2, arrival_s=0.5, prompt_tokens=1536, output_tokens=7, hash_ids=(0, 1, 3)),
    TraceRow(line=3, arrival_s=0.5, prompt_tokens=600, output_tokens=0, hash_ids=(4, 5)),
    TraceRow(line=4, arrival_s=2.0, prompt_tokens=1100, output_tokens=5, hash_ids=(0, 1, 2)),
)


@pytest.fixture
def trace() -> Trace:
    return Trace(name="trace", rows=ROWS)


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
    with pytest.raises(ParameterError, match="r0 is not in workload"):
        trace_of_run(workload, [replace(records[0], prompt_tokens=9)])


def test_what_cannot_be_sent_is_refused_with_its_line(trace: Trace) -> None:
    with pytest.raises(
        ParameterError, match=r"trace, line 2: 1,536 prompt tokens and 7 output tokens exceed"
    ):
        trace.workload(context_tokens=1500, salt="s")
    with pytest.raises(ParameterError, match="must be above 0, got speed 0"):
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


def test_prompts_shorter_than_the_salt_are_all_salt(trace: Trace) -> None:
    """A hundredth: blocks of 5.12 tokens, of which no engine could keep one."""
    tiny = trace.scaled(length=0.01).workload(context_tokens=1500, salt="s")
    assert [r.prompt_tokens for r in tiny.requests] == [11, 15, 6, 11]
    assert [r.ideal_reuse_tokens for r in tiny.requests] == [0, 0, 0, 10]
    one = trace.scaled(length=0.0001).workload(context_tokens=1500, salt="s")
    assert [r.prompt_tokens for r in one.requests] == [1, 1, 1, 1]
