"""The `workbench` command: run notebooks, render their pages, start servers, compare results."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from workbench import commands
from workbench.errors import WorkbenchError
from workbench.grammars import spare_grammars
from workbench.params.notebooks import NOTEBOOKS
from workbench.params.pd_sweep import CONNECTORS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it was carried out, 1 when it could not be, 2 on bad input.

    A run whose checks failed was carried out; a machine that is not ready for the others is 1.
    """
    spare_grammars()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parser().parse_args(_values_kept(words))
    except SystemExit as ended:  # argparse's own status for bad input is 2
        gated = ended.code and words[:1] in (["gate"], ["targets"])
        raise SystemExit(_NOT_GATED if gated else ended.code) from None
    options.words = words
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
        return int(getattr(options, "bad_input", 2))
    except Exception:
        if options.act not in (commands.gate, commands.targets):
            raise
        traceback.print_exc()  # Python's own status, 1, would say that there is a regression
        return _NOT_GATED


_NOT_GATED = 3
"""Exit status of `workbench gate` and `targets` for bad input and errors."""


def _values_kept(arguments: Sequence[str]) -> list[str]:
    """The arguments with a space before a value of `-p` that begins with a dash.

    argparse takes `-p engine_args --enable-chunked-prefill` for two options.
    """
    names = ("-p", "--parameter")
    return [
        f" {word}" if word[:1] == "-" and place > 1 and arguments[place - 2] in names else word
        for place, word in enumerate(arguments)
    ]


