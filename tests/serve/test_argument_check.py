"""vLLM itself says which arguments it accepts; its answer is kept."""

from pathlib import Path

import pytest

from tests.environments import environment
from workbench.errors import PlanError
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.serve import argument_check
from workbench.serve.argument_check import check_arguments

PARSER = {
    "entrypoints.launchers": """
import argparse
class cli_args:
    def make_arg_parser(parser):
        print("a line of a library")
        parser.add_argument("--model")
        parser.add_argument("--seed", type=int)
        return parser
    def validate_parsed_serve_args(args): pass
""",
    "utils.argparse_utils": "from argparse import ArgumentParser as FlexibleArgumentParser",
}
"""The modules of a vLLM that knows --seed only."""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interpreter:
    """Another environment with that vLLM."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    python = environment(tmp_path / "env", vllm="0.27.0")
    (home,) = (tmp_path / "env").glob("lib/python*/site-packages/vllm")
    for name, source in PARSER.items():
        file = home / f"{name.replace('.', '/')}.py"
        file.parent.mkdir()
        file.write_text(source)
    return interpreter(str(python))


def test_vllm_is_asked_once_for_the_same_arguments(engine, tmp_path):
    check_arguments("engine_args", (), engine)
    assert not list(tmp_path.glob("cache/asked-*"))
    for _ in range(2):
        check_arguments("engine_args", ("--seed", "3"), engine)
    (kept,) = tmp_path.glob("cache/asked-*")
    kept.write_text('{"error": "kept", "options": []}')
    with pytest.raises(PlanError, match=r"that vLLM 0.27.0 accepts: kept$"):
        check_arguments("engine_args", ("--seed", "3"), engine)


def test_an_unknown_argument_is_told_in_vllms_words_with_the_nearest_one(engine):
    with pytest.raises(PlanError, match=r"unrecognized arguments: --sede 3; did you mean --seed"):
        check_arguments("decode_args", ("--sede", "3"), engine)


def test_without_vllm_nothing_is_asked(tmp_path):
    lacking = interpreter(str(environment(tmp_path / "bare")))
    check_arguments("engine_args", ("--sede", "3"), lacking)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--max-num-batched-tokens", "2048", "--enable-chunked-prefill"], ""),
        (["--block-size", "x"], "argument --block-size: invalid int value: 'x'"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_the_real_parser(args, error):
    assert argument_check._answer(args)["error"] == error
