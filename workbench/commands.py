"""What each `workbench` command does with its options; `cli.py` says which options there are.

Each takes the parsed options and returns the exit status.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from workbench.errors import ParameterError, must_be, needs, unused

if TYPE_CHECKING:
    from workbench.experiment.result.finding_rows import TargetRow


def given_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Parameters from the file and `-p`, which overrides it."""
    from workbench.notebook_run import read_params

    return read_params(options.file) | {
        name: value.removeprefix(" ") if value[1:2] == "-" else value
        for name, value in options.parameter
    }


def report(options: argparse.Namespace) -> int:
    """Render a run as a page, as Markdown or as Benchmark Reports."""
    if options.image_base:
        check_image_base(options.image_base, options.format)
    executed = options.executed
    if options.partial:
        from workbench.notebook_run import partial_page

        page = partial_page(executed.absolute())
        executed = page.with_name("run.ipynb")
    if options.format == "md":
        from workbench.exports.note import write_note

        print(write_note(executed, image_base=options.image_base))
    elif options.format == "benchmark-report":
        from workbench.exports.benchmark_report import write_benchmark_reports

        print(*write_benchmark_reports(executed), sep="\n")
    else:
        from workbench.report.page import write_page

        print(write_page(executed))
    return 0


def check_image_base(url: str, form: str) -> None:
    """Raises ParameterError where `--image-base` is no address, or the report is not Markdown."""
    example = "--image-base https://example.org/note"
    if form != "md":
        raise ParameterError(
            unused("--image-base", url, f"--format={form}", f"--format md {example}")
        )
    if not url.startswith(("http://", "https://")):
        raise ParameterError(must_be("--image-base", "an http address", url, example))


def status(options: argparse.Namespace) -> int:
    """List the runs under way."""
    from workbench.experiment.run.under_way import runs_under_way
    from workbench.terminal import status_line, status_table

    runs = runs_under_way()
    print(status_line(runs) if options.json else status_table(runs))
    return 0


