"""The `workbench` command: run a notebook into its run folder, and make pages of what it showed.

workbench run pd_sweep -p topology 1p4d     papermill into outputs/..., then the page
workbench run-all                           the five notebooks, one after the other, and the index
workbench report out.ipynb                  the page beside an executed notebook
workbench index                             outputs/index.html
workbench claims list|show|check            the catalogue of published claims
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import ParameterError, WorkbenchError
from workbench.params.notebooks import NOTEBOOKS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it was carried out, 1 when it could not be, 2 on bad input.

    A run whose checks failed was carried out; a machine that is not ready for the others is 1.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    try:
        status = int(options.act(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as behind `| head`: nobody reads on, the last flush has no place
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench", description=(__doc__ or "").split("\n")[0])
    acts = parser.add_subparsers(
        required=True, metavar="run | run-all | report | index | compare | claims"
    )
    run = acts.add_parser("run", help="run a notebook into its run folder, then make its page")
    run.add_argument("notebook", help=", ".join(NOTEBOOKS))
    run.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="one parameter, as papermill takes it",
    )  # fmt: skip
    run.add_argument("-f", "--file", type=Path, help="a YAML file of parameters; -p wins")
    run.add_argument("--force", action="store_true", help="run again what has succeeded before")
    run.set_defaults(act=_run)
    everything = acts.add_parser(
        "run-all", help="run the five notebooks, whatever one of them finds; rewrites the index"
    )
    everything.add_argument(
        "--params", type=Path, metavar="FOLDER",
        help="folder of parameter files, e.g. params/cpu_demo with pd_sweep.yaml",
    )  # fmt: skip
    everything.add_argument("--output-dir", default="outputs")
    everything.add_argument("--force", action="store_true", help="run again what has succeeded")
    everything.set_defaults(act=_run_all)
    report = acts.add_parser("report", help="one offline page beside an executed notebook")
    report.add_argument("executed", type=Path)
    report.set_defaults(act=_report)
    index = acts.add_parser("index", help="one page that lists every run")
    index.add_argument("--output-dir", default="outputs")
    index.set_defaults(act=_index)
    compare = acts.add_parser(
        "compare",
        help="run folders and result files of vLLM bench, GuideLLM, AIPerf, SGLang, LMCache bench,"
        " multi-round-qa",
    )
    compare.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    compare.add_argument("--arm", default="", help="of the runs, this arm only")
    compare.add_argument("--pass", default="", dest="cache_state", help="and this pass only")
    compare.add_argument("--figure", type=Path, help="write the distributions there, as SVG")
    compare.set_defaults(act=_compare)
    claims = acts.add_parser("claims", help="the catalogue of published claims")
    claims.set_defaults(act=_claims)
    looks = claims.add_subparsers(dest="look", required=True, metavar="list | show | check")
    looks.add_parser("list", help="one line a claim, by source").add_argument(
        "group", nargs="?", default="", help="the claims of one source only"
    )
    looks.add_parser("show", help="all that is known of one claim").add_argument("claim")
    looks.add_parser("check", help="one sentence for each mistake in the registry")
    for look in looks.choices.values():
        look.add_argument("--folder", type=Path, help="instead of params/claims")
    return parser


def _report(options: argparse.Namespace) -> int:
    from workbench.report.page import write_page

    if not options.executed.is_file():
        what = "is a folder" if options.executed.is_dir() else "does not exist"
        raise ParameterError(
            f"{options.executed} {what}; give an executed notebook, such as out.ipynb"
        )
    print(write_page(options.executed))
    return 0


def _index(options: argparse.Namespace) -> int:
    from workbench.experiment.result.run_folder import output_root
    from workbench.report.index import write_index

    print(write_index(output_root(options.output_dir)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from workbench.report.comparison import compare_results

    found = compare_results(options.results, arm=options.arm, cache_state=options.cache_state)
    settings, *others = found.sentences
    print(settings, found.table.to_string(index=False), *others, sep="\n")
    if options.figure:
        try:
            options.figure.write_text(found.figure.svg, encoding="utf-8")
        except OSError as error:
            raise ParameterError(f"{options.figure} cannot be written: {error}") from error
        print(options.figure)
    return 0


def _claims(options: argparse.Namespace) -> int:
    from workbench.claims.listing import check_page, list_page, show_page
    from workbench.claims.registry.registry import read_registry
    from workbench.hardware.machine import repository_root

    registry = read_registry(options.folder or repository_root() / "params" / "claims")
    if options.look == "show":
        print(show_page(registry.claim(options.claim)))
    elif options.look == "list":
        print(list_page(registry, options.group))
    else:
        print(check_page(registry))
        return 2 if registry.mistakes else 0
    return 0


def _run(options: argparse.Namespace) -> int:
    from workbench.notebook_run import read_params, run_notebook, told

    given = read_params(options.file) | dict(options.parameter)
    run = run_notebook(options.notebook, given, force=options.force)
    print(*told(run), sep="\n", file=sys.stderr if run.problem else sys.stdout)
    return run.exit_status


def _run_all(options: argparse.Namespace) -> int:
    from workbench.notebook_run import run_all, table_of

    runs, index = run_all(options.params, output_dir=options.output_dir, force=options.force)
    print("", table_of(runs, index=index), sep="\n", flush=True)
    return int(any(run.problem for run in runs))


if __name__ == "__main__":
    sys.exit(main())
