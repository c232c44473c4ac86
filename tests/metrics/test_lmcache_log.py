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
from workbench.metrics import lmcache_children, lmcache_events, lmcache_log
from workbench.metrics.lmcache_block import Columns, scan
from workbench.metrics.lmcache_children import children_for
from workbench.metrics.lmcache_log import LogSummary, read_log
from workbench.metrics.lmcache_rows import explain

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
    whens = ("2026-02-29 10:42:29,019", "2026-11-21 24:00:00,000", "2026-11-21 10:42:29.019")
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
