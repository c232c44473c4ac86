import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.environments import environment
from workbench.errors import PlanError
from workbench.hardware.interpreter import Interpreter, interpreter
from workbench.params.engine_args import words
from workbench.serve.checks import argument_check
from workbench.serve.checks.argument_check import abilities, check_arguments
from workbench.serve.tiny_model import tiny_model
from workbench.serve.vllm import Abilities, Drafting, EngineSettings, instance_argv, program


def of(text, **roles):
    return EngineSettings(
        model=Path("/m"),
        platform="cuda",
        extra_args=words(text),
        role_args={role: words(args) for role, args in roles.items()},
    )


def with_vllm(version):
    versions = {"vllm": version} if version else {}
    return Interpreter(path="python", python="3.12", versions=versions)


@pytest.fixture
def asked(monkeypatch):
    """Each time that vLLM is asked; it knows --seed and --max-num-seqs, and is told what to say."""
    calls = []

    def ask(_, module, question):
        assert module == argument_check.__name__
        calls.append(question := json.loads(question))
        given = question["given"]
        answer = {"error": "", "wrong": "", "options": ["--seed", "--max-num-seqs"], "read": {}}
        if "--sede" in given:
            answer |= {"error": "unrecognized arguments: --sede", "wrong": "--sede"}
        if "-q" in given:
            answer |= {"error": "method: Input should be 'ngram' or 'eagle'", "wrong": "ngrams"}
        if "--max-num-seqs" in given:
            answer["error"] = "max_num_seqs (9) is larger than max_model_len (8), " + "so " * 30
        if "--spec-tokens" in given:
            answer["read"] = {"tokens": 3, "drops_block": True}
        return answer

    monkeypatch.setattr(Interpreter, "ask", ask)
    monkeypatch.setattr(EngineSettings, "interpreter", with_vllm("0.32.0"))
    return calls


def test_vllm_is_asked_what_the_instance_will_be_started_with(asked):
    check_arguments(of(""), "decode")
    assert asked == []
    check_arguments(of("--seed 3"), "decode", tp=2)
    (question,) = asked
    assert question["given"] == ["--seed", "3"]
    assert "/m" in question["own"] and "--seed" not in question["own"]
    assert question["own"][question["own"].index("--tensor-parallel-size") + 1] == "2"


def test_vllm_reads_the_arguments_of_the_role_and_says_what_they_mean(asked):
    assert check_arguments(of("", decode="--spec-tokens 3"), "prefill") == Drafting()
    read = check_arguments(of("--seed 1", decode="--spec-tokens 3"), "decode")
    assert (read.tokens, read.drops_block, read.kv_elements) == (3, True, 0)
    assert asked[-1]["given"] == ["--seed", "1", "--spec-tokens", "3"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (of("--sede 3"), "engine_args must be .* accepts: unrec.* --sede; did you mean '--seed'?"),
        (of("", decode="-q ngrams"), "engine_args and decode_args .*; did you mean 'ngram'?"),
        (
            of("--max-num-seqs 9"),
            r"seqs \(9\) is .* so \.\.\.; change --max-num-seqs or -p context_tokens \(exam",
        ),
    ],
)
def test_a_refusal_is_told_in_vllms_words_with_the_way_out(asked, settings, sentence):
    with pytest.raises(PlanError, match=sentence) as refused:
        check_arguments(settings, "decode")
    assert len(str(refused.value).split()) <= 45


def test_without_vllm_or_an_answer_nothing_is_refused(asked, monkeypatch):
    monkeypatch.setattr(Interpreter, "ask", lambda *_: None)
    assert check_arguments(of("--sede 3"), "decode") == Drafting()
    monkeypatch.setattr(EngineSettings, "interpreter", with_vllm(""))
    monkeypatch.delattr(Interpreter, "ask")
    assert check_arguments(of("--sede 3"), "decode") == Drafting()


@pytest.mark.engine
@pytest.mark.xdist_group("imports vLLM")
def test_the_real_engines_words():
    """One process: importing vLLM takes 10 s."""

    def answer(text):
        settings = EngineSettings(model=tiny_model(), platform="cpu")
        own = argument_check.instance_argv(settings, role="decode", port=1, tp=1)
        return argument_check._answer({"own": own, "given": words(text)})

    for text, error, wrong in (
        ("--max-num-batched-tokens 2048 --enable-chunked-prefill", "", ""),
        ("--block-size x", "argument --block-size: invalid int value: 'x'", ""),
        ("--no-such-flag", "unrecognized arguments: --no-such-flag", "--no-such-flag"),
        (
            "--max-num-batched-tokens 2048 --no-enable-chunked-prefill",
            "max_num_batched_tokens (2048) is smaller than max_model_len (24576)",
            "",
        ),
    ):
        said = answer(text)
        assert (said["error"], said["wrong"]) == (error, wrong)
    said = answer("""--speculative-config '{"method": "ngrams", "num_speculative_tokens": 2}'""")
    assert said["error"].startswith("method: Input should be 'ngram'") and said["wrong"] == "ngrams"
    read = answer("--spec-method ngram --spec-tokens 3")["read"]
    assert read == {"tokens": 3, "drops_block": False, "kv_elements": 0}


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
    assert (has.version, has.server, has.losses) == ("0.24.0", server, losses)
    settings = EngineSettings(model=Path("/m"), platform="cpu", abilities=has)
    line = instance_argv(settings, role="decode", port=8100, tp=1)
    assert (TIMINGS in line) is not bool(losses)
    assert program(settings)[-1] == server


def test_a_vllm_that_cannot_be_asked_is_taken_for_the_tested_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    python = environment(tmp_path / "env", vllm="0.22.1")  # without a parser, as if gguf is missing
    assert abilities(interpreter(str(python))) == Abilities()
