"""Both generations of LMCache's log lines, whole and damaged.

The mp lines were captured from LMCache 0.5.6; the in-process ones, which need a GPU, are written as
its source and those of older versions format them.
"""

from __future__ import annotations

import io
import os
import random
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from workbench.errors import ParameterError
from workbench.metrics.lmcache_log import block_events as lmcache_events
from workbench.metrics.lmcache_log import children as lmcache_children
from workbench.metrics.lmcache_log import reader as lmcache_log
from workbench.metrics.lmcache_log.block import Columns, scan
from workbench.metrics.lmcache_log.children import children_for
from workbench.metrics.lmcache_log.log_rows import explain
from workbench.metrics.lmcache_log.reader import LogSummary, read_log

GREEN, ITALIC, OFF = "\x1b[32;20m", "\x1b[3m", "\x1b[0m"
ENGINE = "(EngineCore_DP0 pid=480732) "


def line(text: str, *, head: str = "", at: str = "2026-11-21 10:42:29,019") -> str:
    where = f"{ITALIC}(vllm_v1_adapter.py:1478:lmcache.integration.vllm.vllm_v1_adapter){OFF}"
    return f"{head}{GREEN}[{at}] LMCache INFO:{OFF} {text} {where}\n"


def lookup(
    request: str, total: int, hit: int, need: int, *, engine: int | None = None, **more: str
) -> str:
    own = "" if engine is None else f"Inference Engine computed tokens: {engine}, "
    text = f"Reqid: {request}, Total tokens {total}, {own}LMCache hit tokens: {hit}, "
    return line(f"{text}need to load: {need}", **more)


def read(*lines: str | bytes, ranks: int = 0) -> LogSummary:
    data = b"".join(x.encode() if isinstance(x, str) else x for x in lines)
    return read_log(io.BytesIO(data), ranks=ranks)


def said(events: dict[str, Columns], kind: str, *names: str) -> set[tuple[object, ...]]:
    return set(zip(*(events.get(kind, {}).get(name, ()) for name in names), strict=True))


def only(summary: LogSummary) -> dict[str, object]:
    (row,) = summary.requests.to_dict("records")
    return {str(key): value for key, value in row.items()}


# --- who earns the credit ---


def test_a_negative_need_to_load_means_that_the_engine_held_more_than_lmcache() -> None:
    """Older versions print no engine hit: it follows from the other two numbers."""
    row = only(read(lookup("cmpl-1", total=497, hit=256, need=-240, head=ENGINE)))
    assert row["generation"] == "in-process"
    assert (row["need_to_load"], row["engine_hit_tokens"], row["loaded_tokens"]) == (-240, 496, 0)
    assert explain(row) == (
        "LMCache held 256 tokens, the engine itself 496 of 497: need to load = 256 - 496 = -240,"
        " so nothing was loaded and LMCache earns no credit."
    )


def test_newer_versions_print_zero_instead_and_the_difference_is_the_same() -> None:
    row = only(read(lookup("cmpl-1", total=497, hit=256, need=0, engine=496)))
    assert (row["engine_hit_tokens"], row["loaded_tokens"]) == (496, 0)
    assert "256 - 496 = -240 (printed as 0), so nothing was loaded" in explain(row)


def test_lmcache_is_credited_with_what_it_had_beyond_the_engine() -> None:
    summary = read(lookup("cmpl-1", total=2005, hit=1792, need=1664, engine=128))
    assert only(summary)["loaded_tokens"] == 1664
    credit = {"engine": 128, "lmcache": 1664, "computed": 213, "idle": 128, "lost": 0}
    assert summary.credit == credit
    assert "= 1,664, which LMCache is credited with; 213 were computed." in explain(only(summary))


def test_the_last_token_of_a_prompt_that_lmcache_holds_entirely_is_computed() -> None:
    for engine in (None, 0):
        row = only(read(lookup("cmpl-1", total=256, hit=256, need=255, engine=engine)))
        assert (row["engine_hit_tokens"], row["loaded_tokens"]) == (0, 255)
        assert "256 - 0 - 1 (the last token is always computed) = 255" in explain(row)


def test_a_load_too_small_to_be_worth_it_earns_nothing() -> None:
    text = (
        "Reqid: cmpl-1, Total tokens 600, Inference Engine computed tokens: 384, LMCache hit"
        " tokens: 512, but need to load: 128 < min_retrieve 256, skip retrieve but record for save"
        " skip"
    )
    row = only(read(line(text)))
    assert (row["need_to_load"], row["loaded_tokens"], row["skipped"]) == (128, 0, True)
    assert "too few to be worth a load" in explain(row)


def test_what_did_not_arrive_is_not_credited() -> None:
    summary = read(
        lookup("cmpl-1", total=2000, hit=1792, need=1792, engine=0),
        line("[req_id=cmpl-1] Retrieved 1024 out of 1792 required tokens (from 1792 total tokens)."
             " size: 0.2461 gb, cost 14.3229 ms, throughput: 17.1818 GB/s;"),
    )  # fmt: skip
    row = only(summary)
    assert row["loaded_tokens"] == 1024
    assert row["seconds"] == pytest.approx(0.0143229)
    assert row["gb_per_s"] == pytest.approx(0.2461 / 0.0143229)
    assert "= 1,792, 1,024 arrived, which" in explain(row)


