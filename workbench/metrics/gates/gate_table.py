"""What each gate takes away when it fails: one table, for every place that shows a number.

`docs/gates.md` shows it, as `python -m workbench.metrics.gates.gate_table` prints it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from workbench.metrics.gates.gate import Gate

Kind = Literal["counts", "ratios", "times", "tails", "text"]
"""What a number is: see KINDS."""

Effect = Literal["struck", "rough", "doubt"]
"""What a failed gate does to a kind of number: not to be used; use its order of magnitude; read it
with the doubt that stands beside it. The first is the worst."""

KINDS: Mapping[Kind, str] = {
    "counts": "tokens, cache hits, who served them",
    "ratios": "speed-ups and other comparisons of arms or cache states",
    "times": "medians of TTFT, TPOT and E2E, throughput",
    "tails": "p99, and single gaps between tokens (ITL, ICL)",
    "text": "whether answers are the same",
}

_WORST_FIRST: tuple[Effect, ...] = get_args(Effect)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One gate: what its failure means, and what it takes away."""

    meaning: str
    """What it means that this gate failed, for a reader who does not know it."""
    takes: Mapping[Kind, Effect]
    """Kinds that are not named stay as they are."""
    doubt: str = ""
    """What a reader of the kinds that it makes doubtful must know."""
    only_pass: str = ""
    """The pass whose numbers it spoils; empty for those of every pass."""


def _takes(*, struck: str = "", rough: str = "", doubt: str = "") -> dict[Kind, Effect]:
    said = {"struck": struck.split(), "rough": rough.split(), "doubt": doubt.split()}
    return {kind: effect for kind in KINDS for effect in _WORST_FIRST if kind in said[effect]}


_ALL = "counts ratios times tails text"
_MEASURED = "counts ratios times tails"
_TIMED = "ratios times tails"
_NOTHING: dict[Kind, Effect] = {}


def _state(name: str) -> GateRow:
    return GateRow(
        meaning=f"a pass that is called {name} did not find its prompts in that cache",
        takes=_takes(struck=_MEASURED),
        only_pass=name,
    )


GATES: Mapping[str, GateRow] = {
    "every pass ran": GateRow(
        meaning="some passes could not be measured",
        takes=_takes(doubt=_ALL),
        doubt="Some passes are missing: every number comes from the passes that ran.",
    ),
    "no failures": GateRow(
        meaning="requests failed",
        takes=_takes(struck=_TIMED, doubt="counts"),
        doubt="Requests failed: counts of tokens and hits may lack theirs.",
    ),
    "no failed transfers": GateRow(
        meaning="KV was lost on its way between instances",
        takes=_takes(struck=_MEASURED, doubt="text"),
        doubt="KV transfers failed: equal answers may come from prompts that were computed again.",
    ),
    "caches were emptied": GateRow(
        meaning="a cache that had to be emptied was not", takes=_takes(struck=_MEASURED)
    ),
    "cold was cold": GateRow(
        meaning="a pass that is called cold found its prompts in a cache",
        takes=_takes(struck=_MEASURED),
    ),
    "KV moved": GateRow(
        meaning="decode instances computed prompts themselves instead of receiving their KV",
        takes=_takes(struck=_MEASURED, doubt="text"),
        doubt="Decode instances computed prompts: equal answers do not prove transferred KV right.",
    ),
    "cached as planned": GateRow(
        meaning="requests found another share of their prompt cached than planned",
        takes=_takes(struck=_MEASURED),
    ),
    "engine-warm was engine-warm": _state("engine-warm"),
    "cross-instance was cross-instance": _state("cross-instance"),
    "store-warm was store-warm": _state("store-warm"),
    "disk-warm was disk-warm": GateRow(
        meaning="what the disk should have served came from elsewhere",
        takes=_takes(struck=_MEASURED),
        only_pass="disk-warm",
    ),
    "the ledger closes": GateRow(
        meaning="prompt tokens are missing, or came from nowhere",
        takes=_takes(struck="counts", doubt=_TIMED),
        doubt="Some prompt tokens have no known source: the cache state of times may be another.",
    ),
    "same text": GateRow(
        meaning="the caches changed what the model answers",
        takes=_takes(struck=f"{_TIMED} text", doubt="counts"),
        doubt="Answers differ: a cache hit that changes the answer is no useful hit.",
    ),
    "output counts equal": GateRow(
        meaning="the arms did not do the same work",
        takes=_takes(struck="ratios", doubt="times tails"),
        doubt="Requests generated unequal numbers of tokens: times describe different work.",
    ),
    "nothing impossible": GateRow(
        meaning="some rows have impossible values", takes=_takes(struck=_ALL)
    ),
    "answers were streamed": GateRow(
        meaning="something held answers back, so that TTFT is not the server's",
        takes=_takes(struck="tails", doubt="ratios times"),
        doubt="A stream was buffered: TTFT equals E2E there, and its ratios are withheld.",
    ),
    "cached tokens plausible": GateRow(
        meaning="answers call prompts cached that no cache can have held",
        takes=_takes(doubt="counts"),
        doubt="Answers call fresh prompts cached: their cached_tokens are not to be believed.",
    ),
    "below the ceilings": GateRow(
        meaning="rates lie above what the hardware can do", takes=_takes(struck=_MEASURED)
    ),
    "instances alike": GateRow(
        meaning="one instance was far slower than its siblings", takes=_takes(struck=_TIMED)
    ),
    "steady state": GateRow(meaning="latencies were still growing", takes=_takes(struck=_TIMED)),
    "client kept up": GateRow(
        meaning="client, servers and other programs kept the machine too busy to time it",
        takes=_takes(struck="tails", rough="times", doubt="ratios"),
        doubt="The machine was busy or the client late: times are rough. Intervals of ratios"
        " contain this noise.",
    ),
    "clock was not set": GateRow(
        meaning="the time of day was set while the kernel dated answers by it",
        takes=_takes(struck=_TIMED),
    ),
    "the log is whole": GateRow(
        meaning="lines of the log were cut", takes=_takes(struck="counts ratios")
    ),
    "registry is readable": GateRow(meaning="some claims could not be read", takes=_NOTHING),
    "rules agree with their fixtures": GateRow(
        meaning="the rules give claims with a known verdict another one",
        takes=_takes(struck=_ALL),
    ),
    "measurements ended": GateRow(meaning="some measurements did not end", takes=_NOTHING),
    "packages": GateRow(meaning="vLLM or LMCache is missing, or does not fit", takes=_NOTHING),
    "memory": GateRow(meaning="too little RAM is free", takes=_NOTHING),
    "shared memory": GateRow(meaning="/dev/shm is too small", takes=_NOTHING),
    "GPUs": GateRow(meaning="no device of the platform answers", takes=_NOTHING),
    "ports": GateRow(meaning="servers have nowhere to listen", takes=_NOTHING),
    "other programs": GateRow(
        meaning="this machine is busy with something else",
        takes=_takes(struck="tails", rough="times", doubt="ratios"),
        doubt="This machine was busy: the noise of ratios is in their intervals.",
    ),
    "loop lag": GateRow(
        meaning="timers come late",
        takes=_takes(struck="tails", rough="times", doubt="ratios"),
        doubt="This machine was busy: the noise of ratios is in their intervals.",
    ),
    "stale servers": GateRow(meaning="servers of earlier runs are still there", takes=_NOTHING),
    "smoke run": GateRow(meaning="no server could be tried", takes=_takes(struck=_ALL)),
}
"""Every gate that the workbench has, by name."""

