"""Run one notebook by papermill into its run folder, or all of them one after the other.

What a run found is told on the terminal in any case: headline, checks that failed, next step, page.
"""

from __future__ import annotations

import os
import shlex
import shutil
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ParameterError, WorkbenchError
from workbench.params.notebooks import NOTEBOOKS, EngineParams, as_typed, changed, check_params

if TYPE_CHECKING:
    from workbench.experiment.result.facts import RunFacts

_STOPPED = ("KeyboardInterrupt", "CancelledError")
_INTERRUPTED = "KeyboardInterrupt: stopped"
_NO_MEMORY = "KernelDied: the notebook's kernel was killed, as the system does when memory runs out"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotebookRun:
    """How the run of a notebook ended."""

    notebook: str
    page: Path | None = None
    facts: RunFacts | None = None
    """Its result.json; None where it could not be carried out."""
    problem: str = ""
    """Why it could not be carried out; empty where it was, whatever its checks say."""
    advice: str = ""
    """What to do about the problem."""
    took_s: float = 0.0
    kept: bool = False
    """It was measured before, and not again."""

    @property
    def outcome(self) -> str:
        """The word that page and index have for it."""
        from workbench.report.outcome import outcome_of

        return outcome_of(self.facts, "failed" if self.problem else "").word

    @property
    def headline(self) -> str:
        """What it found, or the first line of why it could not be carried out."""
        found = self.facts.finding if self.facts else ""
        return self.problem.partition("\n")[0] or found or "No finding"

    @property
    def exit_status(self) -> int:
        """1 when it could not be carried out, or found a machine that cannot run the others."""
        return int(bool(self.problem) or (self.facts is not None and self.facts.ready is False))