def test_a_request_that_waits_is_looked_up_again_and_counts_once() -> None:
    pending = line("Reqid: cmpl-1, Total tokens 900, LMCache hit tokens: None.")
    asked = lookup("cmpl-1", total=900, hit=768, need=768, engine=0)
    summary = read(pending, asked, asked, asked)
    assert only(summary)["lookups"] == 3
    assert summary.credit["lmcache"] == 768
    assert summary.cut == 0


# --- ranks ---


def test_interleaved_ranks_store_the_same_tokens_and_add_their_bytes() -> None:
    """Each worker of a tensor-parallel instance writes its own line for its part of the KV."""
    lines = [lookup("cmpl-1", total=600, hit=0, need=0, engine=0, head=ENGINE)]
    for step in (256, 344):
        for rank in (1, 0):
            text = f"[req_id=cmpl-1] Stored {step} out of total {step} tokens. size: 0.5000 GB,"
            text += " cost 20.0000 ms, throughput: 25.0000 GB/s; offload_time: 19.0000 ms"
            lines.append(line(text, head=f"(Worker_DP0_TP{rank} pid={900 + rank}) "))
    summary = read(*lines)
    assert only(summary)["stored_tokens"] == 600
    assert sorted(summary.transfers["rank"]) == ["0", "0", "1", "1"]
    assert summary.transfers["gb"].sum() == 2.0


def test_lines_that_two_ranks_wrote_into_one_another_are_left_out() -> None:
    torn = lookup("cmpl-1", total=500, hit=256, need=256)
    torn = torn[: torn.index("LMCache hit")] + lookup("cmpl-2", total=500, hit=256, need=256)
    summary = read(torn)
    assert list(summary.requests["request_id"]) == ["cmpl-2"]
    assert summary.cut == 1
    assert any("1 line of LMCache cut short" in doubt for doubt in summary.doubts)


def test_older_lines_without_a_request_count_in_totals_only() -> None:
    summary = read(
        lookup("cmpl-1", total=3866, hit=0, need=0),
        line("Stored 3866 out of total 3866 tokens. size: 0.5309 gb, cost 11.9537 ms, throughput:"
             " 44.4144 GB/s; offload_time: 11.9294 ms, put_time: 0.0243 ms"),
    )  # fmt: skip
    assert pd.isna(only(summary)["stored_tokens"])
    assert summary.transfers["tokens"].sum() == 3866
    assert "name no request" in summary.doubts[0]


# --- the multi-process generation ---

MP_LINES = (
    line("TokenHasher initialized: chunk_size=256, hash_algorithm=blake3"),
    line("Stored 2048 tokens in 0.004 seconds"),
    line("Prefetch request completed (L1+L2): 88/90 retained keys (80 L1, 8 L2) in 1.4 ms"
         " (external_request_id=cmpl-a-0-82e63193, prefetch_request_id=13)"),
    line("Retrieved 22528 tokens in 0.015 seconds"),
)  # fmt: skip


def test_the_mp_generation_gives_tiers_and_transfers_but_no_credit() -> None:
    summary = read(*MP_LINES)
    row = only(summary)
    assert row["generation"] == "mp"
    assert row["request_id"] == "cmpl-a-0-82e63193"
    assert (row["l1_tokens"], row["l2_tokens"], row["lookup_s"]) == (80 * 256, 8 * 256, 0.0014)
    assert (row["lmcache_hit_tokens"], row["asked_tokens"]) == (88 * 256, 90 * 256)
    assert pd.isna(row["need_to_load"]) and pd.isna(summary.credit["lmcache"])
    assert list(summary.transfers["kind"]) == ["stored", "retrieved"]
    assert "its counters must say" in explain(row)
    assert any("gives no hit rate and no credit" in doubt for doubt in summary.doubts)


def test_a_chunk_is_one_key_for_each_worker() -> None:
    row = only(read(*MP_LINES, ranks=2))
    assert (row["l1_tokens"], row["lmcache_hit_tokens"]) == (40 * 256, 44 * 256)
    assert any("log_ranks is wrong" in doubt for doubt in read(*MP_LINES, ranks=7).doubts)


def test_an_older_form_of_the_same_line() -> None:
    text = "Prefetch request completed (L1+L2): 3/3 prefix hits (3 L1, 0 L2) in 0.6 ms"
    row = only(read(line(f"{text} (prefetch_request_id=-1)")))
    assert row["l1_keys"] == 3
    assert pd.isna(row["lmcache_hit_tokens"])  # no line says how long a chunk is


def test_a_preempted_request_says_what_the_engine_held() -> None:
    row = only(read(line("<resume-load> req=cmpl-1 apc=512 lmcache=256 load=0")))
    assert (row["generation"], row["engine_hit_tokens"], row["loaded_tokens"]) == ("mp", 512, 0)


def test_evictions_and_restarts_are_counted() -> None:
    evict = line("L1 memory usage 0.85 above watermark 0.80; triggering eviction.")
    summary = read(line("Starting StoreController..."), evict, evict, *MP_LINES,
                   line("Starting StoreController..."))  # fmt: skip
    assert summary.evictions == {"L1": 2}
    assert any("started 2 times" in doubt for doubt in summary.doubts)


# --- what arrived ---

WORKER = "(Worker_TP{} pid=42{}) "


def retrieved(request: str, tokens: int, required: int, *, rank: int = 0) -> str:
    text = f"[req_id={request}] Retrieved {tokens} out of {required} required tokens (from"
    text += f" {required} total tokens). size: 0.5 gb, cost 10.0 ms, throughput: 50.0 GB/s;"
    return line(text, head=WORKER.format(rank, rank))


