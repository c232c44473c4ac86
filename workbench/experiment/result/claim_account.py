"""What result.json and the page show of a claim; see docs/claims.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.metrics.statistics import Number

SECTIONS = {
    "measured": "Measured here",
    "source": "Contradicted or without evidence",
    "unfair": "Not comparable",
    "untested": "Not tested",
    "own": "Our own control claims",
}
"""The parts of the claim table, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundEffect:
    """One cell of one effect: our interval and what was claimed. None is unknown."""

    name: str
    cells: int
    """How many cells this effect has."""
    cell: str
    quantifier: str
    unit: str
    estimate: float | None
    low: float | None
    high: float | None
    runs: int
    exact: bool
    confidence: float
    claimed: str
    value: Number
    confirms_from: float | None
    """The range that confirms the claim; None is an open end."""
    confirms_to: float | None
    code: str
    noise_floor: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownNumber:
    """One number in short: the cell that decides, and the range of all cells."""

    name: str
    estimate: float | None
    low: float | None
    high: float | None
    unit: str
    exact: bool
    kind: str
    """measured, or recomputed from the claim's own table."""
    cells: int = 1
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCheck:
    """A fairness check: its state, its text, and who answered it."""

    state: str
    check: str
    by: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSum:
    """Arithmetic on the claim's own numbers."""

    sentence: str
    holds: bool
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCurve:
    """A figure of the claim's panel; points have series, x, value, low and high."""

    title: str
    x: str
    y: str
    points: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimAccount:
    """Everything that a report shows of one claim."""

    id: str
    group: str = ""
    title: str = ""
    """The source in short, for the table."""
    source: str = ""
    confirmation: str = ""
    withdrawn: str = ""
    own: bool = False
    statement: str
    says: tuple[str, ...] = ()
    """Each effect as claimed, with its number."""
    conditions: str = ""
    subject: str = ""
    comparator: str = ""
    ours: str = ""
    """What we measured, in a sentence; empty if nothing."""
    number: tuple[ShownNumber, ...] = ()
    effects: tuple[FoundEffect, ...] = ()
    measured: bool = False
    """Our measurement decides the verdict, not the source."""
    by_construction: bool = False
    shown_only: bool = False
    """We have a number that does not decide the verdict."""
    recipe: str = ""
    verdict: str
    """The word that readers see."""
    kind: str
    """Decides colour and mark."""
    code: str = ""
    gate: str = ""
    tier: str = ""
    reason: str = ""
    needed: str = ""
    skipped: str = ""
    """Why it was not measured; empty if it was."""
    checked: tuple[ShownCheck, ...] = ()
    sums: tuple[ShownSum, ...] = ()
    curves: tuple[ShownCurve, ...] = ()
    doubts: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    note: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def section(self) -> str:
        """Its part of the table, a key of SECTIONS."""
        if self.own or self.measured:
            return "own" if self.own else "measured"
        return {"not-comparable": "unfair", "not-tested": "untested"}.get(self.kind, "source")
