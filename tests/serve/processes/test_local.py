import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import gone
from workbench.errors import DeploymentError, LaunchError
from workbench.hardware.machine import usable_cores
from workbench.serve.processes import logs
from workbench.serve.processes.launcher import Process
from workbench.serve.processes.local import LocalLauncher
from workbench.serve.processes.startup import failure, ready

FAMILY = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
"""
"""An engine core below an API server, in the same process group."""


async def start(launcher, tmp_path, *specs) -> list[Process]:
    started = [await launcher.start(one, tmp_path) for one in specs]
    await ready(started, timeout_s=10)
    return started


async def test_a_server_is_ready_when_it_answers(launcher, spec, tmp_path):
    (process,) = await start(launcher, tmp_path, spec())
    assert process.alive
    assert httpx.get(process.spec.ready_url, trust_env=False).status_code == 200


async def test_servers_get_ready_side_by_side(launcher, spec, tmp_path):
    # Each waits for the others before it answers, as only servers started together can.
    waits = f"""
import pathlib, time
here = pathlib.Path({str(tmp_path)!r})
(here / f"{{time.monotonic_ns()}}.here").touch()
while len(list(here.glob("*.here"))) < 4: time.sleep(0.02)
"""
    await start(launcher, tmp_path, *(spec(f"decode-{n}", first=waits) for n in range(4)))


async def test_a_server_gets_its_environment_beside_that_of_the_notebook(launcher, spec, tmp_path):
    show = "import os; print(os.environ['MINE'], 'PATH' in os.environ, flush=True)"
    (process,) = await start(launcher, tmp_path, spec(first=show, env={"MINE": "yes"}))
    assert logs.lines(process.log) == ["yes True"]
    assert process.log == tmp_path / "decode-0.log"


async def test_a_server_with_cores_of_its_own_uses_no_others(launcher, spec, tmp_path):
    core = usable_cores()[-1]
    (process,) = await start(launcher, tmp_path, spec(cores=(core,)))
    assert psutil.Process(process.pid).cpu_affinity() == [core]


async def test_an_exit_before_ready_gives_the_reason_and_the_logs_path(launcher, spec, tmp_path):
    broken = spec("prefill-0", code="print('loading'); raise ValueError('no such model: /nope')")
    process = await launcher.start(broken, tmp_path)
    with pytest.raises(LaunchError) as error:
        await ready([process], timeout_s=10)
    sentence, log, *tail = str(error.value).splitlines()
    assert sentence == "prefill-0 did not start: ValueError: no such model: /nope"
    assert log == f"  log: {tmp_path / 'prefill-0.log'}"
    assert any("Traceback" in line for line in tail)
    assert await process.exited == 1


async def test_a_program_that_is_not_there_is_a_start_that_failed(launcher, spec, tmp_path):
    missing = replace(spec(), program=("/no/such/program",))
    process = await launcher.start(missing, tmp_path)
    with pytest.raises(LaunchError, match="No such file or directory: '/no/such/program'"):
        await ready([process], timeout_s=10)


async def test_a_server_that_never_answers_is_given_up(launcher, spec, tmp_path):
    process = await launcher.start(spec(code="import time; time.sleep(60)"), tmp_path)
    with pytest.raises(LaunchError, match="decode-0 was not ready after 0 s: its log is empty"):
        await ready([process], timeout_s=0.2)


async def test_a_fatal_line_is_believed_before_the_process_ends(launcher, spec, tmp_path):
    # Under fork the API server needs 30 s to notice that its engine core has died.
    says = "import time; print('RuntimeError: no such transport', flush=True); time.sleep(60)"
    process = await launcher.start(spec(code=says, fatal=("no such transport",)), tmp_path)
    with pytest.raises(LaunchError, match="did not start: RuntimeError: no such transport"):
        await ready([process], timeout_s=10)


async def test_a_stop_ends_a_server_with_all_that_it_started(launcher, spec, tmp_path):
    family, other = await start(
        launcher, tmp_path, spec(first=FAMILY), spec("decode-1", first=FAMILY)
    )
    (grandchild,) = psutil.Process(family.pid).children()
    await launcher.stop([family])
    assert await asyncio.wait_for(family.exited, 10) == -signal.SIGTERM
    assert gone(grandchild.pid)
    assert other.alive
    assert len(psutil.Process(other.pid).children()) == 1


async def test_leaving_the_launcher_ends_what_was_never_stopped(spec, tmp_path, nothing_running):
    async with LocalLauncher(tmp_path) as launcher:
        (process,) = await start(launcher, tmp_path, spec(first=FAMILY))
        grandchild = psutil.Process(process.pid).children()[0]
    assert gone(process.pid)
    assert gone(grandchild.pid)


async def test_the_end_of_a_running_server_is_noticed(launcher, spec, tmp_path):
    (process,) = await start(launcher, tmp_path, spec())
    os.kill(process.pid, signal.SIGKILL)
    assert await asyncio.wait_for(process.exited, 10) == -signal.SIGKILL
    assert not process.alive
    assert failure(process, "ended by itself").startswith("decode-0 ended by itself: ")


async def test_without_its_supervisor_nothing_waits_for_ever(launcher, spec, tmp_path):
    (process,) = await start(launcher, tmp_path, spec())
    asking = asyncio.create_task(launcher.stop([process], grace_s=30))
    supervisor = psutil.Process(process.pid).parent()
    supervisor.kill()
    with pytest.raises(DeploymentError, match="the supervisor process exited unexpectedly"):
        await asyncio.wait_for(asking, 10)
    assert await asyncio.wait_for(process.exited, 10) == -signal.SIGKILL
    with pytest.raises(DeploymentError, match="run again"):
        await launcher.start(spec("decode-1"), tmp_path)


FORK_SERVER = """
import json, os, sys
from workbench.serve.processes.parent import die_with_parent
print("INFO some library says hello on stdout", flush=True)
print(json.dumps({"ready": 0.1}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job["name"].startswith("fatal"): sys.exit(3)
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        die_with_parent()
        os.dup2(os.open(os.devnull, os.O_RDWR), 10)
        os.execv(sys.executable, [sys.executable, "-c", os.environ["SERVER"], *job["args"]])
    print(json.dumps({"forked": job["name"], "pid": pid}), flush=True)
"""


@pytest.fixture
def forking(tmp_path, monkeypatch, spec, nothing_running):
    """Makes a launcher whose fork server is a few lines that load nothing."""

    def make(fork_server: str = FORK_SERVER) -> LocalLauncher:
        stub, python = tmp_path / "stub.py", tmp_path / "python"
        stub.write_text(fork_server)
        monkeypatch.setenv("SERVER", spec().program[-1])
        python.write_text(f"#!/bin/sh\nexec {sys.executable} {stub}\n")
        python.chmod(0o755)
        return LocalLauncher(tmp_path / "logs", loads=["something"], python=str(python))

    return make


def parent(process: Process) -> str:
    """The command line of what started it."""
    return " ".join(psutil.Process(process.pid).parent().cmdline())


async def test_a_forked_server_is_like_any_other(forking, spec, tmp_path):
    async with forking() as launcher:
        (process,) = await start(launcher, tmp_path, spec(forks="a:server"))
        assert "stub.py" in parent(process)
        await launcher.stop([process])
    assert launcher.notes == []


async def test_what_cannot_be_forked_is_started_plainly(forking, spec, tmp_path):
    async with forking() as launcher:
        (process,) = await start(launcher, tmp_path, spec("proxy"))
        assert "supervisor" in parent(process)


async def test_the_end_of_the_fork_server_is_the_end_of_what_it_forked(forking, spec, tmp_path):
    async with forking() as launcher:
        (process,) = await start(launcher, tmp_path, spec(forks="a:server"))
        fatal = launcher.start(spec("fatal", forks="a:server"), tmp_path)
        lost = await asyncio.wait_for(fatal, 10)
        assert not lost.alive and not process.alive
        (note,) = launcher.notes
        assert "fork server exited" in note
        # From now on servers start plainly.
        (plain,) = await start(launcher, tmp_path, spec("decode-1", forks="a:server"))
        assert "supervisor" in parent(plain)


async def test_a_fork_server_that_cannot_load_leaves_the_plain_start(forking, spec, tmp_path):
    async with forking("raise ImportError('vllm is of another version')") as launcher:
        (process,) = await start(launcher, tmp_path, spec(forks="a:server"))
        assert "supervisor" in parent(process)
    (note,) = launcher.notes
    assert "The fork server did not start" in note
    log = Path(note.rpartition("log: ")[2])
    assert "ImportError: vllm is of another version" in log.read_text()
