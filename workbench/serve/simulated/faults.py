"""Fault injection: faults.csv lists the symptom of each fault and the real incident it copies.

A fault is active for the whole life of a process. One that affects single requests affects every
second one of at least STRUCK_TOKENS output tokens, so that warm-ups are unaffected.
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
"""Warm-ups and prefill legs have fewer output tokens."""
SHORT_TIMEOUT_S = 1.0
"""How long a transfer may take with the fault `transfer_timeout`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One injected fault: a row of faults.csv."""

    name: str
    acts_on: str
    """answering (decode or aggregated instances), last answering, every engine, or a role."""
    connectors: str
    """Connectors with which it can happen; empty for any."""
    topology: str
    """PD if it needs prefill and decode instances, else empty."""
    shows: str
    """Its symptom."""
    copies: str
    """The real incident."""


with open(Path(__file__).with_name("faults.csv"), newline="") as _rows:
    FAULTS = {row["name"]: Fault(**row) for row in csv.DictReader(_rows)}


def applies(fault: str, connector: str, topology: Topology) -> bool:
    """Whether a fault can happen in this deployment. Raises ParameterError if it is unknown."""
    if fault not in FAULTS:
        raise ParameterError(f"unknown fault {fault!r}; {nearest(fault, FAULTS)}")
    known = FAULTS[fault]
    fits = not known.connectors or connector in known.connectors.split()
    return fits and (topology.disaggregated or not known.topology)


def check_fault(fault: str, connector: str, topology: Topology) -> None:
    """Refuse a fault that cannot happen in this deployment. Raises PlanError."""
    if fault and not applies(fault, connector, topology):
        known = FAULTS[fault]
        moves = known.connectors.split() or [connector]
        example = f"-p fault {fault} -p connector {moves[0]} -p topology 1p1d"
        raise PlanError(
            f"fault={fault} cannot happen with topology={topology} and connector={connector}"
            f" (example: {example})"
        )


def small_kv_mib(tokens: int) -> int:
    """KV cache size for the fault `eviction`: 1.5 requests of this many tokens, in MiB."""
    return max(1, ceil(1.5 * blocks_of(tokens) * BLOCK_TOKENS * TOKEN_BYTES / 2**20))
