"""The readiness list of a machine: what is ready, what is not, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from workbench.experiment.result.result import Result
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_table import lead_of

_MARKS = {"FAIL": ("▲", "bad", "#b3261e"), "INCONCLUSIVE": ("◆", "unsure", "#8a5a00"),
          "PASS": ("●", "ok", "#0b7a4b")}  # fmt: skip
"""Shape, colour of the page, and the same colour elsewhere; what needs a hand comes first."""


_SMOKE = "smoke run: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """A list that shows itself when it is the last expression of a notebook cell."""

    html: str
    text: str

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}


def readiness(result: Result) -> Readiness:
    """Both questions of an environment check with their answers, gates and next steps."""
    from workbench.experiment.environment import about_running  # it loads all that runs servers

    running = about_running(result.run.gates)
    timing = [gate for gate in result.run.gates if gate not in running]
    html, text = [], []
    for question, gates in zip(result.run.questions, (running, timing), strict=True):
        head = f"{question['question']} {question['answer'].capitalize()}."
        items = []
        for gate in _shown(gates):
            (mark, name, colour), said = _MARKS[gate.outcome], _said(gate)
            items.append(
                f'<li style="margin:4px 0"><span style="color:var(--{name},{colour})">{mark}</span>'
                f" <b>{escape(_lead(gate))}</b> {escape(said)}</li>"
            )
            text.append(f"{mark} {_lead(gate)} {said}")
        listed = f'<ul style="list-style:none;padding-left:0">{"".join(items)}</ul>'
        html.append(f"<p><b>{escape(head)}</b></p>{listed}")
        text.insert(len(text) - len(items), head)
    if step := result.run.next_step:
        first, papermill, command = step.partition("papermill ")
        code = f"<code>{escape(papermill + command)}</code>" if command else ""
        html.append(f"<p><b>Next step:</b> {escape(first)}{code}</p>")
        text.append(f"Next step: {step}")
    return Readiness(html=f"<div>{''.join(html)}</div>", text="\n".join(text))


def _shown(gates: Sequence[Gate]) -> list[Gate]:
    """The gates, worst first; those of the smoke run that passed become one line."""
    passed = [g for g in gates if g.name.startswith(_SMOKE) and g.outcome == "PASS"]
    shown = [gate for gate in gates if gate not in passed]
    if passed:
        gates_passed = f"{len(passed)} gate{'s' * (len(passed) > 1)} passed"
        sentence = f"{gates_passed} on a real 1p1d deployment"
        shown.append(Gate(name="smoke run", outcome="PASS", sentence=sentence))
    return sorted(shown, key=lambda gate: list(_MARKS).index(gate.outcome))


def _lead(gate: Gate) -> str:
    """The gate's outcome as a name; the line that stands for many gates is called `Smoke run`."""
    return "Smoke run:" if gate.name == "smoke run" else lead_of(gate).rstrip()


def _said(gate: Gate) -> str:
    """The first line of a gate's sentence, and what to do where it did not pass."""
    said = gate.sentence.partition("\n")[0].rstrip(".")
    step = gate.next_step if gate.outcome != "PASS" else ""
    return f"{said}. Next: {step}" if step else said
