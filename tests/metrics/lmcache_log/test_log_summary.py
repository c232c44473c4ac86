"""Both generations of LMCache's log lines, whole and damaged."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.metrics.lmcache_log.log_lines import (
    ENGINE,
    MP_LINES,
    WORKER,
    causes,
    line,
    lookup,
    lost,
    only,
    prefetch,
    read,
    retrieved,
    short,
    stored,
    storing,
)
from workbench.errors import ParameterError
from workbench.metrics.lmcache_log.log_summary import Credit, LogSummary, read_log
from workbench.metrics.lmcache_log.scan import scan

# --- who earns the credit ---


@pytest.mark.parametrize(
    ("total", "hit", "need", "engine", "engine_hit", "loaded"),
    [
        # Older versions print no engine hit: it follows from the other two numbers. A negative
        # need to load means that the engine held more than LMCache; newer ones print zero.
        (497, 256, -240, None, 496, 0),
        (497, 256, 0, 496, 496, 0),
        (2005, 1792, 1664, 128, 128, 1664),
        # The last token of a prompt that LMCache holds entirely is computed.
        (256, 256, 255, None, 0, 255),
        (256, 256, 255, 0, 0, 255),
    ],
)
def test_lmcache_is_credited_with_what_it_had_beyond_the_engine(
    total: int, hit: int, need: int, engine: int | None, engine_hit: int, loaded: int
) -> None:
    log = read(lookup("cmpl-1", total, hit, need, engine=engine, head=ENGINE))
    row = only(log)
    assert (row["generation"], row["need_to_load"]) == ("in-process", need)
    assert (row["engine_hit_tokens"], row["loaded_tokens"]) == (engine_hit, loaded)
    computed, idle = total - engine_hit - loaded, min(hit, engine_hit)
    assert log.credit == Credit(
        engine=engine_hit, lmcache=loaded, computed=computed, idle=idle, lost=0
    )


def prefix_hits(keys: int) -> str:
    """The older form of a prefetch's line."""
    text = f"Prefetch request completed (L1+L2): {keys}/{keys} prefix hits ({keys} L1, 0 L2)"
    return line(f"{text} in 0.6 ms (prefetch_request_id=-1)")


NUMBERS = "Reqid: a, Total tokens 4096, LMCache hit tokens: 3840, need to load: 2816"
AT_ONCE = "[2026-01-20 21:21:58,711] LMCache INFO: "


@pytest.mark.parametrize(
    ("lines", "row"),
    [
        pytest.param(
            [line("Reqid: a, Total tokens 600, Inference Engine computed tokens: 384, LMCache hit"
                  " tokens: 512, but need to load: 128 < min_retrieve 256, skip retrieve but")],
            {"need_to_load": 128, "loaded_tokens": 0, "skipped": True},
            id="a load too small to be worth it earns nothing",
        ),
        pytest.param(
            [lookup("a", 2000, 1792, 1792, engine=0), retrieved("a", 1024, 1792)],
            {"loaded_tokens": 1024, "seconds": 0.01, "gb_per_s": 25},
            id="what did not arrive is not credited",
        ),
        pytest.param(
            [line("Reqid: a, Total tokens 900, LMCache hit tokens: None."),
             lookup("a", 900, 768, 768, engine=0) * 3],
            {"lookups": 3, "loaded_tokens": 768},
            id="a request that waits is looked up again and counts once",
        ),
        pytest.param(
            [lookup("0", 1000, 0, 0, engine=0), stored("0", 1000),
             lookup("0", 1030, 768, 768, engine=0, at="2026-11-21 11:42:29,019")],
            {"prompt_tokens": 1030},
            id="a preempted request is the same one, with its answer so far",
        ),
        pytest.param(
            [lookup("a", 900, 512, 224, engine=288), retrieved("a", 256, 256)],
            {"loaded_tokens": 224},
            id="288 tokens are in the engine: of the second chunk, 224 of 256 were missing",
        ),
        pytest.param(
            [lookup("a", 900, 512, 224, engine=288), retrieved("a", 0, 256)],
            {"loaded_tokens": 0},
            id="nothing of them arrived",
        ),
        pytest.param(
            [lookup("a", 32, 24, 8), retrieved("a", 8, 24)],
            {"loaded_tokens": 8},
            id="some versions call all that was looked up required",
        ),
        pytest.param(
            [lookup("a", 8210, 8210, 8209), line("Retrieved 33 memory objects from RemoteBackend"),
             retrieved("a", 8210, 8210)],
            {"loaded_tokens": 8209},
            id="objects are no tokens",
        ),
        pytest.param(
            [line(NUMBERS.replace("4096", "\x1b[1m4096\x1b[0m"))],
            {"prompt_tokens": 4096},
            id="a colour within a line does not hide it",
        ),
        pytest.param(
            [f"{AT_ONCE}{NUMBERS}\r\n"],
            {"need_to_load": 2816},
            id="lines of a log without places in the source end with the number",
        ),
        pytest.param(
            [line("<resume-load> req=cmpl-1 apc=512 lmcache=256 load=0")],
            {"generation": "mp", "engine_hit_tokens": 512, "loaded_tokens": 0},
            id="of a request that was preempted mp says what the engine held",
        ),
        pytest.param(
            [prefix_hits(3)], {"generation": "mp", "l1_keys": 3},
            id="the older form of a prefetch",
        ),
    ],
)  # fmt: skip
def test_a_request_is_one_row(lines: list[str], row: dict[str, object]) -> None:
    log = read(*lines)
    found = only(log)
    assert {name: found[name] for name in row} == row
    assert log.counts.cut == 0