_SMOKE = "smoke run: "


def gate_row(name: str) -> GateRow:
    """The row of a gate; one that is not known takes everything. A smoke run's are known too."""
    known = GATES.get(name.removeprefix(_SMOKE))
    return known or GateRow(meaning=f"the check “{name}” failed", takes=_takes(struck=_ALL))


def gate_doubts(failed: Iterable[str]) -> list[str]:
    """A sentence for each failed gate that makes some kinds of number doubtful."""
    return [row.doubt for row in map(gate_row, failed) if row.doubt]


def failed_names(gates: Iterable[Gate]) -> list[str]:
    """Names of the gates that failed."""
    return [gate.name for gate in gates if gate.outcome == "FAIL"]


def touching(failed: Iterable[str], passes: Collection[str]) -> list[str]:
    """Those of the failed gates that say something about these passes."""
    return [name for name in failed if gate_row(name).only_pass in ("", *passes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoil:
    """What the failed gates of a run do to one number."""

    effect: Effect | Literal[""] = ""
    """Empty where no gate touches it."""
    gates: tuple[str, ...] = ()
    """Names of the gates that do this to it."""

    @property
    def struck(self) -> bool:
        """True where the number must not be used."""
        return self.effect == "struck"

    @property
    def said(self) -> str:
        """`rough: gate “client kept up” failed`; empty where no gate touches it."""
        if not self.effect:
            return ""
        first, more = f"“{self.gates[0]}”", len(self.gates) - 1
        lead = {"struck": "not proven", "rough": "rough", "doubt": "doubtful"}[self.effect]
        return f"{lead}: gate{f's {first} and {more} more' if more else f' {first}'} failed"


def spoil(
    failed: Iterable[str],
    *kinds: Kind,
    passes: Collection[str] = (),
    interval: bool = True,
) -> Spoil:
    """What gates that failed do to a number of these kinds, the worst of all.

    `passes` names the passes that the number comes from; without them it comes from all of them.
    A doubtful ratio keeps its value because the noise is in its interval: without an `interval`
    it is rough.
    """
    does: dict[Effect, list[str]] = {}
    for name in touching(failed, passes) if passes else failed:
        row = gate_row(name)
        effects = [row.takes[kind] for kind in kinds if kind in row.takes]
        if effects:
            worst = min(effects, key=_WORST_FIRST.index)
            if worst == "doubt" and kinds == ("ratios",) and not interval:
                worst = "rough"
            does.setdefault(worst, []).append(name)
    for effect in _WORST_FIRST:
        if effect in does:
            return Spoil(effect=effect, gates=tuple(does[effect]))
    return Spoil()


_VERBS: Mapping[Effect, str] = {
    "struck": "takes away {}",
    "rough": "makes {} rough",
    "doubt": "adds a doubt to {}",
}


def taken_away(name: str) -> str:
    """`takes away tails; makes times rough; adds a doubt to ratios`; empty where nothing."""
    row = gate_row(name)
    parts = []
    for effect, verb in _VERBS.items():
        kinds = [kind for kind in KINDS if row.takes.get(kind) == effect]
        if kinds:
            everything = "all numbers and texts" if len(kinds) == len(KINDS) else _listed(kinds)
            parts.append(verb.format(everything))
    where = f" of {row.only_pass} passes" if row.only_pass and parts else ""
    return "; ".join(parts) + where


def _listed(words: list[Kind]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def as_markdown() -> str:
    """The table of `docs/gates.md`."""
    heads = ["gate", "that it failed means", *KINDS]
    rows = [heads, ["---"] * len(heads)]
    for name, row in GATES.items():
        only = f" (numbers of {row.only_pass} passes)" if row.only_pass else ""
        effects = [row.takes.get(kind, "") for kind in KINDS]
        rows.append([name, f"{row.meaning}{only}", *effects])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(as_markdown(), end="")
