"""Templates of this room, filled; how a value of a table is written there."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader

from workbench.report.numbers import UNKNOWN, duration, interval, moment, quantity


def fill(template: str, **context: Any) -> str:
    """A template, filled; every value that is text is escaped."""
    environment = Environment(
        loader=PackageLoader("workbench.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=duration, interval=interval, labelled=labelled, moment=moment, plain=_plain,
        quantity=quantity,
    )  # fmt: skip
    return environment.get_template(template).render(**context)


def labelled(svg: str, alt: str) -> str:
    """A drawing with its alternative text, as an image for screen readers."""
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def _plain(value: Any) -> str:
    """A parameter or fact exactly as it is, in words a reader of no JSON understands."""
    match value:
        case None | "":
            return "none"
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case float() if value != value:
            return UNKNOWN
        case list() | tuple():
            return ", ".join(_plain(item) for item in value) or "none"
        case _:
            return json.dumps(value, ensure_ascii=False, default=str)
