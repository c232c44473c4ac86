"""The account of a claim: what result.json and the page hold of it, see docs/claims.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.metrics.statistics import Number


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundEffect:
    """One cell of one effect: our interval and what was claimed. None is unknown."""

    name: str
    cells: int
    """The number of cells of this effect, of which this is one."""
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
    """The band that would confirm it; None is an open end."""
    confirms_to: float | None
    code: str
    noise_floor: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownNumber:
    """One number in short: the deciding cell, and the range over cells."""

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
    """A fairness check: its state, what it asks, and who decided it."""

    state: str
    check: str
    by: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSum:
    """A sum of the claim's own numbers."""

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
    """A short source for the table."""
    source: str = ""
    confirmation: str = ""
    withdrawn: str = ""
    own: bool = False
    statement: str
    says: tuple[str, ...] = ()
    """Each effect, in words and numbers."""
    conditions: str = ""
    subject: str = ""
    comparator: str = ""
    ours: str = ""
    """What we measured, in a sentence; empty if nothing was."""
    number: tuple[ShownNumber, ...] = ()
    effects: tuple[FoundEffect, ...] = ()
    measured: bool = False
    """Judged by our measurement, and not by reading."""
    by_construction: bool = False
    shown_only: bool = False
    """Our number is shown, but does not decide the verdict."""
    recipe: str = ""
    verdict: str
    """As readers see it."""
    kind: str
    """Of verdict: decides colour and shape."""
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