def short(tokens: int, expected: int, *, rank: int = 0, request: str = "") -> str:
    """The two lines of a worker that got less than the lookup promised; newer ones name it."""
    named = f"Request {request}" if request else ""
    texts = (
        f"{named}The number of retrieved tokens is less than the expected number of tokens!",
        f"Num retrieved tokens: {tokens}, num expected tokens: {expected}",
    )
    head = WORKER.format(rank, rank)
    return "".join(line(text, head=head).replace("INFO:", "ERROR:") for text in texts)


def lost(request: str, tokens: int) -> str:
    text = f"Request {request} failed to load {tokens} tokens across 96 blocks"
    return line(text).replace("INFO:", "WARNING:")


def storing(request: str, tokens: int) -> str:
    text = f"Storing KV cache for {tokens} out of {tokens} tokens (skip_leading_tokens=0)"
    return line(f"{text} for request {request}")


def stored(request: str, tokens: int, *, head: str = "") -> str:
    text = f"[req_id={request}] Stored {tokens} out of total {tokens} tokens. size: 1.0 GB,"
    return line(f"{text} cost 1.0 ms, throughput: 9.1 GB/s;", head=head)


@pytest.mark.parametrize(
    ("lines", "arrived"),
    [
        ((short(0, 2560, rank=1), short(0, 2560)), 0),
        ((short(1024, 2560, rank=1), short(0, 2560)), 0),
        ((short(1024, 2560, rank=1), short(1024, 2560, request="a")), 1024),
        ((retrieved("a", 0, 2560), retrieved("a", 0, 2560, rank=1)), 0),
        ((retrieved("a", 2560, 2560), short(0, 2560, rank=1)), 0),
        ((retrieved("a", 2560, 2560), retrieved("a", 512, 2560, rank=1)), 512),
        ((retrieved("a", 512, 2560), short(512, 2560, request="a")), 512),
        ((lost("a", 1536),), 1024),
        ((short(0, 2557).replace("ERROR:" + OFF + " ", "ERROR:"),), 0),  # skip_last_n_tokens 3
    ],
)  # fmt: skip
def test_the_worst_rank_says_what_arrived(lines: tuple[str, ...], arrived: int) -> None:
    summary = read(lookup("a", total=2774, hit=2560, need=2560, engine=0), *lines)
    assert only(summary)["loaded_tokens"] == arrived
    assert summary.credit["computed"] == 2774 - arrived
    assert summary.credit["lost"] == 2560 - arrived
    assert summary.credit["idle"] == 0
    assert any(f"{2560 - arrived:,} tokens were found" in doubt for doubt in summary.doubts)


def test_a_doubt_names_the_errors() -> None:
    asked = [lookup(name, total=2774, hit=2560, need=2560) for name in "abc"]
    failed = short(0, 2560) + short(0, 2560, rank=1)
    summary = read(*(text + failed for text in asked))
    assert summary.credit["lmcache"] == 0
    assert summary.errors == {
        "The number of retrieved tokens is less than the expected number of tokens!": 6,
        "Num retrieved tokens: 0, num expected tokens: 2560": 6,
    }
    assert any("LMCache logged 12 errors" in doubt for doubt in summary.doubts)
    assert "none of them arrived: LMCache earns no credit" in explain(
        summary.requests.iloc[0].to_dict()
    )


def test_of_requests_without_an_error_nothing_failed() -> None:
    """Where only failures are logged, the others are credited as looked up, and a doubt says so."""
    asked = [lookup(name, total=2774, hit=2560, need=2560) for name in "abc"]
    summary = read(asked[0], asked[1], short(0, 2560), asked[2])
    assert summary.requests["loaded_tokens"].tolist() == [2560, 0, 2560]
    assert any("no Retrieved line for 2 requests" in doubt for doubt in summary.doubts)


def test_a_hit_without_a_retrieval_earns_nothing_where_others_have_one() -> None:
    asked = [lookup(name, total=2774, hit=2560, need=2560) for name in "ab"]
    summary = read(*asked, retrieved("b", 2560, 2560))
    assert summary.requests["loaded_tokens"].tolist() == [0, 2560]
    assert "No line says that they arrived" in explain(summary.requests.iloc[0].to_dict())
    assert any("1 request with a hit and without a Retrieved line" in d for d in summary.doubts)


def test_errors_of_retrievals_without_a_number_earn_nothing() -> None:
    error = line("Cannot retrieve keys due to exception").replace("INFO:", "ERROR:")
    summary = read(lookup("a", total=2774, hit=2560, need=2560), error)
    assert summary.credit["lmcache"] == 0
    assert any("“Cannot retrieve keys due to exception”" in doubt for doubt in summary.doubts)


def test_a_retrieval_that_begins_within_what_the_engine_held_brings_less() -> None:
    """288 tokens are in the engine: of the second chunk, 256 tokens, 224 were missing."""
    asked = lookup("a", total=900, hit=512, need=224, engine=288)
    assert only(read(asked, retrieved("a", 256, 256)))["loaded_tokens"] == 224
    assert only(read(asked, retrieved("a", 0, 256)))["loaded_tokens"] == 0


def test_an_error_is_of_the_retrieval_that_its_worker_has_just_told() -> None:
    """Requests in flight together, as long as one another, and lines that name none of them."""
    asked = [lookup(name, total=2774, hit=2560, need=2560) for name in "abcd"]
    lines = []
    for tokens in (2560, 2560, 512, 2560):
        for rank in (0, 1):
            text = f"Retrieved {tokens if rank else 2560} out of 2560 out of total 2560 tokens"
            lines.append(line(text, head=WORKER.format(rank, rank)))
        if tokens < 2560:
            lines.append(short(tokens, 2560, rank=1))
    summary = read(*asked, *lines)
    assert sorted(summary.requests["loaded_tokens"]) == [512, 2560, 2560, 2560]


