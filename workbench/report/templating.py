"""Templates of this room, filled; how a value of a table is written there."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader

from workbench.experiment.result.facts import ArmFacts
from workbench.report.numbers import UNKNOWN, duration, interval, moment, quantity

_POINTER = re.compile("see doubts|use with caution")


def fill(template: str, **context: Any) -> str:
    """A template, filled; every value that is text is escaped."""
    environment = Environment(
        loader=PackageLoader("workbench.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        distinct=_distinct, duration=duration, interval=interval, labelled=labelled, linked=linked,
        moment=moment, plain=_plain, quantity=quantity, size=_size,
    )  # fmt: skip
    return environment.get_template(template).render(**context)


def linked(text: str, doubts: str) -> str:
    """Escaped text whose pointer to the doubts links to the heading with that id, if any."""
    link = rf'<a href="#{doubts}">\g<0></a>'
    return _POINTER.sub(link, escape(text)) if doubts else escape(text)


def _distinct(commands: Sequence[str]) -> list[str]:
    """The commands, without those that differ from an earlier one only in digits."""
    kinds: dict[str, list[str]] = {}
    for command in commands:
        kinds.setdefault(re.sub(r"\d+", "#", command), []).append(command)
    shown = []
    for first, *more in kinds.values():
        also = f"# and {len(more)} more like it, with other names and ports (see result.json)"
        shown.append(f"{first}\n{also}" if more else first)
    return shown


def _size(arm: ArmFacts, platform: str | None) -> str:
    """`2 instances, 4 GPUs`; a machine without GPUs has instances only."""
    counted = [(arm.instances, "instance")]
    if platform not in ("cpu", "simulated"):
        counted.append((arm.gpus, "GPU"))
    return ", ".join(f"{n} {noun}{'s' * (n != 1)}" for n, noun in counted if n)


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
