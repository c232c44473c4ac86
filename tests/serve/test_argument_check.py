"""vLLM itself says which arguments it accepts; its answer is kept."""

from pathlib import Path

import pytest

from tests.environments import environment
from workbench.errors import PlanError
from workbench.params.engine_args import words
from workbench.serve import argument_check
from workbench.serve.argument_check import check_arguments
from workbench.serve.tiny_model import tiny_model
from workbench.serve.vllm import Drafting, EngineSettings

PARTS = {
    "entrypoints.launchers": """
import argparse
class cli_args:
    def make_arg_parser(parser):
        print("a line of a library")
        parser.add_argument("model_tag", nargs="?")
        for name in ("model", "served-model-name", "host", "port", "max-model-len", "seed",
                     "tensor-parallel-size", "gpu-memory-utilization", "max-num-seqs", "spec"):
            parser.add_argument("--" + name)
        return parser
    def validate_parsed_serve_args(args): pass
""",
    "utils.argparse_utils": "from argparse import ArgumentParser as FlexibleArgumentParser",
    "engine.arg_utils": """
from types import SimpleNamespace as Made
class AsyncEngineArgs:
    def from_cli_args(args):
        class Engine:
            def create_engine_config(self):
                if args.model == "/broken":
                    raise ValueError("this model cannot be read")
                if args.max_num_seqs:
                    raise ValueError(
                        f"max_num_seqs (9) is larger than max_model_len ({args.max_model_len}), "
                        + "so " * 30 + ". And more."
                    )
                if args.spec in ("ngram", "eagle"):
                    drafts = Made(
                        num_speculative_tokens=3, method=args.spec,
                        use_eagle=lambda: args.spec == "eagle",
                        draft_model_config=Made(
                            get_num_layers=lambda _: 2, get_total_num_kv_heads=lambda: 4,
                            get_head_size=lambda: 8,
                        ),
                    )
                    return Made(speculative_config=drafts, parallel_config=None)
                if args.spec:
                    raise ValueError(f"'{args.spec}' is not one of 'ngram', 'eagle'")
                return Made(speculative_config=None)
        return Engine()
""",
}
"""The modules of a vLLM that knows a few arguments."""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """Another environment with that vLLM."""
    folder = tmp_path_factory.mktemp("env")
    python = environment(folder, vllm="0.27.0")
    (home,) = folder.glob("lib/python*/site-packages/vllm")
    for name, source in PARTS.items():
        file = home / f"{name.replace('.', '/')}.py"
        file.parent.mkdir()
        file.write_text(source)
    return str(python)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    return tmp_path


def of(python: str, text: str, model: str = "/m", **roles: str) -> EngineSettings:
    return EngineSettings(
        model=Path(model),
        platform="cuda",
        python=python,
        extra_args=words(text),
        role_args={role: words(args) for role, args in roles.items()},
    )


def test_vllm_is_asked_once_for_the_same_instance(python, cache):
    check_arguments(of(python, ""), "decode")
    assert not list(cache.glob("asked-*"))
    for _ in range(2):
        check_arguments(of(python, "--seed 3"), "decode")
    (kept,) = cache.glob("asked-*")
    kept.write_text('{"error": "kept", "wrong": "", "options": []}')
    with pytest.raises(PlanError, match=r"that vLLM 0.27.0 accepts: kept; leave it out"):
        check_arguments(of(python, "--seed 3"), "decode")
    check_arguments(of(python, "--seed 3"), "decode", tp=2)


def test_vllm_reads_the_arguments_of_the_role_and_says_what_they_mean(python):
    assert check_arguments(of(python, "", decode="--spec eagle"), "prefill") == Drafting()
    read = check_arguments(of(python, "--seed 1", decode="--spec eagle"), "decode")
    assert read == Drafting(tokens=3, drops_block=True, kv_elements=2 * 2 * 4 * 8)
    assert check_arguments(of(python, "--spec ngram"), "decode") == Drafting(tokens=3)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"text": "--sede 3"}, "engine_args must be .* unrec.* --sede 3; did you mean '--seed'?"),
        (
            {"text": "", "decode": "--spec ngrams"},
            "engine_args and decode_args .*: 'ngrams' is not one of 'ngram', 'eagle'",
        ),
        (
            {"text": "--max-num-seqs 9"},
            r"so so \.\.\.; change --max-num-seqs or -p context_tokens \(exam",
        ),
    ],
)
def test_a_refusal_is_told_in_vllms_words_with_the_way_out(python, given, sentence):
    with pytest.raises(PlanError, match=sentence) as refused:
        check_arguments(of(python, **given), "decode")
    assert len(str(refused.value).split()) <= 45


def test_what_fails_without_the_arguments_too_is_not_their_doing(python):
    assert check_arguments(of(python, "--seed 3", model="/broken"), "decode") == Drafting()


def test_without_vllm_nothing_is_asked(tmp_path):
    lacking = str(environment(tmp_path / "bare"))
    assert check_arguments(of(lacking, "--sede 3"), "decode") == Drafting()


@pytest.mark.engine
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
