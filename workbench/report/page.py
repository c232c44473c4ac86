"""The report: an executed notebook as one HTML file that opens without a network.

The first screen answers what was found, with intervals, and whether it can be trusted; then come
the notebook's own text and figures; at the end the limits, the command that repeats it, and all
that is needed to check it. A notebook that failed says why in its first sentence.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, PackageLoader

from workbench.errors import ResultError
from workbench.metrics.gates.gate_table import KINDS, Kind, failed_names, spoil, taken_away
from workbench.report.cells import render_cells
from workbench.report.claims import MARKS, shown_rows
from workbench.report.definition_card import definition_card
from workbench.report.markup import Outline
from workbench.report.numbers import duration, interval, moment, quantity
from workbench.report.outcome import cut_off, failure_of, outcome_of, result_of, status_of

__all__ = ["fill", "render", "result_of", "write_page"]

_OUTCOMES = ("FAIL", "INCONCLUSIVE", "PASS")
_WHEN_STOPPED = {"failed": "the run failed", "cancelled": "the run was cancelled"}


def write_page(notebook_path: str | Path, html_path: str | Path | None = None) -> Path:
    """Render an executed notebook to `html_path`, beside the notebook unless said otherwise.

    Raises ResultError when the file is no notebook.
    """
    source = Path(notebook_path)
    try:
        notebook = nbformat.read(source, as_version=4)
        result = result_of(notebook)
    # nbformat takes any JSON for a notebook of some version and stumbles over it in many ways
    except (OSError, ValueError, AttributeError, TypeError, nbformat.ValidationError) as error:
        raise ResultError(
            f"{source} cannot be read as a notebook ({error}); name an executed one, e.g. out.ipynb"
        ) from error
    target = Path(html_path) if html_path is not None else source.with_suffix(".html")
    card = definition_card(result, source) if result else None
    target.write_text(render(notebook, result, card), encoding="utf-8")
    return target


def render(notebook: Any, result: dict[str, Any] | None, card: dict[str, Any] | None = None) -> str:
    """The page of a notebook. Without a result it has no gates, cards, limits or appendix.

    `card` is that of report.definition_card, for the appendix.
    """
    facts = result or {}
    status = status_of(notebook, facts)
    title = _title(notebook, facts)
    outline = Outline()
    claims = shown_rows(facts)
    claims_id = outline.add("The claims", 2)[1] if claims else ""
    trust = outline.add("Can this be trusted?", 2)[1] if result else ""
    simulated = bool(facts.get("simulated"))
    body = render_cells(notebook, outline, simulated=simulated)
    panels_id = outline.add("Each claim", 2)[1] if claims else ""
    ends = {
        name: outline.add(heading, 2)[1]
        for name, heading, wanted in (
            ("limits", "What this does not show", facts.get("limits")),
            ("repeat", "Repeat it", facts.get("repeat")),
            ("appendix", "Parameters, machine, definitions", result),
        )
        if wanted
    }
    stopped = _WHEN_STOPPED.get(status)
    gates = _gates(facts)
    outcome = outcome_of(facts, status) if status else None
    return fill(
        "page.html.j2",
        result=facts,
        heading=facts.get("finding") or (f"{title}: {stopped}" if stopped else title),
        status=status,
        outcome=outcome,
        cards=_cards(facts),
        stopped=stopped,
        failure=failure_of(notebook),
        cut_off=cut_off(notebook),
        simulated=simulated,
        kicker=_kicker(notebook, facts, title),
        gates=gates,
        judged=_judged(facts, gates),
        trust=trust,
        claims=claims,
        claims_id=claims_id,
        panels_id=panels_id,
        marks=MARKS,
        contents=outline.entries,
        body=body,
        ends=ends,
        tables=_tables(facts),
        definition_card=card,
    )


def fill(template: str, **context: Any) -> str:
    """A template of this room, filled; every value that is text is escaped."""
    environment = Environment(
        loader=PackageLoader("workbench.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=duration, interval=interval, moment=moment, plain=_plain, quantity=quantity
    )
    return environment.get_template(template).render(**context)


def _title(notebook: Any, facts: dict[str, Any]) -> str:
    """The notebook's own first heading, else its name."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.lstrip().startswith("# "):
            line = str(cell.source).lstrip().partition("\n")[0]
            return re.sub(r"[#*`]", "", line).strip()
    path = notebook.metadata.get("papermill", {}).get("input_path") or "notebook"
    return str(facts.get("notebook") or Path(path).stem).replace("_", " ")


def _kicker(notebook: Any, facts: dict[str, Any], title: str) -> list[str]:
    """Notebook, topologies, connectors, date and duration; what is not known is left out."""
    subjects = [arm for arm in facts.get("arms", []) if arm.get("role", "subject") == "subject"]
    topologies = list(dict.fromkeys(str(arm["topology"]) for arm in subjects if "topology" in arm))
    connectors = dict.fromkeys(str(arm["connector"]) for arm in subjects if "connector" in arm)
    run = notebook.metadata.get("papermill", {})
    parts = [
        title if facts.get("finding") else str(facts.get("notebook", "")).replace("_", " "),
        ", ".join(topologies) if len(topologies) < 5 else f"{len(topologies)} topologies",
        ", ".join(name for name in connectors if name != "none"),
        moment(facts.get("started_at") or run.get("start_time")),
        duration(facts.get("duration_s") or run.get("duration")),
    ]
    return [part for part in parts if part]


