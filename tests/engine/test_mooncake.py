"""Mooncake's store under real engines: the ledger closes, and a dead master ends a run at once."""

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs import causes, not_passed
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo
from workbench.hardware.interpreter import interpreter
from workbench.params.notebooks import PdSweep
from workbench.serve.connectors import connector

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(
        not connector("mooncake-store").installed(interpreter()),
        reason="needs make setup MOONCAKE=1",
    ),
]

SIZES = {"prompt_tokens": 3000, "output_tokens": 8, "requests": 4, "rounds": 1, "opponents": False}


async def measured(given: dict[str, Any], folder: Path, *, echo: Echo = lambda _: None) -> Result:
    params = PdSweep(**(SIZES | {"connector": "mooncake-store", "output_dir": str(folder)} | given))
    return await run(plan(params), echo=echo)


@pytest.mark.parametrize(
    "given",
    [
        {"topology": "1p2d"},
        # Whole blocks: what is left over is the last token alone.
        {"topology": "1p1d", "prompt_tokens": 3072},
        {"topology": "2a", "workload": "shared_prefix", "concurrency": 4},
    ],
    ids=lambda given: " ".join(map(str, given.values())),
)
async def test_the_ledger_closes(given: dict[str, Any], tmp_path: Path, one_launcher: None) -> None:
    result = await measured(given, tmp_path)
    late = "not stored yet" in causes(result.facts)  # on a busy machine decode may be too early
    assert set(not_passed(result.facts)) <= {"client kept up"} | ({"KV moved"} if late else set())
    ledger = result.facts["ledger"]
    assert all(not account["unknown"] for account in ledger)
    if "concurrency" not in given:
        assert [account for account in ledger if account["unexplained"]] == []
        assert late or result.request_ledger["difference"].eq(0).all()
    passes = {row["pass"] for row in result.facts["summary"]}
    assert {"cold", "engine-warm", "store-warm"} <= passes


async def test_a_store_that_is_too_small_evicts_with_a_named_cause(
    tmp_path: Path, one_launcher: None
) -> None:
    result = await measured({"topology": "1p1d", "store_gb": 0.03, "requests": 20}, tmp_path)
    assert causes(result.facts) & {"store eviction", "store was full"}


async def test_a_master_that_dies_ends_the_pass_within_seconds(
    tmp_path: Path, one_launcher: None
) -> None:
    killed_s: list[float] = []

    def kill_after_the_cold_pass(line: str) -> None:
        if " cold " not in line:
            return
        (master,) = [
            process
            for process in psutil.process_iter(["name"])
            if process.info["name"] == "mooncake_master" and str(tmp_path) in _log_of(process)
        ]
        master.send_signal(signal.SIGKILL)
        killed_s.append(time.monotonic())

    result = await measured({"topology": "1p1d"}, tmp_path, echo=kill_after_the_cold_pass)
    assert time.monotonic() - killed_s[0] < 15
    (gate,) = [gate for gate in result.facts["gates"] if gate["name"] == "every pass ran"]
    assert gate["outcome"] == "FAIL"
    assert "store ended by itself, and the pass was stopped: killed by SIGKILL" in gate["sentence"]
    assert result.requests.query("`pass` == 'cold'")["error"].eq("").all()


def _log_of(process: psutil.Process) -> str:
    """The file that its standard output goes to."""
    with suppress(OSError):
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    return ""
