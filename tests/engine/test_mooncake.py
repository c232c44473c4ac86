"""Mooncake under real engines, store and peer to peer: the ledger closes, and a dead server ends a
run at once."""

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs import BUSY, causes, not_passed
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo
from workbench.hardware.interpreter import interpreter
from workbench.metrics.waterfall.waterfall import PARTS, closes
from workbench.params.pd_sweep import PdSweep
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
    assert set(not_passed(result.facts)) <= BUSY | ({"KV moved"} if late else set())
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
        _kill("store", tmp_path)
        killed_s.append(time.monotonic())

    result = await measured({"topology": "1p1d"}, tmp_path, echo=kill_after_the_cold_pass)
    assert time.monotonic() - killed_s[-1] < 15  # a launch is measured once more
    (gate,) = [gate for gate in result.facts["gates"] if gate["name"] == "every pass ran"]
    assert gate["outcome"] == "FAIL"
    assert "store ended by itself, and the pass was stopped: killed by SIGKILL" in gate["sentence"]
    assert result.requests.query("`pass` == 'cold'")["error"].eq("").all()


async def test_peer_to_peer_every_token_and_byte_is_accounted_for(
    tmp_path: Path, one_launcher: None
) -> None:
    result = await measured({"connector": "mooncake", "topology": "1p2d"}, tmp_path)
    assert set(not_passed(result.facts)) <= BUSY
    ledger = result.facts["ledger"]
    assert all(account["closes"] for account in ledger)
    assert [account for account in ledger if account["unexplained"]] == []
    assert {account["name"] for account in ledger} == {"counted", "reused", "moved"}
    passes = {row["pass"] for row in result.facts["summary"]}
    assert passes == {"cold", "engine-warm", "cross-instance"}
    split = result.waterfall()
    assert split["at_once"].all() and split["note"].eq("").all()
    assert (split[[*PARTS]] >= 0).all(axis=None) and closes(split).mean() > 0.5


async def test_a_prefill_that_dies_ends_the_pass_within_seconds(
    tmp_path: Path, one_launcher: None
) -> None:
    killed_s: list[float] = []

    def kill_soon_after_the_cold_pass(line: str) -> None:
        def kill() -> None:
            _kill("prefill-0", tmp_path)
            killed_s.append(time.monotonic())

        if " cold " in line:
            threading.Timer(0.7, kill).start()  # while requests of the next pass are in flight

    given = {"connector": "mooncake", "topology": "1p1d", "prompt_tokens": 600, "requests": 60}
    result = await measured(given, tmp_path, echo=kill_soon_after_the_cold_pass)
    assert time.monotonic() - killed_s[-1] < 15  # a launch is measured once more
    (gate,) = [gate for gate in result.facts["gates"] if gate["name"] == "every pass ran"]
    assert gate["outcome"] == "FAIL"
    said = "prefill-0 ended by itself, and the pass was stopped: killed by SIGKILL"
    assert said in gate["sentence"]


async def test_a_transfer_that_waits_too_long_is_a_gate_and_a_sentence(
    tmp_path: Path, one_launcher: None
) -> None:
    given = {
        "connector": "mooncake", "topology": "1p1d", "prompt_tokens": 24_000, "requests": 1,
        "engine_env": "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT=1",
    }  # fmt: skip
    result = await measured(given, tmp_path)
    gates = {gate["name"]: gate for gate in result.facts["gates"]}
    assert gates["no failures"]["outcome"] == "FAIL"
    assert gates["no failed transfers"]["outcome"] == "FAIL"
    assert "Timeout waiting for P side ready" in gates["no failed transfers"]["sentence"]


def _kill(name: str, folder: Path) -> None:
    """End every process whose output goes to the log of that server, below this folder."""
    for process in psutil.process_iter():
        log = Path(_log_of(process))
        if log.name == f"{name}.log" and folder in log.parents:
            process.send_signal(signal.SIGKILL)


def _log_of(process: psutil.Process) -> str:
    """The file that its standard output goes to."""
    with suppress(OSError):
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    return ""
