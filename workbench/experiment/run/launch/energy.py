"""Energy of a launch: which devices are its own, what they use when idle, and in each pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import nan

from workbench.experiment.plan.arm import Arm
from workbench.experiment.result.finding_rows import EnergyRow
from workbench.hardware.power import Meters, Used, find_meters, watched
from workbench.serve.deployed import Deployment

IDLE_S = 2.0
"""How long idle power is measured: GPUs report a mean of about a second."""


def meters_of(arm: Arm, deployment: Deployment) -> Meters:
    """The meters of the GPUs that this arm's instances got; on a CPU, those of its packages."""
    if deployment.plan is None:
        return Meters(missing="the servers were not started here")
    platform = deployment.plan.settings.platform
    if platform == "simulated":
        return Meters(missing="simulated servers compute nothing")
    if deployment.plan.hosts:
        return Meters(missing="the servers run on hosts of a Ray cluster")
    gpus = dict.fromkeys(gpu for p in deployment.plan.instances for gpu in p.devices)
    return find_meters(platform, [*gpus])


async def idle_watts(meters: Meters) -> dict[str, float]:
    """The power of each device while the servers wait for requests, by its name."""
    if not meters.found:
        return {}
    with watched(meters.found) as used:
        await asyncio.sleep(IDLE_S)
    return {each.meter: each.watts for each in used}


def energy_rows(
    used: Sequence[Used], idle_w: dict[str, float], *, arm: str, number: int, pass_name: str
) -> list[EnergyRow]:
    """What each device used in a pass."""
    return [
        EnergyRow(
            arm=arm,
            round=number,
            pass_name=pass_name,
            meter=each.meter,
            source=each.source,
            joules=each.joules,
            seconds=each.seconds,
            idle_w=idle_w.get(each.meter, nan),
            samples=each.samples,
            counted=each.counted,
            problem=each.problem,
        )
        for each in used
    ]
