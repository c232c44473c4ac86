import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

SLEEPS = "import time; time.sleep(60)"

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"

ESCAPES = """
import os, sys, time
if not os.fork():
    os.setsid()
    if not os.fork():
        with open(sys.argv[1] + ".new", "w") as file: file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        time.sleep(60)
    os._exit(0)
time.sleep(60)
"""
"""A daemon by the book: two forks and a session of its own, its parent gone."""

SHARES = """
import sys, os, time
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=4096)
with open(sys.argv[1] + ".new", "w") as file: file.write(memory.name)
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(60)
"""

LOCKS = """
import sys, os, time
from multiprocessing import get_context
lock = get_context("spawn").Lock()
with open(sys.argv[1] + ".new", "w") as file: file.write("sem." + lock._semlock.name[1:])
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(60)
"""
"""A named semaphore; its maker has it mapped under another name."""

DIES = """
import os, sys
if not os.fork():
    if not os.fork():
        with open(sys.argv[1] + ".new", "w") as file: file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
    os._exit(0)
os.wait()
"""
"""An orphan that ends at once: the supervisor buries it when it has noted all segments."""


class Supervised:
    """The supervisor as its launcher sees it: orders in, events out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.serve.processes.supervisor"],
            env=os.environ | {"TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def order(self, **order: Any) -> None:
        self.process.stdin.write(json.dumps(order) + "\n")

    def event(self) -> dict[str, Any]:
        return json.loads(self.process.stdout.readline())

    def start(self, name: str, code: str, *args: object, **given: Any) -> int:
        argv = [sys.executable, "-c", code, *map(str, args)]
        log = str(self.folder / f"{name}.log")
        self.order(start=name, **{"argv": argv, "env": {}, "log": log, **given})
        event = self.event()
        assert event["started"] == name
        return event["pid"]

    def written(self, name: str) -> str:
        """What a child has written to the file of that name, once it has."""
        path = self.folder / name
        eventually(path.exists)
        return path.read_text()

    def close(self) -> int:
        self.process.stdin.close()
        return self.process.wait(timeout=20)


def eventually(condition) -> None:
    ends_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def supervisor(tmp_path: Path, nothing_running: str) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    with supervised.process:
        yield supervised
        supervised.process.terminate()


def test_a_stop_ends_its_groups_and_no_others(supervisor):
    stopped, kept = supervisor.start("a", SLEEPS), supervisor.start("b", SLEEPS)
    supervisor.order(stop="tag", groups=[stopped], grace_s=5)
    events = [supervisor.event(), supervisor.event()]
    assert {"exited": "a", "status": -signal.SIGTERM} in events
    assert {"stopped": "tag"} in events
    assert lives(kept) and not lives(stopped)


def test_a_stop_of_what_has_ended_is_done_at_once(supervisor):
    pid = supervisor.start("a", "pass")
    supervisor.event()
    supervisor.order(stop="tag", groups=[pid], grace_s=5)
    assert supervisor.event() == {"stopped": "tag"}


@pytest.mark.parametrize("end", ["stdin closes", "SIGTERM", "SIGINT", "SIGHUP"])
def test_its_end_is_the_end_of_everything_below_it(supervisor, end):
    pids = [supervisor.start(name, SLEEPS) for name in "ab"]
    pids.append(supervisor.start("c", ESCAPES, supervisor.folder / "daemon"))
    pids.append(int(supervisor.written("daemon")))
    assert all(map(lives, pids))
    if end == "stdin closes":
        supervisor.process.stdin.close()
    else:
        supervisor.process.send_signal(getattr(signal, end))
    assert supervisor.process.wait(timeout=20) == 0
    assert not any(map(lives, pids))


def test_when_it_is_killed_itself_its_children_go_with_it(supervisor):
    pids = [supervisor.start(name, SLEEPS) for name in "ab"]
    supervisor.process.kill()
    eventually(lambda: not any(map(lives, pids)))


def shared(supervisor: Supervised, name: str, code: str = SHARES) -> tuple[int, Path]:
    pid = supervisor.start(name, code, supervisor.folder / f"{name}.segment")
    return pid, Path("/dev/shm", supervisor.written(f"{name}.segment"))


def test_the_shared_memory_of_a_process_that_had_to_be_killed_is_removed(supervisor):
    pid, segment = shared(supervisor, "a", DEAF + SHARES)
    _, other = shared(supervisor, "b")
    assert segment.exists()
    supervisor.order(stop="tag", groups=[pid], grace_s=0.1)
    assert {"stopped": "tag"} in [supervisor.event(), supervisor.event()]
    assert not segment.exists()
    assert other.exists()
    supervisor.close()
    assert not other.exists()


@pytest.mark.parametrize("code", [SHARES, LOCKS], ids=["memory", "semaphore"])
def test_the_segment_of_a_process_that_was_killed_by_another_is_removed(supervisor, code):
    pid, segment = shared(supervisor, "a", code)
    supervisor.start("b", DIES, supervisor.folder / "orphan")
    orphan = int(supervisor.written("orphan"))
    assert supervisor.event()["exited"] == "b"
    eventually(lambda: not psutil.pid_exists(orphan))
    os.killpg(pid, signal.SIGKILL)  # the tracker that would tidy up is in the same group
    assert supervisor.event() == {"exited": "a", "status": -signal.SIGKILL}
    assert segment.exists()
    supervisor.close()
    assert not segment.exists()


def test_the_sockets_of_servers_lie_in_a_folder_that_ends_with_it(supervisor):
    binds = """
import os, socket, sys, time
path = os.environ["VLLM_RPC_BASE_PATH"] + "/0123"
socket.socket(socket.AF_UNIX).bind(path)
with open(sys.argv[1] + ".new", "w") as file: file.write(path)
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(60)
"""
    supervisor.start("a", binds, supervisor.folder / "path")
    path = Path(supervisor.written("path"))
    assert path.is_socket()
    supervisor.close()
    assert not path.parent.exists()
