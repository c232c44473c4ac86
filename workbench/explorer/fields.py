"""The parameters of a notebook as fields of a form: groups, help, texts, and what is wrong.

Groups are the comments in the notebook's parameters cell; everything else is in `params`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from workbench.errors import ParameterError, nearest
from workbench.hardware.machine import repository_root
from workbench.params.notebooks import NOTEBOOKS, check_params

_OTHER = "Other"
_LINE = re.compile(r"^(?:# (?P<group>.+)|(?P<name>\w+): .+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One parameter."""

    name: str
    group: str
    help: str
    default: str | bool
    """As a text for an input, or whether a box is ticked."""
    choices: tuple[str, ...] = ()


def fields_of(notebook: str) -> list[Field]:
    """The fields in the order of the notebook. Raises ParameterError for an unknown notebook."""
    if notebook not in NOTEBOOKS:
        raise ParameterError(f"unknown notebook {notebook!r}; {nearest(notebook, NOTEBOOKS)}")
    kind = NOTEBOOKS[notebook]
    hints, usual, groups = get_type_hints(kind), kind(), _groups(notebook)
    found = []
    for spec in fields(kind):
        rule, value = spec.metadata["rule"], getattr(usual, spec.name)
        found.append(
            Field(
                name=spec.name,
                group=groups.get(spec.name, _OTHER),
                help=rule.help,
                default=value if hints[spec.name] is bool else as_text(value),
                choices=rule.choices,
            )
        )
    order = list(groups)
    return sorted(found, key=lambda f: order.index(f.name) if f.name in groups else len(order))


def as_text(value: Any) -> str:
    """A value as `-p` takes it: a list with commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value))
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def checked(notebook: str, found: Sequence[Field], texts: Mapping[str, str | bool]) -> Any:
    """The parameters of a filled form. Raises ParameterError, as the notebook's check cell does."""
    usual = {field.name: field.default for field in found}
    given = {name: text for name, text in texts.items() if text != usual[name]}
    return check_params(notebook, given)


def problems(
    notebook: str, found: Sequence[Field], texts: Mapping[str, str | bool]
) -> dict[str, str]:
    """The error of each wrong value, by field; if there is none, the error of the combination.

    The error of a combination has the first field that it names as its key, or an empty key.
    """
    usual = {field.name: field.default for field in found}
    wrong = {}
    for name, text in texts.items():
        if text != usual[name]:
            try:
                check_params(notebook, {name: text})
            except ParameterError as error:
                if named_in(str(error), found) == name:  # others may depend on a second value
                    wrong[name] = str(error)
    if not wrong:
        try:
            checked(notebook, found, texts)
        except ParameterError as error:
            wrong[named_in(str(error), found)] = str(error)
    return wrong


def named_in(sentence: str, found: Sequence[Field]) -> str:
    """The field that an error names first; empty if none."""
    names = {field.name for field in found}
    return next((word for word in re.findall(r"\w+", sentence) if word in names), "")


def _groups(notebook: str) -> dict[str, str]:
    """Parameter -> group, in the order of the parameters cell; empty without the notebook."""
    path = repository_root() / "notebooks" / f"{notebook}.ipynb"
    if not path.exists():
        return {}
    cells = json.loads(path.read_text("utf-8"))["cells"]
    cell = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    group, groups = _OTHER, {}
    for line in _LINE.finditer("".join(cell["source"])):
        if line["group"]:
            group = line["group"]
        else:
            groups[line["name"]] = group
    return groups
