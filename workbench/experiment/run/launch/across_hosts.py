"""What a launch measures of other hosts: the rate of links between them, and their clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

import httpx

from workbench.errors import DeploymentError
from workbench.experiment.result.finding_rows import ClockRow
from workbench.experiment.run.run_log import Log
from workbench.metrics.waterfall.clocks import host_clocks
from workbench.records import ClockReading
from workbench.serve.deployed import Deployment
from workbench.serve.processes.host_probe import link_rates, read_clock
from workbench.topology import Role


def _hosts(deployment: Deployment, *roles: Role) -> list[str]:
    """Addresses of hosts that can be asked and have an instance of these roles."""
    found = [httpx.URL(i.url).host for i in deployment.instances if i.role in roles]
    return [host for host in dict.fromkeys(found) if host in deployment.probes]


async def measure_links(deployment: Deployment, arm: str, number: int, log: Log) -> None:
    """Measure the links over which this deployment moves KV, before its passes."""
    sides = _hosts(deployment, "prefill"), _hosts(deployment, "decode")
    pairs = [(p, d) for p in sides[0] for d in sides[1] if p != d]
    try:
        rates = await asyncio.to_thread(link_rates, deployment.probes, pairs)
    except DeploymentError as error:
        log.doubt(f"{arm}: the link between hosts was not measured: {error}.")
        return
    log.links += [(arm, number, rate, (rate.sender, rate.receiver) in pairs) for rate in rates]


async def read_clocks(deployment: Deployment, log: Log) -> list[ClockReading]:
    """Compare the clocks of other hosts with ours."""
    found = []
    for address in _hosts(deployment, "prefill", "decode", "aggregated"):
        host = deployment.probes[address]
        if host.here:
            continue
        try:
            found.append(await asyncio.to_thread(read_clock, address, host))
        except DeploymentError as error:
            log.doubt(f"The clock of {address} could not be read: {error}.")
    return found


def clock_rows(
    before: Sequence[ClockReading],
    after: Sequence[ClockReading],
    *,
    arm: str,
    number: int,
    pass_name: str,
) -> list[ClockRow]:
    """The clock of each host in a pass, from what was read before and after it."""
    return [
        ClockRow(arm=arm, round=number, pass_name=pass_name, factor=clock.factor, **asdict(clock))
        for clock in host_clocks(before, after)
    ]
