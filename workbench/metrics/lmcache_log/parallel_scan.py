"""Search a large log with several processes: each child reads every n-th block of the open file.

A child writes to its pipe only, so it ends with its reader; missing blocks are read here.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass
from stat import S_ISREG
from typing import BinaryIO

from workbench.metrics.lmcache_log.scan import BLOCK_BYTES, Events, scan

ALONE_BYTES = 64 << 20
"""Smaller files are read by one process, which is faster than starting children."""
_MOST = 8
_TAIL_BYTES = 64 << 10
PROGRAM = (sys.executable, "-m", "workbench.metrics.lmcache_log.parallel_scan")


@dataclass(frozen=True, slots=True)
class Blocks:
    """An open file, at its size when reading began, in blocks of lines."""

    descriptor: int
    size: int
    block_bytes: int

    def __len__(self) -> int:
        """One block per `block_bytes`, and one for a last line without an end."""
        return -(-self.size // self.block_bytes) + 1

    def scan(self, number: int, heads: dict[bytes, bytes]) -> Events:
        """The events of a block, the same as in a scan of the whole file."""
        begin = self._cut(number - 1)
        end = self.size if number + 1 == len(self) else self._cut(number)
        if end <= begin:
            return Events()
        return scan(os.pread(self.descriptor, end - begin, begin), begin, heads)

    def _cut(self, number: int) -> int:
        """The position after the last line that ends in the `number`-th block, else its end."""
        first = max(0, number * self.block_bytes)
        end = min(self.size, (number + 1) * self.block_bytes)
        for begin in (max(first, end - _TAIL_BYTES), first):
            line = os.pread(self.descriptor, end - begin, begin).rfind(b"\n") + 1
            if line:
                return begin + line
        return end

    def child(self, child: int, children: int) -> subprocess.Popen[bytes]:
        """A process that reads every `children`-th block, from block `child` on."""
        return subprocess.Popen(
            [*PROGRAM, *map(str, (*astuple(self), child, children))],
            pass_fds=(self.descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )


def children_for(file: BinaryIO) -> int:
    """How many children should read a file: one per core, 0 for a small file or a stream."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with suppress(OSError, ValueError):  # a stream in memory has no descriptor
        state = os.fstat(file.fileno())
        if cores > 1 and S_ISREG(state.st_mode) and state.st_size > ALONE_BYTES and not file.tell():
            return min(cores, _MOST)
    return 0


def scan_by_children(file: BinaryIO, children: int) -> Events:
    """All events of a file on disk, in the order of the log."""
    blocks = Blocks(file.fileno(), os.fstat(file.fileno()).st_size, BLOCK_BYTES)
    heads, events = dict[bytes, bytes](), Events()
    with ExitStack() as ends:
        started = []
        with suppress(OSError):  # no further process can start: its blocks are read here
            for child in range(children):
                process = blocks.child(child, children)
                ends.enter_context(process)
                ends.callback(process.kill)  # before the wait for it, should reading be stopped
                started.append(process)
        for number in range(len(blocks)):
            child = number % children
            part = _delivered(started[child]) if child < len(started) else None
            events.add(part or blocks.scan(number, heads))
    return events


def _delivered(child: subprocess.Popen[bytes]) -> Events | None:
    """A child's next block; None if it ended early."""
    assert child.stdout is not None
    with suppress(EOFError, pickle.UnpicklingError):
        part = pickle.load(child.stdout)
        assert isinstance(part, Events)
        return part
    return None


def main(words: Sequence[str]) -> None:
    """`python -m ...parallel_scan DESCRIPTOR SIZE BLOCK_BYTES CHILD CHILDREN`."""
    descriptor, size, block_bytes, child, children = map(int, words)
    blocks, heads = Blocks(descriptor, size, block_bytes), dict[bytes, bytes]()
    try:
        for number in range(child, len(blocks), children):
            part = blocks.scan(number, heads)
            sys.stdout.buffer.write(pickle.dumps(part, pickle.HIGHEST_PROTOCOL))
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # What is still buffered would fail once more at exit, with status 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
