"""Faults on demand: faults.csv says how each shows, and which real incident it copies.

A fault acts from the start of a process until its end. One that strikes single requests strikes
each second one that asks for at least STRUCK_TOKENS, so that warm-ups stay whole.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from workbench.errors import ParameterError, PlanError, nearest
from workbench.serve.simulated.kv_blocks import BLOCK_TOKENS, TOKEN_BYTES, blocks_of
from workbench.topology import Topology

STRUCK_TOKENS = 4
"""Warm-ups and prefill legs ask for fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong on purpose: a row of faults.csv."""

    name: str
    acts_on: str
    """answering (decode or aggregated instances), last answering, every engine, or a role."""
    connectors: str
    """Those with which it can happen; empty for any."""
    topology: str
    """PD where it makes sense only with prefill and decode instances, else empty."""
    shows: str
    """How it can be seen from outside."""
    copies: str
    """The real incident."""


with open(Path(__file__).with_name("faults.csv"), newline="") as _rows:
    FAULTS = {row["name"]: Fault(**row) for row in csv.DictReader(_rows)}


def applies(fault: str, connector: str, topology: Topology) -> bool:
    """Whether a fault can happen in such a deployment. Raises ParameterError for no such fault."""
    if fault not in FAULTS:
        raise ParameterError(f"fault {fault!r} is not known: {nearest(fault, FAULTS)}")
    known = FAULTS[fault]
    fits = not known.connectors or connector in known.connectors.split()
    return fits and (topology.disaggregated or not known.topology)


def check_fault(fault: str, connector: str, topology: Topology) -> None:
    """Refuse a fault that cannot happen there. Raises PlanError."""
    if fault and not applies(fault, connector, topology):
        known = FAULTS[fault]
        connectors = " or ".join(known.connectors.split())
        needed = [f"connector {connectors}"] if connectors else []
        needed += ["a topology such as 1p1d"] if known.topology else []
        raise PlanError(
            f"fault {fault!r} cannot happen in {topology} with connector {connector}: it needs"
            f" {' and '.join(needed)}"
        )


def small_kv_mib(tokens: int) -> int:
    """KV space for the fault `eviction`: one and a half requests of so many tokens, whole MiB."""
    return max(1, ceil(1.5 * blocks_of(tokens) * BLOCK_TOKENS * TOKEN_BYTES / 2**20))