def test_what_is_needed_and_no_token_less_has_arrived() -> None:
    """Some versions call all that was looked up required, also what the engine held itself."""
    asked = lookup("a", total=32, hit=24, need=8)
    assert only(read(asked, retrieved("a", 8, 24)))["loaded_tokens"] == 8


def test_objects_that_were_retrieved_are_no_tokens() -> None:
    asked = lookup("a", total=8210, hit=8210, need=8209)
    fetched = line("Retrieved 33 memory objects from RemoteBackend")
    summary = read(asked, fetched, retrieved("a", 8210, 8210))
    assert (summary.cut, only(summary)["loaded_tokens"]) == (0, 8209)
    assert summary.doubts == ()


# --- times ---

NATIVE = "(EngineCore_DP0 pid=7) INFO {} [vllm_v1_adapter.py:1228] Reqid: {}, Total tokens 4096,"
NATIVE += " LMCache hit tokens: 3840, need to load: 2816"


@pytest.mark.parametrize(
    ("log", "at", "year"),
    [
        (NATIVE.format("11-07 11:03:05", "a") + "\n", "11-07 11:03:05", False),
        (NATIVE.format("11-07 11:03:05.250", "a") + "\n", "11-07 11:03:05.250000", False),
        ("(EngineCore_DP0 pid=7) [2025-11-07 11:03:05] LMCache INFO: Reqid: a, Total tokens 4096,"
         " LMCache hit tokens: 3840, need to load: 2816 (x.py:1)\n", "11-07 11:03:05", True),
        ("2025-11-07T12:00:00.5Z stderr F " + NATIVE.format("11-07 11:03:05", "a") + "\n",
         "11-07 11:03:05", True),
        ("2025-11-07T12:00:00.123456789Z Reqid: a, Total tokens 4096, LMCache hit tokens: 3840,"
         " need to load: 2816\n", "11-07 12:00:00.123456", True),
        ("Nov  7 12:00:00 host vllm[7]: Reqid: a, Total tokens 4096, LMCache hit tokens: 3840,"
         " need to load: 2816\n", "11-07 12:00:00", False),
        ('{"log":"' + NATIVE.format("11-07 11:03:05", "a") + '\\n","stream":"stderr"}\n',
         "11-07 11:03:05", False),
    ],
)  # fmt: skip
def test_a_line_of_vllm_has_the_time_of_its_head(log: str, at: str, year: bool) -> None:
    summary = read(log)
    row = only(summary)
    assert str(row["at"]).partition("-")[2] == at
    assert (row["engine_hit_tokens"], row["loaded_tokens"]) == (1024, 2816)
    assert summary.dated is year
    assert any("no year" in doubt for doubt in summary.doubts) is not year


def test_the_year_is_that_of_another_line() -> None:
    native = NATIVE.format("11-07 11:03:05", "a") + "\n"
    summary = read(native, line("Stored 256 tokens in 0.1 seconds", at="2025-11-07 11:03:06,000"))
    assert str(only(summary)["at"]) == "2025-11-07 11:03:05"
    assert summary.dated


def test_a_log_without_times_is_read() -> None:
    text = "Reqid: a, Total tokens 4096, LMCache hit tokens: 3840, need to load: 2816\n"
    summary = read(text, text.replace("a,", "b,"))
    assert summary.requests["at"].isna().all()
    assert summary.credit["lmcache"] == 2 * 2816
    assert any("no time" in doubt for doubt in summary.doubts)


# --- whose request ---


def served_twice(
    first: str, second: str, between: str = "", *, later: str = "12:00:00"
) -> LogSummary:
    """Request 0 is computed in the first process and loaded in the second, soon or `later`."""
    return read(
        lookup("0", total=10010, hit=0, need=0, head=first),
        between,
        lookup("0", total=10010, hit=10010, need=10009, head=second, at=f"2026-11-21 {later},000"),
    )


STARTED = line("LMCache initialized for role KVConnectorRole.SCHEDULER with version 0.3.7")


@pytest.mark.parametrize(
    ("first", "second", "between"),
    [
        ("(EngineCore_DP0 pid=10) ", "(EngineCore_DP0 pid=11) ", ""),
        ("prefill-1  | ", "decode-1  | ", ""),
        ("2026-11-21T10:42:29.1Z ", "2026-11-21T10:52:29.1Z ", STARTED),
        ("", "", STARTED),
        ("", "", stored("0", 10010)),
        ("", "", storing("0", 10010)),
        ("", "", line("Stored 10010 out of total 10010 tokens")),
        ("", "", ""),  # hours later
    ],
)  # fmt: skip
def test_the_same_id_elsewhere_is_another_request(first: str, second: str, between: str) -> None:
    summary = served_twice(
        first, second, between, later="10:42:33" if first or between else "12:00:00"
    )
    assert len(summary.requests) == 2
    assert (summary.credit["lmcache"], summary.credit["computed"]) == (10009, 10011)
    assert any("1 request id came again" in doubt for doubt in summary.doubts)


