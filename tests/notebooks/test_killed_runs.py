"""However a run ends, within ten seconds none of its processes and no segment of it is left.

Each is ended at a drawn moment of one of three phases, so that ten ends fall in all of them
however fast the machine is.
"""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from workbench.hardware.machine import repository_root

RUN = (
    "-p topology 1p1d -p opponents False -p prompt_tokens 3000 -p rounds 8 -p requests 8"
).split()


def kernel_of(papermill: psutil.Process) -> psutil.Process:
    (kernel,) = [p for p in papermill.children() if "ipykernel_launcher" in " ".join(p.cmdline())]
    return kernel


ENDS: dict[str, Callable[[psutil.Process], None]] = {
    "interrupt the kernel": lambda papermill: kernel_of(papermill).send_signal(signal.SIGINT),
    "terminate papermill": lambda papermill: papermill.terminate(),
    "kill the kernel": lambda papermill: kernel_of(papermill).kill(),
    "kill papermill": lambda papermill: papermill.kill(),
}


class Phase(NamedTuple):
    name: str
    begins_with: str
    """What appears in the run's folder when the phase begins."""
    within_s: float
    """The moment is drawn from so many seconds behind that."""


PHASES = (
    Phase("start of the run and its fork server", "pd_sweep/*/attempt-*/result.json", 8),
    Phase("start of the servers", "pd_sweep/*/attempt-*/logs/round-0/*/*.log", 4),
    # A round takes some seconds, so servers are also stopped, and started again, in this time.
    Phase("measuring, stop, next start", "pd_sweep/*/attempt-*/requests.parquet", 10),
)


def wait_for(phase: Phase, folder: Path, started: subprocess.Popen[bytes]) -> None:
    ends_s = time.monotonic() + 120
    while not any(folder.glob(phase.begins_with)):
        assert started.poll() is None, f"the run ended by itself before the {phase.name}"
        assert time.monotonic() < ends_s, f"two minutes, and no {phase.name}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "attempt", [*range(4), *(pytest.param(n, marks=pytest.mark.long) for n in range(4, 10))]
)
def test_nothing_outlives_a_run_that_is_ended_at_a_random_moment(
    attempt: int,
    tmp_path: Path,
    clean_env: dict[str, str],
    alive: Callable[[], dict[int, str]],
    nothing_left: str,
) -> None:
    end = list(ENDS)[attempt % len(ENDS)]
    phase = PHASES[attempt % len(PHASES)]
    after_s = random.Random(attempt).uniform(0, phase.within_s)
    print(f"{end} {after_s:.1f} s into: {phase.name}")
    with subprocess.Popen(
        ["papermill", "notebooks/pd_sweep.ipynb", str(tmp_path / "out.ipynb"),
         "-p", "output_dir", str(tmp_path), *RUN],
        cwd=repository_root(), env=clean_env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    ) as started:  # fmt: skip
        papermill = psutil.Process(started.pid)
        wait_for(phase, tmp_path, started)
        time.sleep(after_s)
        assert started.poll() is None, "the run ended by itself before it was to be ended"
        assert any("ipykernel_launcher" in line for line in alive().values())
        ENDS[end](papermill)
        # `nothing_left` looks for what this run has started; papermill itself must end too.
        assert started.wait(timeout=30) != 0
    # What it had measured by then is kept, with a status that is not success.
    (facts,) = tmp_path.glob("pd_sweep/*/attempt-*/result.json")
    assert '"status": "success"' not in facts.read_text()


def test_two_sweeps_at_the_same_time_do_not_collide(
    tmp_path: Path, clean_env: dict[str, str], nothing_left: str
) -> None:
    sweep = "-p topology 1p1d -p opponents False -p prompt_tokens 2000 -p rounds 1 -p requests 2"
    both = [
        subprocess.Popen(
            f"papermill notebooks/pd_sweep.ipynb {tmp_path}/{name}.ipynb"
            f" -p output_dir {tmp_path} {sweep}".split(),
            cwd=repository_root(),
            env=clean_env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for started in both:
        _, errors = started.communicate(timeout=250)
        assert started.returncode == 0, errors[-2000:]
    # Same parameters, so the same run id: the later one to end is the run's result.
    (result,) = tmp_path.glob("pd_sweep/*/result.json")
    assert '"status": "success"' in result.read_text()
