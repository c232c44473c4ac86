"""The report: an executed notebook as one HTML file that opens without a network.

The first screen has the finding, its numbers, the main figure, and which gates did not pass. The
notebook's own text and figures follow, then all that is needed to check and repeat the run. The
page of a notebook that failed says why at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench.errors import ParameterError, ResultError
from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.result import Result, load_result
from workbench.metrics.gates.gate import Gate
from workbench.metrics.gates.gate_effects import Failed, of_the_run, spoil, taken_away, touching
from workbench.metrics.gates.gate_table import KINDS, lead_of
from workbench.report.cells import render_cells
from workbench.report.claims import legend, shown_rows
from workbench.report.definition_card import definition_card
from workbench.report.figures.residuals import residuals
from workbench.report.glossary import GLOSSARY, with_tooltips
from workbench.report.markup import Outline
from workbench.report.numbers import duration, moment, number
from workbench.report.outcome import (
    cut_off,
    failure_of,
    gates_line,
    outcome_of,
    result_of,
    status_of,
    worst_outcome,
)
from workbench.report.tables import table
from workbench.report.templating import fill

if TYPE_CHECKING:
    import pandas as pd

_OUTCOMES = ("FAIL", "INCONCLUSIVE", "PASS")
_KEPT = {"run.ipynb": "report.html", "run.failed.ipynb": "report.failed.html"}
"""The notebooks that `workbench run` leaves in a run folder, the first that is there; their pages.
"""
_WHEN_STOPPED = {"failed": "the run failed", "cancelled": "the run was cancelled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What a report is made of."""

    source: Path
    """The notebook's file, or result.json of a run without one."""
    notebook: Any
    result: Result | None
    card: Mapping[str, Any] | None

    @property
    def in_run_folder(self) -> bool:
        """Whether it is the notebook that `workbench run` keeps in the run's folder."""
        return self.source.name in (*_KEPT, "result.json")


def read_executed(path: str | Path) -> Executed:
    """Read an executed notebook, or that of a run folder; a run without one has its result only.

    Raises ParameterError for a path that is neither, and ResultError when the file is no notebook
    or its result cannot be read.
    """
    given = Path(path)
    names = (*_KEPT, "result.json")
    source = next((given / name for name in names if (given / name).is_file()), given)
    if not source.is_file():
        what = f"holds none of {', '.join(names)}" if given.is_dir() else "does not exist"
        raise ParameterError(
            f"{given} {what}. Give an executed notebook or a run folder (example: out.ipynb)"
        )
    if source.name == "result.json":
        measured = load_result(source.parent)
        notebook: Any = new_notebook(cells=_profile_cells(measured))
        result: Result | None = measured
    else:
        try:
            notebook = nbformat.read(source, as_version=4)
            result = result_of(notebook, str(source))
        # nbformat takes any JSON for a notebook of some version, and stumbles in many ways
        except (
            OSError, ValueError, AttributeError, TypeError, nbformat.ValidationError,
        ) as error:  # fmt: skip
            raise ResultError(
                f"{source} cannot be read as a notebook ({error}); give an executed one (example:"
                " out.ipynb)"
            ) from error
    card = definition_card(result, source) if result else None
    return Executed(source=source, notebook=notebook, result=result, card=card)


def _profile_cells(result: Result) -> list[Any]:
    """Figure and tables of a profiling run, which has no notebook; none for other runs."""
    chart = residuals(result.fits) if result.run.notebook == "profile" else None
    if chart is None:
        return []
    data, metadata = chart._repr_mimebundle_()
    shown = new_output("display_data", data, metadata=metadata)
    return [
        new_code_cell(outputs=[shown], metadata={"tags": ["main-figure"]}),
        new_markdown_cell(
            "## Fits\n\nTime of each part as a sum of terms, the median of |measured / fitted - 1|,"
            " and the range in which it was measured."
        ),
        *_table_cell(result.fit_table()),
        new_markdown_cell(
            "Predicted / measured - 1 of the medians of this run's own 1a. It is not fitted, so it"
            " checks the profile."
        )
        if result.run.own_errors
        else new_markdown_cell("This run's own 1a gave no prediction error."),
        *_table_cell(result.own_error_table()),
    ]


def _table_cell(frame: pd.DataFrame) -> list[Any]:
    shown = table(frame)
    if shown is None:
        return []
    return [new_code_cell(outputs=[new_output("display_data", {"text/html": shown.to_html()})])]


def write_page(path: str | Path, html_path: str | Path | None = None) -> Path:
    """Render an executed notebook, or that of a run folder, to `html_path`.

    By default the page lies beside the notebook under its name; in a run folder it is report.html.
    Raises as `read_executed` does.
    """
    found = read_executed(path)
    own = found.source.with_suffix(".html")
    if found.in_run_folder:
        own = found.source.with_name(_KEPT.get(found.source.name, "report.html"))
    target = Path(html_path) if html_path is not None else own
    target.write_text(render(found.notebook, found.result, found.card), encoding="utf-8")
    return target


