"""What the terminal shows of a run: for people in a few lines, for scripts as one line of JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from workbench.experiment.result.facts import RunFacts
from workbench.experiment.result.finding_rows import TargetRow
from workbench.experiment.result.result_file import jsonable
from workbench.experiment.run.progress import spell_s
from workbench.experiment.run.under_way import Now, RunUnderWay
from workbench.metrics.gates.gate_table import lead_of
from workbench.notebook_run import NotebookRun
from workbench.params.notebooks import NOTEBOOKS
from workbench.report.numbers import interval, quantity
from workbench.report.outcome import gates_line

_COLOURS = {
    "ok": "green", "unsure": "yellow", "bad": "red",
    "PASS": "green", "INCONCLUSIVE": "yellow", "FAIL": "red",
    "met": "green", "undecided": "yellow", "not met": "red",
}  # fmt: skip


def say(*lines: str, problem: bool = False) -> None:
    """Print lines; colours reach a terminal only, and none where NO_COLOR is set (no-color.org)."""
    stream = sys.stderr if problem else sys.stdout
    for line in lines:
        click.echo(line, file=stream, color=False if os.environ.get("NO_COLOR") else None)
    stream.flush()


def closing_lines(run: NotebookRun) -> Iterator[str]:
    """What a run ends with: headline, key numbers, the gates that did not pass, next step, page."""
    page = [f"page: {_short(run.page)}"] if run.page else []
    if run.facts is None or run.problem:
        yield f"{run.notebook} failed: {run.problem}"
        yield from (f"next: {run.advice}", *page)
        return
    facts = run.facts
    yield click.style(run.headline, bold=True)
    for card in facts.numbers:
        shown = (
            quantity(card.value, card.unit),
            interval(card.low, card.high, card.unit, card.value),
        )
        yield f"  {' '.join(filter(None, shown))}  {card.label}"
    for row in facts.targets:
        yield target_line(row)
    if facts.scope:
        yield facts.scope
    if facts.gates:
        yield click.style(gates_line(facts.gates), fg=_COLOURS[run.outcome.severity])
    for gate in sorted(facts.gates, key=lambda gate: gate.outcome != "FAIL"):
        if gate.outcome != "PASS":
            outcome = click.style(gate.outcome, fg=_COLOURS[gate.outcome])
            yield f"  {outcome} {lead_of(gate)}{gate.sentence}"
    if step := next_step(facts):
        yield f"next: {step}"
    yield from page


def target_line(row: TargetRow) -> str:
    """`met  pd tpot within 20% of aggregated: 3.2 % [1.1, 5.4] (1p1d nixl, cold vs 2a)`."""
    outcome = click.style(f"{row.mark} {row.outcome}", fg=_COLOURS[row.outcome])
    where = f" ({row.where})" if row.where else ""
    return f"  {outcome}  {row.target}: {row.measured}{where}{f'; {row.why}' if row.why else ''}"


def next_step(facts: RunFacts) -> str:
    """The run's own, or that of the first gate that did not pass."""
    gates = sorted(facts.gates, key=lambda gate: gate.outcome != "FAIL")
    steps = [gate.next_step for gate in gates if gate.outcome != "PASS" and gate.next_step]
    return next(filter(None, [facts.next_step, *steps]), "")


def summary_line(run: NotebookRun, exit_status: int) -> str:
    """The run as one line of JSON: all that `closing_lines` says, with paths and the exit status.

    docs/result.md lists the fields; result.json has the rest.
    """
    summary = _summary(run) | {"exit_status": exit_status}
    return json.dumps(summary, ensure_ascii=False, allow_nan=False)


def summary_of_all(runs: Sequence[NotebookRun], index: Path | None) -> str:
    """The same for several runs, and the page that lists them."""
    content = {"runs": [_summary(run) for run in runs], "index": str(index or "")}
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


_NUMBER = ("label", "value", "unit", "low", "high", "spoilt")
"""Of a key number; `spoilt` is what failed gates do to it."""


