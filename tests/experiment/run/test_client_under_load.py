"""The gate on the client, with the client really held up: its loop blocked, its core taken."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from workbench.experiment.result.result_tables import no_p99
from workbench.experiment.run.launch.monitor import watch_client
from workbench.experiment.run.run_log import Log
from workbench.hardware.machine import ProcessorLoad
from workbench.load.drive.driver import LoadRun, drive
from workbench.load.workload.arrivals import constant
from workbench.load.workload.workload import short
from workbench.metrics.gates.client_gate import client_kept_up
from workbench.metrics.gates.gate import Gate

pytestmark = pytest.mark.alone


@asynccontextmanager
async def blocking(seconds: float) -> AsyncIterator[None]:
    """Something in the client's own loop that takes it for so long, over and over."""

    async def block() -> None:
        while True:
            time.sleep(seconds)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(block())
    yield
    task.cancel()


@asynccontextmanager
async def strangers(seconds: float) -> AsyncIterator[None]:
    """Programs that are none of ours keep every core busy for so long."""
    loop = f"timeout {seconds} sh -c 'while :; do :; done' >/dev/null 2>&1 &"
    for _ in range(2 * (os.cpu_count() or 1)):
        subprocess.run(["sh", "-c", loop], check=True)  # its parent ends, so it is not our child
    yield


async def asked(url: str) -> tuple[LoadRun, float]:
    """A load of 0.4 s, and the share of this machine that others took meanwhile."""
    work = short(requests=40, prompt_tokens=32, output_tokens=4, salt="s")
    before = ProcessorLoad.now()
    run = await drive(work, constant(100.0, 40), base_url=url, model="tiny")
    return run, ProcessorLoad.now().others_since(before)


def judged(run: LoadRun, others_share: float) -> Gate:
    log = Log()
    watch_client(run, others_share, log)
    return client_kept_up(log.client)


async def test_a_blocked_loop_fails_the_gate_and_withholds_the_p99(vllm: Any) -> None:
    async with blocking(0.06):
        run, _ = await asked(vllm.url)
    assert run.health.loop_lag_p99_s > 0.03
    gate = judged(run, 0.0)
    assert gate.outcome == "FAIL"
    assert "equests were sent" in gate.sentence
    assert "the client's event loop ran" in gate.sentence
    assert no_p99([gate]).startswith("client did not keep up: Requests were sent")


async def test_a_core_that_others_take_fails_the_gate(vllm: Any) -> None:
    async with strangers(0.8):
        run, others_share = await asked(vllm.url)
    assert others_share > 0.3
    gate = judged(run, others_share)
    assert gate.outcome == "FAIL"
    assert gate.sentence.startswith("Other programs used")
    assert "nd other programs" in gate.next_step


async def test_the_same_load_left_alone_is_not_blamed(vllm: Any) -> None:
    run, _ = await asked(vllm.url)
    # This machine may be busy with other tests: only what the client itself did is judged here.
    calm = replace(run.health, lateness_p99_s=0.0, loop_lag_max_s=0.0, merged_share=0.0)
    calm = replace(calm, loop_lag_p99_s=0.0)
    assert judged(replace(run, health=calm), 0.0).outcome == "PASS"
    assert run.health.thread_cpu_share < 0.6