def test_a_request_that_waits_while_another_is_stored_is_one() -> None:
    other = line("Stored 10010 out of total 10010 tokens")
    summary = served_twice("", "", line("Stored 8192 out of total 8192 tokens"), later="10:42:29")
    assert len(summary.requests) == 1
    waits = lookup("0", total=10010, hit=256, need=256)
    assert only(read(waits, other, waits))["lookups"] == 2


def test_logs_that_were_joined_are_told_by_their_clock() -> None:
    assert len(served_twice("", "", later="10:30:00").requests) == 2


def test_without_times_ids_that_come_again_in_turn_are_other_requests() -> None:
    text = "Reqid: {}, Total tokens 4096, LMCache hit tokens: {}, need to load: {}\n"
    cold = [text.format(n, 0, 0) for n in range(3)]
    warm = [text.format(n, 3840, 3840) for n in range(3)]
    waiting = [cold[0], *cold, warm[0], *warm]
    summary = read(*waiting)
    assert summary.requests["lookups"].tolist() == [2, 1, 1, 2, 1, 1]
    assert summary.credit["lmcache"] == 3 * 3840


def test_a_preempted_request_is_the_same_one() -> None:
    summary = read(
        lookup("0", total=1000, hit=0, need=0, engine=0),
        stored("0", 1000),
        lookup("0", total=1030, hit=768, need=768, engine=0, at="2026-11-21 11:42:29,019"),
    )
    assert only(summary)["prompt_tokens"] == 1030


@pytest.mark.parametrize("end", ["", "\r"])
def test_a_progress_bar_before_a_line_is_no_process(end: str) -> None:
    bar = "Processed prompts:  30%|███▋       | 3/10 [00:00<00:02,  3.00it/s, est. speed: 4 toks/s]"
    heads = (ENGINE, f"{end}{bar}" * 9 + ENGINE, f"{bar.replace('3', '4')}{ENGINE}")
    summary = read(*(lookup("0", total=10010, hit=9984, need=9984, head=head) for head in heads))
    assert (only(summary)["lookups"], only(summary)["process"]) == (3, ENGINE.strip())


def test_lines_of_workers_go_to_the_lookup_of_their_own_engine() -> None:
    """Prefill and decode log the same id; the decode instance's lookup comes first."""
    summary = read(
        lookup("0", total=600, hit=512, need=512, engine=0, head="decode | (EngineCore pid=7) "),
        lookup("0", total=600, hit=0, need=0, engine=0, head="prefill | (EngineCore pid=7) "),
        stored("0", 600, head="prefill | (Worker_TP0 pid=8) "),
        line("[req_id=0] Retrieved 512 out of 512 required tokens (from 512 total tokens). size:"
             " 0.5 gb, cost 1.0 ms,", head="decode | (Worker_TP0 pid=8) "),
    )  # fmt: skip
    rows = summary.requests.set_index("engine")
    assert rows.loc["prefill | DP0", "stored_tokens"] == 600
    assert rows.loc["decode | DP0", "retrieved_tokens"] == 512
    assert rows["loaded_tokens"].to_dict() == {"decode | DP0": 512, "prefill | DP0": 0}


def test_the_same_id_in_two_files_is_of_two_processes(tmp_path: Path) -> None:
    """Two containers: the same names, the same pids, and the decode log has the later times."""
    head, at = "(EngineCore_DP0 pid=7) ", "2026-11-21 10:42:{:02},000"
    logs = {
        "decode.log": lookup("0", 600, 512, 512, engine=0, head=head, at=at.format(2))
        + line("[req_id=0] Retrieved 512 out of 512 required tokens (from 512 total tokens)."
               " size: 0.5 gb, cost 1.0 ms,", head="(Worker_TP0 pid=8) ", at=at.format(3)),
        "prefill.log": lookup("0", 600, 0, 0, engine=0, head=head, at=at.format(1))
        + stored("0", 600, head="(Worker_TP0 pid=8) "),
    }  # fmt: skip
    for name, text in logs.items():
        (tmp_path / name).write_text(text)
    summary = read_log([tmp_path / name for name in logs])
    assert len(summary.requests) == 2
    assert (summary.credit["lmcache"], summary.credit["computed"]) == (512, 688)
    assert summary.requests["stored_tokens"].tolist()[1] == 600
    assert "decode.log: (EngineCore_DP0 pid=7)" in summary.requests["process"][0]
    assert not any("run backwards" in doubt for doubt in summary.doubts)


def test_data_parallel_engines_add_up_and_tensor_parallel_ranks_do_not() -> None:
    lines = []
    for engine in (0, 1):
        core = f"(EngineCore_DP{engine} pid=1{engine}) "
        lines.append(line("LMCache initialized for role KVConnectorRole.SCHEDULER", head=core))
        lines.append(lookup(f"{engine}", total=600, hit=0, need=0, engine=0, head=core))
        for rank in (0, 1):
            text = (
                f"[req_id={engine}] Stored 600 out of total 600 tokens. size: 1.0 GB, cost 1.0 ms,"
            )
            lines.append(line(text, head=f"(Worker_DP{engine}_TP{rank} pid=2{engine}{rank}) "))
    summary = read(*lines)
    assert summary.moved("stored") == 1200
    assert summary.requests["stored_tokens"].tolist() == [600, 600]
    assert not any("started" in doubt for doubt in summary.doubts)


def test_processes_that_are_no_workers_are_not_ranks() -> None:
    """A prefill and a decode instance without workers, each of which stores its own tokens."""
    heads = ("(EngineCore_DP0 pid=10) ", "(EngineCore_DP0 pid=11) ")
    assert read(*(stored("0", 600, head=head) for head in heads)).moved("stored") == 1200


