"""The value that every gate returns, and the one rule by which it is decided.

What a failed gate takes away stands in `gate_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One check: its outcome, the sentence with the numbers, and what to do if it is not PASS."""

    name: str
    outcome: Outcome
    sentence: str
    next_step: str = ""


def judge(
    name: str,
    *,
    holds: str,
    problems: Sequence[str] = (),
    unknown: Sequence[str] = (),
    next_step: str = "",
    if_unknown: str = "",
) -> Gate:
    """FAIL when there is a problem, else INCONCLUSIVE when something is not known, else PASS.

    `holds` is the sentence of a PASS; otherwise the first problem, or the first thing not known,
    with the number of further ones.
    """
    if problems:
        return Gate(name=name, outcome="FAIL", sentence=_first(problems), next_step=next_step)
    if unknown:
        return Gate(
            name=name, outcome="INCONCLUSIVE", sentence=_first(unknown), next_step=if_unknown
        )
    return Gate(name=name, outcome="PASS", sentence=holds)


def _first(reasons: Sequence[str]) -> str:
    more = len(reasons) - 1
    return reasons[0] + (f" (and {more} more like it)" if more else "")
