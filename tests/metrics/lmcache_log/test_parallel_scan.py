"""A log of any size: read block by block, by one process or several, it says the same."""

from __future__ import annotations

import io
import os
import random
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from tests.metrics.lmcache_log.log_lines import ENGINE, MP_LINES, line, lookup, read, stored
from workbench.metrics.lmcache_log import log_summary, parallel_scan, scan
from workbench.metrics.lmcache_log.log_summary import LogSummary, read_log


@pytest.fixture
def block_bytes(monkeypatch: pytest.MonkeyPatch):
    def cut(size: int) -> None:
        monkeypatch.setattr(scan, "BLOCK_BYTES", size)
        monkeypatch.setattr(parallel_scan, "BLOCK_BYTES", size)

    return cut


def test_blocks_do_not_split_lines(block_bytes) -> None:
    rows = [lookup(f"cmpl-{n}", 900, 768, 768, engine=0) for n in range(40)]
    whole = read(*rows).requests
    for size in (7, 400, 1000):
        block_bytes(size)
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
    log = read_log(Endless())  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert log.counts.size_bytes == 64 << 20
    assert peak < 5 * scan.BLOCK_BYTES


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
        stored("cmpl-1", 512, head="(Worker_DP0_TP0 pid=900) "),
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


@pytest.fixture(scope="module")
def mangled_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "server.log"
    path.write_bytes(mangled(random.Random(7)))
    return path


def assert_same(one: LogSummary, other: LogSummary) -> None:
    for name in (field.name for field in fields(LogSummary)):
        mine, theirs = getattr(one, name), getattr(other, name)
        if isinstance(mine, pd.DataFrame):
            pd.testing.assert_frame_equal(mine, theirs)
        else:
            assert mine == theirs or str(mine) == str(theirs), name  # NaN is not itself


# 100 bytes are shorter than most lines, so that blocks end within them.
@pytest.mark.parametrize(("size", "children"), [(100, 2), (3000, 3), (8 << 20, 2)])
def test_several_processes_find_what_one_finds(
    mangled_log: Path, monkeypatch: pytest.MonkeyPatch, block_bytes, size: int, children: int
) -> None:
    block_bytes(size)
    alone = read_log(mangled_log)
    if size > 100:
        assert len(alone.requests) > 50 and len(alone.transfers) > 50 and alone.counts.cut > 20
    monkeypatch.setattr(log_summary, "children_for", lambda file: children)
    assert_same(read_log(mangled_log), alone)


@pytest.mark.parametrize("program", [["head", "-c", "100", "{}"], ["no such program"]])
def test_what_children_do_not_deliver_is_read_all_the_same(
    mangled_log: Path, monkeypatch: pytest.MonkeyPatch, block_bytes, program: list[str]
) -> None:
    block_bytes(3000)
    alone = read_log(mangled_log)
    monkeypatch.setattr(log_summary, "children_for", lambda file: 2)
    filled = [word.format(mangled_log) for word in program]
    monkeypatch.setattr(parallel_scan, "PROGRAM", filled)
    assert_same(read_log(mangled_log), alone)


def test_a_child_ends_when_nobody_reads_it(mangled_log: Path) -> None:
    with open(mangled_log, "rb") as file:
        blocks = parallel_scan.Blocks(file.fileno(), mangled_log.stat().st_size, 64)
        child = blocks.child(0, 1)
        assert child.stdout is not None
        assert child.stdout.read(1)
        child.stdout.close()
        assert child.wait(timeout=20) == 0


def test_only_large_files_are_worth_children(tmp_path: Path) -> None:
    small, large = tmp_path / "small.log", tmp_path / "large.log"
    for path, size in ((small, parallel_scan.ALONE_BYTES), (large, 1 << 32)):
        with open(path, "wb") as file:
            file.truncate(size)  # takes no room on the disk
    cores = len(os.sched_getaffinity(0))
    with open(small, "rb") as file:
        assert parallel_scan.children_for(file) == 0
    with open(large, "rb") as file:
        assert parallel_scan.children_for(file) == (min(cores, 8) if cores > 1 else 0)
        file.seek(1)
        assert parallel_scan.children_for(file) == 0
    assert parallel_scan.children_for(io.BytesIO(b"x" * 100)) == 0
