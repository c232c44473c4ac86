"""Is this machine quiet enough to time anything? What a busy one means for a measurement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from workbench.hardware.machine import ProcessorLoad
from workbench.load.drive.health import Pulse
from workbench.metrics.gates.client_gate import LAG_P99_S, OTHERS_SHARE
from workbench.metrics.gates.gate import Gate, judge

WATCHED_S = 2.0

TIMING_GATES = frozenset(
    {
        *("other programs", "loop lag", "client kept up", "clock was not set"),
        *("steady state", "instances alike"),
    }
)
"""Gates that say how well a machine can time, not what it can run; those of a smoke run too."""

BUSY_MEANS = (
    "Busy means: absolute times are rough and p99 is withheld. Token counts hold, and so do ratios"
    " whose interval excludes 1."
)

_GO_ON = "end other programs, or go on with the ratios"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """What was seen while nothing of ours ran."""

    others_cpu_share: float
    """Of all cores, kept busy by other programs; NaN where it was not read."""
    loop_lag_p99_s: float
    """By how much a timer of 10 ms came late."""


async def watch_machine(watched_s: float = WATCHED_S) -> Quiet:
    """Watch the CPU of other programs, and how late our own timers come, for a moment."""
    before = ProcessorLoad.now()
    async with Pulse() as pulse:
        await asyncio.sleep(watched_s)
    health = pulse.health((), open_loop=False)
    return Quiet(
        others_cpu_share=ProcessorLoad.now().others_since(before),
        loop_lag_p99_s=health.loop_lag_p99_s,
    )


def timing_gates(seen: Quiet) -> list[Gate]:
    """Whether other programs left the CPU to us, and whether our timers were on time."""
    others, lag_s = seen.others_cpu_share, seen.loop_lag_p99_s
    used = f"Other programs use {others:.0%} of the CPU (limit {OTHERS_SHARE:.0%})"
    late = f"A timer fires {1000 * lag_s:.1f} ms late (p99, limit {1000 * LAG_P99_S:.0f} ms)"
    return [
        judge(
            "other programs",
            holds=used,
            problems=[used] if others > OTHERS_SHARE else [],
            unknown=["The CPU of other programs could not be read"] if isnan(others) else [],
            next_step=_GO_ON,
        ),
        judge(
            "loop lag",
            holds=late,
            problems=[late] if lag_s > LAG_P99_S else [],
            unknown=["No timer fired while it was watched"] if isnan(lag_s) else [],
            next_step=_GO_ON,
        ),
    ]


def quietness(gates: Sequence[Gate]) -> Literal["quiet", "busy", "not known"]:
    """What gates on timing say together."""
    outcomes = {gate.outcome for gate in gates}
    if "FAIL" in outcomes:
        return "busy"
    return "not known" if "INCONCLUSIVE" in outcomes or not gates else "quiet"
