"""One page that lists every run in an outputs folder, the newest first, and links its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import nbformat

from workbench.errors import ResultError
from workbench.experiment.result.facts import RunFacts, RunOutcome
from workbench.experiment.result.result_file import read_facts
from workbench.experiment.result.run_folder import EARLIER, SO_FAR
from workbench.experiment.result.so_far import attempts_of
from workbench.params.notebooks import NOTEBOOKS
from workbench.report.figures.over_time import histories, models_of, topologies_of
from workbench.report.numbers import duration, moment
from workbench.report.outcome import failure_of, gates_line, outcome_of, worst_outcome
from workbench.report.templating import fill


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run folder as the index shows it."""

    run_id: str
    outcome: RunOutcome
    """The outcome, in the words of its own page."""
    finding: str
    """The headline; for a run without a readable result, the reason."""
    checks: tuple[str, str]
    """The worst outcome of its gates, and how many passed; empty without gates."""
    simulated: bool
    started: str
    duration: str
    when_s: float
    """Sort key: seconds since the epoch at which it started, or its folder was last written."""
    link: str
    """Address of the report relative to the index; empty where there is no report."""
    models: tuple[str, ...] = ()
    topologies: tuple[str, ...] = ()
    results: tuple[RunFacts, ...] = ()
    """Its result and those that reruns replaced."""


def write_index(outputs_dir: str | Path) -> Path:
    """Write `index.html` into an outputs folder that holds `<notebook>/<run_id>/result.json`.

    A run whose result cannot be read is listed with the reason. Raises ResultError when there is
    no such folder.
    """
    folder = Path(outputs_dir)
    if not folder.is_dir():
        raise ResultError(
            f"{folder} is not a folder: run a notebook first, or give its outputs folder"
        )
    notebooks = {
        path.name: runs_of(path)
        for path in sorted(folder.iterdir(), key=_as_run_all)
        if path.is_dir() and not path.name.startswith(".")
    }
    notebooks = {name: runs for name, runs in notebooks.items() if runs}
    target = folder / "index.html"
    page = fill(
        "index.html.j2",
        notebooks=notebooks,
        series={name: histories(each.results for each in runs) for name, runs in notebooks.items()},
        choices=_choices(notebooks),
    )
    target.write_text(page, encoding="utf-8")
    return target


def _choices(notebooks: Mapping[str, Sequence[Run]]) -> dict[str, list[str]]:
    """What each filter offers."""
    runs = [run for each in notebooks.values() for run in each]
    found = {
        "notebook": list(notebooks),
        "model": sorted({model for run in runs for model in run.models}),
        "topology": sorted({topology for run in runs for topology in run.topologies}),
        "outcome": sorted({run.outcome.word for run in runs}),
    }
    return {name: values for name, values in found.items() if len(values) > 1}


def _as_run_all(path: Path) -> tuple[int, str]:
    """Sort key: notebooks in the order of `run-all`, then other folders."""
    known = list(NOTEBOOKS)
    return known.index(path.name) if path.name in known else len(known), path.name


def runs_of(notebook_dir: Path) -> list[Run]:
    """The runs of one notebook, the newest first."""
    folders = [p for p in notebook_dir.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted((_read(folder) for folder in folders), key=lambda run: -run.when_s)


def _read(folder: Path) -> Run:
    if not (folder / "result.json").is_file():
        for attempt, facts in attempts_of(folder):
            if facts.status == "started":  # it is under way, or was killed and can be resumed
                found = f"So far: {facts.finding}" if facts.pass_times else "Nothing measured yet."
                return _run(folder, facts, found, page=f"{attempt.name}/{SO_FAR}/report.html")
    # A measurement may have ended well and a later cell not: its only page says that it failed.
    if (folder / "run.failed.ipynb").is_file() and not (folder / "report.html").is_file():
        return _run(folder, None, _why_failed(folder), page="report.failed.html")
    if not (folder / "result.json").is_file():
        return _run(folder, None, "result.json is missing: the run ended before writing it.")
    try:
        facts = read_facts(folder / "result.json")
    except (OSError, ResultError) as error:
        return _run(folder, None, f"result.json cannot be read: {error}")
    run = _run(folder, facts, facts.finding or "No finding.")
    return replace(run, results=(*_earlier(folder), facts))


def _earlier(folder: Path) -> Iterator[RunFacts]:
    """The results that reruns replaced; one that cannot be read is left out."""
    for path in sorted((folder / EARLIER).glob("*.json")):
        with suppress(OSError, ResultError):
            yield read_facts(path)


def _why_failed(folder: Path) -> str:
    """The error that ended the notebook of a failed run."""
    try:
        failure = failure_of(nbformat.read(folder / "run.failed.ipynb", as_version=4))
    except (OSError, ValueError, AttributeError, TypeError, nbformat.ValidationError):
        failure = None
    return (
        f"{failure.name}: {failure.sentence}"
        if failure
        else "The notebook ended before its last cell."
    )


def _run(folder: Path, facts: RunFacts | None, finding: str, *, page: str = "report.html") -> Run:
    gates = facts.gates if facts else ()
    started = facts.started_at if facts else ""
    report = folder / page
    return Run(
        run_id=folder.name,
        outcome=outcome_of(facts, "failed" if page == "report.failed.html" else ""),
        finding=finding,
        checks=(worst_outcome(gates), gates_line(gates)),
        simulated=facts is not None and facts.simulated,
        started=moment(started),
        duration=duration(facts.duration_s) if facts else "",
        when_s=_seconds(started) or folder.stat().st_mtime,
        link=quote(f"{folder.parent.name}/{folder.name}/{page}") if report.is_file() else "",
        models=models_of(facts) if facts else (),
        topologies=topologies_of(facts) if facts else (),
    )


def _seconds(text: str) -> float | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
