"""Every gate, and what its failure does to each kind of number; `gate_effects` applies it.

`docs/metrics.md` shows it, as `python -m workbench.metrics.gates.gate_table` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from workbench.metrics.gates.gate import Gate

Kind = Literal["counts", "ratios", "times", "tails", "text"]
"""What a number is: see KINDS."""

Effect = Literal["struck", "rough", "doubt"]
"""What a failed gate does to a kind of number: do not use it; use its order of magnitude; use it
with the doubt in mind. The first is the worst."""

GRADES: Mapping[Effect, str] = {
    "struck": "not valid",
    "rough": "rough",
    "doubt": "use with caution",
}
"""The word for each effect beside a number."""

KINDS: Mapping[Kind, str] = {
    "counts": "prompt tokens and cache hits, by source",
    "ratios": "speed-ups and other comparisons of arms or cache states",
    "times": "medians of TTFT, TPOT and E2E, and throughput",
    "tails": "p99, and gaps between tokens (ITL) or chunks (ICL)",
    "text": "whether the generated text is equal",
}

WORST_FIRST: tuple[Effect, ...] = get_args(Effect)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One gate: what its failure means, and which numbers it affects."""

    shown: str
    """Its name on a line that says PASS."""
    failed_name: str
    """Its name on a line that says FAIL, and as the reason why a number cannot be used."""
    meaning: str
    """What it means that this gate failed, in at most 8 words that fit a headline."""
    takes: Mapping[Kind, Effect]
    """The effect on each kind of number; kinds that are missing stay as they are."""
    doubt: str = ""
    """The sentence under "doubts" where a kind of number becomes doubtful."""
    only_pass: str = ""
    """The pass whose numbers it affects; empty for those of every pass."""


def _takes(*, struck: str = "", rough: str = "", doubt: str = "") -> dict[Kind, Effect]:
    said = {"struck": struck.split(), "rough": rough.split(), "doubt": doubt.split()}
    return {kind: effect for kind in KINDS for effect in WORST_FIRST if kind in said[effect]}


_ALL = "counts ratios times tails text"
MEASURED = "counts ratios times tails"
_TIMED = "ratios times tails"
_NOTHING: dict[Kind, Effect] = {}


_BUSY = _takes(struck="tails", rough="times", doubt="ratios")


def _state(name: str, meaning: str = "") -> GateRow:
    return GateRow(
        shown=f"{name} state was reached",
        failed_name=f"{name} state was not reached",
        meaning=meaning or f"prompts of the {name} pass missed that cache",
        takes=_takes(struck=MEASURED),
        only_pass=name,
    )


