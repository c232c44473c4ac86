"""The supervisor: a small process that owns every server of one notebook.

It reads commands from stdin, one JSON object per line, and reports on stdout:

    {"start": name, "argv", "env", "log", "talks": bool}   -> {"started": name, "pid"}
    {"send": name, "line"}                                 a line to the stdin of a process
    {"stop": tag, "groups": [pid, ...], "grace_s": s}       -> {"stopped": tag}
    {"finally": argv}                                       -> {"noted": "finally"}
    {"ping": any}                                          the notebook is there (--lease)
                                                            -> {"exited": name, "status"}
                                                            -> {"line": name, "text"}

When its stdin closes, because the notebook is done or its kernel was killed, it ends every process
below itself and removes their shared-memory segments and the folder of their sockets. It is a
subreaper, so that no process can escape by losing its parent. What is not below it (containers) is
ended by the command given with `finally`, which runs before that and after.

    python -m workbench.serve.processes.supervisor [--lease SECONDS] [--apart]

On another host than the notebook's, no pipe closes when the network fails. So with a lease it also
ends when no ping has followed the last one for that time. Apart, it is no child of who starts it:
Ray kills the children of its workers, and a killed supervisor cannot tidy up.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import math
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from workbench.serve.processes.parent import die_with_parent

_PR_SET_CHILD_SUBREAPER = 36
FINAL_GRACE_S = 4.0
LAST_S = 120.0
_REAPED_S = 2.0
SHM = "/dev/shm/"


def _members(groups: set[int] | None) -> dict[int, int]:
    """Live descendants as pid -> process group, all or those of `groups`."""
    found: dict[int, int] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = os.getpgid(process.pid)
    return {pid: group for pid, group in found.items() if groups is None or group in groups}


def _segments() -> dict[int, str]:
    """Shared-memory files that exist, as inode -> path."""
    return {entry.inode(): entry.path for entry in os.scandir(SHM)}


def _mapped_segments(pids: set[int]) -> dict[int, str]:
    """Existing shared-memory files that these processes have mapped, as inode -> path.

    By inode, since the creator of a semaphore has it mapped under a temporary name: sem_open(3)
    creates that, links it to the real name and removes it.
    """
    mapped: set[int] = set()
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if SHM in line:
                    mapped.add(int(line.split(maxsplit=5)[4]))
    return {inode: path for inode, path in _segments().items() if inode in mapped}


def _signal(members: dict[int, int], number: signal.Signals) -> None:
    for group in set(members.values()):
        with suppress(ProcessLookupError):
            os.killpg(group, number)


class Supervisor:
    """Children by name, their shared-memory segments, and the folder of their sockets.

    vLLM binds a socket per server in VLLM_RPC_BASE_PATH and leaves it when it is killed.
    """

    def __init__(self, sockets: str, lease_s: float = 0.0) -> None:
        self.env = {"VLLM_RPC_BASE_PATH": sockets}
        self.children: dict[str, asyncio.subprocess.Process] = {}
        self.segments: dict[int, str] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.last: list[str] = []
        self.lease_s, self.heard_s = lease_s, math.inf

    def say(self, **event: Any) -> None:
        with suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()

    async def start(self, order: dict[str, Any]) -> None:
        name, talks = order["start"], order.get("talks", False)
        with open(order["log"], "ab") as log:
            child = await asyncio.create_subprocess_exec(
                *order["argv"],
                env=os.environ | self.env | order["env"],
                stdin=asyncio.subprocess.PIPE if talks else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if talks else log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.children[name] = child
        self.say(started=name, pid=child.pid)
        self.keep(self.watch(name, child))

    async def watch(self, name: str, child: asyncio.subprocess.Process) -> None:
        if child.stdout is not None:
            async for line in child.stdout:
                self.say(line=name, text=line.decode(errors="replace").rstrip("\n"))
        self.say(exited=name, status=await child.wait())

    async def look_after(self) -> None:
        """Note segments while they are mapped, and reap orphans.

        A killed process leaves segments that no process has mapped any more.
        """
        while True:
            self.segments |= _mapped_segments(set(_members(None)))
            ours = {child.pid for child in self.children.values()}
            for child in psutil.Process().children():
                if child.pid not in ours:
                    with suppress(ChildProcessError):
                        os.waitpid(child.pid, os.WNOHANG)  # noqa: ASYNC222 - it does not block
            await asyncio.sleep(1.0)

    async def stop(self, groups: set[int] | None, grace_s: float) -> None:
        """TERM, wait, KILL, until no process of the groups (None: no descendant) is left."""
        members = _members(groups)
        self.segments |= _mapped_segments(set(members))
        _signal(members, signal.SIGTERM)
        ends_s = time.monotonic() + grace_s
        while members := _members(groups):
            if time.monotonic() > ends_s:
                _signal(members, signal.SIGKILL)
            await asyncio.sleep(0.03)
        in_use = _mapped_segments(set(_members(None)))
        existing = _segments()
        for inode, path in self.segments.items():
            if inode not in in_use and existing.get(inode) == path:
                with suppress(OSError):
                    os.unlink(path)
        self.segments = in_use

    async def obey(self, order: dict[str, Any]) -> None:
        if "start" in order:
            try:
                await self.start(order)
            except OSError as error:
                Path(order["log"]).write_text(f"{error}\n")
                self.say(exited=order["start"], status=127)
        elif "send" in order:
            child = self.children.get(order["send"])
            if child is not None and child.stdin is not None:
                child.stdin.write(order["line"].encode() + b"\n")
        elif "stop" in order:
            await self.stop(set(order["groups"]), order["grace_s"])
            self.say(stopped=order["stop"])
        elif "ping" in order:
            self.heard_s = time.monotonic()
        elif "finally" in order:
            self.last = order["finally"]
            self.say(noted="finally")

    async def run_last(self) -> None:
        if self.last:
            with suppress(OSError, TimeoutError):
                last = await asyncio.create_subprocess_exec(
                    *self.last, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
                )
                await asyncio.wait_for(last.wait(), LAST_S)

    def keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(name, ended.set)
        orders = asyncio.StreamReader(limit=2**24)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        self.keep(self.look_after())

        async def listen() -> None:
            async for line in orders:
                self.keep(self.obey(json.loads(line)))
            ended.set()

        async def heed_lease() -> None:
            while True:
                left_s = self.heard_s + self.lease_s - time.monotonic()
                if left_s <= 0:
                    break
                await asyncio.sleep(min(left_s, self.lease_s))
            ended.set()

        self.keep(listen())
        if self.lease_s:
            self.keep(heed_lease())
        await ended.wait()
        if _members(None):
            # Whoever just asks for a container should get it, so that it can be removed.
            await self.run_last()
        await self.stop(None, FINAL_GRACE_S)
        await self.run_last()
        # All have ended. asyncio warns of a child whose status it learns after the loop is closed.
        if reaped := [asyncio.ensure_future(one.wait()) for one in self.children.values()]:
            await asyncio.wait(reaped, timeout=_REAPED_S)


def main() -> None:
    """Supervise until stdin closes, a signal arrives or the lease runs out."""
    parser = argparse.ArgumentParser(prog="python -m workbench.serve.processes.supervisor")
    parser.add_argument("--lease", type=float, default=0.0)
    parser.add_argument("--apart", action="store_true")
    asked = parser.parse_args()
    if asked.apart and os.fork():
        os._exit(0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory(prefix="workbench-", ignore_cleanup_errors=True) as sockets:
        asyncio.run(Supervisor(sockets, asked.lease).run())


if __name__ == "__main__":
    main()
