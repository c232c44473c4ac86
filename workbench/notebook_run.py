"""Run one notebook by papermill into its run folder, or all of them one after the other."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from workbench.errors import ParameterError, ResultError, WorkbenchError
from workbench.params.notebooks import NOTEBOOKS, EngineParams, as_typed, changed, check_params
from workbench.params.pd_sweep import PdSweep

if TYPE_CHECKING:
    from workbench.experiment.result.facts import RunFacts, RunOutcome

PARTIAL = ("pd_sweep", "single_instance_prefix_cache")
"""Notebooks that can be rendered before their last launch."""
_NOT_YET = "This needs launches that are not measured yet.\n"
_STARTING = ("run", "smoke")
"""Ids of the cells that start servers."""
_BAD_INPUT = ("ParameterError:", "PlanError:")
_STOPPED = ("KeyboardInterrupt", "CancelledError")
_INTERRUPTED = "KeyboardInterrupt: stopped"
_NO_MEMORY = "KernelDied: the notebook's kernel was killed, probably because memory ran out"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotebookRun:
    """How the run of a notebook ended."""

    notebook: str
    page: Path | None = None
    facts: RunFacts | None = None
    """Its result.json; None where it failed."""
    problem: str = ""
    """Why it failed; empty where it was completed, whatever its gates say."""
    advice: str = ""
    """What to do about the problem."""
    took_s: float = 0.0
    kept: bool = False
    """An earlier result was reused."""
    refused: bool = False
    """Its problem is bad input that was found before the measurement began."""

    @property
    def outcome(self) -> RunOutcome:
        """How it came out, in the words of page and index."""
        from workbench.report.outcome import outcome_of

        return outcome_of(self.facts, "failed" if self.problem else "")

    @property
    def headline(self) -> str:
        """What it found, or the first line of why it failed."""
        found = self.facts.finding if self.facts else ""
        return self.problem.partition("\n")[0] or found or "No finding"

    @property
    def exit_status(self) -> int:
        """1 when it failed, or found a machine that cannot run the other notebooks; 2 for bad input
        with which nothing was started."""
        if self.refused:
            return 2
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
        raise ParameterError(f"{file} must have one parameter a line (example: rounds: 3)")
    return {str(name): value for name, value in given.items()}


def run_notebook(
    notebook: str, given: Mapping[str, Any], *, force: bool = False, progress: TextIO | None = None
) -> NotebookRun:
    """Run a notebook into its run folder and make its page; a finished measurement is reused.

    What the notebook prints (the plan, then one line a pass) goes to `progress`, by default
    standard output. Raises ParameterError for bad parameters, before anything starts;
    whatever happens later is in the returned run.
    """
    params = check_params(notebook, given)
    # What takes seconds to load comes after what may be refused.
    from workbench.experiment.plan.engine_setup import check_engine
    from workbench.experiment.result.result import load_result
    from workbench.experiment.result.run_folder import RunFolder, output_root
    from workbench.hardware.machine import repository_root
    from workbench.params.run_id import run_id
    from workbench.report.page import write_page

    name = run_id(params) if isinstance(params, EngineParams) else "here"
    home = output_root(params.output_dir) / notebook / name
    page = home / "report.html"
    # A machine changes between two looks at it; a measurement stays what it was.
    finished = page.exists() and (home / "result.json").exists()
    if isinstance(params, EngineParams) and finished and not force:
        print(
            f"{notebook} {name}: reusing the result of an earlier run; --force measures again",
            file=progress,
        )
        return NotebookRun(notebook=notebook, page=page, facts=load_result(home).run, kept=True)
    if isinstance(params, EngineParams):
        check_engine(params)
        if force:
            RunFolder.forget(params.output_dir, notebook, name)
            if isinstance(params, PdSweep) and params.predict:
                from workbench.whatif.profiled_run import forget_profile

                forget_profile(params)
    print(f"{notebook} {name}: starting the notebook", file=progress, flush=True)
    home.mkdir(parents=True, exist_ok=True)
    source = repository_root() / "notebooks" / f"{notebook}.ipynb"
    for left in home.glob(".run-*.ipynb"):  # by a process that was killed
        if not Path("/proc", left.stem.removeprefix(".run-")).exists():
            left.unlink(missing_ok=True)
    executed = home / f".run-{os.getpid()}.ipynb"
    given = changed(params)
    began_s = time.monotonic()
    problem = _execute(source, executed, given, progress)
    made: Path | None = None
    refused = False
    if executed.exists():  # else it was stopped before its first cell
        refused = problem.startswith(_BAD_INPUT) and not _began(executed)
        kept = home / ("run.failed.ipynb" if problem else "run.ipynb")
        os.replace(executed, kept)
        made = write_page(kept, home / "report.failed.html" if problem else page)
        if not problem:  # this run has succeeded since
            for stale in ("report.failed.html", "run.failed.ipynb"):
                (home / stale).unlink(missing_ok=True)
    return NotebookRun(
        notebook=notebook,
        page=made,
        facts=None if problem else load_result(home).run,
        problem=problem,
        advice=_advice(problem, notebook, given) if problem else "",
        took_s=time.monotonic() - began_s,
        refused=refused,
    )


def _began(executed: Path) -> bool:
    """Whether the cell of an executed notebook that starts servers was run."""
    cells = json.loads(executed.read_text("utf-8"))["cells"]
    return any(c.get("id") in _STARTING and c.get("execution_count") for c in cells)


def _advice(problem: str, notebook: str, given: Mapping[str, Any]) -> str:
    command = shlex.join(["workbench", "run", notebook, *as_typed(given)])
    again = f"then run it again: {command}"
    if problem.startswith(_STOPPED):
        return f"run it again, launches that ended are kept: {command}"
    if problem == _NO_MEMORY:
        return f"end other programs or use fewer instances, {again}"
    return f"correct what the error names (the page shows all of it), {again}"


def partial_page(run_folder: Path) -> Path:
    """The page of a run that is under way or was interrupted, from the launches measured so far.

    The cells after the measurement run on a copy of the partial result. A cell that needs missing
    launches says so. Raises ResultError if nothing has been found yet, or
    for a notebook without rounds of launches.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    from workbench.experiment.result.so_far import result_so_far
    from workbench.hardware.machine import repository_root
    from workbench.report.page import write_page

    home = run_folder.parent if run_folder.name.startswith("attempt-") else run_folder
    if home.parent.name not in PARTIAL:
        raise ResultError(
            f"{run_folder} must be a run of {' or '.join(PARTIAL)}; other notebooks have no partial"
            " page (example: workbench report outputs/pd_sweep/RUN_ID --partial)"
        )
    folder = result_so_far(run_folder)
    source = repository_root() / "notebooks" / f"{home.parent.name}.ipynb"
    notebook = nbformat.read(source, as_version=4)
    measuring = next(n for n, cell in enumerate(notebook.cells) if cell.get("id") == "run")
    run = notebook.cells[measuring]
    run.source = f"import workbench as wb\n\nresult = wb.load_result({str(folder)!r})\nresult"
    title = notebook.cells[:1]
    notebook.cells = [*title, *notebook.cells[measuring:]]
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    client = NotebookClient(
        notebook, kernel_name="python3", allow_errors=True,
        resources={"metadata": {"path": str(repository_root())}},
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
    )  # fmt: skip
    try:
        client.execute()
    except (DeadKernelError, AssertionError) as error:  # what nbclient raises on its way out
        raise ResultError(
            f"{run_folder} was not rendered: {_NO_MEMORY}; the run continues, so render it again"
            " later"
        ) from error
    for cell in notebook.cells:
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            # A figure of arms that are all still to come, for example.
            cell.outputs = [nbformat.v4.new_output("stream", text=_NOT_YET)]
    executed = folder / "run.ipynb"
    nbformat.write(notebook, executed)
    return write_page(executed, folder / "report.html")