def _summary(run: NotebookRun) -> dict[str, Any]:
    facts = run.facts
    gates = facts.gates if facts else ()
    plain: dict[str, Any] = jsonable(
        {
            "notebook": run.notebook,
            "run_id": facts.run_id if facts else "",
            "exit_status": run.exit_status,
            "outcome": run.outcome.word,
            "headline": run.headline,
            "numbers": [
                {key: getattr(card, key) for key in _NUMBER}
                for card in (facts.numbers if facts else ())
            ],
            "targets": facts.targets if facts else (),
            "gates_passed": sum(gate.outcome == "PASS" for gate in gates),
            "gates_not_passed": [gate for gate in gates if gate.outcome != "PASS"],
            "doubts": facts.doubts if facts else (),
            "next_step": run.advice or (next_step(facts) if facts else ""),
            "problem": run.problem,
            "page": str(run.page or ""),
            "result": str(run.page.with_name("result.json")) if run.page and facts else "",
            "took_s": round(run.took_s, 3),
            "reused": run.kept,
        }
    )
    return plain


def table_of(runs: Sequence[NotebookRun], *, index: Path | None = None, width: int = 0) -> str:
    """One row per notebook: outcome, minutes, headline and page; then those that failed.

    `index` is the page that lists them.
    """
    width = width or shutil.get_terminal_size().columns
    names = max(len(run.notebook) for run in runs)
    outcomes = max(len("outcome"), *(len(run.outcome.word) for run in runs))

    def start(notebook: str = "", outcome: str = "", minutes: str = "", colour: str = "") -> str:
        shown = click.style(f"{outcome:{outcomes}}", fg=colour or None)
        return f"{notebook:{names}}  {shown}  {minutes:>7}  "

    indent = " " * len(click.unstyle(start()))
    room = max(30, width - len(indent))
    lines = [f"{click.unstyle(start('notebook', 'outcome', 'minutes'))}headline and page"]
    lines.append("-" * min(width, len(indent) + room))
    for run in runs:
        minutes = "reused" if run.kept else f"{run.took_s / 60:.1f}"
        row = start(run.notebook, run.outcome.word, minutes, _COLOURS[run.outcome.severity])
        said = textwrap.wrap(run.headline, room, max_lines=2, placeholder=" ...") or [""]
        said += [_short(run.page)] if run.page else []
        lines += [row + said[0], *(indent + text for text in said[1:])]
    total_s = sum(run.took_s for run in runs)
    end = f"; all runs: {_short(index)}" if index else ""
    lines += ["", f"{total_s / 60:.1f} minutes in all{end}"]
    lost = [run for run in runs if run.problem]
    if lost:
        lines += ["", f"{len(lost)} of {len(NOTEBOOKS)} notebooks failed:"]
        for run in lost:
            lines += [f"{run.notebook}: {run.headline}", f"  next: {run.advice}"]
    return "\n".join(lines)


def status_table(runs: Sequence[RunUnderWay]) -> str:
    """One row per run under way: launches, time left, what it does now; then its page so far."""
    if not runs:
        return "No run is under way."
    rows = [("run", "launches", "left", "now", "")]
    for run in runs:
        now = run.now
        done = f"{now.launches_done} of {now.launches}" if now else ""
        left = spell_s(run.left_s) or "unknown"
        rows.append((run.name, done, left, _doing(now), _page_of(run)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for *cells, doing, page in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines += ["  ".join([*padded, doing]), *([f"  {page}"] if page else [])]
    return "\n".join(lines)


def _doing(now: Now | None) -> str:
    if now is None:
        return "starts"
    where = [now.arm, f"round {now.round} of {now.rounds}" if now.round else "", now.pass_name]
    said = " ".join([now.doing, ", ".join(filter(None, where))]).strip()
    return said + (f": {now.responses} of {now.requests} requests" if now.requests else "")


def _page_of(run: RunUnderWay) -> str:
    page = run.page
    if page is None:
        return f"no page yet: workbench report {_short(run.home)} --partial"
    minutes = (time.time() - page.stat().st_mtime) / 60
    return f"page so far, {minutes:.0f} minutes old: {_short(page)}"


def status_line(runs: Sequence[RunUnderWay]) -> str:
    """The runs under way as one line of JSON."""
    content = [
        {
            "notebook": run.home.parent.name,
            "run_id": run.home.name,
            "folder": run.attempt,
            "process": run.pid,
            "left_s": run.left_s,
            "now": run.now,
            "page": str(run.page or ""),
        }
        for run in runs
    ]
    return json.dumps({"runs": jsonable(content)}, ensure_ascii=False, allow_nan=False)


def _short(path: Path | None) -> str:
    """The path as one would type it here."""
    if path is None:
        return ""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
