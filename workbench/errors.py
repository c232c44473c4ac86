"""Everything that the workbench raises on purpose.

    WorkbenchError
    +-- ParameterError   a value that cannot be used; nothing has started
    +-- PlanError        a set-up that this machine or connector cannot have; nothing has started
    +-- LaunchError      a server that did not become ready; its log is named
    +-- DeploymentError  a server that ended, or did not obey, while it was being measured
    +-- ResultError      a result file that cannot be read or compared

A message says what, where and what next: it is shown to the user as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class WorkbenchError(Exception):
    """Base of every error that the workbench raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows, and papermill prints: the sentence, not the way to it."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(WorkbenchError):
    """A parameter has a name, type or value that cannot be used."""


class PlanError(WorkbenchError):
    """The set-up is well written, but this machine or connector cannot have it."""


class LaunchError(WorkbenchError):
    """A server did not start; the message carries the reason and the path of its log."""


class DeploymentError(WorkbenchError):
    """A running server ended or refused an order."""


class ResetRefusedError(DeploymentError):
    """An instance keeps its prefix cache: some of its blocks are still in use."""


class ResultError(WorkbenchError):
    """A result file cannot be read, or two results cannot be compared."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that offers the known name closest to `name`, or lists them all."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(names)}"
