"""An interpreter says what it has, and its programs find the workbench."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments import environment
from workbench.errors import ParameterError
from workbench.hardware.interpreter import interpreter


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a vLLM that ours does not have, and with nothing of ours."""
    return environment(tmp_path_factory.mktemp("env"), vllm="0.27.0", lmcache="0.4.1")


def told_by(python: Path, code: str) -> str:
    """What `code` prints there, with the variables of its interpreter record."""
    env = os.environ | interpreter(str(python)).env()
    env.pop("VIRTUAL_ENV", None)
    return subprocess.run([python, "-c", code], env=env, capture_output=True, text=True).stdout


def test_our_own_needs_no_variables():
    ours = interpreter()
    assert ours.own and ours.path == sys.executable and ours.env() == {}
    assert ours.find("json") and not ours.find("no_such_package")


def test_another_says_its_own_versions_and_not_ours(other):
    found = interpreter(str(other))
    assert found.versions == {"vllm": "0.27.0", "lmcache": "0.4.1"}
    assert found.python.startswith("3.") and not found.own
    assert Path(found.find("vllm")).parents[3] == other.parents[1]
    assert found.find("pandas") == found.find("torch") == ""


def test_there_the_workbench_is_found_but_no_other_package_of_ours(other):
    assert told_by(other, "import workbench.serve.vllm; print('found')") == "found\n"
    assert told_by(other, "import pandas; print('found')") == ""


def test_there_vllm_finds_our_plugin(other):
    code = (
        "from importlib.metadata import entry_points;"
        "(one,) = entry_points(group='vllm.general_plugins'); print(one.name, one.load().__name__)"
    )
    assert told_by(other, code) == "workbench_cpu register\n"


def test_paths_of_the_process_come_after_ours(other, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    env = interpreter(str(other)).env({"PATH": "/given"})
    assert env["PYTHONPATH"].split(":")[1:] == ["/theirs"]
    assert env["PATH"] == f"{other.parent}:/given"


def test_a_question_is_asked_once(other, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    module = "workbench.hardware.interpreter"
    answer = interpreter(str(other)).ask(module, "vllm")
    assert answer["versions"]["vllm"] == "0.27.0"
    (kept,) = tmp_path.glob("asked-*.json")
    kept.write_text('"kept"')
    assert interpreter(str(other)).ask(module, "vllm") == "kept"
    assert interpreter(str(other)).ask(module, "lmcache") != "kept"
    assert interpreter(str(other)).ask("workbench.no_such_module") is None


OLD = 'test "$1" = --version && echo Python 3.8.18'


def shell(file: Path, text: str, mode: int = 0o755) -> Path:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(mode)
    return file


def test_what_is_no_interpreter_is_told_in_a_sentence(other, tmp_path):
    for path, reason in (
        ("/no/such/python", "the path of a Python interpreter, got '/no/such/python'"),
        (shell(tmp_path / "silent", "exit 0"), "the path of a Python interpreter"),
        (shell(tmp_path / "file", "", 0o644), "an interpreter that can be executed"),
        (shell(tmp_path / "old", OLD), r"an .* of Python 3.10 or newer \(Python 3.8.18\)"),
    ):
        with pytest.raises(ParameterError, match=f"engine_python must be {reason}"):
            interpreter(str(path))


def test_for_the_folder_of_an_environment_its_interpreter_is_offered(other):
    with pytest.raises(ParameterError) as refused:
        interpreter(str(other.parents[1]))
    assert str(refused.value).endswith(f"(example: -p engine_python {other})")