# --- keys and workers of the multi-process generation ---


def second(n: int) -> str:
    return f"2026-08-26 15:{n // 60:02}:{n % 60:02},000"


def prefetch(n: int, found: int, asked: int) -> str:
    text = f"Prefetch request completed (L1+L2): {found}/{asked} retained keys ({found} L1, 0 L2)"
    return line(f"{text} in 0.5 ms (external_request_id=r{n}, prefetch_request_id=-1)",
                at=second(n))  # fmt: skip


def mp_log(
    *, workers: int, keys: int, chunk: int = 256, named: str = "chunk_size=256, l1_size_gb=60",
    loads: tuple[int, ...] = (3, 3, 5, 2, 3, 4),
) -> list[str]:  # fmt: skip
    """Stores of 11 chunks, then lookups that find some chunks, which every worker retrieves."""
    lines = [line(f"LMCache server config: {named}")]
    for n in range(6):
        lines += [line(f"Stored {11 * chunk} tokens in 0.2 seconds", at=second(n))] * workers
    for n, chunks in enumerate(loads, start=10):
        lines.append(prefetch(n, chunks * keys, 11 * keys))
        lines += [
            line(f"Retrieved {chunks * chunk} tokens in 0.01 seconds", at=second(n))
        ] * workers
    return lines


@pytest.mark.parametrize(
    ("workers", "keys", "named"),
    [
        (1, 1, "chunk_size=256, l1"), (4, 4, "chunk_size=256, l1"), (8, 8, "chunk_size=256, l1"),
        (1, 2, "chunk_size=256, l1"),  # two kinds of layer
        (4, 1, "chunk_size=256, l1"),  # MLA: the same KV on every worker
        (4, 4, "nothing of a chunk"),
    ],
)  # fmt: skip
def test_the_log_shows_how_many_keys_a_chunk_is(workers: int, keys: int, named: str) -> None:
    summary = read(*mp_log(workers=workers, keys=keys, named=named))
    found = 20 * 256
    assert summary.requests["lmcache_hit_tokens"].sum() == found
    assert summary.moved("retrieved") == found
    assert summary.moved("stored") == 6 * 11 * 256
    assert read(*mp_log(workers=workers, keys=keys), ranks=workers).moved("retrieved") == found


@pytest.mark.parametrize(("workers", "keys"), [(1, 1), (4, 4), (4, 1), (1, 2)])
def test_retrievals_of_requests_in_flight_together_still_show_it(workers: int, keys: int) -> None:
    """Eight at a time, and of one in three the engine held a part itself."""
    draw, events, found, moved = random.Random(keys), [], 0, 0
    for n in range(80):
        chunks = draw.randrange(1, 60)
        loaded = chunks if n % 3 else draw.randrange(1, chunks + 1)
        found, moved = found + chunks * 256, moved + loaded * 256
        events.append((n, prefetch(n, chunks * keys, 60 * keys + keys * (n % 2))))
        text = line(f"Retrieved {loaded * 256} tokens in 0.01 seconds")
        events += [(n + draw.random() * 8, text) for _ in range(workers)]
    config = line("LMCache server config: chunk_size=256, l1_size_gb=60")
    summary = read(config, *(text for _, text in sorted(events)))
    assert summary.requests["lmcache_hit_tokens"].sum() == found
    assert summary.moved("retrieved") == moved


def test_what_the_engine_held_itself_is_found_and_not_retrieved() -> None:
    lines = mp_log(workers=4, keys=4)
    late = [prefetch(20, 12, 44), prefetch(21, 12, 44)]
    late += [line("Retrieved 512 tokens in 0.01 seconds", at=second(21))] * 4
    summary = read(*lines, *late)
    assert summary.requests["lmcache_hit_tokens"].sum() == (20 + 6) * 256
    assert summary.moved("retrieved") == (20 + 2) * 256


def test_without_a_retrieval_the_registered_workers_or_the_user_say_it() -> None:
    lines = [line("LMCache server config: chunk_size=256, l1_size_gb=60"), prefetch(1, 12, 44)]
    unknown = read(*lines)
    assert pd.isna(only(unknown)["lmcache_hit_tokens"])
    assert any("-p log_ranks 4" in doubt for doubt in unknown.doubts)
    assert only(read(*lines, ranks=4))["lmcache_hit_tokens"] == 768
    text = "Registered non-GPU context for instance 1 (model=m, world_size=4)"
    assert only(read(line(text), *lines))["lmcache_hit_tokens"] == 768


def test_lookups_that_are_as_long_as_what_was_stored_show_it_too() -> None:
    """Every retrieval failed, so that none is there to go by."""
    lines = [text for text in mp_log(workers=4, keys=4) if "Retrieved" not in text]
    lines.append(line("Some keys not found during retrieve!").replace("INFO:", "ERROR:"))
    summary = read(*lines)
    assert summary.requests["lmcache_hit_tokens"].sum() == 20 * 256
    assert summary.moved("retrieved") == 0
    assert any("“Some keys not found during retrieve!”" in doubt for doubt in summary.doubts)


def test_a_server_before_its_first_hit_has_stored_tokens() -> None:
    summary = read(*(line("Stored 256 tokens in 0.025 seconds", at=second(n)) for n in range(6)))
    assert (summary.moved("stored"), summary.moved("retrieved")) == (6 * 256, 0)
    assert summary.requests.empty


# --- logs from the field, where they are beside the repository ---

