"""A large LMCache log read by several processes, which find the same as one.

Each child reads every n-th block of the open file and writes what it found to its pipe, and only
there: it ends with whoever reads it. What a child does not deliver is read by its parent.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from stat import S_ISREG
from typing import BinaryIO

from workbench.metrics.lmcache_log import block_events as lmcache_events
from workbench.metrics.lmcache_log.block_events import Events, block_events

__all__ = ["children_for", "main", "read_by_children", "start"]

ALONE_BYTES = 64 << 20
"""Smaller files are read sooner by one process than children have started."""
_MOST = 8
_TAIL_BYTES = 64 << 10
PROGRAM = (sys.executable, "-m", "workbench.metrics.lmcache_log.children")


def children_for(file: BinaryIO) -> int:
    """How many children should read a file: one for each core, 0 for a small one or a stream."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with suppress(OSError, ValueError):  # a stream in memory has no descriptor
        state = os.fstat(file.fileno())
        if cores > 1 and S_ISREG(state.st_mode) and state.st_size > ALONE_BYTES and not file.tell():
            return min(cores, _MOST)
    return 0


def read_by_children(file: BinaryIO, children: int) -> Events:
    """All events of a file on disk, of the size that it has now, in the order of the log."""
    at, heads, events = file.fileno(), dict[bytes, bytes](), Events()
    size, block_bytes = os.fstat(at).st_size, lmcache_events.BLOCK_BYTES
    with ExitStack() as ends:
        started = []
        with suppress(OSError):  # no room for another process: its blocks are read here
            for child in range(children):
                process = start(at, size, block_bytes, child, children)
                ends.enter_context(process)
                ends.callback(process.kill)  # before the wait for it, should reading be stopped
                started.append(process)
        for number in range(_count(size, block_bytes)):
            child = number % children
            part = _delivered(started[child]) if child < len(started) else None
            events.add(part or _block(at, size, block_bytes, number, heads))
    return events


def start(
    at: int, size: int, block_bytes: int, child: int, children: int
) -> subprocess.Popen[bytes]:
    """A child that reads every `children`-th block of descriptor `at`, from block `child` on."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, (at, size, block_bytes, child, children))],
        pass_fds=(at,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _delivered(child: subprocess.Popen[bytes]) -> Events | None:
    """A child's next block; None when it has ended before its time."""
    assert child.stdout is not None
    with suppress(EOFError, pickle.UnpicklingError):
        part = pickle.load(child.stdout)
        assert isinstance(part, Events)
        return part
    return None


def _count(size: int, block_bytes: int) -> int:
    """Blocks of a file: one for each `block_bytes`, and a last line without an end."""
    return -(-size // block_bytes) + 1


def _block(at: int, size: int, block_bytes: int, number: int, heads: dict[bytes, bytes]) -> Events:
    """The same block that a reader of the whole file makes."""
    begin = _cut(at, size, block_bytes, number - 1)
    last = number + 1 == _count(size, block_bytes)
    end = size if last else _cut(at, size, block_bytes, number)
    return block_events(os.pread(at, end - begin, begin), begin, heads) if end > begin else Events()


def _cut(at: int, size: int, block_bytes: int, number: int) -> int:
    """Behind the last line that ends in the file's `number`-th `block_bytes`, else their end."""
    first, end = max(0, number * block_bytes), min(size, (number + 1) * block_bytes)
    for begin in (max(first, end - _TAIL_BYTES), first):
        line = os.pread(at, end - begin, begin).rfind(b"\n") + 1
        if line:
            return begin + line
    return end


def main(words: Sequence[str]) -> None:
    """`python -m ...lmcache_log.children DESCRIPTOR SIZE BLOCK_BYTES CHILD CHILDREN`."""
    at, size, block_bytes, child, children = map(int, words)
    heads = dict[bytes, bytes]()
    with suppress(BrokenPipeError, KeyboardInterrupt):
        for number in range(child, _count(size, block_bytes), children):
            part = _block(at, size, block_bytes, number, heads)
            sys.stdout.buffer.write(pickle.dumps(part, pickle.HIGHEST_PROTOCOL))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