# --- ranks ---


def test_interleaved_ranks_store_the_same_tokens_and_add_their_bytes() -> None:
    """Each worker of a tensor-parallel instance writes its own line for its part of the KV."""
    workers = [f"(Worker_DP0_TP{rank} pid={900 + rank}) " for rank in (1, 0)]
    stores = [stored("cmpl-1", step, head=head) for step in (256, 344) for head in workers]
    log = read(lookup("cmpl-1", total=600, hit=0, need=0, engine=0, head=ENGINE), *stores)
    assert only(log)["stored_tokens"] == 600
    assert sorted(log.transfers["rank"]) == ["0", "0", "1", "1"]
    assert log.transfers["gb"].sum() == 2.0


def test_lines_that_two_ranks_wrote_into_one_another_are_left_out() -> None:
    torn = lookup("cmpl-1", total=500, hit=256, need=256)
    torn = torn[: torn.index("LMCache hit")] + lookup("cmpl-2", total=500, hit=256, need=256)
    log = read(torn)
    assert list(log.requests["request_id"]) == ["cmpl-2"]
    assert causes(log)["lines cut"] == log.counts.cut == 1


def test_older_lines_without_a_request_count_in_totals_only() -> None:
    log = read(lookup("cmpl-1", total=3866, hit=0, need=0), stored("", 3866))
    assert pd.isna(only(log)["stored_tokens"])
    assert log.transfers["tokens"].sum() == 3866
    assert causes(log) == {"transfer without a request": 1}


# --- the multi-process generation ---


def test_the_mp_generation_gives_tiers_and_transfers_but_no_credit() -> None:
    log = read(*MP_LINES)
    row = only(log)
    assert (row["generation"], row["request_id"]) == ("mp", "cmpl-a-0-82e63193")
    assert (row["l1_tokens"], row["l2_tokens"], row["lookup_s"]) == (80 * 256, 8 * 256, 0.0014)
    assert (row["lmcache_hit_tokens"], row["asked_tokens"]) == (88 * 256, 90 * 256)
    assert pd.isna(row["need_to_load"]) and pd.isna(log.credit.lmcache)
    assert list(log.transfers["kind"]) == ["stored", "retrieved"]
    assert list(causes(log)) == ["no lookups without a hit"]


def test_keys_are_turned_into_tokens_only_where_the_log_says_how() -> None:
    assert only(read(*MP_LINES, ranks=2))["lmcache_hit_tokens"] == 44 * 256
    assert "lookups of part of a chunk" in causes(read(*MP_LINES, ranks=7))
    unknown = read(prefix_hits(3))
    assert pd.isna(only(unknown)["lmcache_hit_tokens"]) and "chunk unknown" in causes(unknown)