GATES: Mapping[str, GateRow] = {
    "every pass ran": GateRow(
        shown="every pass ran",
        failed_name="some passes did not run",
        meaning="some passes were not measured",
        takes=_takes(doubt=_ALL),
        doubt="Some passes are missing. Every number comes from the passes that ran.",
    ),
    "no failures": GateRow(
        shown="requests succeeded",
        failed_name="requests failed",
        meaning="too many requests failed",
        takes=_takes(struck=_TIMED, doubt="counts"),
        doubt="Requests failed. Token and hit counts may not include them.",
    ),
    "no failed transfers": GateRow(
        shown="KV transfers succeeded",
        failed_name="KV transfers failed",
        meaning="KV was lost between instances",
        takes=_takes(struck=MEASURED, doubt="text"),
        doubt="KV transfers failed. Equal text may come from recomputed prompts.",
    ),
    "caches were emptied": GateRow(
        shown="caches were emptied",
        failed_name="caches were not emptied",
        meaning="a cache reset failed",
        takes=_takes(struck=MEASURED),
    ),
    "cold was cold": GateRow(
        shown="cold passes were cold",
        failed_name="cold passes were not cold",
        meaning="prompts of a cold pass hit a cache",
        takes=_takes(struck=MEASURED),
    ),
    "KV moved": GateRow(
        shown="KV was transferred",
        failed_name="KV was not transferred",
        meaning="decode instances prefilled instead of fetching KV",
        takes=_takes(struck=MEASURED, doubt="text"),
        doubt="Decode instances prefilled prompts. Equal text does not show that transferred KV is"
        " intact.",
    ),
    "cached as planned": GateRow(
        shown="requests hit the planned prefix",
        failed_name="requests missed the planned prefix",
        meaning="requests missed the planned cached prefix",
        takes=_takes(struck=MEASURED),
    ),
    "engine-warm was engine-warm": _state("engine-warm"),
    "cross-instance was cross-instance": _state("cross-instance"),
    "store-warm was store-warm": _state("store-warm"),
    "offload-warm was offload-warm": _state("offload-warm"),
    "disk-warm was disk-warm": _state("disk-warm", "the disk did not serve the hits"),
    "remote-warm was remote-warm": _state("remote-warm", "the remote tier did not serve the hits"),
    "tiers kept what was sent": GateRow(
        shown="store tiers kept every chunk",
        failed_name="store tiers lost chunks",
        meaning="a tier lost chunks that LMCache stored",
        takes=_takes(doubt=MEASURED),
        doubt="A store tier lost chunks. Later passes may compute what it should have served.",
    ),
    "the ledger closes": GateRow(
        shown="ledger closes",
        failed_name="ledger has unexplained tokens",
        meaning="some prompt tokens are unexplained",
        takes=_takes(struck="counts", doubt=_TIMED),
        doubt="Some prompt tokens are unexplained. Times may belong to another cache state.",
    ),
    "same text": GateRow(
        shown="responses are equal",
        failed_name="responses differ",
        meaning="the cache changed the generated text",
        takes=_takes(struck=f"{_TIMED} text", doubt="counts"),
        doubt="Responses differ. A cache hit that changes the output is not useful.",
    ),
    "output counts equal": GateRow(
        shown="output token counts are equal",
        failed_name="output token counts differ",
        meaning="passes generated different numbers of tokens",
        takes=_takes(struck="ratios", doubt="times tails"),
        doubt="Passes generated different numbers of tokens, so their times describe unequal work.",
    ),
    "nothing impossible": GateRow(
        shown="no impossible values",
        failed_name="impossible values",
        meaning="some rows have impossible values",
        takes=_takes(struck=_ALL),
    ),
    "answers were streamed": GateRow(
        shown="responses were streamed",
        failed_name="responses were buffered",
        meaning="the token stream was buffered",
        takes=_takes(struck="tails", doubt="ratios times"),
        doubt="The stream of an arm was buffered. Its TTFT equals E2E, so its ratios are withheld.",
    ),
    "cached tokens plausible": GateRow(
        shown="reported cached tokens are plausible",
        failed_name="reported cached tokens are not plausible",
        meaning="responses report impossible cached tokens",
        takes=_takes(doubt="counts"),
        doubt="Responses report tokens of new prompts as cached. Ignore their cached_tokens.",
    ),
    "below the ceilings": GateRow(
        shown="rates are below the hardware limit",
        failed_name="rates exceed the hardware limit",
        meaning="rates exceed the hardware limit",
        takes=_takes(struck=MEASURED),
    ),
    "instances alike": GateRow(
        shown="instances are equally fast",
        failed_name="one instance was much slower",
        meaning="one instance was far slower than its siblings",
        takes=_takes(struck=_TIMED),
    ),
    "steady state": GateRow(
        shown="latency was steady",
        failed_name="latency kept growing",
        meaning="latencies kept growing",
        takes=_takes(struck=_TIMED),
    ),
    "client kept up": GateRow(
        shown="client kept up",
        failed_name="client did not keep up",
        meaning="the client fell behind, or the machine was busy",
        takes=_BUSY,
        doubt="The machine was busy or the client late. Absolute times are rough; use ratios with"
        " caution.",
    ),
    "clock was not set": GateRow(
        shown="system clock was not adjusted",
        failed_name="system clock was adjusted",
        meaning="the system clock was adjusted during the run",
        takes=_takes(struck=_TIMED),
    ),
    "the log is whole": GateRow(
        shown="log is complete",
        failed_name="log is incomplete",
        meaning="lines of the log were cut off",
        takes=_takes(struck="counts ratios"),
    ),
    "registry is readable": GateRow(
        shown="every claim could be read",
        failed_name="some claims could not be read",
        meaning="some claims could not be read",
        takes=_NOTHING,
    ),
    "rules agree with their fixtures": GateRow(
        shown="self-test of the verdict rules",
        failed_name="the verdict rules failed their self-test",
        meaning="rules gave known claims a wrong verdict",
        takes=_takes(struck=_ALL),
    ),
    "measurements ended": GateRow(
        shown="measurements finished",
        failed_name="some measurements did not finish",
        meaning="some measurements did not finish",
        takes=_NOTHING,
    ),
    "packages": GateRow(
        shown="packages fit together",
        failed_name="packages are missing or incompatible",
        meaning="vLLM or LMCache is missing or incompatible",
        takes=_NOTHING,
    ),
    "memory": GateRow(
        shown="enough RAM is free",
        failed_name="too little RAM is free",
        meaning="too little RAM is free",
        takes=_NOTHING,
    ),
    "shared memory": GateRow(
        shown="shared memory is large enough",
        failed_name="shared memory is too small",
        meaning="/dev/shm is too small",
        takes=_NOTHING,
    ),
    "GPUs": GateRow(
        shown="GPUs respond",
        failed_name="no GPU responds",
        meaning="no GPU of the platform responds",
        takes=_NOTHING,
    ),
    "ports": GateRow(
        shown="enough ports are free",
        failed_name="too few ports are free",
        meaning="too few ports are free",
        takes=_NOTHING,
    ),
    "other programs": GateRow(
        shown="CPU is idle",
        failed_name="other programs keep the machine busy",
        meaning="other programs keep this machine busy",
        takes=_BUSY,
        doubt="This machine was busy. Absolute times are rough; use ratios with caution.",
    ),
    "loop lag": GateRow(
        shown="timers fire on time",
        failed_name="timers fire late",
        meaning="timers fire late",
        takes=_BUSY,
        doubt="This machine was busy. Absolute times are rough; use ratios with caution.",
    ),
    "stale servers": GateRow(
        shown="no stale servers",
        failed_name="stale servers still run",
        meaning="servers of earlier runs still run",
        takes=_NOTHING,
    ),
    "smoke run": GateRow(
        shown="smoke run worked",
        failed_name="smoke run failed",
        meaning="no server could be started",
        takes=_takes(struck=_ALL),
    ),
}
"""Every gate that the workbench has, by name."""