def index(options: argparse.Namespace) -> int:
    """Write the list of all runs."""
    from workbench.experiment.result.run_folder import output_root
    from workbench.report.index import write_index

    print(write_index(output_root(options.output_dir)))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Compare results, side by side or by ratios."""
    check_file("--page", options.page, "compare.html")
    check_file("--figure", options.figure, "ratios.svg")
    from workbench.report.comparing.comparison import compare_results
    from workbench.report.comparing.comparison_page import comparison_page

    found = compare_results(
        options.results, arm=options.arm, cache_state=options.cache_state, unlike=options.unlike
    )
    settings, *others = found.sentences
    print(settings)
    for pair, table in zip(found.runs, found.ratio_tables, strict=True):
        shown = "nothing in common" if table.empty else table.to_string(index=False)
        print(f"\n{pair.label} vs {pair.baseline}", shown, "", sep="\n")
        for each in pair.differences:
            note = "" if each.counted else " (follows from the others)"
            print(f"  {each.name}: {each.one} and {each.other}{note}")
    print(found.table.to_string(index=False), *others, sep="\n")
    if options.figure:
        figures = found.ratio_figures or [found.figure]
        _write(options.figure, figures[0].svg)
    if options.page:
        words = shlex.join(["workbench", *options.words])
        _write(options.page, comparison_page(found, words))
    return 0


def check_file(option: str, file: Path | None, example: str) -> None:
    """Raises ParameterError for a file of this option that cannot be written, before anything is
    computed: wrong suffix (not that of `example`), missing folder, or a folder instead of a file.

    An example without a suffix allows any.
    """
    if file is None:
        return
    suffix, allowed = Path(example).suffix, ""
    if suffix and file.suffix.lower() != suffix:
        allowed = f"a file that ends in {suffix}"
    elif file.is_dir():
        allowed = "a file"
    elif not file.parent.is_dir():
        allowed = "a file in an existing folder"
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        allowed = "a file that you may write"
    if allowed:
        raise ParameterError(must_be(option, allowed, str(file), f"{option} {example}"))


def _write(file: Path, text: str, *, append: bool = False) -> None:
    """Write a file that was asked for, and print its name. Raises ParameterError."""
    try:
        with file.open("a" if append else "w", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise ParameterError(f"{file} cannot be written: {error}") from error
    print(file)


def gate(options: argparse.Namespace) -> int:
    """Judge a run against a baseline; the outcome is the exit status."""
    check_file("--junit", options.junit, "gate.xml")
    check_file("--summary", options.summary, "summary")
    from workbench.experiment.between.regression import allowed_loss, judge
    from workbench.experiment.result.result import load_result
    from workbench.report.comparing import gate_report

    allow = allowed_loss(options.allow)
    run, *bases = map(load_result, (options.run, *options.against))
    found = judge(
        run, bases, allow=allow, arm=options.arm, cache_state=options.cache_state,
        unlike=options.unlike,
    )  # fmt: skip
    print(*gate_report.text_report(found), sep="\n")
    if options.junit:
        _write(options.junit, gate_report.junit_report(found, run.folder.name))
    if options.summary:
        _write(options.summary, gate_report.markdown_report(found), append=True)
    return gate_report.EXIT_STATUS[found.outcome]


def compose(options: argparse.Namespace) -> int:
    """Print a Docker Compose file."""
    from workbench.compose.compose_file import compose_file

    print(compose_file(given_parameters(options)), end="")
    return 0


def profile(options: argparse.Namespace) -> int:
    """Measure 1p1d for predictions."""
    import asyncio

    from workbench.experiment.run.run import run
    from workbench.report.page import write_page
    from workbench.whatif.profile_plan import profile_params, profile_plan
    from workbench.whatif.profiled_run import with_fits

    result = asyncio.run(run(profile_plan(profile_params(given_parameters(options)))))
    with_fits(result)
    print(write_page(result.folder))
    print(result.folder / "profile.json")
    return 0


def predict(options: argparse.Namespace) -> int:
    """Predict a topology from a profile."""
    given = given_parameters(options)
    if options.splits:
        return _splits(options, given)
    if options.page:
        raise ParameterError(
            "--page needs --splits, whose table it shows (example: --splits 8 --page splits.html)"
        )
    from workbench.whatif.prediction_text import prediction_page

    print(prediction_page(options.profile, given, options.measured))
    return 0


def _splits(options: argparse.Namespace, given: dict[str, Any]) -> int:
    """Predict the highest rate of every split, and write it as a page."""
    from workbench.exports.split_page import PAGE, split_lines, write_split_page
    from workbench.whatif.highest_rates import highest_rates
    from workbench.whatif.profiles.profile_file import read_profile

    if options.measured:
        example = "workbench predict profile.json --measured RUN"
        raise ParameterError(unused("--measured", options.measured[0], "--splits", example))
    profile = read_profile(options.profile)
    page = options.page or options.profile.with_name(PAGE)
    check_file("--page", page, PAGE)
    found = highest_rates(profile, given, options.splits)
    print(*split_lines(found), "", sep="\n")
    print(*write_split_page(found, page, shlex.join(["workbench", *options.words])), sep="\n")
    return 0


def claims(options: argparse.Namespace) -> int:
    """List, show or check the published claims."""
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


def monitoring(options: argparse.Namespace) -> int:
    """Print a dashboard, rules or the settings of Prometheus."""
    from workbench.experiment.result.run_folder import output_root
    from workbench.monitoring.dashboard import dashboard
    from workbench.monitoring.rules import rules
    from workbench.monitoring.scrape import TARGETS_FOLDER, prometheus_config

    if options.file == "dashboard":
        print(json.dumps(dashboard(options.connector), indent=1))
    elif options.file == "rules":
        print(rules(), end="")
    else:
        targets = output_root(options.output_dir).absolute() / TARGETS_FOLDER / "*.json"
        print(prometheus_config((), target_files=str(targets)), end="")
    return 0


@contextmanager
def _progress(options: argparse.Namespace) -> Iterator[TextIO]:
    """Where the plan and the lines of the passes go."""
    if options.quiet:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield nowhere
    else:
        yield sys.stderr if options.json else sys.stdout


def up(options: argparse.Namespace) -> int:
    """Start servers and keep them until Ctrl-C."""
    from workbench.params.serving import serving_params

    params = serving_params("up", given_parameters(options))
    from workbench.up import up  # what takes seconds to load comes after what may be refused

    return up(params)


def run(options: argparse.Namespace) -> int:
    """Run one notebook and render its page."""
    from workbench.notebook_run import run_notebook

    given = given_parameters(options)
    if options.check_targets and not given.get("targets"):
        raise ParameterError(
            needs("--check-targets", "targets", "", "-p targets 'store-warm ttft cut >= 60%'")
        )
    with _progress(options) as progress:
        run = run_notebook(options.notebook, given, force=options.force, progress=progress)
    from workbench.terminal import closing_lines, say, summary_line

    say(*closing_lines(run), problem=bool(run.problem) or options.json)
    status = run.exit_status
    if options.check_targets and run.facts and not status:
        status = _status_of(run.facts.targets, not_met=3, undecided=4)
    if options.json:
        print(summary_line(run, status))
    return status


def _status_of(rows: Sequence[TargetRow], *, not_met: int, undecided: int) -> int:
    outcomes = {row.outcome for row in rows}
    return not_met if "not met" in outcomes else undecided if "undecided" in outcomes else 0


def targets(options: argparse.Namespace) -> int:
    """Hold a finished run against targets."""
    from workbench.experiment.findings.target_findings import targets_of
    from workbench.experiment.result.result import load_result
    from workbench.terminal import say, target_line

    rows = targets_of(load_result(options.run).run, options.sentences)
    say(*map(target_line, rows))
    return _status_of(rows, not_met=1, undecided=2)


def run_all(options: argparse.Namespace) -> int:
    """Run all five notebooks, then write the list of all runs."""
    from workbench.notebook_run import run_all
    from workbench.terminal import closing_lines, say, summary_of_all, table_of

    runs, index = [], None
    with _progress(options) as progress:
        for run, page in run_all(
            options.params, output_dir=options.output_dir, force=options.force, progress=progress
        ):
            say(*closing_lines(run), problem=options.json)
            runs.append(run)
            index = page
    say("", table_of(runs, index=index), problem=options.json)
    if options.json:
        print(summary_of_all(runs, index))
    return int(any(run.problem for run in runs))