def test_evictions_restarts_and_chunks_are_counted() -> None:
    evict = line("L1 memory usage 0.85 above watermark 0.80; triggering eviction.")
    start = line("Starting StoreController...")
    log = read(start, evict, evict, *MP_LINES, start, line("chunk_size=128, l1"))
    assert log.counts.evictions == {"L1": 2}
    assert (causes(log)["restarted"], causes(log)["chunks differ"]) == (2, 2)
    assert (log.counts.chunk_tokens, log.counts.chunk) == ({128, 256}, 0)


# --- what arrived ---


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
        ((short(0, 2557).replace("ERROR:\x1b[0m ", "ERROR:"),), 0),  # skip_last_n_tokens 3
    ],
)  # fmt: skip
def test_the_worst_rank_says_what_arrived(lines: tuple[str, ...], arrived: int) -> None:
    log = read(lookup("a", total=2774, hit=2560, need=2560, engine=0), *lines)
    assert only(log)["loaded_tokens"] == arrived
    missing = 2560 - arrived
    assert log.credit == Credit(
        engine=0, lmcache=arrived, computed=2774 - arrived, idle=0, lost=missing
    )
    (failed,) = (doubt for doubt in log.doubts if doubt.cause == "retrievals failed")
    assert (failed.count, failed.tokens) == (1, missing)


def test_errors_are_counted_by_kind() -> None:
    asked = [lookup(name, total=2774, hit=2560, need=2560) for name in "abc"]
    failed = short(0, 2560) + short(0, 2560, rank=1)
    log = read(*(text + failed for text in asked))
    assert log.credit.lmcache == 0
    assert log.counts.errors == {
        "The number of retrieved tokens is less than the expected number of tokens!": 6,
        "Num retrieved tokens: 0, num expected tokens: 2560": 6,
    }
    assert causes(log)["errors"] == 12


@pytest.mark.parametrize(
    ("lines", "loaded", "cause"),
    [
        # Where only failures are logged, the others are credited as looked up.
        (("a", "b", short(0, 2560), "c"), [2560, 0, 2560], ("no line of a retrieval", 2)),
        # A hit without a retrieval earns nothing where others have one.
        (("a", "b", retrieved("b", 2560, 2560)), [0, 2560], ("hit without a retrieval", 1)),
        # Nor where errors of retrievals say no number.
        (("a", line("Cannot retrieve keys due to exception", level="ERROR")), [0],
         ("hit without a retrieval", 1)),
        (("a", "b", *(retrieved("a", 2560, 2560, rank=rank) for rank in (0, 1)),
          retrieved("b", 2560, 2560)), [2560, 2560], None),
    ],
)  # fmt: skip
def test_a_hit_without_a_line_of_its_retrieval(
    lines: tuple[str, ...], loaded: list[int], cause: tuple[str, int] | None
) -> None:
    asked = {name: lookup(name, total=2774, hit=2560, need=2560) for name in "abc"}
    log = read(*(asked.get(text, text) for text in lines))
    assert log.requests["loaded_tokens"].tolist() == loaded
    assert cause is None or cause in causes(log).items()


def test_an_error_is_of_the_retrieval_that_its_worker_has_just_told() -> None:
    """Requests in flight together, as long as one another, and lines that name none of them."""
    lines = [lookup(name, total=2774, hit=2560, need=2560) for name in "abcd"]
    for tokens in (2560, 2560, 512, 2560):
        for rank in (0, 1):
            text = f"Retrieved {tokens if rank else 2560} out of 2560 out of total 2560 tokens"
            lines.append(line(text, head=WORKER.format(rank)))
        if tokens < 2560:
            lines.append(short(tokens, 2560, rank=1))
    assert sorted(read(*lines).requests["loaded_tokens"]) == [512, 2560, 2560, 2560]


# --- times ---

NATIVE = "(EngineCore_DP0 pid=7) INFO {} [vllm_v1_adapter.py:1228] " + NUMBERS