_SMOKE = "smoke run: "


def gate_row(name: str) -> GateRow:
    """The row of a gate, of a smoke run too; an unknown gate affects every number."""
    known = GATES.get(name.removeprefix(_SMOKE))
    failed = f"gate “{name}” failed"
    return known or GateRow(
        shown=name, failed_name=failed, meaning=failed, takes=_takes(struck=_ALL)
    )


def failed_name(name: str) -> str:
    """`client did not keep up`: why a number cannot be used where the gate `name` failed."""
    smoke = _SMOKE if name.startswith(_SMOKE) else ""
    return smoke + gate_row(name).failed_name


def lead_of(gate: Gate) -> str:
    """What precedes a gate's sentence on a line: its outcome as a name.

    `Client kept up: ` of a PASS, `Client did not keep up: ` of a FAIL, `Client kept up? ` of an
    INCONCLUSIVE.
    """
    smoke = _SMOKE if gate.name.startswith(_SMOKE) else ""
    name = smoke + gate_row(gate.name).shown
    text = {
        "PASS": f"{name}: ",
        "FAIL": f"{failed_name(gate.name)}: ",
        "INCONCLUSIVE": f"{name}? ",
    }[gate.outcome]
    return f"{text[0].upper()}{text[1:]}"


def as_markdown() -> str:
    """The table of `docs/metrics.md`."""
    heads = ["gate", "FAIL means", *KINDS]
    rows = [heads, ["---"] * len(heads)]
    for name, row in GATES.items():
        only = f" (affects {row.only_pass} passes)" if row.only_pass else ""
        effects = [row.takes.get(kind, "") for kind in KINDS]
        rows.append([name, f"{row.meaning}{only}", *effects])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(as_markdown(), end="")
