import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from workbench.claims.recipes.launches import Launches
from workbench.errors import DeploymentError

WORK = """
import os, time
loaded = os.getpid()

def double(job):
    print("a library says something")
    return {"value": 2 * job["value"], "pid": os.getpid(), "imported_by": loaded}

def fail(job):
    raise ValueError("no such backend")

def sleep(job):
    time.sleep(60)
"""


@pytest.fixture
def launches(tmp_path: Path):
    (tmp_path / "work.py").write_text(WORK)

    def make(function: str, **fields):
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        return Launches(
            target=f"work:{function}", output_dir=tmp_path / "out", name=function,
            warm=("work",), env={"PYTHONPATH": path}, **fields,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("fork", [True, False])
async def test_each_launch_is_a_fresh_process(launches, fork):
    async with launches("double", fork=fork) as started:
        results = [await started.run({"value": n}, timeout_s=20) for n in (1, 2)]
    assert [result["value"] for result in results] == [2, 4]
    assert len({result["pid"] for result in results}) == 2
    # forked launches share what one process imported; plain ones import it themselves
    assert len({result["imported_by"] for result in results}) == (1 if fork else 2)


async def test_a_failure_is_one_sentence_with_its_cause_and_the_next_launch_goes_on(launches):
    async with launches("fail") as started:
        for _ in range(2):
            with pytest.raises(DeploymentError, match=r"launch \d failed: ValueError: no such"):
                await started.run({}, timeout_s=20)


async def test_a_launch_that_takes_too_long_is_ended_with_its_parent(launches):
    before = set(psutil.Process().children(recursive=True))
    async with launches("sleep") as started:
        with pytest.raises(DeploymentError, match=r"'sleep' did not finish within 1 s"):
            await started.run({}, timeout_s=0.6)
    assert set(psutil.Process().children(recursive=True)) == before


KILLED = """
import asyncio, sys
from pathlib import Path
from workbench.claims.recipes.launches import Launches

async def main():
    async with Launches(target="work:sleep", output_dir=Path(sys.argv[1]), name="sleep",
                        warm=("work",)) as started:
        await started.run({}, timeout_s=60)

asyncio.run(main())
"""


async def test_no_launch_outlives_a_caller_that_is_killed(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    caller = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(tmp_path / "out"), env={**os.environ, "PYTHONPATH": path}
    )
    below: list[psutil.Process] = []
    async with asyncio.timeout(20):
        while len(below) < 2:  # the one that imports, and the one that it forked
            await asyncio.sleep(0.05)
            with suppress(psutil.NoSuchProcess):
                below = psutil.Process(caller.pid).children(recursive=True)
    caller.kill()
    await caller.wait()
    assert psutil.wait_procs(below, timeout=20)[1] == []