CASES = Path(__file__).parents[4] / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("log", "requests", "loaded", "stored"),
    [
        ("01-lmc-retrieve-failed/vllm.log", 8, 0, 0),
        ("03-lmc-mp-keys/lmcache.log", 6, 4608, 6 * 2816),
        ("04-lmc-vllm-native/vllm.log", 8, 13_312, 4 * 4096),
        ("06-lmc-ids-restart/both.log", 20, 100_090, 0),
        ("08-lmc-stored-only/lmcache.log", 0, 0, 1536),
    ],
)
def test_logs_from_the_field(log: str, requests: int, loaded: int, stored: int) -> None:
    summary = read_log(CASES / log)
    assert len(summary.requests) == requests
    by_line = summary.moved("retrieved")
    assert (by_line if pd.isna(summary.credit["lmcache"]) else summary.credit["lmcache"]) == loaded
    assert summary.moved("stored") == stored
    assert summary.cut == 0


# --- damage ---


@pytest.mark.parametrize("whole", [lookup("cmpl-2", 2000, 1792, 1792, engine=0), *MP_LINES[1:]])
def test_no_line_that_was_cut_gives_a_wrong_number(whole: str) -> None:
    """Cut anywhere and followed by a new line: what is read is right, or it is not there."""
    other = lookup("cmpl-1", total=900, hit=768, need=768, engine=0)
    right, got = read(other, whole), read(other, *(f"{whole[:n]}\n" for n in range(len(whole) - 1)))
    for frame, true in ((got.requests, right.requests), (got.transfers, right.transfers)):
        for name in frame.select_dtypes("number").columns.difference(["offset", "lookups"]):
            assert set(frame[name].dropna()) <= set(true[name].dropna()), name
    assert got.cut > 10


@pytest.mark.parametrize("whole", [lookup("cmpl-2", 2000, 1792, 1792, engine=0), *MP_LINES[1:]])
def test_no_last_line_that_is_still_being_written_gives_a_wrong_number(whole: str) -> None:
    for length in range(len(whole)):
        found = scan(whole[:length].encode(), 0, {}).events
        assert said(found, "lookups", "need_to_load") <= {(1792,)}
        transfers = said(found, "transfers", "tokens", "gb", "seconds")
        assert transfers <= {(2048, -1, 0.004), (22528, -1, 0.015)}
        keys = said(found, "prefetches", "found_keys", "asked_keys", "l1_keys", "l2_keys")
        assert keys <= {(88, 90, 80, 8)}


def test_a_number_that_cannot_be_one_is_no_number() -> None:
    long, twice = "9" * 5000, "1.2.3"
    summary = read(
        lookup("cmpl-1", total=int("9" * 20), hit=0, need=0),
        line(f"Stored {long} tokens in 0.1 seconds"),
        line(f"Stored 256 tokens in {twice} seconds"),
    )
    assert (summary.matching, summary.cut) == (0, 3)


def test_numbers_that_contradict_one_another_are_left_out() -> None:
    summary = read(lookup("cmpl-1", total=2000, hit=1792, need=17, engine=0))
    assert summary.requests.empty
    assert summary.cut == 1


def test_a_colour_within_a_line_does_not_hide_it() -> None:
    text = (
        "Reqid: cmpl-1, Total tokens \x1b[1m900\x1b[0m, LMCache hit tokens: 768, need to load: 768"
    )
    assert only(read(line(text)))["prompt_tokens"] == 900


def test_a_log_without_places_in_the_source_may_end_its_lines_with_the_number() -> None:
    text = "[2026-01-20 21:21:58,711] LMCache INFO: Reqid: a, Total tokens 900, LMCache hit tokens:"
    assert only(read(f"{text} 768, need to load: 768\r\n"))["loaded_tokens"] == 768


def test_bytes_that_are_no_text_are_counted() -> None:
    summary = read(b"\xff\xfe noise\n", lookup("cmpl-1", total=900, hit=0, need=0, engine=0))
    assert len(summary.requests) == 1
    assert summary.undecodable == 2


def test_a_time_of_day_that_cannot_be_is_no_time() -> None:
    whens = ("2026-11-21 10:42:29,019", "2026-02-29 10:42:29,019", "2026-11-21 24:00:00,000")
    rows = read(*(lookup("cmpl-1", 900, 0, 0, engine=0, at=at) for at in whens), MP_LINES[2])
    assert rows.requests["at"].isna().tolist() == [True, False]
    assert str(rows.requests["at"][1]) == "2026-11-21 10:42:29.019000"


def test_times_that_run_backwards_are_a_doubt() -> None:
    later = lookup("cmpl-1", 900, 0, 0, engine=0, at="2026-11-21 10:42:29,019")
    sooner = lookup("cmpl-2", 900, 0, 0, engine=0, at="2026-11-21 10:41:00,000")
    assert any("run backwards" in doubt for doubt in read(later, sooner).doubts)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "The log is empty"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)), "compressed"),
        (bytes(range(256)) * 40, "not text"),
        (b"GET / HTTP/1.1 200\n" * 9, "None of its 9 lines"),
    ],
)
def test_a_file_with_nothing_to_read_says_what_it_is(data: bytes, says: str) -> None:
    summary = read(data)
    assert summary.matching == 0
    assert says in summary.doubts[0]
    assert pd.isna(summary.credit["engine"])


def test_a_path_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.log", tmp_path):
        with pytest.raises(ParameterError, match=r"log_file .* cannot be read"):
            read_log(path)


# --- size ---