def _execute(
    source: Path, executed: Path, parameters: dict[str, Any], progress: TextIO | None
) -> str:
    """Papermill, with what the cells print shown at once; the error where a cell failed."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    from workbench.experiment.run.progress_bar import LineWriter

    # So that the kernel warns of no debugger that nobody asked for.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    shown = LineWriter(progress, progress)  # the bar stands where its lines go, or nowhere
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


def run_all(
    params_folder: Path | None,
    *,
    output_dir: str = "outputs",
    force: bool = False,
    progress: TextIO | None = None,
) -> Iterator[tuple[NotebookRun, Path]]:
    """Run the five notebooks, whatever one of them finds; yields each run, and the index page.

    `params_folder` may have a file of parameters for each, `<notebook>.yaml`. An interrupt ends
    the notebook that runs, and the ones after it are not started.
    """
    if params_folder is not None and not params_folder.is_dir():
        raise ParameterError(
            f"{params_folder} must be a folder with files such as pd_sweep.yaml"
            " (example: params/cpu_demo)"
        )
    from workbench.experiment.result.run_folder import output_root
    from workbench.report.index import write_index

    for number, notebook in enumerate(NOTEBOOKS, 1):
        print(f"\n== {number} of {len(NOTEBOOKS)}: {notebook}", file=progress, flush=True)
        run = _guarded(notebook, params_folder, output_dir, force, progress)
        folder = output_root(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        yield run, write_index(folder)
        if run.problem.startswith(_STOPPED):
            break


def _guarded(
    notebook: str,
    params_folder: Path | None,
    output_dir: str,
    force: bool,
    progress: TextIO | None,
) -> NotebookRun:
    """One notebook; whatever goes wrong is in its run, so that the others go on."""
    began_s = time.monotonic()
    try:
        file = params_folder / f"{notebook}.yaml" if params_folder else None
        given = read_params(file if file and file.is_file() else None)
        if output_dir != "outputs":
            given["output_dir"] = output_dir
        return run_notebook(notebook, given, force=force, progress=progress)
    except KeyboardInterrupt:
        problem, advice = _INTERRUPTED, "run it again; finished measurements are kept"
    except WorkbenchError as error:
        problem, advice = str(error), "correct what the error names, then run it again"
    except Exception as error:  # of whatever kind: the other notebooks do not depend on it
        problem = f"{type(error).__name__}: {error}"
        advice = f"run it alone to see the whole error: workbench run {notebook}"
    return NotebookRun(
        notebook=notebook, problem=problem, advice=advice, took_s=time.monotonic() - began_s
    )