@pytest.mark.parametrize(
    ("log", "at", "year"),
    [
        (NATIVE.format("11-07 11:03:05"), "11-07 11:03:05", False),
        (NATIVE.format("11-07 11:03:05.250"), "11-07 11:03:05.250000", False),
        (f"(EngineCore_DP0 pid=7) [2025-11-07 11:03:05] LMCache INFO: {NUMBERS} (x.py:1)",
         "11-07 11:03:05", True),
        ("2025-11-07T12:00:00.5Z stderr F " + NATIVE.format("11-07 11:03:05"),
         "11-07 11:03:05", True),
        (f"2025-11-07T12:00:00.123456789Z {NUMBERS}", "11-07 12:00:00.123456", True),
        (f"Nov  7 12:00:00 host vllm[7]: {NUMBERS}", "11-07 12:00:00", False),
        ('{"log":"' + NATIVE.format("11-07 11:03:05") + '\\n","stream":"stderr"}',
         "11-07 11:03:05", False),
    ],
)  # fmt: skip
def test_a_line_of_vllm_has_the_time_of_its_head(log: str, at: str, year: bool) -> None:
    found = read(log + "\n")
    row = only(found)
    assert str(row["at"]).partition("-")[2] == at
    assert (row["engine_hit_tokens"], row["loaded_tokens"]) == (1024, 2816)
    assert found.dated is year is not ("no year" in causes(found))


def test_the_year_is_that_of_another_line() -> None:
    dated = line("Stored 256 tokens in 0.1 seconds", at="2025-11-07 11:03:06,000")
    log = read(NATIVE.format("11-07 11:03:05") + "\n", dated)
    assert str(only(log)["at"]) == "2025-11-07 11:03:05"
    assert log.dated


def test_a_log_without_times_is_read() -> None:
    log = read(f"{NUMBERS}\n", f"{NUMBERS}\n".replace("a,", "b,"))
    assert log.requests["at"].isna().all()
    assert log.credit.lmcache == 2 * 2816
    assert "no time" in causes(log)


def test_a_time_of_day_that_cannot_be_is_no_time() -> None:
    whens = ("2026-11-21 10:42:29,019", "2026-02-29 10:42:29,019", "2026-11-21 24:00:00,000")
    rows = read(*(lookup("cmpl-1", 900, 0, 0, engine=0, at=at) for at in whens), MP_LINES[2])
    assert rows.requests["at"].isna().tolist() == [True, False]
    assert str(rows.requests["at"][1]) == "2026-11-21 10:42:29.019000"


def test_times_that_run_backwards_are_a_doubt() -> None:
    later, sooner = (
        lookup(at, 900, 0, 0, engine=0, at=f"2026-11-21 {at},000")
        for at in ("10:42:29", "10:41:00")
    )
    assert "runs backwards" in causes(read(later, sooner))
    assert "runs backwards" not in causes(read(sooner, later))


# --- whose request ---


def served_twice(first: str, second: str, between: str = "", *, later: str) -> LogSummary:
    """Request 0 is computed in the first process and loaded in the second."""
    return read(
        lookup("0", total=10010, hit=0, need=0, head=first),
        between,
        lookup("0", total=10010, hit=10010, need=10009, head=second, at=f"2026-11-21 {later},000"),
    )


STARTED = line("LMCache initialized for role KVConnectorRole.SCHEDULER with version 0.3.7")
SOON, HOURS_LATER = "10:42:33", "12:00:00"


@pytest.mark.parametrize(
    ("first", "second", "between", "later"),
    [
        ("(EngineCore_DP0 pid=10) ", "(EngineCore_DP0 pid=11) ", "", SOON),
        ("prefill-1  | ", "decode-1  | ", "", SOON),
        ("2026-11-21T10:42:29.1Z ", "2026-11-21T10:52:29.1Z ", STARTED, SOON),
        ("", "", STARTED, SOON),
        ("", "", stored("0", 10010), SOON),
        ("", "", storing("0", 10010), SOON),
        ("", "", stored("", 10010), SOON),
        ("", "", "", HOURS_LATER),
        ("", "", "", "10:30:00"),  # before the first: logs that were joined
    ],
)
def test_the_same_id_elsewhere_is_another_request(
    first: str, second: str, between: str, later: str
) -> None:
    log = served_twice(first, second, between, later=later)
    assert len(log.requests) == 2
    assert (log.credit.lmcache, log.credit.computed) == (10009, 10011)
    assert causes(log)["id came again"] == 1


def test_a_request_that_waits_while_another_is_stored_is_one() -> None:
    assert len(served_twice("", "", stored("", 8192), later="10:42:29").requests) == 1
    waits = lookup("0", total=10010, hit=256, need=256)
    assert only(read(waits, stored("", 10010), waits))["lookups"] == 2