def render(notebook: Any, result: Result | None, card: Mapping[str, Any] | None = None) -> str:
    """The page of a notebook. Without a result it has no gates, cards, limits or appendix.

    `card` is that of report.definition_card, for the appendix.
    """
    facts = result.run if result else RunFacts(notebook="", run_id="", status="started")
    status = status_of(notebook, result.run if result else None)
    stopped = _WHEN_STOPPED.get(status)
    title = _title(notebook, facts)
    outline = Outline()
    claims = shown_rows(facts.claims)
    claims_id = outline.add("The claims", 2)[1] if claims else ""
    trust = outline.add("Can this be trusted?", 2)[1] if result else ""
    doubts = outline.add("Doubts", 3)[1] if facts.doubts else ""
    cells = render_cells(notebook, outline, simulated=facts.simulated, doubts=doubts)
    panels_id = outline.add("Each claim", 2)[1] if claims else ""
    ends = {
        name: outline.add(heading, 2)[1]
        for name, heading, wanted in (
            ("limits", "What this does not show", facts.limits),
            ("repeat", "Repeat it", facts.repeat),
            ("appendix", "Parameters, machine, definitions", result),
        )
        if wanted
    }
    gates = sorted(facts.gates, key=lambda gate: _OUTCOMES.index(gate.outcome))
    page = fill(
        "page.html.j2",
        result=facts,
        name="-".join(filter(None, (facts.notebook or "notebook", facts.run_id))),
        heading=_headline(facts.finding or (f"{title}: {stopped}" if stopped else title)),
        partial=_partial(facts) if status != "success" else "",
        status=status,
        outcome=outcome_of(facts, status) if status else None,
        cards=facts.numbers,
        stopped=stopped,
        failure=failure_of(notebook),
        cut_off=cut_off(notebook),
        simulated=facts.simulated,
        kicker=_kicker(notebook, facts, title),
        open_gates=[_shown_gate(gate) for gate in gates if gate.outcome != "PASS"],
        passed=[_shown_gate(gate) for gate in gates if gate.outcome == "PASS"],
        checks=(worst_outcome(facts.gates), gates_line(facts.gates)),
        left=_what_is_left(facts) if facts.failed_gates else [],
        trust=trust,
        doubts=doubts,
        claims=claims,
        claims_id=claims_id,
        panels_id=panels_id,
        legend=legend(claims),
        contents=outline.entries,
        main_figure=cells.main_figure,
        body=cells.body,
        ends=ends,
        tables=_tables(result) if result else [],
        definition_card=card,
        glossary=GLOSSARY,
    )
    return with_tooltips(page) if result else page


def _partial(facts: RunFacts) -> str:
    """What a reader must know of a page that was made before its run has ended."""
    launches = facts.launches
    if launches is None:
        return ""
    return (
        f"{launches.measured} of {launches.planned} launches have been measured"
        f" ({moment(facts.finished_at)}). All numbers, intervals and gates are of these launches"
        " and can still change."
    )


def _headline(text: str) -> str:
    """A line of large type, not broken between a number and its `%`."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _title(notebook: Any, facts: RunFacts) -> str:
    """The notebook's own first heading, else its name."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.lstrip().startswith("# "):
            line = str(cell.source).lstrip().partition("\n")[0]
            return re.sub(r"[#*`]", "", line).strip()
    path = notebook.metadata.get("papermill", {}).get("input_path") or "notebook"
    return (facts.notebook or Path(path).stem).replace("_", " ")


def _kicker(notebook: Any, facts: RunFacts, title: str) -> list[str]:
    """Notebook, several models, topologies, connectors, date, duration; none that is not known."""
    subjects = [arm for arm in facts.arms if arm.role == "subject"]
    topologies = list(dict.fromkeys(arm.topology for arm in subjects if arm.topology))
    connectors = dict.fromkeys(arm.connector for arm in subjects)
    run = notebook.metadata.get("papermill", {})
    models = [row.model for row in facts.models]
    parts = [
        title if facts.finding else facts.notebook.replace("_", " "),
        ", ".join(models) if len(models) < 4 else f"{len(models)} models",
        ", ".join(topologies) if len(topologies) < 5 else f"{len(topologies)} topologies",
        ", ".join(name for name in connectors if name not in ("", "none")),
        moment(facts.started_at or run.get("start_time")),
        duration(facts.duration_s or run.get("duration")),
    ]
    return [part for part in parts if part]


