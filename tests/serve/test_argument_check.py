"""vLLM itself says what it has and which arguments it accepts; its answers are kept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.environments import environment
from workbench.errors import PlanError
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.serve import argument_check
from workbench.serve.argument_check import abilities, check_arguments
from workbench.serve.vllm import Abilities, EngineSettings, instance_argv, program

PARSER = """
def make_arg_parser(parser):
    print("a line of a library")
    for name in {options}:
        parser.add_argument(name)
    return parser
def validate_parsed_serve_args(args): pass
"""
NEWER, OLDER = (
    ("entrypoints/launchers/cli_args", "entrypoints/launchers/api_server/entry"),
    ("entrypoints/openai/cli_args", "entrypoints/openai/api_server"),
)
"""Where the modules of parser and API server are, since 0.29 and before."""
TIMINGS = "--enable-per-request-metrics"

Made = Callable[..., Interpreter]


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes another environment with a vLLM of these modules, whose parser knows these options."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))

    def made(places: tuple[str, str], *options: str, version: str = "0.27.0") -> Interpreter:
        python = environment(tmp_path / "env", vllm=version)
        (home,) = (tmp_path / "env").glob("lib/python*/site-packages/vllm")
        parser = PARSER.format(options=("--model", *options))
        uses = "from argparse import ArgumentParser as FlexibleArgumentParser"
        sources = dict(zip(places, (parser, ""), strict=True)) | {"utils/argparse_utils": uses}
        for name, source in sources.items():
            file = home / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return interpreter(str(python))

    return made


@pytest.fixture
def engine(vllm: Made) -> Interpreter:
    """Another environment with a vLLM that knows --seed only."""
    return vllm(NEWER, "--seed")


@pytest.mark.parametrize(
    ("places", "options", "server", "losses"),
    [
        (NEWER, [TIMINGS], "vllm.entrypoints.launchers.api_server.entry", ()),
        (OLDER, [TIMINGS], "vllm.entrypoints.openai.api_server", ()),
        (OLDER, [], "vllm.entrypoints.openai.api_server",
         ("vLLM 0.24.0 has no per-request metrics (they came with 0.25)",)),
    ],
)  # fmt: skip
def test_an_older_vllm_says_what_it_has(vllm, places, options, server, losses):
    has = abilities(vllm(places, *options, version="0.24.0"))
    assert (has.server, has.losses) == (server, losses)
    settings = EngineSettings(model=Path("/m"), platform="cpu", abilities=has)
    line = instance_argv(settings, role="decode", port=8100, tp=1)
    assert (TIMINGS in line) is not bool(losses)
    assert program(settings)[-1] == server


def test_a_vllm_that_cannot_be_asked_is_taken_for_the_tested_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    python = environment(tmp_path / "env", vllm="0.22.1")  # without a parser, as if gguf is missing
    assert abilities(interpreter(str(python))) == Abilities()


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