_EPILOG = """examples:
  workbench run pd_sweep -p topology 1p4d           measure; the page is outputs/.../report.html
  workbench run pd_sweep -f params/cpu_demo/pd_sweep.yaml -p rounds 5
  workbench run pd_sweep -p topology 1p4d --json | jq .headline
  workbench run-all --params params/cpu_demo        the five notebooks, then outputs/index.html
  workbench up -p topology 1p4d                     start servers, print their URL; Ctrl-C ends them
  workbench status                                  runs under way: what they do, time left
  workbench report outputs/pd_sweep/RUN --partial   the partial page of a run under way
  workbench report out.ipynb                        the page of a notebook that papermill ran
  workbench compare outputs/pd_sweep/RUN bench.json
  workbench gate outputs/pd_sweep/RUN --against base/pd_sweep/RUN --allow 5%
  workbench compose -p topology 1p4d > compose.yaml   for Docker Compose; see docs/compose.md
  workbench profile -p connector nixl               measure 1p1d for predictions; docs/whatif.md
  workbench predict profile.json -p topology 2p6d -p rate_per_s 3 -p ttft_limit_ms 500
  workbench predict profile.json --splits 8 -p ttft_limit_ms 500 -p tpot_limit_ms 50
  papermill --help-notebook notebooks/pd_sweep.ipynb   every parameter of a notebook

exit status:
  0  completed, whatever the gates found
  1  could not be completed, or environment_check found a machine that is not ready
  2  bad input; nothing was started
  gate and targets differ: see workbench gate --help, workbench targets --help

Progress and results go to standard output, errors to standard error. Colours appear on a
terminal only, and not if NO_COLOR is set. Ctrl-C ends a run and every server it started.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench",
        description=(
            "Measures whether a KV cache or a prefill/decode split speeds up vLLM, by how much,"
            " and checks whether the numbers can be trusted."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(required=True)
    run = acts.add_parser(
        "run",
        help="run one notebook, then render its page",
        description=(
            "Runs a notebook by papermill into outputs/NOTEBOOK/RUN_ID/ and renders its page. A"
            " measurement with the same parameters that succeeded before is reused."
        ),
        epilog="exit status: 0 completed, 1 could not be completed or not ready, 2 bad input; with"
        " --check-targets also 3 a target was not met, 4 a target is undecided",
    )
    run.add_argument("notebook", help=", ".join(NOTEBOOKS))
    _add_parameters(run)
    run.add_argument("--force", action="store_true", help="measure again instead of reusing")
    run.add_argument(
        "--check-targets", action="store_true",
        help="end with exit status 3 if a target was not met, 4 if one is undecided",
    )  # fmt: skip
    _add_verbosity(run)
    run.set_defaults(act=commands.run)
    everything = acts.add_parser(
        "run-all",
        help="run all five notebooks, even if gates fail, and write outputs/index.html",
        epilog="exit status: 0 all completed, 1 one could not be completed, 2 bad input",
    )
    everything.add_argument(
        "--params", type=Path, metavar="FOLDER",
        help="folder with one file of parameters a notebook, such as pd_sweep.yaml"
        " (example: params/cpu_demo)",
    )  # fmt: skip
    everything.add_argument("--output-dir", default="outputs", help="default: outputs")
    everything.add_argument("--force", action="store_true", help="measure again, reuse nothing")
    _add_verbosity(everything)
    everything.set_defaults(act=commands.run_all)
    up = acts.add_parser(
        "up",
        help="start the servers of one topology and keep them until Ctrl-C",
        description=(
            "Starts the servers that pd_sweep measures first, without load. Prints their URL, a"
            " curl line, and the command that measures them; Ctrl-C ends them. Parameters are"
            " those of pd_sweep that concern servers."
        ),
        epilog="exit status: 0 ended by Ctrl-C or a signal, 1 a server did not start or ended by"
        " itself, 2 bad input",
    )
    _add_parameters(up)
    up.set_defaults(act=commands.up)
    report = acts.add_parser(
        "report",
        help="render a run as an HTML page, Markdown or Benchmark Report",
        description=(
            "Renders an executed notebook or a run folder. html: one page that opens offline. md:"
            " a folder with report.md, images, and all tables as CSV and XLSX, for GitHub and"
            " HackMD. benchmark-report: a file in the format of llm-d-benchmark for each arm and"
            " pass. See docs/reports.md."
        ),
    )
    report.add_argument("executed", type=Path, help="such as out.ipynb, or a run folder")
    report.add_argument(
        "--partial", action="store_true",
        help="render the launches measured so far, for the folder of a run that is under way or"
        " was interrupted",
    )  # fmt: skip
    report.add_argument(
        "--format", choices=("html", "md", "benchmark-report"), default="html",
        help="default: html",
    )  # fmt: skip
    report.add_argument(
        "--image-base", default="", metavar="URL",
        help="only with md: URL where the folder is published, for sites without relative links",
    )  # fmt: skip
    report.set_defaults(act=commands.report)
    status = acts.add_parser(
        "status",
        help="list the runs under way on this machine",
        description=(
            "Lists your runs under way on this machine, in any outputs folder: launches measured,"
            " what each run does now, the time left, and its page so far."
        ),
    )
    status.add_argument("--json", action="store_true", help="print one line of JSON")
    status.set_defaults(act=commands.status)
    index = acts.add_parser("index", help="render outputs/index.html, which lists every run")
    index.add_argument("--output-dir", default="outputs", help="default: outputs")
    index.set_defaults(act=commands.index)
    compare = acts.add_parser(
        "compare",
        help="compare run folders, and result files of vllm bench, GuideLLM, AIPerf, SGLang,"
        " LMCache's bench and multi-round-qa, and Benchmark Reports",
    )
    compare.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    compare.add_argument("--arm", default="", help="compare this arm of each run only")
    compare.add_argument(
        "--pass", default="", dest="cache_state", help="compare this pass only, such as store-warm"
    )
    compare.add_argument(
        "--figure", type=Path, metavar="FILE",
        help="write the speed-ups of the first two runs as SVG to FILE (with a file of"
        " another tool: the distributions)",
    )  # fmt: skip
    compare.add_argument(
        "--page", type=Path, metavar="FILE", help="write everything as one HTML page to FILE"
    )
    _add_unlike(compare)
    compare.set_defaults(act=commands.compare)
    gate = acts.add_parser(
        "gate",
        help="check whether a run is worse than a baseline run by more than you allow",
        description=(
            "Compares TTFT, TPOT and throughput of each arm and pass with a baseline run, and"
            " decides by intervals. See docs/gate.md for CI."
        ),
        epilog="exit status: 0 no regression, 1 regression, 2 undecided, 3 bad input",
    )
    gate.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    gate.add_argument(
        "--against", nargs="+", type=Path, required=True, metavar="BASE",
        help="folder of the baseline run; more folders repeat it, which gives the noise floor",
    )  # fmt: skip
    gate.add_argument(
        "--allow", required=True, metavar="PERCENT",
        help="how much worse is allowed, such as 5%%: latency higher, throughput lower",
    )  # fmt: skip
    gate.add_argument("--arm", default="", help="only this arm")
    gate.add_argument("--pass", default="", dest="cache_state", help="only this pass")
    gate.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML to FILE")
    gate.add_argument(
        "--summary", type=Path, metavar="FILE",
        help="append Markdown of at most 30 lines to FILE, such as $GITHUB_STEP_SUMMARY",
    )  # fmt: skip
    _add_unlike(gate)
    gate.set_defaults(act=commands.gate, bad_input=_NOT_GATED)
    targets = acts.add_parser(
        "targets",
        help="check whether a run met its targets, or those you give",
        description="Checks the comparisons of a run against targets; see docs/targets.md.",
        epilog="exit status: 0 all met, 1 one was not met, 2 undecided, 3 bad input",
    )
    targets.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    targets.add_argument(
        "sentences", nargs="*", metavar="TARGET",
        help="such as 'store-warm ttft cut >= 60%%' (default: the run's own)",
    )  # fmt: skip
    targets.set_defaults(act=commands.targets, bad_input=_NOT_GATED)
    compose = acts.add_parser(
        "compose",
        help="print a Docker Compose file with the servers of a pd_sweep",
        description=(
            "Prints a compose file: instances, KV store and proxy of a topology, its aggregated"
            " baselines on the same GPUs as further profiles, and as its first line the command"
            " that measures it. Takes the parameters of pd_sweep."
        ),
    )
    _add_parameters(compose)
    compose.set_defaults(act=commands.compose)
    profile = acts.add_parser(
        "profile",
        help="measure 1p1d at several lengths and batches, and write profile.json",
        description=(
            "Takes the parameters of pd_sweep: the workload sets the prompt lengths, concurrency"
            " the largest batch. Predictions need only profile.json."
        ),
    )
    _add_parameters(profile)
    profile.set_defaults(act=commands.profile)
    predict = acts.add_parser(
        "predict",
        help="predict a topology from a profile, and check predictions with measured runs",
        description=(
            "Simulates the cold pass of a pd_sweep on other topologies. Without a measured run no"
            " number is checked, and the output says so."
        ),
    )
    predict.add_argument("profile", type=Path, help="profile.json of workbench profile")
    predict.add_argument(
        "--measured", type=Path, action="append", default=[], metavar="RUN",
        help="folder of a measured pd_sweep: print how far off its prediction is; repeat for more",
    )  # fmt: skip
    predict.add_argument(
        "--splits", type=int, default=0, metavar="GPUS",
        help="for every P:D ratio on 2 to GPUS GPUs, predict the highest rate within ttft_limit_ms"
        " and tpot_limit_ms (not one load), and its cost if gpu_hour_price is set",
    )  # fmt: skip
    predict.add_argument(
        "--page", type=Path, metavar="FILE",
        help="only with --splits: write the page to FILE, with SVG and PNG in the same folder"
        " (default: splits.html in the folder of the profile)",
    )  # fmt: skip
    _add_parameters(predict)
    predict.set_defaults(act=commands.predict)
    claims = acts.add_parser("claims", help="list, show or check the published claims")
    claims.set_defaults(act=commands.claims)
    looks = claims.add_subparsers(dest="look", required=True, metavar="list | show | check")
    looks.add_parser("list", help="one line for each claim, by source").add_argument(
        "group", nargs="?", default="", help="the claims of this source only"
    )
    looks.add_parser("show", help="everything about one claim").add_argument("claim")
    looks.add_parser("check", help="check the claim files; one line for each mistake")
    for look in looks.choices.values():
        look.add_argument(
            "--folder", type=Path, help="folder of claim files (default: params/claims)"
        )
    monitoring = acts.add_parser(
        "monitoring", help="print the dashboard for Grafana, or a file for Prometheus"
    )
    monitoring.add_argument(
        "file",
        choices=("dashboard", "rules", "prometheus"),
        help="the dashboard (JSON), the rules, or a configuration that scrapes the servers of runs",
    )
    monitoring.add_argument(
        "--output-dir", default="outputs", help="only with prometheus: of the runs"
    )
    monitoring.add_argument(
        "--connector", choices=CONNECTORS, default="", help="only with dashboard: only its panels"
    )
    monitoring.set_defaults(act=commands.monitoring)
    acts.metavar = " | ".join(acts.choices)
    return parser


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set one parameter, as in papermill; repeat for more",
    )  # fmt: skip
    parser.add_argument("-f", "--file", type=Path, help="YAML file of parameters; -p overrides it")


def _add_unlike(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--unlike", choices=("machine", "workload", "model"), action="append", default=[],
        help="compare although this differs; repeat for more",
    )  # fmt: skip


def _add_verbosity(parser: argparse.ArgumentParser) -> None:
    told = parser.add_mutually_exclusive_group()
    told.add_argument("-q", "--quiet", action="store_true", help="print the result only")
    told.add_argument(
        "--json", action="store_true",
        help="print one line of JSON, the summary of the result, on standard output; everything"
        " else goes to standard error",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
