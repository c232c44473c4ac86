"""What failed gates do to numbers: which are concerned, how badly, and how that is said.

The table of what each gate touches is `gate_table`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_table import (
    GRADES,
    KINDS,
    MEASURED,
    WORST_FIRST,
    Effect,
    Kind,
    failed_name,
    gate_row,
)

Failed = Mapping[str, tuple[str, ...]] | Sequence[str]
"""Failed gates by name, with the arms that each concerns: all arms where there are none."""


def failed_gates(gates: Iterable[Gate]) -> dict[str, tuple[str, ...]]:
    """The gates that failed, with the arms that each concerns."""
    return {gate.name: gate.arms for gate in gates if gate.outcome == "FAIL"}


def gate_doubts(failed: Failed) -> list[str]:
    """A sentence for each failed gate that makes some kind of number doubtful."""
    return [
        f"{listed(arms)}: {doubt}" if arms else doubt
        for name, arms in _scoped(failed).items()
        if (doubt := gate_row(name).doubt)
    ]


def touching(
    failed: Failed, passes: Collection[str] = (), arms: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The failed gates that affect these passes and arms; empty: any."""
    return {
        name: own
        for name, own in _scoped(failed).items()
        if (not passes or gate_row(name).only_pass in ("", *passes))
        and (not arms or not own or {*own} & {*arms})
    }


def of_the_run(failed: Failed) -> dict[str, tuple[str, ...]]:
    """The failed gates that concern every arm."""
    return {name: arms for name, arms in _scoped(failed).items() if not arms}


def struck_arms(failed: Failed, kind: Kind) -> dict[str, str]:
    """The arms whose numbers of this kind must not be used, with the gate that says so.

    Without gates that concern the whole run.
    """
    return {
        arm: name
        for name, arms in reversed(_scoped(failed).items())
        for arm in arms
        if gate_row(name).takes.get(kind) == "struck"
    }


def _scoped(failed: Failed) -> dict[str, tuple[str, ...]]:
    return dict(failed) if isinstance(failed, Mapping) else dict.fromkeys(failed, ())


def listed(arms: Sequence[str]) -> str:
    """`1p1d nixl and 1p2d nixl`, or how many where there are more."""
    return " and ".join(arms) if len(arms) < 3 else f"{arms[0]} and {len(arms) - 1} more arms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoil:
    """What the failed gates of a run do to one number."""

    effect: Effect | Literal[""] = ""
    """Empty where no gate affects it."""
    gates: tuple[str, ...] = ()
    """Names of the gates that have this effect."""

    @property
    def struck(self) -> bool:
        """True where the number must not be used."""
        return self.effect == "struck"

    @property
    def said(self) -> str:
        """`rough: client did not keep up`; empty where no gate affects it."""
        return f"{GRADES[self.effect]}: {self.why}" if self.effect else ""

    @property
    def why(self) -> str:
        """`client did not keep up, and 1 more gate failed`; empty where no gate affects it."""
        more = len(self.gates) - 1
        also = f", and {more} more gate{'s' * (more > 1)} failed" if more > 0 else ""
        return f"{failed_name(self.gates[0])}{also}" if self.gates else ""


def spoil(
    failed: Failed,
    *kinds: Kind,
    passes: Collection[str] = (),
    arms: Collection[str] = (),
    interval: bool = True,
) -> Spoil:
    """The worst effect of failed gates on a number of these kinds.

    `passes` and `arms` say where the number comes from, all of them by default. A doubtful ratio
    keeps its value because its interval includes the noise: without an `interval` it is rough.
    """
    does: dict[Effect, list[str]] = {}
    for name in touching(failed, passes, arms):
        row = gate_row(name)
        effects = [row.takes[kind] for kind in kinds if kind in row.takes]
        if effects:
            worst = min(effects, key=WORST_FIRST.index)
            if worst == "doubt" and kinds == ("ratios",) and not interval:
                worst = "rough"
            does.setdefault(worst, []).append(name)
    for effect in WORST_FIRST:
        if effect in does:
            return Spoil(effect=effect, gates=tuple(does[effect]))
    return Spoil()


def told(sentence: str, does: Spoil) -> str:
    """A sentence about numbers, led by what failed gates do to them if that is more than a doubt.

    `Rough (client did not keep up): throughput peaked at 5 req/s.`
    """
    if does.effect not in ("struck", "rough"):
        return sentence
    return f"{GRADES[does.effect].capitalize()} ({does.why}): {sentence}"


_TOLD: Mapping[Kind, list[str]] = {
    "counts": ["token counts"],
    "ratios": ["ratios"],
    "times": ["absolute times"],
    "tails": ["p99", "ITL"],
    "text": ["the text comparison"],
}
_FORMS: Mapping[Effect, tuple[str, str]] = {
    "struck": ("do not use {}", "or"),
    "rough": ("{} are rough", "and"),
    "doubt": ("use {} with caution", "and"),
}


def taken_away(name: str, arms: Sequence[str] = ()) -> str:
    """`do not use p99 or ITL; absolute times are rough; use ratios with caution`, or nothing.

    `arms` are those that it concerns.
    """
    row = gate_row(name)
    of_arms = f" of {listed(arms)}" if arms else ""
    where = f"{row.only_pass} passes{of_arms}" if row.only_pass else of_arms[4:] or "this run"
    parts = []
    for effect, (form, conjunction) in _FORMS.items():
        kinds = [kind for kind in KINDS if row.takes.get(kind) == effect]
        *first, last = [word for kind in kinds for word in _TOLD[kind]] or [""]
        told = (f"{', '.join(first)} {conjunction} {last}" if first else last) + of_arms
        if len(kinds) >= len(MEASURED.split()):
            told = f"any {'number or text' if 'text' in kinds else 'number'} of {where}"
        if kinds:
            parts.append(form.format(told))
    return "; ".join(parts)