def _shown_gate(gate: Gate) -> dict[str, str]:
    """A gate as a line of the page."""
    sentence, step = gate.sentence, gate.next_step
    if step and sentence and sentence[-1] not in ".!?":
        sentence += "."
    taken = taken_away(gate.name, gate.arms) if gate.outcome == "FAIL" else ""
    if step and step[-1] != ".":
        step += "."
    return {
        "outcome": gate.outcome, "lead": lead_of(gate), "sentence": sentence, "taken": taken,
        "next_step": step,
    }  # fmt: skip


_LEFT = {
    "struck": "Not valid (do not use; struck out or grey)",
    "rough": "Rough (order of magnitude only)",
    "doubt": "Use with caution",
    "": "Not affected",
}


def _what_is_left(facts: RunFacts) -> list[str]:
    """What may still be used after the gates that failed, by kind of number.

    First of every arm, then of the arms that further gates concern.
    """
    failed = facts.failed_gates
    said = _left_of(of_the_run(failed), _LEFT)
    further: dict[str, list[str]] = {}
    for arm in dict.fromkeys(arm for arms in failed.values() for arm in arms):
        for text in _left_of(touching(failed, arms=[arm]), [*_LEFT][:-1]):
            if text not in said:
                further.setdefault(text, []).append(arm)
    return said + [
        f"{', '.join(arms)}: {text[:1].lower()}{text[1:]}" for text, arms in further.items()
    ]


def _left_of(failed: Failed, effects: Iterable[str]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for kind, what in KINDS.items():
        kinds.setdefault(spoil(failed, kind).effect, []).append(what)
    return [
        f"{_LEFT[effect]}: {'; '.join(kinds[effect])}." for effect in effects if effect in kinds
    ]


def _tables(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """The tables of the appendix: what was asked, on what machine, with which versions."""
    facts = result.run
    machine: dict[str, Any] = {
        name: number(value) if isinstance(value, float) else value
        for name, value in facts.machine.items()
    }
    versions: dict[str, Any] = machine.pop("versions", None) or {}
    commit = machine.pop("git_commit", "")
    dirty = machine.pop("git_dirty", False)
    run = {
        "folder": str(result.folder),
        "files": ", ".join(facts.files.values()),
        "started": moment(facts.started_at),
        "finished": moment(facts.finished_at),
        "time spent measuring": duration(facts.measuring_s),
        "commit": f"{commit}{' with uncommitted changes' if dirty else ''}" if commit else "",
    }
    tables: list[tuple[str, dict[str, Any]]] = [
        ("Parameters", dict(facts.parameters)),
        ("Workload", _workload(facts)),
        ("Run", {name: value for name, value in run.items() if value}),
        ("Model", {name: value for name, value in asdict(facts.engine).items() if value}),
        ("Models", _models(facts)),
        ("Machine", machine),
        ("Hosts", _hosts(facts)),
        ("Versions", versions),
    ]
    return [(name, table) for name, table in tables if table]


def _models(facts: RunFacts) -> dict[str, str]:
    """What tells several models apart; empty for one."""
    told = {}
    for row in facts.models:
        has = [
            "" if row.name == row.model else row.name,
            f"{row.layers} layers" if row.layers else "",
            row.dtype,
            f"{row.kv_bytes_per_token:,.0f} bytes of KV a token" if row.kv_bytes_per_token else "",
            row.machine_speed or "",
        ]
        told[row.model] = "; ".join(filter(None, has))
    return told


def _hosts(facts: RunFacts) -> dict[str, Any]:
    """What each host has, and which instances ran there; empty for a run on one machine."""
    rows = {}
    for row in facts.hosts:
        ran = [
            f"{name} ({arm.label})"
            for arm in facts.arms
            for name, host in arm.hosts.items()
            if host == row.host
        ]
        memory = f"{row.memory_free_gb:g} GB free, {row.shm_free_gb:g} GB of shared memory"
        packages = " ".join(f"{name} {version}" for name, version in row.versions.items())
        gpus = f"GPUs: {row.gpus}"
        has = [f"{row.cpu}, {row.cores} cores", memory, gpus, f"Python {row.python}", packages]
        ran_here = ", ".join(ran) or "no instance"
        rows[f"{row.host} ({row.address})"] = f"{ran_here}. {'; '.join(filter(None, has))}"
    return rows


def _workload(facts: RunFacts) -> dict[str, Any]:
    """The workload with two names that a reader understands."""
    shown = asdict(facts.workload) if facts.workload else {}
    planned, sent = shown.pop("ideal_reuse", None), shown.pop("ideal_reuse_sent", None)
    known = {"reusable fraction, as planned": planned, "reusable fraction, as sent": sent}
    return shown | {name: value for name, value in known.items() if value is not None}