def test_without_times_ids_that_come_again_in_turn_are_other_requests() -> None:
    text = "Reqid: {}, Total tokens 4096, LMCache hit tokens: {}, need to load: {}\n"
    cold = [text.format(n, 0, 0) for n in range(3)]
    warm = [text.format(n, 3840, 3840) for n in range(3)]
    log = read(cold[0], *cold, warm[0], *warm)
    assert log.requests["lookups"].tolist() == [2, 1, 1, 2, 1, 1]
    assert log.credit.lmcache == 3 * 3840


@pytest.mark.parametrize("end", ["", "\r"])
def test_a_progress_bar_before_a_line_is_no_process(end: str) -> None:
    bar = "Processed prompts:  30%|███▋       | 3/10 [00:00<00:02,  3.00it/s, est. speed: 4 toks/s]"
    heads = (ENGINE, f"{end}{bar}" * 9 + ENGINE, f"{bar.replace('3', '4')}{ENGINE}")
    log = read(*(lookup("0", total=10010, hit=9984, need=9984, head=head) for head in heads))
    assert (only(log)["lookups"], only(log)["process"]) == (3, ENGINE.strip())


def test_lines_of_workers_go_to_the_lookup_of_their_own_engine() -> None:
    """Prefill and decode log the same id; the decode instance's lookup comes first."""
    log = read(
        lookup("0", total=600, hit=512, need=512, engine=0, head="decode | (EngineCore pid=7) "),
        lookup("0", total=600, hit=0, need=0, engine=0, head="prefill | (EngineCore pid=7) "),
        stored("0", 600, head="prefill | (Worker_TP0 pid=8) "),
        retrieved("0", 512, 512, head="decode | (Worker_TP0 pid=8) "),
    )
    rows = log.requests.set_index("engine")
    assert rows.loc["prefill | DP0", "stored_tokens"] == 600
    assert rows.loc["decode | DP0", "retrieved_tokens"] == 512
    assert rows["loaded_tokens"].to_dict() == {"decode | DP0": 512, "prefill | DP0": 0}


def test_the_same_id_in_two_files_is_of_two_processes(tmp_path: Path) -> None:
    """Two containers: the same names, the same pids, and the decode log has the later times."""
    engine, worker = "(EngineCore_DP0 pid=7) ", "(Worker_TP0 pid=8) "
    one, two, three = (f"2026-11-21 10:42:0{second},000" for second in (1, 2, 3))
    logs = {
        "decode.log": lookup("0", 600, 512, 512, engine=0, head=engine, at=two)
        + retrieved("0", 512, 512, head=worker, at=three),
        "prefill.log": lookup("0", 600, 0, 0, engine=0, head=engine, at=one)
        + stored("0", 600, head=worker),
    }
    for name, text in logs.items():
        (tmp_path / name).write_text(text)
    log = read_log([tmp_path / name for name in logs])
    assert len(log.requests) == 2
    assert (log.credit.lmcache, log.credit.computed) == (512, 688)
    assert log.requests["stored_tokens"].tolist()[1] == 600
    assert "decode.log: (EngineCore_DP0 pid=7)" in log.requests["process"][0]
    assert "runs backwards" not in causes(log)


def test_data_parallel_engines_add_up_and_tensor_parallel_ranks_do_not() -> None:
    lines = []
    for engine in (0, 1):
        core = f"(EngineCore_DP{engine} pid=1{engine}) "
        lines.append(line("LMCache initialized for role KVConnectorRole.SCHEDULER", head=core))
        lines.append(lookup(f"{engine}", total=600, hit=0, need=0, engine=0, head=core))
        for rank in (0, 1):
            lines.append(
                stored(f"{engine}", 600, head=f"(Worker_DP{engine}_TP{rank} pid=2{rank}) ")
            )
    log = read(*lines)
    assert log.moved("stored") == 1200
    assert log.requests["stored_tokens"].tolist() == [600, 600]
    assert "restarted" not in causes(log)


def test_processes_that_are_no_workers_are_not_ranks() -> None:
    """A prefill and a decode instance without workers, each of which stores its own tokens."""
    heads = ("(EngineCore_DP0 pid=10) ", "(EngineCore_DP0 pid=11) ")
    assert read(*(stored("0", 600, head=head) for head in heads)).moved("stored") == 1200