def test_blocks_do_not_split_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [lookup(f"cmpl-{n}", 900, 768, 768, engine=0) for n in range(40)]
    whole = read(*rows).requests
    for size in (7, 400, 1000):
        monkeypatch.setattr(lmcache_events, "BLOCK_BYTES", size)
        parts = read(*rows).requests
        if size > len(rows[0]):
            pd.testing.assert_frame_equal(parts, whole)
        else:  # shorter than a line: fewer rows, no wrong one
            assert set(parts["request_id"]) <= set(whole["request_id"])


def test_a_log_is_never_held_as_a_whole() -> None:
    """Memory beside the rows stays within a few blocks."""
    import tracemalloc

    class Endless(io.RawIOBase):
        left = 64 << 20

        def read(self, size: int = -1) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return (b"INFO: noise without any number of ours\n" * (size // 39 + 1))[:size]

    tracemalloc.start()
    summary = read_log(Endless())  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.size_bytes == 64 << 20
    assert peak < 5 * lmcache_events.BLOCK_BYTES


# --- several processes ---


def mangled(draw: random.Random) -> bytes:
    """A log in which ranks write into one another, lines are cut, and bytes are no text."""
    whole = [
        *MP_LINES,
        lookup("cmpl-1", 2000, 1792, 1792, engine=0, head=ENGINE),
        lookup("cmpl-é", 497, 256, -240),
        line("Reqid: cmpl-1, Total tokens 900, LMCache hit tokens: None."),
        line("<resume-load> req=cmpl-1 apc=512 lmcache=256 load=0"),
        line("L1 memory usage 0.85 above watermark 0.80; triggering eviction."),
        line("Starting StoreController..."),
        line("Retrieved 256 tokens"),
        line("Stored \x1b[1m512\x1b[0m out of total 512 tokens. size: 0.5 GB, cost 20.0 ms,",
             head="(Worker_DP0_TP1 pid=901) "),
        line("[req_id=cmpl-1] Stored 512 out of total 600 tokens. size: 0.5 GB, cost 20.0 ms,",
             head="(Worker_DP0_TP0 pid=900) "),
        "INFO:     127.0.0.1:1 - \"POST /v1/completions HTTP/1.1\" 200 OK\r\n",
        "noise " * 400 + "\n",
    ]  # fmt: skip
    parts = []
    for n in range(400):
        text = draw.choice(whole).replace("cmpl-1", f"cmpl-{n // 3}").encode()
        harm = draw.random()
        if harm < 0.2:
            text = text[: draw.randrange(len(text))]
        elif harm < 0.3:
            text = text[: draw.randrange(len(text))] + b"\n"
        elif harm < 0.4:
            at = draw.randrange(len(text))
            text = text[:at] + draw.randbytes(draw.randrange(1, 40)) + text[at:]
        parts.append(text)
    return b"".join([*parts, MP_LINES[1][:-1].encode()])  # the last is still being written


def assert_same(one: LogSummary, other: LogSummary) -> None:
    for name in (field.name for field in fields(LogSummary)):
        mine, theirs = getattr(one, name), getattr(other, name)
        if isinstance(mine, pd.DataFrame):
            pd.testing.assert_frame_equal(mine, theirs)
        else:
            assert mine == theirs, name


@pytest.fixture(scope="module")
def mangled_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "server.log"
    path.write_bytes(mangled(random.Random(7)))
    return path


# 100 bytes are shorter than most lines, so that blocks end within them.
@pytest.mark.parametrize(("block_bytes", "children"), [(100, 2), (3000, 3), (8 << 20, 2)])
def test_several_processes_find_what_one_finds(
    mangled_log: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, children: int
) -> None:
    monkeypatch.setattr(lmcache_events, "BLOCK_BYTES", block_bytes)
    alone = read_log(mangled_log)
    if block_bytes > 100:
        assert len(alone.requests) > 50 and len(alone.transfers) > 50 and alone.cut > 20
    monkeypatch.setattr(lmcache_log, "children_for", lambda file: children)
    assert_same(read_log(mangled_log), alone)


def test_what_children_do_not_deliver_is_read_all_the_same(
    mangled_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmcache_events, "BLOCK_BYTES", 3000)
    alone = read_log(mangled_log)
    monkeypatch.setattr(lmcache_log, "children_for", lambda file: 2)
    for program in (["head", "-c", "100", str(mangled_log)], ["no such program"]):
        monkeypatch.setattr(lmcache_children, "PROGRAM", program)
        assert_same(read_log(mangled_log), alone)


def test_a_child_ends_when_nobody_reads_it(mangled_log: Path) -> None:
    with open(mangled_log, "rb") as file:
        child = lmcache_children.start(file.fileno(), mangled_log.stat().st_size, 64, 0, 1)
        assert child.stdout is not None
        assert child.stdout.read(1)
        child.stdout.close()
        assert child.wait(timeout=20) == 0


def test_only_large_files_are_worth_children(tmp_path: Path) -> None:
    small, large = tmp_path / "small.log", tmp_path / "large.log"
    for path, size in ((small, lmcache_children.ALONE_BYTES), (large, 1 << 32)):
        with open(path, "wb") as file:
            file.truncate(size)  # takes no room on the disk
    cores = len(os.sched_getaffinity(0))
    with open(small, "rb") as file:
        assert children_for(file) == 0
    with open(large, "rb") as file:
        assert children_for(file) == (min(cores, 8) if cores > 1 else 0)
        file.seek(1)
        assert children_for(file) == 0
    assert children_for(io.BytesIO(b"x" * 100)) == 0
