"""The value that every gate returns, and the one rule that decides it.

`gate_table` says which numbers a failed gate affects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One check: its outcome, what it found, and what to do if it did not pass.

    `sentence` and `next_step` begin with a capital and have no final period. Of a sentence at most
    15 words (PASS) or 25 lie outside brackets, of a step 20.
    """

    name: str
    outcome: Outcome
    sentence: str
    next_step: str = ""
    arms: tuple[str, ...] = ()
    """Of a FAIL, the arms that it concerns; empty where it concerns the whole run."""


class Problem(NamedTuple):
    """A reason for a FAIL that concerns only some arms."""

    sentence: str
    arms: tuple[str, ...]


def judge(
    name: str,
    *,
    holds: str,
    problems: Sequence[str | Problem] = (),
    unknown: Sequence[str] = (),
    next_step: str = "",
    if_unknown: str = "",
) -> Gate:
    """FAIL when there is a problem, else INCONCLUSIVE when something is unknown, else PASS.

    `holds` is the sentence of a PASS. Otherwise the first problem or unknown is shown, with the
    number of further ones. A problem that is no `Problem` concerns the whole run.
    """
    if problems:
        known = [p for p in problems if isinstance(p, Problem)]
        arms = dict.fromkeys(arm for problem in known for arm in problem.arms)
        said = [p.sentence if isinstance(p, Problem) else p for p in problems]
        return Gate(
            name=name,
            outcome="FAIL",
            sentence=_first(said),
            next_step=next_step,
            arms=tuple(arms) if len(known) == len(problems) else (),
        )
    if unknown:
        return Gate(
            name=name, outcome="INCONCLUSIVE", sentence=_first(unknown), next_step=if_unknown
        )
    return Gate(name=name, outcome="PASS", sentence=holds)


def _first(reasons: Sequence[str]) -> str:
    more = len(reasons) - 1
    return reasons[0] + (f" (and {more} more case{'s' * (more > 1)})" if more else "")