# --- keys and workers of the multi-process generation ---

CONFIG = line("LMCache server config: chunk_size=256, l1_size_gb=60")


def second(n: int) -> str:
    return f"2026-08-26 15:{n // 60:02}:{n % 60:02},000"


def mp_log(*, workers: int, keys: int, config: str = CONFIG) -> list[str]:
    """Stores of 11 chunks, then lookups that find 20 in all, which every worker retrieves."""
    lines = [config]
    for n in range(6):
        lines += [line(f"Stored {11 * 256} tokens in 0.2 seconds", at=second(n))] * workers
    for n, chunks in enumerate((3, 3, 5, 2, 3, 4), start=10):
        lines.append(prefetch(f"r{n}", chunks * keys, 11 * keys, at=second(n)))
        text = f"Retrieved {chunks * 256} tokens in 0.01 seconds"
        lines += [line(text, at=second(n))] * workers
    return lines


@pytest.mark.parametrize(
    ("workers", "keys", "config"),
    [
        (1, 1, CONFIG), (4, 4, CONFIG), (8, 8, CONFIG),
        (1, 2, CONFIG),  # two kinds of layer
        (4, 1, CONFIG),  # MLA: the same KV on every worker
        (4, 4, line("LMCache server config: nothing of a chunk")),
    ],
)  # fmt: skip
def test_the_log_shows_how_many_keys_a_chunk_is(workers: int, keys: int, config: str) -> None:
    log = read(*mp_log(workers=workers, keys=keys, config=config))
    found = 20 * 256
    assert log.requests["lmcache_hit_tokens"].sum() == found
    assert log.moved("retrieved") == found
    assert log.moved("stored") == 6 * 11 * 256
    assert read(*mp_log(workers=workers, keys=keys), ranks=workers).moved("retrieved") == found


@pytest.mark.parametrize(("workers", "keys"), [(1, 1), (4, 4), (4, 1), (1, 2)])
def test_retrievals_of_requests_in_flight_together_still_show_it(workers: int, keys: int) -> None:
    """Eight at a time, and of one in three the engine held a part itself."""
    draw, events, found, moved = random.Random(keys), [], 0, 0
    for n in range(80):
        chunks = draw.randrange(1, 60)
        loaded = chunks if n % 3 else draw.randrange(1, chunks + 1)
        found, moved = found + chunks * 256, moved + loaded * 256
        asked = 60 * keys + keys * (n % 2)
        events.append((n, prefetch(f"r{n}", chunks * keys, asked, at=second(n))))
        text = line(f"Retrieved {loaded * 256} tokens in 0.01 seconds")
        events += [(n + draw.random() * 8, text) for _ in range(workers)]
    log = read(CONFIG, *(text for _, text in sorted(events)))
    assert log.requests["lmcache_hit_tokens"].sum() == found
    assert log.moved("retrieved") == moved


def test_what_the_engine_held_itself_is_found_and_not_retrieved() -> None:
    late = [prefetch(f"r{n}", 12, 44, at=second(n)) for n in (20, 21)]
    late += [line("Retrieved 512 tokens in 0.01 seconds", at=second(21))] * 4
    log = read(*mp_log(workers=4, keys=4), *late)
    assert log.requests["lmcache_hit_tokens"].sum() == (20 + 6) * 256
    assert log.moved("retrieved") == (20 + 2) * 256


def test_without_a_retrieval_the_registered_workers_or_the_user_say_it() -> None:
    lines = [CONFIG, prefetch("r1", 12, 44)]
    unknown = read(*lines)
    assert pd.isna(only(unknown)["lmcache_hit_tokens"])
    assert "keys unknown" in causes(unknown)
    assert only(read(*lines, ranks=4))["lmcache_hit_tokens"] == 768
    text = "Registered non-GPU context for instance 1 (model=m, world_size=4)"
    assert only(read(line(text), *lines))["lmcache_hit_tokens"] == 768


