"""Everything that the workbench raises on purpose.

    WorkbenchError
    +-- ParameterError   a value that cannot be used; nothing was started
    +-- PlanError        a set-up that this machine or connector cannot run; nothing was started
    +-- LaunchError      a server that did not become ready; its log is named
    +-- DeploymentError  a server that ended or refused a command while it was being measured
    +-- ResultError      a result file that cannot be read or compared

A message says what was wrong, what is allowed, and one good example. It is shown to the user as is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_SHOWN_CHARACTERS = 120
_LISTED_NAMES = 20


class WorkbenchError(Exception):
    """Base of every error that the workbench raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows, and papermill prints: the sentence, not the way to it."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(WorkbenchError):
    """A parameter has a name, type or value that cannot be used."""


class PlanError(WorkbenchError):
    """The set-up is valid, but this machine or connector cannot run it."""


class LaunchError(WorkbenchError):
    """A server did not start; the message has the reason and the path of its log."""


class DeploymentError(WorkbenchError):
    """A running server ended or refused a command."""


class ResetRefusedError(DeploymentError):
    """An instance keeps its prefix cache: some of its blocks are still in use."""


class ResultError(WorkbenchError):
    """A result file cannot be read, or two results cannot be compared."""


def must_be(name: str, allowed: str, got: Any, example: Any) -> str:
    """A value out of its rule: `rounds must be an integer, got 'none' (example: -p rounds 3)`."""
    return f"{name} must be {allowed}, got {shown(got)} (example: {pasted(name, example)})"


def needs(setting: str, needed: str, got: Any, example: Any) -> str:
    """A missing partner: `workload=trace needs trace_file, got '' (example: -p trace_file a)`.

    `needed` begins with the name of the parameter that `example` is a value of.
    """
    name = needed.split("=")[0].split()[0]
    return f"{setting} needs {needed}, got {shown(got)} (example: {pasted(name, example)})"


def unused(name: str, got: Any, setting: str, example: str) -> str:
    """Two values that do not go together, and the ways out: one, if `setting` is no `name=value`.

    `fault=wrong_kv does not apply to engine=vllm. Leave out fault, or change engine (example: -p
    engine simulated -p fault wrong_kv)`. `example` keeps `name` and changes the other.
    """
    other, is_value, _ = setting.partition("=")
    change = f", or change {other}" * bool(is_value)
    return (
        f"{name}={_as_word(got)} does not apply to {setting}. Leave out {name}{change}"
        f" (example: {example})"
    )


def taken(name: str, part: str, got: Any, *, instead: str, example: Any) -> str:
    """A part of a value that the workbench sets itself; `instead` is a parameter, or empty."""
    way = f"Use -p {instead} instead" if instead else "Leave it out"
    return (
        f"{name} must not contain {part}, which the workbench sets, got {shown(got)}. {way}"
        f" (example: {pasted(name, example)})"
    )


def pasted(name: str, example: Any) -> str:
    """A good value as it can be pasted: `-p rounds 3`.

    Options of a command and `name=value` of a function are complete.
    """
    good = _as_word(example)
    if good.startswith(("-p ", f"{name}=")) or ("--" in name and good.startswith("--")):
        return good
    return f"{'' if name.startswith('-') else '-p '}{name} {shlex.quote(good)}"


def _as_word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_as_word, value))
    return f"{value:.10g}" if isinstance(value, float) else f"{value}"


def check_positive(**values: float) -> None:
    """Raises ParameterError unless all values are above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ParameterError(must_be(name, "above 0", value, f"{name}=1"))


def shown(value: Any) -> str:
    """A value in a message: a number as 24,576, else its repr, cut where it is long."""
    text = repr(value)
    if type(value) in (int, float):
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that offers the known name closest to `name`, or lists the allowed ones."""
    names = sorted(known)
    if close := get_close_matches(name, names, n=1):
        return f"did you mean {close[0]!r}?"
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return f"allowed: {', '.join(names[:_LISTED_NAMES])}{more}"
