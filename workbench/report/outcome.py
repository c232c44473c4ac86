"""How an executed notebook ended, and the result that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nbconvert.filters import strip_ansi

from workbench.metrics.gates.gate_table import failed_names, spoil, taken_away

__all__ = [
    "RESULT_MIME",
    "Failure",
    "RunOutcome",
    "Severity",
    "cut_off",
    "failure_of",
    "outcome_of",
    "result_of",
    "status_of",
]

RESULT_MIME = "application/vnd.workbench.result+json"
"""An output of this type holds the result of the run, with its folder under `folder`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The exception that ended a notebook."""

    cell: int
    """Its position among the notebook's cells."""
    name: str
    sentence: str
    """The first line of its message."""
    rest: str
    """The lines of its message after the first."""


def result_of(notebook: Any) -> dict[str, Any] | None:
    """The result that the notebook carries in an output, the last one; None where it has none."""
    found = None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found = output.get("data", {}).get(RESULT_MIME, found)
    return found if isinstance(found, dict) else None


def failure_of(notebook: Any) -> Failure | None:
    """The exception that ended the notebook, or None. A cell may be tagged to raise one."""
    for position, cell in enumerate(notebook.cells):
        allowed = "raises-exception" in cell.metadata.get("tags", [])
        for output in cell.get("outputs", []):
            if output.output_type == "error" and not allowed:
                sentence, _, rest = strip_ansi(output.evalue).strip().partition("\n")
                return Failure(
                    cell=position, name=output.ename, sentence=sentence, rest=rest.strip("\n")
                )
    return None


def cut_off(notebook: Any) -> bool:
    """True when papermill's copy has a cell that did not end.

    A kernel that dies leaves no exception in the copy, only a cell without its reply; a papermill
    that is killed leaves cells that are still running or pending.
    """
    return any(_unended(cell.metadata) for cell in notebook.cells if cell.cell_type == "code")


def status_of(notebook: Any, result: dict[str, Any]) -> str:
    """`started`, `success`, `failed`, `cancelled`, or empty where nothing says so.

    An exception outranks what the result said before it.
    """
    failure = failure_of(notebook)
    if failure is not None:
        return "cancelled" if failure.name == "KeyboardInterrupt" else "failed"
    run = notebook.metadata.get("papermill", {})
    if run.get("exception") or cut_off(notebook):
        return "failed"
    return str(result.get("status") or ("success" if run.get("end_time") else ""))


def _unended(metadata: Any) -> bool:
    replied = "shell.execute_reply" in metadata.get("execution", {"shell.execute_reply": ""})
    return not replied or metadata.get("papermill", {}).get("status") in ("pending", "running")


Severity = Literal["ok", "unsure", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run came out, in the words that page, index and terminal share."""

    word: str
    """`proven`, `proven in part`, `not proven`, `not checked`, `not carried out`, ..."""
    severity: Severity
    why: str = ""
    """One sentence; empty where every check holds."""

    @property
    def mark(self) -> str:
        """The shape that stands before the word, for readers who cannot tell colours."""
        return {"ok": "●", "unsure": "◆", "bad": "▲"}[self.severity]


_ENDED: dict[str, tuple[str, Severity, str]] = {
    "failed": ("not carried out", "bad", "The run ended with an error."),
    "cancelled": ("cancelled", "unsure", "The run was stopped."),
    "started": ("unfinished", "unsure", "The run began and has not ended."),
    "unreadable": ("unreadable", "unsure", "Its result cannot be read."),
}


def outcome_of(facts: Mapping[str, Any], status: str = "") -> RunOutcome:
    """The outcome of a run from its result.json; `status` outranks the one that stands there.

    A result may bring its own words in `outcome`, a mapping of `word`, `severity` and `why`, as
    `environment_check` does (ready; ready, busy; not ready). They hold where it was carried out.
    """
    status = status or str(facts.get("status") or "unreadable")
    own = facts.get("outcome")
    if isinstance(own, Mapping) and own.get("word") and status == "success":
        severity: Severity = own["severity"] if own.get("severity") in ("ok", "bad") else "unsure"
        return RunOutcome(word=str(own["word"]), severity=severity, why=str(own.get("why") or ""))
    if status != "success":
        word, how_bad, why = _ENDED.get(status, (status, "unsure", ""))
        return RunOutcome(word=word, severity=how_bad, why=why)
    gates = [gate for gate in facts.get("gates") or [] if isinstance(gate, Mapping)]
    failed = failed_names(gates)
    said = [f"{name}: {taken_away(name) or 'no number rests on it'}" for name in failed]
    if facts.get("unproven", spoil(failed, "ratios").struck):
        return RunOutcome(word="not proven", severity="bad", why=f"{'. '.join(said)}.")
    if said:
        return RunOutcome(word="proven in part", severity="unsure", why=f"{'. '.join(said)}.")
    open_ = sum(gate.get("outcome") != "PASS" for gate in gates)
    if open_:
        why = f"{open_} of {len(gates)} checks could not be decided."
        return RunOutcome(word="proven in part", severity="unsure", why=why)
    if not gates:
        return RunOutcome(word="not checked", severity="unsure", why="No check was made.")
    return RunOutcome(word="proven", severity="ok")