def _gates(facts: dict[str, Any]) -> list[dict[str, str]]:
    """The gates with those that failed first; the name leads where the sentence does not."""
    gates = []
    for gate in facts.get("gates", []):
        outcome = gate.get("outcome") if gate.get("outcome") in _OUTCOMES else "INCONCLUSIVE"
        name, sentence = str(gate.get("name", "")), str(gate.get("sentence", ""))
        told = sentence.lower().startswith(name.lower())
        lead = "" if told else f"{name[:1].upper()}{name[1:]}: "
        step = str(gate.get("next_step") or "")
        if step and sentence and sentence[-1] not in ".!?":
            sentence += "."
        taken = taken_away(name) if outcome == "FAIL" else ""
        gates.append(
            {"outcome": outcome, "lead": lead, "sentence": sentence, "taken": taken}
            | {"next_step": f"{step}{'.' * (step[-1:] not in ('.', ''))}" if taken else step}
        )
    return sorted(gates, key=lambda gate: _OUTCOMES.index(gate["outcome"]))


def _judged(facts: dict[str, Any], gates: list[dict[str, str]]) -> list[str]:
    """What all gates together say, in one sentence, and what those that failed leave."""
    total, counted = len(gates), Counter(gate["outcome"] for gate in gates)
    unsure = f"{counted['INCONCLUSIVE']} could not be decided"
    if failed := counted["FAIL"]:
        others = f", {unsure}" if counted["INCONCLUSIVE"] else ""
        return [f"{failed} of {total} checks failed{others}.", *_what_is_left(facts)]
    if counted["INCONCLUSIVE"]:
        return [f"None of {total} checks failed, {unsure}."]
    if total == 1:
        return ["The one check holds."]
    return [f"All {total} checks hold."] if total else []


_LEFT = {
    "struck": "Struck out or grey, not to be used",
    "rough": "Rough, good for an order of magnitude",
    "doubt": "With a doubt",
    "": "Not touched",
}


def _what_is_left(facts: dict[str, Any]) -> list[str]:
    """For each thing that failed gates do to numbers, the kinds to which they do it."""
    failed = failed_names(facts.get("gates", []))
    kinds: dict[str, list[str]] = {}
    for kind, what in KINDS.items():
        kinds.setdefault(spoil(failed, kind).effect, []).append(f"{kind} ({what})")
    return [f"{words}: {'; '.join(kinds[effect])}." for effect, words in _LEFT.items()
            if effect in kinds]  # fmt: skip


_OF_UNIT: dict[str, Kind] = {"x": "ratios", "tokens": "counts"}
"""What a card's number is in results that do not say it."""


def _cards(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The key numbers, each with what failed gates do to it; earlier results do not say it."""
    failed = failed_names(facts.get("gates", []))
    cards = []
    for card in facts.get("numbers") or []:
        if "spoilt" not in card:
            does = spoil(failed, card.get("rests_on") or _OF_UNIT.get(card.get("unit"), "times"))
            note = str(card.get("note") or "").removeprefix("not proven: a gate failed; ")
            note = "; ".join(filter(None, (does.said, note)))
            card = card | {"spoilt": does.effect, "note": note}
        cards.append(card)
    return cards


def _tables(facts: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The tables of the appendix: what was asked, on what machine, with which versions."""
    machine = dict(facts.get("machine") or {})
    versions = machine.pop("versions", None) or {}
    commit = machine.pop("git_commit", "")
    dirty = machine.pop("git_dirty", False)
    run = {
        "run": facts.get("run_id"),
        "folder": facts.get("folder"),
        "files": ", ".join((facts.get("files") or {}).values()),
        "started": moment(facts.get("started_at")),
        "finished": moment(facts.get("finished_at")),
        "time spent measuring": duration(facts.get("measuring_s")),
        "commit": f"{commit}{' with uncommitted changes' if dirty else ''}" if commit else "",
    }
    tables = [
        ("Parameters", facts.get("parameters") or {}),
        ("Workload", facts.get("workload") or {}),
        ("Run", {name: value for name, value in run.items() if value}),
        ("Model", {k: v for k, v in (facts.get("engine") or {}).items() if v}),
        ("Machine", machine),
        ("Versions", versions),
    ]
    return [(name, table) for name, table in tables if table]


def _plain(value: Any) -> str:
    """A parameter or fact exactly as it is, in words a reader of no JSON understands."""
    match value:
        case None | "":
            return "none"
        case bool():
            return "yes" if value else "no"
        case str():
            return value
        case list() | tuple():
            return ", ".join(_plain(item) for item in value) or "none"
        case _:
            return json.dumps(value, ensure_ascii=False, default=str)
