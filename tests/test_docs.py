"""README and docs are true: each command is run, planned or marked, each link leads somewhere.

A command stands in a fenced block. A line `# not run here: why` says, to reader and test alike,
that what follows it in the block needs what a test lacks; its parameters are checked all the same.
"""

import argparse
import ast
import asyncio
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
import yaml

from tests.experiment.conftest import machine_has, model  # noqa: F401  fixtures of this file too
from workbench import cli, commands
from workbench.compose.compose_file import compose_file
from workbench.compose.profiles import compose_params
from workbench.errors import ParameterError
from workbench.experiment.plan.arms import plan, servers_of
from workbench.hardware.machine import repository_root
from workbench.metrics.gates.gate_table import GATES
from workbench.params.notebooks import NOTEBOOKS, EngineParams, check_params
from workbench.params.pd_sweep import CONNECTORS
from workbench.params.serving import serving_params
from workbench.report.glossary import GLOSSARY

ROOT = repository_root()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
README = (ROOT / "README.md").read_text()
MARK = re.compile(r"#\s*not run here: \S+")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
GRANTED = {". .venv/bin/activate"}


class Command(NamedTuple):
    """One command line of a page, as words."""

    page: str
    line: str
    marked: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.line[:70]}"


def commands_of(page: str, text: str) -> Iterator[Command]:
    """The commands of all fenced blocks that are `sh`, or of no language and begin with one."""
    for _, language, body in FENCE.findall(text):
        first = body.split()[0] if body.split() else ""
        if language != "sh" and (language or first not in CHECKS):
            continue
        marked = False
        for line in re.sub(r"\\\n\s*", "", body).splitlines():
            marked = marked or bool(MARK.match(line.strip()))
            for part in re.split(r"\s+(?:&&|[|])\s+", line.strip()):
                said = shlex.join(shlex.split(part, comments=True)).replace("'>'", ">")
                if said:
                    yield Command(page, said, marked or bool(MARK.search(line)))


def check(command: Command) -> None:
    """Raises what is wrong with a command: ValueError, or what the product says of it."""
    words = [w for w in command.line.split(" > ")[0].split(" 2> ")[:1] for w in shlex.split(w)]
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    known = CHECKS.get(words[0])
    if known is not None:
        known(command, words[1:])
    elif command.line not in GRANTED and not command.marked:
        raise ValueError(f"{command.line!r}: no check knows it; mark it `# not run here: why`")