def test_lookups_that_are_as_long_as_what_was_stored_show_it_too() -> None:
    """Every retrieval failed, so that none is there to go by."""
    lines = [text for text in mp_log(workers=4, keys=4) if "Retrieved" not in text]
    log = read(*lines, line("Some keys not found during retrieve!", level="ERROR"))
    assert log.requests["lmcache_hit_tokens"].sum() == 20 * 256
    assert log.moved("retrieved") == 0
    assert log.counts.errors == {"Some keys not found during retrieve!": 1}


# --- logs from the field, where they are beside the repository ---

CASES = Path(__file__).parents[4] / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("file", "requests", "loaded", "stored"),
    [
        ("01-lmc-retrieve-failed/vllm.log", 8, 0, 0),
        ("03-lmc-mp-keys/lmcache.log", 6, 4608, 6 * 2816),
        ("04-lmc-vllm-native/vllm.log", 8, 13_312, 4 * 4096),
        ("06-lmc-ids-restart/both.log", 20, 100_090, 0),
        ("08-lmc-stored-only/lmcache.log", 0, 0, 1536),
    ],
)
def test_logs_from_the_field(file: str, requests: int, loaded: int, stored: int) -> None:
    log = read_log(CASES / file)
    assert len(log.requests) == requests
    by_line = log.moved("retrieved")
    assert (by_line if np.isnan(log.credit.lmcache) else log.credit.lmcache) == loaded
    assert log.moved("stored") == stored
    assert log.counts.cut == 0


# --- damage ---


@pytest.mark.parametrize("whole", [lookup("cmpl-2", 2000, 1792, 1792, engine=0), *MP_LINES[1:]])
def test_no_line_that_was_cut_gives_a_wrong_number(whole: str) -> None:
    """Cut anywhere and followed by a new line: what is read is right, or it is not there."""
    other = lookup("cmpl-1", total=900, hit=768, need=768, engine=0)
    right, got = read(other, whole), read(other, *(f"{whole[:n]}\n" for n in range(len(whole) - 1)))
    for frame, true in ((got.requests, right.requests), (got.transfers, right.transfers)):
        for name in frame.select_dtypes("number").columns.difference(["offset", "lookups"]):
            assert set(frame[name].dropna()) <= set(true[name].dropna()), name
    assert got.counts.cut > 10


def numbers(text: str) -> set[tuple[str, float]]:
    blocks = [block for found in scan(text.encode(), 0, {}).columns.values() for block in found]
    return {
        (name, value)
        for block in blocks
        for name, values in block.items()
        if name != "offset" and getattr(values, "dtype", None) == np.float64
        for value in values[~np.isnan(values)].tolist()
    }


@pytest.mark.parametrize("whole", [lookup("cmpl-2", 2000, 1792, 1792, engine=0), *MP_LINES[1:]])
def test_no_last_line_that_is_still_being_written_gives_a_wrong_number(whole: str) -> None:
    assert numbers(whole)
    for length in range(len(whole)):
        assert numbers(whole[:length]) <= numbers(whole)


def test_a_number_that_cannot_be_one_is_no_number() -> None:
    log = read(
        lookup("cmpl-1", total=int("9" * 20), hit=0, need=0),
        line(f"Stored {'9' * 5000} tokens in 0.1 seconds"),
        line("Stored 256 tokens in 1.2.3 seconds"),
    )
    assert (log.matching, log.counts.cut) == (0, 3)


def test_numbers_that_contradict_one_another_are_left_out() -> None:
    log = read(lookup("cmpl-1", total=2000, hit=1792, need=17, engine=0))
    assert (len(log.requests), log.counts.cut) == (0, 1)


def test_bytes_that_are_no_text_are_counted() -> None:
    log = read(b"\xff\xfe noise\n", lookup("cmpl-1", total=900, hit=0, need=0, engine=0))
    assert (len(log.requests), causes(log)["not UTF-8"]) == (1, 2)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)), "compressed"),
        (bytes(range(256)) * 40, "not text"),
        (b"GET / HTTP/1.1 200\n" * 9, "nothing of LMCache"),
    ],
)
def test_a_file_with_nothing_to_read_says_what_it_is(data: bytes, cause: str) -> None:
    log = read(data)
    assert (log.matching, log.doubts[0].cause) == (0, cause)
    assert np.isnan(log.credit.engine)


def test_a_path_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.log", tmp_path):
        with pytest.raises(ParameterError, match=r"log_file .* cannot be read"):
            read_log(path)