def read_params(file: Path | None) -> dict[str, Any]:
    """The parameters of a YAML file, not yet checked. Raises ParameterError when it is none."""
    if file is None:
        return {}
    import yaml

    try:
        given = yaml.safe_load(file.read_text("utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ParameterError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(given, dict):
        raise ParameterError(f"{file} has no names; write lines such as rounds: 3")
    return {str(name): value for name, value in given.items()}


def run_notebook(notebook: str, given: Mapping[str, Any], *, force: bool = False) -> NotebookRun:
    """Run a notebook into its run folder and make its page; a finished measurement is kept.

    Raises ParameterError for what it does not take; whatever happens later is in the result.
    """
    params = check_params(notebook, given)
    # What takes seconds to load comes after what may be refused.
    from workbench.experiment.plan.plan import run_id
    from workbench.experiment.result.result import load_result
    from workbench.experiment.result.run_folder import output_root
    from workbench.hardware.machine import repository_root
    from workbench.report.page import write_page

    name = run_id(params) if isinstance(params, EngineParams) else "here"
    home = output_root(params.output_dir) / notebook / name
    page = home / "report.html"
    # A machine changes between two looks at it; a measurement stays what it was.
    finished = page.exists() and (home / "result.json").exists()
    if isinstance(params, EngineParams) and finished and not force:
        print(f"{notebook} {name} has succeeded before; --force runs it again, e.g. after")
        print("an update of the workbench or of vLLM")
        return NotebookRun(notebook=notebook, page=page, facts=load_result(home).run, kept=True)
    print(f"{notebook} {name}: starting the notebook", flush=True)
    home.mkdir(parents=True, exist_ok=True)
    source = repository_root() / "notebooks" / f"{notebook}.ipynb"
    executed = home / f".run-{os.getpid()}.ipynb"
    given = changed(params)
    began_s = time.monotonic()
    problem = _execute(source, executed, given)
    made: Path | None = None
    if executed.exists():  # else it was stopped before its first cell
        kept = home / ("run.failed.ipynb" if problem else "run.ipynb")
        os.replace(executed, kept)
        made = write_page(kept, home / "report.failed.html" if problem else page)
    return NotebookRun(
        notebook=notebook,
        page=made,
        facts=None if problem else load_result(home).run,
        problem=problem,
        advice=_advice(problem, notebook, given) if problem else "",
        took_s=time.monotonic() - began_s,
    )


def _advice(problem: str, notebook: str, given: Mapping[str, Any]) -> str:
    command = shlex.join(["workbench", "run", notebook, *as_typed(given)])
    again = f"then repeat it: {command}"
    if problem.startswith(_STOPPED):
        return f"what is finished is kept, {again}"
    if problem == _NO_MEMORY:
        return f"end other programs or take fewer instances, {again}"
    return f"mend what the sentence names (the page has the whole error), {again}"


def _execute(source: Path, executed: Path, parameters: dict[str, Any]) -> str:
    """Papermill, with what the cells print shown at once; the error where a cell failed."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    from workbench.experiment.run.progress_bar import LineWriter

    # So that the kernel warns of no debugger that nobody asked for.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    shown = LineWriter()
    try:
        papermill.execute_notebook(
            source, executed, parameters, cwd=source.parent.parent, kernel_name="python3",
            progress_bar=False, stdout_file=shown,
            # A kernel says of itself how it listens, and that it was told to end.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        return _NO_MEMORY
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        shown.close()
    return ""


def told(run: NotebookRun) -> list[str]:
    """The lines that a run ends with: headline and outcome, failed checks, next step, page."""
    page = [f"page: {_short(run.page)}"] if run.page else []
    if run.problem:
        lost = f"{run.notebook} could not be carried out: {run.problem}"
        return [lost, f"next: {run.advice}", *page]
    known = run.headline.lower().startswith(run.outcome)
    lines = [run.headline if known else f"{run.headline} ({run.outcome})"]
    scope = run.facts.scope if run.facts else ""
    step = _next_step(run.facts) if run.facts else ""
    lines += [scope] if scope else []
    for gate in run.facts.gates if run.facts else ():
        if gate.outcome == "FAIL":
            told_so = gate.sentence.lower().startswith(gate.name.lower())
            lines.append(f"  failed: {'' if told_so else f'{gate.name}: '}{gate.sentence}")
    lines += [f"next: {step}"] if step and step not in scope else []
    return [*lines, *page]


def _next_step(facts: RunFacts) -> str:
    """The run's own, or that of the first check that does not hold."""
    gates = sorted(facts.gates, key=lambda gate: gate.outcome != "FAIL")
    steps = [gate.next_step for gate in gates if gate.outcome != "PASS" and gate.next_step]
    holds = ["read the page; every check holds"] if gates else []
    return next(filter(None, [facts.next_step, *steps, *holds]), "")


def run_all(
    params_folder: Path | None, *, output_dir: str = "outputs", force: bool = False
) -> tuple[list[NotebookRun], Path | None]:
    """Run the five notebooks, whatever one of them finds, and rewrite the index after each.

    `params_folder` may have a file of parameters for each, `<notebook>.yaml`. An interrupt ends
    the notebook that runs, and those after it are not begun. Returns the runs and the index.
    """
    if params_folder is not None and not params_folder.is_dir():
        raise ParameterError(
            f"{params_folder} is no folder; name one with files such as pd_sweep.yaml, e.g."
            " params/cpu_demo"
        )
    from workbench.experiment.result.run_folder import output_root
    from workbench.report.index import write_index

    runs: list[NotebookRun] = []
    index: Path | None = None
    for number, notebook in enumerate(NOTEBOOKS, 1):
        print(f"\n== {number} of {len(NOTEBOOKS)}: {notebook}", flush=True)
        run = _guarded(notebook, params_folder, output_dir, force)
        print(*told(run), sep="\n", flush=True)
        runs.append(run)
        folder = output_root(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        index = write_index(folder)
        if run.problem.startswith(_STOPPED):
            break
    return runs, index


def _guarded(
    notebook: str, params_folder: Path | None, output_dir: str, force: bool
) -> NotebookRun:
    """One notebook; whatever goes wrong is in its run, so that the others go on."""
    began_s = time.monotonic()
    try:
        file = params_folder / f"{notebook}.yaml" if params_folder else None
        given = read_params(file if file and file.is_file() else None)
        if output_dir != "outputs":
            given["output_dir"] = output_dir
        return run_notebook(notebook, given, force=force)
    except KeyboardInterrupt:
        problem, advice = _INTERRUPTED, "start it again; what is finished is kept"
    except WorkbenchError as error:
        problem, advice = str(error), "mend what the sentence names, then start it again"
    except Exception as error:  # of whatever kind: the other notebooks do not depend on it
        problem = f"{type(error).__name__}: {error}"
        advice = f"see what it says alone: workbench run {notebook}"
    return NotebookRun(
        notebook=notebook, problem=problem, advice=advice, took_s=time.monotonic() - began_s
    )


def table_of(runs: Sequence[NotebookRun], *, index: Path | None = None, width: int = 0) -> str:
    """One row per notebook: outcome, minutes, headline and page; then what was not carried out.

    `index` is the page that lists them.
    """
    width = width or shutil.get_terminal_size().columns
    names = max(len(run.notebook) for run in runs)
    outcomes = max(len("outcome"), *(len(run.outcome) for run in runs))

    def start(notebook: str = "", outcome: str = "", minutes: str = "") -> str:
        return f"{notebook:{names}}  {outcome:{outcomes}}  {minutes:>7}  "

    room = max(30, width - len(start()))
    lines = [start("notebook", "outcome", "minutes") + "headline and page"]
    lines.append("-" * min(width, len(start()) + room))
    for run in runs:
        minutes = "kept" if run.kept else f"{run.took_s / 60:.1f}"
        said = textwrap.wrap(run.headline, room, max_lines=2, placeholder=" ...") or [""]
        said += [_short(run.page)] if run.page else []
        lines.append(start(run.notebook, run.outcome, minutes) + said[0])
        lines += [start() + text for text in said[1:]]
    total_s = sum(run.took_s for run in runs)
    end = f"; all runs: {_short(index)}" if index else ""
    lines += ["", f"{total_s / 60:.1f} minutes in all{end}"]
    lost = [run for run in runs if run.problem]
    if lost:
        lines += ["", f"{len(lost)} of {len(NOTEBOOKS)} notebooks could not be carried out:"]
        for run in lost:
            lines += [f"{run.notebook}: {run.headline}", f"  next: {run.advice}"]
    return "\n".join(lines)


def _short(path: Path | None) -> str:
    """The path as one would type it here."""
    if path is None:
        return ""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
