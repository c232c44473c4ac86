"""How an executed notebook ended, and the result that it carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nbconvert.filters import strip_ansi

__all__ = ["RESULT_MIME", "Failure", "cut_off", "failure_of", "result_of", "status_of"]

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
