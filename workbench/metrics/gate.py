"""The value that every gate returns, and the one rule by which it is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Gate", "Outcome", "judge", "meaning"]

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


_MEANINGS = {
    "every pass ran": "some passes could not be measured",
    "no failures": "requests failed",
    "no failed transfers": "KV was lost on its way between instances",
    "caches were emptied": "a cache that had to be emptied was not",
    "cold was cold": "a pass that is called cold found its prompts in a cache",
    "KV moved": "decode instances computed prompts themselves instead of receiving their KV",
    "cached as planned": "requests found another share of their prompt cached than planned",
    "disk-warm was disk-warm": "what the disk should have served came from elsewhere",
    "the ledger closes": "prompt tokens are missing, or came from nowhere",
    "same text": "the caches changed what the model answers",
    "output counts equal": "the arms did not do the same work",
    "nothing impossible": "some rows hold values that cannot be",
    "answers were streamed": "something held answers back, so that TTFT is not the server's",
    "cached tokens plausible": "answers call prompts cached that no cache can have held",
    "below the ceilings": "rates lie above what the hardware can do",
    "instances alike": "one instance was far slower than its siblings",
    "steady state": "latencies were still growing",
    "client kept up": "client, servers and other programs kept the machine too busy to time it",
}


def meaning(name: str) -> str:
    """What it means that the gate of this name failed, for a reader who does not know it."""
    if name.endswith("-warm") or name.startswith("cross-instance"):
        said = "a pass that is called {} did not find its prompts in that cache"
        return _MEANINGS.get(name) or said.format(name.partition(" ")[0])
    return _MEANINGS.get(name, f"the check “{name}” failed")


def _first(reasons: Sequence[str]) -> str:
    more = len(reasons) - 1
    return reasons[0] + (f" (and {more} more like it)" if more else "")
