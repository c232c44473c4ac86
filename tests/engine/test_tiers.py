"""LMCache's tiers under a real engine: who served each token, and a tier that dies."""

import shutil
import signal
from math import isnan
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs import BUSY, not_passed, outcomes
from workbench.experiment.plan.arms import plan
from workbench.experiment.result.result import Result
from workbench.experiment.run.run import run
from workbench.experiment.run.run_log import Echo
from workbench.params.pd_sweep import PdSweep
from workbench.serve.connectors import connector

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZES = {"topology": "1a", "prompt_tokens": 1500, "output_tokens": 4, "requests": 2, "rounds": 1}
NEEDS_REDIS = pytest.mark.skipif(
    not (shutil.which("redis-server") or shutil.which("valkey-server")),
    reason="needs redis-server (apt-get install redis-server)",
)
NEEDS_MOONCAKE = pytest.mark.skipif(
    not connector("mooncake-store").installed, reason="needs make setup MOONCAKE=1"
)
CHUNKS, TOKENS = 2 * 5, 2 * 5 * 256
"""Whole chunks of both prompts."""


async def measured(folder: Path, *tiers: str, echo: Echo = lambda _: None) -> Result:
    given: dict[str, Any] = SIZES | {"opponents": False, "output_dir": str(folder)}
    return await run(plan(PdSweep(**given, store_tiers=["memory", *tiers])), echo=echo)


@pytest.mark.parametrize(
    "tiers",
    [
        pytest.param(("disk", "redis"), marks=NEEDS_REDIS),
        pytest.param(("mooncake",), marks=NEEDS_MOONCAKE),
    ],
    ids=",".join,
)
async def test_each_token_is_known_by_the_tier_that_served_it(
    tiers: tuple[str, ...], tmp_path: Path, one_launcher: None
) -> None:
    result = await measured(tmp_path, *tiers)
    assert set(not_passed(result.facts)) <= BUSY
    assert all(row["unexplained"] == 0 for row in result.facts["ledger"])
    loaded = {row["pass"]: row["loaded"] for row in result.facts["token_sources"]}
    served = {"store-warm": "memory", "remote-warm": tiers[-1]}
    served |= {"disk-warm": "disk"} if "disk" in tiers else {}
    for name, tier in served.items():
        assert loaded[name] == dict.fromkeys(("memory", *tiers), 0) | {tier: TOKENS}, name
    last = {row["tier"]: row for row in result.facts["store_tiers"] if row["pass"] == "remote-warm"}
    assert (last[tiers[-1]]["held"], last[tiers[-1]]["sent"]) == (CHUNKS, CHUNKS)
    if "disk" in tiers:
        assert (last["disk"]["held"], last["disk"]["loads"]) == (0, 0)  # deleted before this pass


@NEEDS_REDIS
async def test_a_redis_that_dies_is_found_and_requests_go_on(
    tmp_path: Path, one_launcher: None
) -> None:
    def kill_before_the_second_pass(line: str) -> None:
        if " cold " in line:
            (server,) = [
                process
                for process in psutil.process_iter(["name", "cmdline"])
                if process.info["name"] == "redis-server"
                and process.is_running()
                and str(tmp_path) in _log_of(process)
            ]
            server.send_signal(signal.SIGKILL)

    result = await measured(tmp_path, "redis", echo=kill_before_the_second_pass)
    assert result.requests["error"].eq("").all()
    assert outcomes(result.facts)["tiers kept what was sent"] == "FAIL"
    assert any("redis ended by itself: killed by SIGKILL" in doubt for doubt in result.doubts)
    rows = {row["pass"]: row for row in result.facts["store_tiers"]}
    assert rows["cold"]["held"] == CHUNKS
    assert rows["engine-warm"]["held"] is None or isnan(rows["engine-warm"]["held"])


def _log_of(process: psutil.Process) -> str:
    """The file that its standard output goes to."""
    try:
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return ""
