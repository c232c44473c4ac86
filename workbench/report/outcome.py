"""How an executed notebook ended, and the result that it contains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nbconvert.filters import strip_ansi

from workbench.errors import ResultError
from workbench.experiment.result.facts import RunFacts, RunOutcome
from workbench.experiment.result.result import MIME, Result, load_result
from workbench.experiment.result.result_file import read_facts
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_effects import taken_away
from workbench.metrics.gates.gate_table import failed_name


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


def result_of(notebook: Any, source: str = "the notebook") -> Result | None:
    """The last result among the notebook's outputs; None without one.

    Raises ResultError for one that cannot be read.
    """
    found = None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found = output.get("data", {}).get(MIME, found)
    return None if found is None else Result.from_bundle(found, f"the result in {source}")


def folder_of(result: Result, notebook: Path) -> Path | None:
    """The folder with the rows of a result: the run's own, else the notebook's.

    None where neither has them: a later run may have taken the folder.
    """
    for folder in (result.folder, notebook.parent):
        try:
            if read_facts(folder / "result.json").started_at == result.run.started_at:
                return folder
        except (OSError, ValueError, ResultError):  # no run, or a file that is cut off
            continue
    return None


def with_frames(result: Result, notebook: Path) -> Result:
    """The result with its rows, where they can be found."""
    folder = None if result.frames else folder_of(result, notebook)
    return result if folder is None else replace(load_result(folder), run=result.run)


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


def status_of(notebook: Any, facts: RunFacts | None) -> str:
    """`started`, `success`, `failed`, `cancelled`, or empty where nothing says so.

    An exception outranks what the result said before it.
    """
    failure = failure_of(notebook)
    if failure is not None:
        return "cancelled" if failure.name == "KeyboardInterrupt" else "failed"
    run = notebook.metadata.get("papermill", {})
    if run.get("exception") or cut_off(notebook):
        return "failed"
    if facts is not None:
        return facts.status
    return "success" if run.get("end_time") else ""


def _unended(metadata: Any) -> bool:
    replied = "shell.execute_reply" in metadata.get("execution", {"shell.execute_reply": ""})
    return not replied or metadata.get("papermill", {}).get("status") in ("pending", "running")


def gates_line(gates: Sequence[Gate]) -> str:
    """`13 of 14 gates passed, 1 undecided`; empty where there are none."""
    if [gate.outcome for gate in gates] == ["PASS"]:
        return "1 of 1 gates passed"
    counted = Counter(gate.outcome for gate in gates)
    others = ((counted["FAIL"], "failed"), (counted["INCONCLUSIVE"], "undecided"))
    parts = [f"{counted['PASS']} of {len(gates)} gates passed"]
    parts += [f"{number} {word}" for number, word in others if number]
    return ", ".join(parts) if gates else ""


def worst_outcome(gates: Sequence[Gate]) -> str:
    """`FAIL` if any gate failed, else `INCONCLUSIVE`, else `PASS`; empty without gates."""
    outcomes = {gate.outcome for gate in gates}
    return next((name for name in ("FAIL", "INCONCLUSIVE", "PASS") if name in outcomes), "")


_ENDED = {
    "failed": RunOutcome(word="run failed", severity="bad", why="The run ended with an error."),
    "cancelled": RunOutcome(word="cancelled", severity="unsure", why="The run was cancelled."),
    "started": RunOutcome(word="unfinished", severity="unsure", why="The run has not finished."),
    "unreadable": RunOutcome(
        word="unreadable", severity="unsure", why="Its result cannot be read."
    ),
}


def outcome_of(facts: RunFacts | None, status: str = "") -> RunOutcome:
    """The outcome of a run; `status` outranks the one in its facts, which may be missing.

    A result's own words in `facts.outcome` are used only when the run succeeded.
    """
    status = status or (facts.status if facts else "unreadable")
    if status == "started" and facts and facts.launches:
        done = f"{facts.launches.measured} of {facts.launches.planned} launches"
        return RunOutcome(
            word=f"partial: {done}", severity="unsure", why=f"The run is not finished: {done}."
        )
    if status != "success":
        return _ENDED[status]
    unchecked = RunOutcome(word="not checked", severity="unsure", why="No gate was evaluated.")
    if facts is None:
        return unchecked
    if facts.outcome:
        return facts.outcome
    said = [
        f"{failed_name(name)}: {taken_away(name, arms) or 'no number depends on it'}"
        for name, arms in facts.failed_gates.items()
    ]
    if facts.unproven:
        return RunOutcome(word="not valid", severity="bad", why=f"{'. '.join(said)}.")
    if said:
        return RunOutcome(word="gates failed", severity="unsure", why=f"{'. '.join(said)}.")
    open_ = sum(gate.outcome != "PASS" for gate in facts.gates)
    if open_:
        why = f"{open_} of {len(facts.gates)} gates are undecided."
        return RunOutcome(word="gates undecided", severity="unsure", why=why)
    return RunOutcome(word="gates passed", severity="ok") if facts.gates else unchecked
