"""The fork server: load what servers need once, then fork the servers.

    python -m workbench.serve.processes.forkserver workbench.serve.vllm:load

Imports are 90 % of the start-up time of an instance on a CPU. This program loads each given name (a
`module`, or a function to call: `module:function`; a name with `?` at its end may lack what it
imports), then reads one JSON object per line from stdin,
`{"fork": "module:function", "name", "args": [...], "env": {}, "cores": [...], "log": path}`, and
forks. The child calls that function with those arguments, on those cores (none: on all), and serves
until it is stopped.
It reports on stdout: `{"ready": seconds}`, `{"forked": name, "pid"}`, `{"exited": name, "status"}`.
When stdin closes it ends, and so do all its forks.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys
import time
import traceback
from importlib import import_module
from typing import Any

from workbench.serve.processes.parent import die_with_parent

IF_THERE = "?"
"""At the end of a name to load: go on without it if this environment lacks what it imports."""


def named(name: str) -> Any:
    """A module, or `module:function`."""
    module, _, function = name.partition(":")
    loaded = import_module(module)
    return getattr(loaded, function) if function else loaded


def _serve(job: dict[str, Any]) -> None:
    """Run the server that `job` describes; returns when it has ended."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(name, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(job["env"])
    if cores := job.get("cores"):
        os.sched_setaffinity(0, cores)
    named(job["fork"])(job["args"])


def _fork(job: dict[str, Any]) -> int:
    pid = os.fork()
    # Both processes set the group, so that it exists for whichever runs first.
    os.setpgid(pid, pid or os.getpid())
    if pid:
        return pid
    status = 1
    try:
        _serve(job)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve fork requests until stdin closes."""
    started_s = time.monotonic()
    for name in sys.argv[1:]:
        try:
            loaded = named(name.removesuffix(IF_THERE))
            if callable(loaded):
                loaded()
        except ImportError:
            if not name.endswith(IF_THERE):
                raise
            traceback.print_exc()  # what is forked for others does not need it
    # Every later fork, engine cores included, ends with the process that forked it.
    os.register_at_fork(after_in_child=die_with_parent)
    # The children's garbage collector skips frozen objects, so their pages stay shared.
    gc.collect()
    gc.freeze()
    children: dict[int, str] = {}
    woken_r, woken_w = os.pipe()
    os.set_blocking(woken_w, False)
    signal.set_wakeup_fd(woken_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ready = selectors.DefaultSelector()
    ready.register(0, selectors.EVENT_READ)
    ready.register(woken_r, selectors.EVENT_READ)
    _say(ready=round(time.monotonic() - started_s, 2))
    pending = b""
    while True:
        awake = {key.fd for key, _ in ready.select()}
        if woken_r in awake:
            os.read(woken_r, 4096)
            while children:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                _say(exited=children.pop(pid, "?"), status=os.waitstatus_to_exitcode(status))
        if 0 in awake:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                job = json.loads(line)
                pid = _fork(job)
                children[pid] = job["name"]
                _say(forked=job["name"], pid=pid)


if __name__ == "__main__":
    main()