def check_make(_: Command, words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()  # type: ignore[index]
    for word in words:
        name, assigned, _ = word.partition("=")
        if name not in targets and not (assigned and f"({name})" in makefile):
            raise ValueError(f"make {word}: the Makefile has no such target or variable")


def check_papermill(command: Command, words: list[str]) -> None:
    if words[0] == "--help-notebook":
        words = [words[1], "out.ipynb"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("-p", nargs=2, action="append", default=[])
    parser.add_argument("-f", type=Path)
    asked = parser.parse_args(words)
    if not (ROOT / asked.source).is_file():
        raise ValueError(f"{asked.source} does not exist")
    check_notebook(command, asked.source.stem, asked.f, asked.p)


def check_workbench(command: Command, words: list[str]) -> None:
    asked = cli._parser().parse_args(words)
    if words[0] == "run":
        check_notebook(command, asked.notebook, asked.file, asked.parameter)
    elif words[0] == "up":
        given = yaml.safe_load((ROOT / asked.file).read_text()) if asked.file else {}
        params = serving_params("up", given | dict(asked.parameter))
        assert command.marked or servers_of(params)
    elif words[0] == "compose":
        given = commands.given_parameters(asked)
        if command.marked:  # for a machine with a GPU
            compose_params({"platform": "cuda"} | given)
        else:
            assert compose_file(given).startswith("# papermill")
    elif words[0] == "claims":
        assert cli.main(words) == 0
    elif words[0] == "run-all":
        for file in (ROOT / asked.params).glob("*.yaml"):
            check_params(file.stem, yaml.safe_load(file.read_text()))


def check_notebook(
    command: Command, notebook: str, file: Path | None, given: list[tuple[str, str]]
) -> None:
    """The parameters, and the plan of what can be planned without a GPU or an existing log."""
    values = yaml.safe_load((ROOT / file).read_text()) if file else {}
    params = check_params(notebook, values | dict(given))
    plannable = isinstance(params, EngineParams) and notebook != "paper_claim_validation"
    if plannable and not command.marked and not getattr(params, "log_file", ""):
        assert plan(params).arms


def check_python(_: Command, words: list[str]) -> None:
    """The module or script is there, and knows the options."""
    if words[0] == "-c":
        return
    module = words[0] == "-m"
    if module and importlib.util.find_spec(words[1]) is None:
        raise ValueError(f"there is no module {words[1]}")
    source = Path(importlib.util.find_spec(words[1]).origin or "") if module else ROOT / words[0]  # type: ignore[union-attr]
    text = source.read_text()
    for option in (word for word in words[1:] if word.startswith("--")):
        if option not in text:
            raise ValueError(f"{words[0]} has no option {option}")


def check_pytest(_: Command, words: list[str]) -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    marks = {mark.partition(":")[0] for mark in config["ini_options"]["markers"]}
    asked = words[words.index("-m") + 1] if "-m" in words else ""
    if lost := set(re.findall(r"\w+", asked)) - marks - {"not", "and", "or"}:
        raise ValueError(f"there is no marker {lost}")
    for path in (word for word in words if word.startswith("tests")):
        if not (ROOT / path).exists():
            raise ValueError(f"{path} does not exist")


def check_tool(command: Command, _: list[str]) -> None:
    """It is part of `make check`, with these words."""
    line = shlex.join(shlex.split(command.line))
    if f"\t{line}" not in (ROOT / "Makefile").read_text():
        raise ValueError(f"make check does not run {line!r}")


CHECKS: dict[str, Any] = {
    "make": check_make,
    "papermill": check_papermill,
    "workbench": check_workbench,
    "python": check_python,
    "pytest": check_pytest,
    "ruff": check_tool,
    "mypy": check_tool,
    "lint-imports": check_tool,
}
COMMANDS = [
    command
    for page in PAGES
    for command in commands_of(str(page.relative_to(ROOT)), page.read_text())
]


@pytest.fixture
def folder(tmp_path, monkeypatch, machine_has):  # noqa: F811
    """A folder with the files that examples name, on a described machine."""
    row = {"prompt": "Write a word. " * 40, "max_tokens": 8}
    (tmp_path / "mine.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    row = {"timestamp": 0, "input_length": 1024, "output_length": 8, "hash_ids": [1, 2]}
    (tmp_path / "trace.jsonl").write_text(f"{json.dumps(row)}\n" * 30)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS), ids=str)
def test_a_command_is_one_that_the_product_takes(command, folder):
    check(command)


RUN = "workbench run pd_sweep"
WRONG = [
    ("make reports", "no such target or variable"),
    ("make report FORCED_=1", "no such target or variable"),
    ("papermill notebooks/pd_swep.ipynb out.ipynb", "does not exist"),
    ("papermill notebooks/pd_sweep.ipynb out.ipynb -p topologie 1p4d", "'topologie'"),
    ("papermill notebooks/pd_sweep.ipynb out.ipynb -p connector none", "got 'none'"),
    ("workbench up -p rounds 3", "does not take 'rounds'"),
    (f"{RUN} --forced", "--forced"),
    (f"{RUN} -p workload novel", "novel"),
    (f"{RUN} -f params/cpu_demo/none.yaml", "No such file"),
    ("python benchmarks/none.py", "No such file"),
    ("python benchmarks/exactness.py --turns 3", "no option --turns"),
    ("python -m workbench.none", "no module workbench.none"),
    ("pytest tests/none", "tests/none does not exist"),
    ("pytest -m 'not slow'", "no marker {'slow'}"),
    ("ruff check --fix .", "make check does not run"),
    ("docker run vllm", "mark it"),
    ("curl http://127.0.0.1:8000", "mark it"),
]


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_the_check_finds_what_is_wrong(line, said, folder, capsys):
    (command,) = commands_of("a page", f"```sh\n{line}\n```\n")
    with pytest.raises((Exception, SystemExit)) as error:
        check(command)
    assert said in f"{error.value}{capsys.readouterr().err}"


def test_a_mark_spares_what_follows_but_not_its_parameters(folder):
    block = f"```sh\n# not run here: needs a GPU\ndocker run vllm\n{RUN} -p topologie 1p4d\n```\n"
    docker, run = commands_of("a page", block)
    check(docker)
    with pytest.raises(ParameterError, match="topologie"):
        check(run)


def test_more_commands_are_planned_than_marked():
    assert len(COMMANDS) > 40
    assert sum(command.marked for command in COMMANDS) < len(COMMANDS) / 2


@pytest.mark.servers
def test_readme_commands_run_on_simulated_servers(tmp_path, monkeypatch, capsys):
    """A run, its page, the index, a comparison; as typed but for a quicker engine."""
    monkeypatch.chdir(tmp_path)
    line = "workbench run pd_sweep -p topology 1p4d -p engine simulated"
    assert line in {command.line for command in COMMANDS if command.page == "README.md"}
    quick = "-p topology 1p1d -p requests 2 -p rounds 1 -p opponents False -p output_dir"
    assert cli.main(shlex.split(f"{line} --json {quick} {tmp_path}")[1:]) == 0
    (told,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert {"outcome", "headline", "numbers", "gates_not_passed", "page"} <= set(told)
    page = next(tmp_path.glob("pd_sweep/*/report.html"))
    assert told["page"] == str(page)
    assert cli.main(["report", str(page.with_name("run.ipynb"))]) == 0
    assert cli.main(["index", "--output-dir", str(tmp_path)]) == 0
    assert page.parent.name in (tmp_path / "index.html").read_text()
    assert cli.main(["compare", str(page.parent), str(page.parent)]) == 0


@pytest.mark.servers
def test_the_python_example_runs_on_simulated_servers(tmp_path):
    (example,) = [body for _, language, body in FENCE.findall(README) if language == "python"]
    quick = {"engine": "simulated", "requests": 2, "rounds": 1, "output_dir": str(tmp_path)}
    code = example.replace('{"topology": "1p4d"}', repr({"topology": "1p1d"} | quick))
    assert code != example
    names: dict[str, Any] = {}
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    block = compile(code, "README.md", "exec", flags=flags)
    asyncio.run(eval(block, names))
    frame = names["result"].speedup("ttft")
    assert {"ratio", "low", "high"} <= set(frame.columns)
    assert len(frame) > 0


def test_readme_is_read_in_two_minutes():
    assert len(README.splitlines()) <= 110
    for word, sentence in GLOSSARY.items():
        assert f"- **{word}**: {sentence}\n" in README
    for connector in CONNECTORS:
        assert f"`{connector}`" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_opens_with_what_it_is_for_and_its_links_lead_somewhere(page):
    title, _, rest = page.read_text().partition("\n\n")
    assert re.fullmatch(r"# \S.*", title)
    assert re.match(r"[A-Z`].*[.?:]", rest.partition("\n\n")[0])
    for target in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", page.read_text()):
        file, _, anchor = "".join(target).partition("#")
        if not file.startswith("https://"):
            there = (page.parent / file) if file else page
            assert there.exists(), file
            assert not anchor or anchor in anchors(there), anchor


def anchors(page: Path) -> set[str]:
    """The anchors that a renderer gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_leads_to_every_page():
    linked = re.findall(r"\]\(((?:docs/)?[\w.]+\.md)\)", README)
    assert {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"} == set(linked)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_parameters_and_gates_that_a_page_names_exist(page):
    names = {name for kind in NOTEBOOKS.values() for name in kind.__dataclass_fields__}
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        if re.fullmatch(r"(workbench|tests|docs|params|benchmarks|notebooks)/[\w/.*]*", code):
            assert [*ROOT.glob(code), *(ROOT / "workbench").glob(code)], code
        assert set(re.findall(r"(?<!\S)-p (\w+) ", code)) <= names | {"NAME"}, code
    for gate in re.findall(r"gates? \"([^\"]+)\"", page.read_text()):
        assert gate in GATES, gate
    for failed in re.findall(r"FAIL \"([^\"]+)\"", page.read_text()):
        assert failed in {row.failed_name for row in GATES.values()}, failed


def test_messages_that_troubleshooting_quotes_are_those_of_the_code():
    said = "\n".join(
        part.value
        for file in ROOT.glob("workbench/**/*.py")
        for part in ast.walk(ast.parse(file.read_text()))
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )
    page = (ROOT / "docs/troubleshooting.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", page, re.M)
    quoted = [text for row in rows for text in re.findall(r"`([^`]* [^`]*)`", row)]
    assert len(quoted) > 4
    assert [text for text in quoted if text not in said] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_readme_names_the_notebook(notebook):
    assert f"| `{notebook}` |" in README
    assert nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells


def test_the_picture_is_of_the_page_as_it_looks_now():
    script = load("docs/make_picture.py")
    assert script.stamp_of(script.PICTURE) == script.stamp(), (
        "the look of a page has changed: python docs/make_picture.py"
    )


def load(path: str) -> Any:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
